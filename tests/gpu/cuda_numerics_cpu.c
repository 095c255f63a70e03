// cuda_numerics_cpu: the CPU's half of tests/gpu/test_cuda_numerics.cu, by the C compiler that the program
// has.
#include "tests/gpu/cuda_numerics.h"

// Where the processor has fma as an instruction, it is taken: it is exact, so the bits are those of the
// library's.
#if defined __x86_64__
#define FAST __attribute__((target_clones("arch=haswell", "default")))
#else
#define FAST
#endif

#define DEFINE_SUM(name, count)                                                                              \
  FAST static uint64_t sum_##name(uint64_t seed, uint64_t first, uint64_t n) {                               \
    uint64_t sum = 0;                                                                                        \
    for (uint64_t i = first; i < first + n; i++)                                                             \
      sum += numeric_term(i, numeric_value(NUMERIC_##name, seed, i));                                        \
    return sum;                                                                                              \
  }
NUMERIC_CASES(DEFINE_SUM)

uint64_t numeric_sum_cpu(numeric_case which, uint64_t seed, uint64_t first, uint64_t n) {
#define SUM_FUNCTION(name, count) sum_##name,
  static uint64_t (*const FUNCTIONS[])(uint64_t, uint64_t, uint64_t) = {NUMERIC_CASES(SUM_FUNCTION)};
  return FUNCTIONS[which](seed, first, n);
}

uint64_t numeric_value_cpu(numeric_case which, uint64_t seed, uint64_t index) {
  return numeric_value(which, seed, index);
}
