// step_head: logits of a batch's rows and their digest, whole, or this rank's part of the vocabulary.
//
// Owns: which launches make them. Independent of: how parts cross ranks.
// Invariant: each logit is computed by one rank as every rank would compute it, so the parts joined have the
// bits of the whole.
#include "kernels/cuda/steps.cuh"

// How many of rows[count] from `from` on are neighbours: blocks of a token shard are, and small batches.
static int64_t neighbours(const int64_t *row, int64_t from, int64_t count) {
  int64_t n = 1;
  while (from + n < count && row[from + n] == row[from] + n) n++;
  return n;
}

static status norm_head(cuda_backend *b, const int64_t *row, int64_t count) {
  for (int64_t i = 0, n; i < count; i += n) {
    n = neighbours(row, i, count);
    TRY(norm_launch(rows_from(b->head_in, i), b->x + row[i] * b->shape.hidden, b->weights->output_norm,
                    (int)n, (float)b->shape.rms_epsilon, b->head_in.qs != nullptr, true, b->stream));
  }
  return phase_mark(b, PHASE_HEAD_NORM);
}

status cuda_head(backend *base, const token_batch *, const int64_t *row, int64_t count) {
  cuda_backend *b = self(base);
  float epsilon = (float)b->shape.rms_epsilon;
  TRY(phase_start(b));
  if (b->decodes && count == 1 && !b->watch.wanted) {
    TRY(decode_head_launch(b->logits, b->x + row[0] * b->shape.hidden, b->weights, epsilon, b->stream));
    return phase_mark(b, PHASE_HEAD);
  }
  TRY(norm_head(b, row, count));
  TRY(show(b, PROBE_RESULT_NORM, -1, b->head_in.x, 0, count));
  TRY(product_shared(b, b->logits, &b->weights->output, &b->head_in, (int)count));
  TRY(phase_mark(b, PHASE_HEAD));
  return show(b, PROBE_RESULT_OUTPUT, -1, b->logits, 0, count);
}

status cuda_logits_read(backend *base, int64_t count, const void **out) {
  cuda_backend *b = self(base);
  *out = b->host_logits;
  return read_device(b, b->host_logits, b->logits, (size_t)(count * b->shape.vocabulary) * sizeof(float));
}

status cuda_logits_digest(backend *base, const token_batch *, const int64_t *row, int64_t count,
                          uint64_t *sums) {
  cuda_backend *b = self(base);
  int64_t at = b->shape.n_layers, vocabulary = b->shape.vocabulary;
  b->sums_to[at] = sums;
  for (int64_t i = 0, n; i < count; i += n) {
    n = neighbours(row, i, count);
    TRY(digest_launch(b->sums + at * b->params.n_sequences, b->logits + i * vocabulary, &b->batch,
                      (int)row[i], (int)n, (int)vocabulary, 0, b->shared->tag, -1, b->stream));
  }
  return phase_mark(b, PHASE_DIGEST);
}

// ---- this rank's part ----

static output_range part_of(const cuda_backend *b, int rank) {
  return output_range_of(b->shape.vocabulary, OUTPUT_UNIT, rank, b->params.n_ranks);
}

// Of `count` rows, where a rank's lie.
static float *part_at(const cuda_backend *b, output_range part, int64_t count) {
  return b->logit_parts + count * part.first;
}

status cuda_head_part(backend *base, const token_batch *, const int64_t *row, int64_t count) {
  cuda_backend *b = self(base);
  output_range mine = part_of(b, b->params.rank);
  dev_matrix w = b->weights->output;
  w.data += (size_t)mine.first * w.row_bytes;
  w.rows = (int)mine.count;
  TRY(phase_start(b));
  TRY(norm_head(b, row, count));
  if (mine.count) TRY(product_shared(b, part_at(b, mine, count), &w, &b->head_in, (int)count));
  return phase_mark(b, PHASE_HEAD);
}

// The rows are those of the last cuda_head_part.
status cuda_logits_part_digest(backend *base, const token_batch *, const int64_t *row, int64_t count,
                               uint64_t *sums) {
  cuda_backend *b = self(base);
  int64_t at = 2 * b->shape.n_layers + 1;
  output_range mine = part_of(b, b->params.rank);
  b->sums_to[at] = sums;
  for (int64_t i = 0, n; i < count && mine.count; i += n) {
    n = neighbours(row, i, count);
    TRY(digest_launch(b->sums + at * b->params.n_sequences, part_at(b, mine, count) + i * mine.count,
                      &b->batch, (int)row[i], (int)n, (int)mine.count, mine.first, b->shared->tag, -1,
                      b->stream));
  }
  return phase_mark(b, PHASE_DIGEST);
}

status cuda_logits_join(backend *base, int64_t count) {
  cuda_backend *b = self(base);
  size_t whole = (size_t)b->shape.vocabulary * sizeof(float);
  for (int r = 0; r < b->params.n_ranks; r++) {
    output_range part = part_of(b, r);
    size_t width = (size_t)part.count * sizeof(float);
    if (width)
      CUDA_TRY(cudaMemcpy2DAsync(b->logits + part.first, whole, part_at(b, part, count), width, width,
                                 (size_t)count, cudaMemcpyDeviceToDevice, b->stream));
  }
  return 0;
}
