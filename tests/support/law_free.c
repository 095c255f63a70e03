// The same kernels without the chains: each term is computed, and added to nothing that was computed before.
// No order of the sums can take less than none, so what this saves is at least what the law costs. Its sums
// are wrong.
#include <immintrin.h>
#include <math.h>

static inline __attribute__((always_inline)) __m512 add_to_nothing(__m512 a, __m512 b) {
  __m512 term = _mm512_fmadd_ps(a, b, _mm512_setzero_ps());
  __asm__ volatile("" ::"v"(term)); // it is computed
  return term;
}

static inline __attribute__((always_inline)) float add_one_to_nothing(float a, float b) {
  float term = a * b;
  __asm__ volatile("" ::"v"(term));
  return term;
}

#define _mm512_fmadd_ps(a, b, sum) ((void)(sum), add_to_nothing(a, b))
#define fmaf(a, b, sum)            ((void)(sum), add_one_to_nothing(a, b))
#define product_q8k_avx512         law_product_free
#include "kernels/cpu/isa/avx512/avx512_q8k.h"
#include "tests/support/law_kernels.h"

const law_kernels law_free = {vector_q8k_avx512, product_q8k_avx512};
