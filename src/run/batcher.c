#include "src/run/batcher.h"
#include "base/memory.h"
#include <stdlib.h>

status batcher_open(batcher *out, const token_sequence *sequences, int64_t n_sequences, int64_t chunk) {
  int64_t n_tokens = 0;
  for (int64_t s = 0; s < n_sequences; s++) n_tokens += sequences[s].n;
  if (chunk > n_tokens) chunk = n_tokens;
  *out = (batcher){.sequences = sequences, .n_sequences = n_sequences, .chunk = chunk};
  TRY(TAKE(&out->token, (size_t)chunk, "a batch"));
  TRY(TAKE(&out->of_sequence, (size_t)chunk, "a batch"));
  return TAKE(&out->at_position, (size_t)chunk, "a batch");
}

void batcher_close(batcher *f) {
  if (!f) return;
  free(f->token);
  free(f->of_sequence);
  free(f->at_position);
}

bool batcher_next(batcher *f, token_batch *batch) {
  int64_t n = 0;
  while (n < f->chunk && f->sequence < f->n_sequences) {
    const token_sequence *s = &f->sequences[f->sequence];
    if (f->position == s->n) {
      f->sequence++;
      f->position = 0;
      continue;
    }
    f->token[n] = s->tokens[f->position];
    f->of_sequence[n] = (int32_t)(f->number + f->sequence);
    f->at_position[n++] = (int32_t)f->position++;
  }
  *batch = (token_batch){n, f->token, f->of_sequence, f->at_position};
  return n > 0;
}
