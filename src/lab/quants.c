#include "src/lab/quants.h"
#include "kernels/formats/half.h"

bool quants_has_type(weight_type type) {
  const type_info *info = type_find(type);
  return info->on_q8k == ACTIVATION_Q8K && !info->few_bits;
}

static void unpack_with_minimums(quants *out, uint16_t d, uint16_t dmin, const uint8_t *scales,
                                 const uint8_t *low, const uint8_t *fifth) {
  out->width = 32;
  out->has_minimums = true;
  out->d = half_to_f32(d);
  out->dmin = half_to_f32(dmin);
  for (int j = 0; j < 8; j++) {
    int scale, min;
    block_scale_min(&scale, &min, scales, j);
    out->scale[j] = (int16_t)scale;
    out->min[j] = (int16_t)min;
  }
  for (int i = 0; i < QK_K; i++) {
    int j = i / 32, l = i % 32, bits = low[j / 2 * 32 + l] >> (j % 2 * 4) & 15;
    out->q[i] = (int8_t)(bits + (fifth ? (fifth[l] >> j & 1) * 16 : 0));
  }
}

static void unpack_q6k(quants *out, const block_q6_K *w) {
  out->width = 16;
  out->has_minimums = false;
  out->d = half_to_f32(w->d);
  out->dmin = 0;
  for (int j = 0; j < 16; j++) out->scale[j] = w->scales[j];
  for (int i = 0; i < QK_K; i++) { // half, then a group of 32 in it
    int half = i / 128, group = i % 128 / 32, l = i % 32;
    int low = w->ql[half * 64 + group % 2 * 32 + l] >> (group / 2 * 4) & 15;
    int high = w->qh[half * 32 + l] >> (group * 2) & 3;
    out->q[i] = (int8_t)((low | high << 4) - 32);
  }
}

void quants_unpack(quants *out, weight_type type, const void *row, int64_t n) {
  for (int64_t b = 0; b < n / QK_K; b++) {
    const block_q4_K *q4 = (const block_q4_K *)row + b;
    const block_q5_K *q5 = (const block_q5_K *)row + b;
    switch (type) {
    case TYPE_Q4_K:
      unpack_with_minimums(out + b, q4->d, q4->dmin, q4->scales, q4->qs, NULL);
      break;
    case TYPE_Q5_K:
      unpack_with_minimums(out + b, q5->d, q5->dmin, q5->scales, q5->qs, q5->qh);
      break;
    case TYPE_Q6_K:
      unpack_q6k(out + b, (const block_q6_K *)row + b);
      break;
      CASES_WITHOUT_Q8K
      __builtin_trap(); // quants_has_type
    }
  }
}

int32_t quants_scaled_part(const quants *w, int j, const int8_t *x) {
  int32_t sum = 0;
  for (int i = 0; i < 32; i++) sum += w->scale[(j * 32 + i) / w->width] * w->q[j * 32 + i] * x[i];
  return sum;
}

int32_t quants_scaled_sum(const quants *w, const int8_t *x) {
  int32_t sum = 0;
  for (int j = 0; j < QK_K / 32; j++) sum += quants_scaled_part(w, j, x + j * 32);
  return sum;
}

int32_t quants_minimum_sum(const quants *w, const int8_t *x) {
  int32_t sum = 0;
  for (int i = 0; i < QK_K && w->has_minimums; i++) sum += w->min[i / 32] * x[i];
  return sum;
}
