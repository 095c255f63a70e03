// step_attention: x += o(attention(norm(x))), whole or as project and attend.
//
// Owns: which launches make a step. Independent of: how the state came to be (state.cu), how rows cross
// ranks.
#include "kernels/cuda/steps.cuh"

static bool rounds(const cuda_backend *b) {
  return path_rounded_form(b->attention->kind) == ACTIVATION_Q8K && b->shape.hidden % QK_K == 0;
}

// Whether q, k and v are multiplied by the floats of the normed rows, or somebody looks at them.
static bool reads_floats(const cuda_backend *b, const dev_layer *w) {
  return !rounds(b) || !takes_q8k(b->attention, &w->q) || !takes_q8k(b->attention, &w->k) ||
         !takes_q8k(b->attention, &w->v) || probe_is_watched(&b->watch, PROBE_ATTN_NORM);
}

status cuda_project(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count) {
  cuda_backend *b = self(base);
  const model_shape *s = &b->shape;
  const dev_layer *w = &b->weights->layers[layer];
  int64_t q_width = s->n_heads * s->head_dim, kv_width = s->n_kv_heads * s->head_dim;
  float *x = b->x + first * s->hidden, epsilon = (float)s->rms_epsilon;
  int n = (int)count;
  if (b->fuses)
    return FAIL("backend cuda: a part of layer %d is asked for in a run of whole layers", (int)layer);
  if (decodes(b, rows)) {
    TRY(decode_qkv_launch(b->q, b->k, b->v, b->x, w, epsilon, b->stream));
    return phase_mark(b, PHASE_QKV);
  }
  dev_inputs normed = rows_from(b->normed, first);
  TRY(norm_launch(rounded_for(normed, b->attention), x, w->attn_norm, n, epsilon, rounds(b),
                  reads_floats(b, w), b->stream));
  TRY(phase_mark(b, PHASE_ATTN_NORM));
  TRY(show(b, PROBE_ATTN_NORM, layer, normed.x, first, count));
  product_set qkv = {{shared_product(b->q + first * q_width, &w->q, &normed, n),
                      shared_product(b->k + first * kv_width, &w->k, &normed, n),
                      shared_product(b->v + first * kv_width, &w->v, &normed, n)},
                     {0},
                     3};
  TRY(multiply(b, b->attention, &qkv));
  return phase_mark(b, PHASE_QKV);
}

static bool attends_in_integers(const cuda_backend *b) {
  switch (b->shared->attention) {
  case ATTENTION_EXACT:
    return true;
  case ATTENTION_RUN_KV:
  case ATTENTION_REALS:
    break;
  }
  return false;
}

// Whether there is a launch for one token of each of n sequences.
static bool holds_tokens(const cuda_backend *b, int n) {
  if (n > APART_TOKENS) return false;
  return attends_in_integers(b) ? decode_attends_exact(&b->exact, &b->shape, n, b->max_keys)
                                : decode_attends(&b->work, &b->shape, n, b->max_keys);
}

// One token of each of several sequences, no probe watched: the whole step in one launch.
static bool attends_tokens(const cuda_backend *b, int n) {
  return n == b->batch.n && !is_observed(b) && b->distinct && holds_tokens(b, n);
}

// Where the heads of a batch's row lie.
struct head_rows {
  float *q, *k, *v, *attended;
};

static head_rows heads_from(const cuda_backend *b, int64_t first) {
  const model_shape *s = &b->shape;
  size_t q = (size_t)(first * s->n_heads * s->head_dim), kv = (size_t)(first * s->n_kv_heads * s->head_dim);
  return {b->q + q, b->k + kv, b->v + kv, b->attended.x + q};
}

// Of n tokens from `first` on.
static status attend_tokens(cuda_backend *b, int64_t layer, int first, int n, bool early) {
  const dev_layer *w = &b->weights->layers[layer];
  head_rows h = heads_from(b, first);
  dev_batch tokens = batch_from(b->batch, first, n);
  if (attends_in_integers(b))
    return decode_exact_launch(h.attended, h.q, h.k, h.v, w, &b->shape, b->rope, b->limbs, (int)layer,
                               &tokens, b->max_keys, &b->exact, early, b->stream);
  return decode_attention_launch(h.attended, h.q, h.k, h.v, w, &b->shape, b->rope, b->cache, (int)layer,
                                 &tokens, b->max_keys, &b->work, b->arrived, early, b->stream);
}

// Norm, RoPE and the cache for n tokens from `first` on alone: keys and values, and with `queries` these as
// well.
static status prepare_apart(cuda_backend *b, int64_t layer, int first, int n, bool queries) {
  const dev_layer *w = &b->weights->layers[layer];
  head_rows h = heads_from(b, first);
  dev_batch tokens = batch_from(b->batch, first, n);
  if (attends_in_integers(b))
    return exact_heads_launch(&b->exact, b->limbs, h.q, h.k, h.v, w, &b->shape, b->rope, (int)layer, &tokens,
                              0, queries ? n : 0, false, nullptr, nullptr, b->stream);
  return heads_launch(h.q, h.k, h.v, w, &b->shape, b->rope, b->cache, (int)layer, &tokens, 0, queries ? n : 0,
                      false, nullptr, b->stream);
}

// Norm and RoPE of the heads, unless they are `rotated` already; keys and values of the whole batch into the
// cache.
static status prepare_heads(cuda_backend *b, int64_t layer, int first, int n, bool rotated) {
  const dev_layer *w = &b->weights->layers[layer];
  // in place: rotated, and not rounded as in the cache
  float *queries = is_observed(b) ? b->q : nullptr, *keys = is_observed(b) ? b->k : nullptr;
  if (attends_in_integers(b))
    return exact_heads_launch(&b->exact, b->limbs, b->q, b->k, b->v, w, &b->shape, b->rope, (int)layer,
                              &b->batch, first, n, rotated, queries, keys, b->stream);
  return heads_launch(b->q, b->k, b->v, w, &b->shape, b->rope, b->cache, (int)layer, &b->batch, first, n,
                      rotated, keys, b->stream);
}

// Queries, keys and values from outside, and these into the cache in place of those that lie there.
static status impose_heads(cuda_backend *b, int64_t layer, int first, int n) {
  const uint32_t heads = 1u << PROBE_QCUR | 1u << PROBE_KCUR | 1u << PROBE_VCUR;
  if (!(b->watch.imposed & heads)) return 0;
  TRY(impose(b, PROBE_QCUR, b->q + (size_t)(first * b->shape.n_heads * b->shape.head_dim), first, n));
  TRY(impose(b, PROBE_KCUR, b->k, 0, b->batch.n));
  TRY(impose(b, PROBE_VCUR, b->v, 0, b->batch.n));
  return prepare_heads(b, layer, first, n, true);
}

static status attend_queries(cuda_backend *b, int64_t layer, int first, int n) {
  const model_shape *s = &b->shape;
  size_t at = (size_t)(first * s->n_heads * s->head_dim);
  dev_batch queries = batch_from(b->batch, first, n);
  if (attends_in_integers(b))
    return exact_attention_launch(b->attended.x + at, &b->exact, b->limbs, (int)layer, &queries, b->stream);
  return attention_launch(b->attended.x + at, b->q + at, b->cache, (int)layer, &queries, (int)s->n_heads,
                          b->max_keys, &b->work, b->stream);
}

static status attend_heads(cuda_backend *b, int64_t layer, int first, int n, bool early) {
  const model_shape *s = &b->shape;
  size_t at = (size_t)(first * s->n_heads * s->head_dim),
         kv_at = (size_t)(first * s->n_kv_heads * s->head_dim);
  if (attends_tokens(b, n)) return attend_tokens(b, layer, 0, n, early);
  TRY(prepare_heads(b, layer, first, n, false));
  TRY(phase_mark(b, PHASE_HEADS));
  TRY(impose_heads(b, layer, first, n));
  TRY(show(b, PROBE_QCUR, layer, b->q + at, first, n));
  TRY(show(b, PROBE_KCUR, layer, b->k + kv_at, first, n));
  TRY(show(b, PROBE_VCUR, layer, b->v + kv_at, first, n));
  TRY(attend_queries(b, layer, first, n));
  TRY(impose(b, PROBE_KQV_OUT, b->attended.x + at, first, n));
  return show(b, PROBE_KQV_OUT, layer, b->attended.x + at, first, n);
}

// x += o(attended) of n rows from `first` on; one: of a single token, by its own launch.
static status add_output(cuda_backend *b, int64_t layer, int64_t first, int n, bool one) {
  const dev_layer *w = &b->weights->layers[layer];
  dev_inputs attended = rows_from(b->attended, first);
  if (attended.qs && !one) TRY(round_launch(attended, n, b->stream));
  TRY(phase_mark(b, PHASE_ATTEND));
  float *x = b->x + first * b->shape.hidden;
  product_set output = {{shared_product(x, &w->o, &attended, n)}, {0}, 1};
  output.p[0].adds = true;
  if (one)
    TRY(decode_output_launch(b->x, b->attended.x, w, b->stream));
  else
    TRY(multiply(b, b->attention, &output));
  return phase_mark(b, PHASE_O);
}

status cuda_attend(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count) {
  cuda_backend *b = self(base);
  bool one = decodes(b, rows);
  float *x = b->x + first * b->shape.hidden;
  TRY(mark_exchange(b));
  TRY(attend_heads(b, layer, (int)first, (int)count, one));
  TRY(add_output(b, layer, first, (int)count, one));
  if (one) return 0;
  TRY(impose(b, PROBE_FFN_INP, x, first, count));
  return show(b, PROBE_FFN_INP, layer, x, first, count);
}

status cuda_attend_apart(backend *base, int64_t layer, const token_batch *, int64_t first, int64_t count) {
  cuda_backend *b = self(base);
  int n = (int)count;
  if (holds_tokens(b, n)) {
    TRY(attend_tokens(b, layer, (int)first, n, false));
  } else {
    TRY(prepare_apart(b, layer, (int)first, n, true));
    TRY(phase_mark(b, PHASE_HEADS));
    TRY(attend_queries(b, layer, (int)first, n));
  }
  return add_output(b, layer, first, n, false);
}

// In one launch, which writes those of its own rows again, to the same bits: nobody reads them now.
status cuda_cache_others(backend *base, int64_t layer, const token_batch *rows, int64_t, int64_t) {
  cuda_backend *b = self(base);
  TRY(mark_exchange(b));
  TRY(prepare_apart(b, layer, 0, (int)rows->n, false));
  return phase_mark(b, PHASE_HEADS);
}

status cuda_attention(backend *base, int64_t layer, const token_batch *rows) {
  if (self(base)->fuses) return 0; // the last layer's moe
  TRY(cuda_project(base, layer, rows, 0, rows->n));
  return cuda_attend(base, layer, rows, 0, rows->n);
}
