// type_counts: how many tensors have each type, as one line of text.
#pragma once
#include "kernels/formats/types.h"

enum { TYPE_COUNTS_MOST = 64 }; // more than ggml has types

typedef struct {
  const type_info *type[TYPE_COUNTS_MOST]; // in the order in which they came
  int count[TYPE_COUNTS_MOST];
  int n;
} type_counts;

void type_counts_add(type_counts *c, const type_info *type);
void type_counts_text(char *out, size_t size, const type_counts *c); // "Q4_K 12, Q6_K 3, F32 19"
