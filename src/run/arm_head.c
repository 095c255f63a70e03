// arm_head: logits of a batch's tokens and their digest, by each rank whole or in parts.
#include "src/run/arm_struct.h"
#include "base/clock.h"
#include "dist/timeline.h"

static status digest_logits(arm *a, const int64_t *row, int64_t count) {
  backend *b = a->forward.compute;
  span_start(SPAN_DIGEST, SPAN_NO_LAYER);
  status result = b->ops->logits_digest(b, &a->forward.batch.rows, row, count, a->digests.logits);
  span_end(SPAN_NO_AMOUNT);
  return result;
}

// Each rank digests its own part.
static status head_sharded(arm *a, const int64_t *row, int64_t count) {
  backend *b = a->forward.compute;
  double start = clock_seconds();
  TRY(forward_head_part(&a->forward, row, count, a->keeps_logits));
  if (a->keeps_logits) TRY(b->ops->logits_read(b, count, &a->logits));
  a->seconds += clock_seconds() - start;
  span_start(SPAN_DIGEST, SPAN_NO_LAYER);
  status result = b->ops->logits_part_digest(b, &a->forward.batch.rows, row, count, a->digests.part);
  span_end(SPAN_NO_AMOUNT);
  // Devices have the sums when they have finished: those of heads that stay there are added by arm_add_parts.
  // Ranks that divide outputs have none.
  if (result || (a->forward.outputs.by_tokens && !a->keeps_logits)) return result;
  TRY(arm_finish(a));
  return digest_sums_add_part(&a->digests, a->params.c);
}

static status head_whole(arm *a, const int64_t *row, int64_t count) {
  backend *b = a->forward.compute;
  double start = clock_seconds();
  TRY(forward_head(&a->forward, row, count));
  if (a->keeps_logits) TRY(b->ops->logits_read(b, count, &a->logits));
  a->seconds += clock_seconds() - start;
  return digest_logits(a, row, count);
}

static status head_rows(arm *a, const int64_t *row, int64_t count) {
  output_shards *o = &a->forward.outputs;
  bool sharded = forward_divides(&a->forward, OUTPUTS_OF_HEAD, count);
  bool timed = !a->forward.is_probed && output_shards_are_timed(o, OUTPUTS_OF_HEAD, count);
  if (timed) TRY(arm_finish(a)); // a device may still be in the layers
  double start = clock_seconds();
  TRY(sharded ? head_sharded(a, row, count) : head_whole(a, row, count));
  if (!timed) return 0;
  TRY(arm_finish(a));
  return output_shards_note(o, OUTPUTS_OF_HEAD, count, clock_seconds() - start);
}

status arm_head(arm *a, int64_t first, int64_t count) {
  int64_t row[LOGIT_ROWS];
  timeline_label(a->params.name);
  a->n_head_rows = count;
  probe_rows_clear(&a->probes, arm_points_of(a, PROBE_OF_HEAD));
  if (!a->forward.is_shared) return 0;
  for (int64_t i = 0; i < count; i++) row[i] = token_shards_row(&a->forward.shards, first + i);
  TRY(head_rows(a, row, count));
  return a->keeps_logits ? arm_finish(a) : 0;
}
