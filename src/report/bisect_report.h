// bisect_report: what `bisect` found: console and bisect.json (docs/bisect.schema.json).
//
// Local: only the reporting rank calls it.
#pragma once
#include "src/lab/product_bisection.h"
#include "src/lab/product_case.h"
#include <stdio.h>

enum { BISECT_SCHEMA = 1 };

typedef struct {     // one product
  const char *model; // path of the file
  const product_weights *weights;
  const char *activations; // "uniform" or a probe
  const char *arm;         // in which they were captured; NULL: they were drawn
  uint32_t seed;
  int64_t n, shown; // activations; which of them the matrix of pairs is of
  const product_bisection *found;
} bisect_product;

void bisect_print_product(FILE *out, const bisect_product *p);
// Writes DIR/bisect.json whole or not at all.
status bisect_write_product(const char *dir, const bisect_product *p);
