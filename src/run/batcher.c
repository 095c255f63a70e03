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

void batcher_close(batcher *b) {
  if (!b) return;
  free(b->token);
  free(b->of_sequence);
  free(b->at_position);
}

bool batcher_next(batcher *b, token_batch *batch) {
  int64_t n = 0;
  while (n < b->chunk && b->sequence < b->n_sequences) {
    const token_sequence *s = &b->sequences[b->sequence];
    if (b->position == s->n) {
      b->sequence++;
      b->position = 0;
      continue;
    }
    b->token[n] = s->tokens[b->position];
    b->of_sequence[n] = (int32_t)(b->number + b->sequence);
    b->at_position[n++] = (int32_t)b->position++;
  }
  *batch = (token_batch){n, b->token, b->of_sequence, b->at_position};
  return n > 0;
}
