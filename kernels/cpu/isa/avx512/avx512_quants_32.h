// avx512_quants_32: a block of 32 of a row and its neighbour in a register, their quants in the order of the
// elements, and what such blocks' first words say.
//
// Owns: how each type's quants are unpacked so. Independent of: activations, floats' order. Invariant:
// nothing is rounded.
#pragma once
#include "kernels/cpu/isa/avx512/avx512_panel.h"

// The types that are unpacked here, a line each: ROW(name, b), of blocks block_<b>.
#define TYPES_WITH_QUANTS_32(ROW)                                                                            \
  ROW(Q8_0, q8_0)                                                                                            \
  ROW(Q4_0, q4_0)                                                                                            \
  ROW(Q4_1, q4_1)                                                                                            \
  ROW(Q5_0, q5_0)                                                                                            \
  ROW(Q5_1, q5_1)                                                                                            \
  ROW(IQ4_NL, iq4_nl)                                                                                        \
  ROW(MXFP4, mxfp4)

static inline __m512i two_of_32(const char *first, const char *second) {
  __m512i q = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)first));
  return _mm512_inserti64x4(q, _mm256_loadu_si256((const __m256i *)(const void *)second), 1);
}

// The nibbles of 16 bytes of two blocks in the order of their elements.
static inline __m512i two_of_nibbles(const char *first, const char *second) {
  const __m512i shift = _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0);
  __m512i bytes = dup4(_mm_loadu_si128((const __m128i *)(const void *)first));
  bytes = _mm512_mask_broadcast_i32x4(bytes, 0xff00, _mm_loadu_si128((const __m128i *)(const void *)second));
  return _mm512_and_si512(_mm512_srlv_epi64(bytes, shift), _mm512_set1_epi8(15));
}

static inline __m512i two_of_fives(const char *first, const char *second, size_t high, size_t low) {
  uint32_t bits[2];
  memcpy(&bits[0], first + high, sizeof bits[0]);
  memcpy(&bits[1], second + high, sizeof bits[1]);
  __m512i q = two_of_nibbles(first + low, second + low);
  return _mm512_mask_add_epi8(q, (__mmask64)bits[1] << 32 | bits[0], q, _mm512_set1_epi8(16));
}

// What is added to a type's quants, so that they are unsigned.
static inline __attribute__((always_inline)) int quants_offset(const weight_type type) {
  return type == TYPE_Q4_0 ? 8 : type == TYPE_Q5_0 ? 16 : type == TYPE_Q4_1 || type == TYPE_Q5_1 ? 0 : 128;
}

// The quants plus quants_offset of a block and its neighbour.
static inline __attribute__((always_inline)) __m512i quants_of_two(const weight_type type, const char *first,
                                                                   const char *second) {
  switch ((int)type) {
  case TYPE_Q8_0:
    first += offsetof(block_q8_0, qs), second += offsetof(block_q8_0, qs);
    return _mm512_xor_si512(two_of_32(first, second), _mm512_set1_epi8(-128));
  case TYPE_Q4_0:
    return two_of_nibbles(first + offsetof(block_q4_0, qs), second + offsetof(block_q4_0, qs));
  case TYPE_Q4_1:
    return two_of_nibbles(first + offsetof(block_q4_1, qs), second + offsetof(block_q4_1, qs));
  case TYPE_Q5_0:
    return two_of_fives(first, second, offsetof(block_q5_0, qh), offsetof(block_q5_0, qs));
  case TYPE_Q5_1:
    return two_of_fives(first, second, offsetof(block_q5_1, qh), offsetof(block_q5_1, qs));
  case TYPE_IQ4_NL:
    return _mm512_shuffle_epi8(
        nibble_values(IQ4_VALUES_LOW, IQ4_VALUES_HIGH),
        two_of_nibbles(first + offsetof(block_iq4_nl, qs), second + offsetof(block_iq4_nl, qs)));
  case TYPE_MXFP4:
    return _mm512_shuffle_epi8(
        nibble_values(FP4_VALUES_LOW, FP4_VALUES_HIGH),
        two_of_nibbles(first + offsetof(block_mxfp4, qs), second + offsetof(block_mxfp4, qs)));
  }
  __builtin_trap(); // not one of has_quants_32
}

static inline bool has_quants_32(weight_type type) {
#define IS_TYPE(name, b) || type == TYPE_##name
  return false TYPES_WITH_QUANTS_32(IS_TYPE);
#undef IS_TYPE
}

// Of the blocks' first words: the scales.
static inline __attribute__((always_inline)) __m512 scales_of_words(const weight_type type, __m512i words) {
  if (type != TYPE_MXFP4) return halves_of_words(words);
  const __m512i e = _mm512_and_si512(words, _mm512_set1_epi32(255)); // as factors_mxfp4
  __m512i bits = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
  bits = _mm512_mask_sllv_epi32(bits, _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2)),
                                _mm512_set1_epi32(0x00200000), e);
  return _mm512_castsi512_ps(bits);
}
