// draws: figures over many seeds, and where a number stands among them.
//
// Draw 0 is of the known seeds themselves; the seeds of the others follow from them (product_draw_seed).
// Invariant: a draw's figures depend on its number alone, not on threads.
#pragma once
#include "base/status.h"
#include <stddef.h>
#include <stdint.h>

// Figures of draw number `draw`; called by several threads at a time.
typedef status (*draw_function)(double *figures, const void *context, int64_t draw);

// Local. out[n_figures][n]: figure i of draw d at out[i * n + d].
status draws_run(double *out, int64_t n_figures, int64_t n, int threads, draw_function draw,
                 const void *context);

// x[n], n >= 1, no NaN: the value at quantile q in [0, 1], between neighbours by their distance; sorts x.
double draws_at(double *x, size_t n, double q);
// The share of x[n] below `value`, with half of those equal to it.
double draws_quantile(const double *x, size_t n, double value);
