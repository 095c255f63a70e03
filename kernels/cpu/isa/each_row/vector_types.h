// vector_types: the types of blocks of 256 of which the rows with vector registers have a product for one
// token that reads the blocks in place.
#pragma once
#include "kernels/formats/blocks.h"
#include <stdbool.h>

// Labels for a switch over the types: those that have none.
#define CASES_WITHOUT_VECTOR                                                                                 \
  CASES_OF_32                                                                                                \
  case TYPE_Q2_K:                                                                                            \
  case TYPE_Q3_K:                                                                                            \
  case TYPE_F32:                                                                                             \
  case TYPE_F16:                                                                                             \
  case TYPE_BF16:

static inline bool takes_vector_q8k(weight_type type) {
  switch (type) {
  case TYPE_Q4_K:
  case TYPE_Q5_K:
  case TYPE_Q6_K:
  case TYPE_IQ4_XS:
    return true;
    CASES_WITHOUT_VECTOR
    break;
  }
  return false;
}
