// model_part: names of parts, and how a part is halved. For model_bisection.c.
#pragma once
#include "src/lab/model_bisection.h"

enum { PARTS_MOST = MODEL_STEPS + 1 };

void model_part_name(char out[PART_NAME_BYTES], const model_part *p, const model_shape *s);

// The parts that it is made of, one level down, into out[PARTS_MOST]; 0: it cannot be split.
int model_part_split(model_part *out, const model_part *p, const model_shape *s);

bool model_part_equal(const model_part *a, const model_part *b);

// Steps times layers times the share of experts: the smaller of two parts that explain the same says more.
double model_part_size(const model_part *p, const model_shape *s);
