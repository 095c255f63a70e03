// bisect_report: what `bisect` found: console and bisect.json (docs/bisect.schema.json).
//
// Local: only the reporting rank calls it.
#pragma once
#include "src/lab/model_bisection.h"
#include "src/lab/product_bisection.h"
#include "src/lab/product_case.h"
#include "base/message_list.h"
#include <stdio.h>

enum { BISECT_SCHEMA = 1 };

typedef struct {                // one product
  const char *model;            // path of the file
  const message_list *warnings; // of the job
  const product_weights *weights;
  const char *activations; // "uniform" or a probe
  const char *arm;         // in which they were captured; NULL: they were drawn
  uint32_t seed;
  int64_t n, shown; // activations; which of them the matrix of pairs is of
  const product_bisection *found;
  const float *x; // [n][cols] the activations
} bisect_product;

typedef struct {
  const char *arm, *model, *kv, *row; // "q8k@cuda"; the file; "f16"; ISA row or device
  uint64_t digest;                    // of its logits
} bisect_side;

typedef struct {
  bisect_side a, b;
  const message_list *warnings; // of the job
  int64_t n_tokens;
  const model_bisection *found;
} bisect_model;

void bisect_print_model(FILE *out, const bisect_model *m);
status bisect_write_model(const char *dir, const bisect_model *m);

void bisect_print_product(FILE *out, const bisect_product *p);
// Writes DIR/activations.npy (float32 [n, cols]), DIR/<operation>.npy (float64 [n, rows]) of each that was
// computed, and DIR/bisect.json last, which gets its name when it is whole.
status bisect_write_product(const char *dir, const bisect_product *p);
