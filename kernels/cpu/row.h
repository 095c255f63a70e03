// row: an ISA row is one instruction set's kernels of the cpu backend: a folder isa/<row>/ and a name in
// CPU_ROWS (CMakeLists.txt), which makes the table of rows.c.
//
// Owns: the interface between the steps and the arithmetic.
// Invariant: every ISA row gives the bits of row_portable.c, which is docs/paths.md in C.
//
// Where to find what:
//   steps.c            with the files step_*.c the steps of backend.h as phases; products.c cuts
//                      their products into tasks; state.c: what an arm allocates
//   isa/each_row/      docs/paths.md in portable C. Compiled once for each ISA row, for its instruction set;
//                      a row takes from here whatever it does not do better. generic_real.h is written once
//                      for float and double, generic.h is the rest
//   isa/<row>/         row_<row>.c: when it is usable, and its table of kernels. Its headers hold one kind of
//                      product each: <row>_f32.h with real activations, <row>_q8k.h with ones rounded to
//                      Q8_K, <row>_blocks_32.h to Q8_0, <row>_vector.h of one token
//   isa/avx512/        what the ISA rows avx512_vnni and amx_int8 share. _panel.h: rows of a matrix unpacked,
//                      a row to a lane; _vector.h, _stream.h, _vector_32.h: one token; _float.h: the steps
//                      between products
//   ../formats/        each_row/dequantize.h: weights of any type as floats, compiled for each ISA row too
//
// A kernel's name says what it computes and on what: product_q8k_avx2 is rows times Q8_K activations on AVX2.
#pragma once
#include "kernels/backend.h"
#include "kernels/cpu/exact.h"
#include "kernels/formats/blocks.h"
#include <stdbool.h>

enum {
  ATTEND_TOKENS = 16, // tokens and query heads of the largest span
  ATTEND_HEADS = 8,
  ROW_TILE = 32,      // rows of a matrix that a thread takes at a time
  TOKEN_TILE = 256,   // tokens to which it puts them
  PACKED_TOKENS = 16, // of a group of packed_ops
  PACKED_CHUNK = 128, // tokens for which its product unpacks weights at a time
  LEAST_PACKED = 12,  // tokens of a product that reads them: docs/measurements.md, "AMX beside VNNI"
};

typedef enum { KV_HALF, KV_REAL } kv_storage;

// A cache of one (layer, sequence, key/value head). Keys lie [chunk][head_dim][ATTENTION_CHUNK], so that a
// score's sum over head_dim is one chain a key and neighbouring keys are neighbours; values lie
// [position][head_dim].
typedef struct {
  void *keys, *values;
  kv_storage storage; // f16, or the path's real
} kv_head;

// Neighbouring query heads of n tokens, all of which read one cache.
typedef struct {
  void *const *out;      // [n] to [heads][head_dim]
  const void *const *q;  // [n] to [heads][head_dim]
  const int64_t *n_keys; // [n]: token t sees the keys 0 .. n_keys[t] - 1
  int64_t n, heads;
  kv_head kv;
} attention_span;

// The operations of one real type: float for f32 and q8k, double for f64. `void` is that type.
typedef struct {
  size_t bytes;
  void (*embed)(void *x, const matrix *embedding, int64_t token, float *scratch);
  void (*rms_norm)(void *out, const void *x, const float *weight, int64_t n, double epsilon);
  // x[2 * pairs] rotated by table[pairs][2] = (cos, sin), element i with element i + pairs, then times scale.
  void (*rope)(void *x, const void *table, int64_t pairs, double scale);
  void (*rope_table)(void *table, double base, int64_t position, int64_t pairs);
  void (*kv_store)(kv_head *kv, int64_t position, const void *k, const void *v, int64_t head_dim);
  // out[head_dim] over keys 0 .. n_keys - 1; scratch: attention_scratch_reals reals
  void (*attend)(void *out, const void *q, const kv_head *kv, int64_t n_keys, int64_t head_dim,
                 void *scratch);
  // attend for each head of a span; NULL: the ISA row has no better way
  void (*attend_span)(const attention_span *span, int64_t head_dim, void *scratch);
  // Top k of logits[n] in slot order into expert and weight (reals), and the margin.
  void (*route)(expert_global *expert, void *weight, double *margin, void *logits, int64_t n, int64_t k);
  void (*swiglu)(void *gate, const void *up, int64_t n); // gate = silu(gate) * up
  void (*add)(void *x, const void *y, int64_t n);
  void (*combine)(void *x, const void *const *slot, const void *weight, int64_t k, int64_t n);
  // out[t][i] = sum of row i of `rows` times x[t], for n_tokens tokens; scratch: cols floats
  void (*product)(void *const *out, const matrix *rows, const void *const *x, int64_t n_tokens,
                  float *scratch);
  // product of at most ROW_TILE rows and TOKEN_TILE tokens; scratch: product_scratch_floats; NULL: as
  // attend_span
  void (*product_tile)(void *const *out, const matrix *rows, const void *const *x, int64_t n_tokens,
                       float *scratch);
  // product_q8k or product_q8_0 of one token and at most ROW_TILE rows, which memory bandwidth bounds:
  // prefetches the first of the rows at `ahead`, which the thread reads next, or NULL. Only of floats and of
  // the types that vector_takes says; both NULL: as attend_span
  bool (*vector_takes)(weight_type type);
  void (*vector_rounded)(float *out, const matrix *rows, const block_q8_K *x, const void *ahead);
} real_ops;

static inline int64_t attention_scratch_reals(int64_t head_dim) {
  return 2 * ATTENTION_CHUNK * head_dim + ATTEND_HEADS * (ATTENTION_CHUNK + head_dim) +
         2 * ATTEND_TOKENS * ATTEND_HEADS;
}

// For the weights of a tile of rows as floats.
static inline int64_t product_scratch_floats(int64_t cols) {
  return ROW_TILE * cols;
}

// A row of rounded activations: its blocks of Q8_K from the pointer on, where its width is a multiple of 256
// and a weight reads them; before the pointer, so that neither place depends on the other, its blocks of 32,
// where a weight reads those; and on a path that splits, after Q8_K, its outliers.
static inline const block_q8_32 *blocks_32_of(const block_q8_K *row, int64_t cols) {
  return (const block_q8_32 *)(const void *)row - cols / QK_32;
}

typedef struct {
  int32_t at; // place in the row
  float x;
} outlier;

typedef struct {
  int32_t count;
  outlier of[]; // ascending; room for MOST_OUTLIERS a block
} row_outliers;

static inline size_t split_row_bytes(int64_t n_blocks) {
  return (size_t)n_blocks * (sizeof(block_q8_K) + MOST_OUTLIERS * sizeof(outlier)) + sizeof(row_outliers);
}

static inline const row_outliers *outliers_of(const block_q8_K *row, int64_t n_blocks) {
  return (const row_outliers *)(const void *)(row + n_blocks);
}

// Products of many tokens whose rounded rows are first packed, once for all matrices and tiles of rows that
// read them: groups of PACKED_TOKENS tokens, the last with fewer, one after the other.
typedef struct {
  int64_t block; // columns: QK_K, as product_q8k, or QK_32, as product_q8_0
  bool (*takes)(weight_type type);
  size_t (*group_bytes)(int64_t cols); // of a group, a multiple of 64
  // Block `block` of n tokens' rows of `cols` columns, 1 to PACKED_TOKENS, into its place in the group.
  void (*pack)(void *group, const block_q8_K *const *tokens, int64_t cols, int64_t n, int64_t block);
  // packed: the groups of the n tokens
  void (*product)(float *const *out, const matrix *rows, const void *packed, int64_t n_tokens);
} packed_ops;

extern const backend_ops cpu_backend_ops; // steps.c

typedef struct {
  const char *name;
  bool (*usable)(void); // on this machine
  const real_ops *f32, *f64;
  const exact_ops *exact;
  void (*quantize_q8k)(block_q8_K *out, const float *x, int64_t n);
  // As product, of K-quant rows with rounded activations.
  void (*product_q8k)(float *const *out, const matrix *rows, const block_q8_K *const *x, int64_t n_tokens);
  const packed_ops *packed; // the same with packed tokens; NULL: the row has no better way
  // quantize_q8k of what is left without the outliers, which follow: out is of split_row_bytes
  void (*split_q8k)(block_q8_K *out, const float *x, int64_t n);
  // out[t][i] += the sum of the outliers' terms, after product_q8k of such rows
  void (*add_outliers)(float *const *out, const matrix *rows, const block_q8_K *const *x, int64_t n_tokens);
  // product_q8k of rows of a type of few bits in blocks of 256 (UNPACKED in blocks.h)
  void (*product_unpacked)(float *const *out, const matrix *rows, const block_q8_K *const *x,
                           int64_t n_tokens);
  // Blocks of 32: out is of n / QK_32 blocks; outliers: NULL, or where those of x go, which are then not in
  // what is rounded
  void (*round_q8_0)(block_q8_32 *out, row_outliers *outliers, const float *x, int64_t n);
  // product_q8k of rows of a type in blocks of 32: x are rows, of which it reads blocks_32_of
  void (*product_q8_0)(float *const *out, const matrix *rows, const block_q8_K *const *x, int64_t n_tokens);
  const packed_ops *packed_32; // the same with packed tokens; NULL: as packed
  // add_outliers of rows of blocks of 32, or of few bits
  void (*add_outliers_few_bits)(float *const *out, const matrix *rows, const block_q8_K *const *x,
                                int64_t n_tokens);
  // `rounds` of the row's products of bytes in registers alone, as many at once as keep its units busy;
  // returns the operations. For bench.phases. NULL: the row has no instruction for them.
  double (*int8_peak)(int64_t rounds);
} cpu_row;

const cpu_row *const *cpu_row_table(void);     // NULL-terminated, best first
const cpu_row *cpu_row_find(const char *name); // "auto": the best usable; NULL: none such, or not usable here
