// vectors: the steps between the products (vectors.cu), a launch each.
#pragma once
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/weights.cuh"

status embed_launch(float *x, const dev_matrix *embedding, const dev_batch *b, cudaStream_t stream);
// out = rms_norm(x) * weight: rounded to Q8_K when `round`, as floats when `floats`. Rounding takes out
// outliers, and keeps what is left over, where there is a place for them (dev_inputs).
status norm_launch(dev_inputs out, const float *x, const float *weight, int n, float epsilon, bool round,
                   bool floats, cudaStream_t stream);
status round_launch(dev_inputs io, int n, cudaStream_t stream);
// gate = silu(gate) * up: rounded, and as floats where they are read
status swiglu_launch(dev_inputs gate, const float *up, const int *member, int n, bool round, bool floats,
                     cudaStream_t stream);
// Caches keys and values of the whole batch; RoPE of the queries of n tokens from `first` on. keys: where the
// rotated keys go as well, [batch][n_kv_heads][head_dim], or NULL. rotated: norm and RoPE have been taken
// already.
status heads_launch(float *q, float *k, const float *v, const dev_layer *w, const model_shape *s,
                    const float *rope, kv_cache cache, int layer, const dev_batch *b, int first, int n,
                    bool rotated, float *keys, cudaStream_t stream);
// x += the slots' sum; the new rows' digest as layer `layer` is added to sums[sequence].
status combine_launch(float *x, const float *slots, const float *weight, const int64_t *place,
                      const dev_batch *b, int k, int hidden, unsigned long long *sums, uint64_t tag,
                      int layer, cudaStream_t stream);
// Digests rows[n][width] of the tokens from `first` on, which are the elements from first_element on of
// theirs.
status digest_launch(unsigned long long *sums, const float *rows, const dev_batch *b, int first, int n,
                     int width, int64_t first_element, uint64_t tag, int64_t layer, cudaStream_t stream);
