// The exchange over every pair of ranks, of rows whose bits follow from the pair and the round.
#include "src/lab/screen_parts.h"
#include "base/memory.h"
#include "kernels/formats/numerics.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROW_BYTES = 4096, ROWS = 64 };              // of a part
static const size_t MOST_BYTES = (size_t)64 << 20; // of all parts

static uint64_t seed_of(int64_t round, int from, int to) {
  return num_mix64(num_mix64((uint64_t)round) + ((uint64_t)(unsigned)from << 32) + (unsigned)to);
}

static void fill(char *out, size_t bytes, uint64_t seed) {
  for (size_t i = 0; i < bytes; i += sizeof seed) {
    uint64_t word = num_mix64(seed + i);
    memcpy(out + i, &word, sizeof word);
  }
}

static void check(screen *s, const char *in, int from, uint64_t seed) {
  screen_links *l = &s->links;
  screen_finding f = {.place = AT_LINK, .from = from};
  char row[ROW_BYTES];
  for (size_t at = 0; at < l->bytes; at += ROW_BYTES) {
    fill(row, ROW_BYTES, seed + at);
    if (!memcmp(row, in + at, ROW_BYTES)) continue;
    if (!f.rows++) snprintf(f.step, sizeof f.step, "row %zu of %zu", at / ROW_BYTES, l->bytes / ROW_BYTES);
    f.bits += screen_count_bits(row, in + at, ROW_BYTES);
    for (size_t i = 0; i < ROW_BYTES; i += 4) f.values += memcmp(row + i, in + at + i, 4) != 0;
  }
  s->mine.link_bytes += l->bytes;
  if (!f.rows) return;
  snprintf(f.arm, sizeof f.arm, "%s", transport_name(l->t));
  snprintf(f.work, sizeof f.work, "exchange");
  screen_add(s, &f);
}

status screen_links_open(screen *s) {
  screen_links *l = &s->links;
  job *j = s->j;
  size_t size = (size_t)comm_size(j->c), rows = MOST_BYTES / size / ROW_BYTES;
  bool on_device = false;
  if (size == 1) return 0;
  for (int32_t i = 0; i < s->mine.n_units; i++) on_device = on_device || s->mine.unit[i].on_device;
  l->bytes = (rows < 1 ? 1 : rows > ROWS ? ROWS : rows) * ROW_BYTES;
  status mine = memory_take((void **)&l->buffer, size, l->bytes, "the rows of screen");
  if (!mine) mine = TAKE(&l->part, size * size, "the rows of screen");
  TRY(job_agree(j, mine, "the exchange of screen"));
  TRY(transport_choose(&l->t, j->c, j->cfg->comm.transport, &j->device, on_device));
  return transport_start(l->t, size * l->bytes);
}

void screen_links_close(screen_links *l) {
  transport_close(l->t);
  free(l->buffer);
  free(l->part);
}

// One transfer for each distance d: every rank sends to the d-th after it, all at the same time.
status screen_links_run(screen *s, int64_t round) {
  screen_links *l = &s->links;
  int size = comm_size(s->j->c), rank = comm_rank(s->j->c);
  for (int d = 1; d < size; d++) {
    int to = (rank + d) % size, from = (rank + size - d) % size;
    memset(l->part, 0, (size_t)size * (size_t)size * sizeof *l->part);
    for (int q = 0; q < size; q++)
      l->part[q * size + (q + d) % size] = (comm_part){(size_t)q * l->bytes, l->bytes};
    fill(l->buffer + (size_t)rank * l->bytes, l->bytes, seed_of(round, rank, to));
    TRY(transport_transfer(l->t, l->buffer, NULL, l->part, "the exchange of screen"));
    check(s, l->buffer + (size_t)from * l->bytes, from, seed_of(round, from, rank));
  }
  return 0;
}
