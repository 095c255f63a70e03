// product_form: what a path's product with a type of weights reads.
//
// Owns: the one answer to "rounded or not", for every backend. Independent of: how a product is computed.
#pragma once
#include "kernels/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

// The form in which the product of weights of `type` on the path reads its activations.
activation_form product_form(path_kind path, weight_type type);

// Whether a product with some weight of the model reads this form on a path that rounds.
bool model_reads(const model_weights *weights, activation_form form);

// The form to which the path rounds activations for products with K-quants; ACTIVATION_REAL: it does not
// round.
activation_form path_rounded_form(path_kind path);

// Whether the path takes the outliers of a block out before it rounds the rest, and adds their terms to the
// product.
bool path_splits_outliers(path_kind path);

#ifdef __cplusplus
}
#endif
