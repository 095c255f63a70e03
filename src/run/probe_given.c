#include "src/run/probe_given.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>

status probe_given_open(probe_given *p, const model_shape *s, uint32_t points, int64_t max_batch) {
  probe_given_close(p);
  for (int i = 0; i < PROBE_COUNT; i++) {
    const probe_info *info = probe_get((probe_point)i);
    given_store *store = &p->store[i];
    if (!(points >> i & 1)) continue;
    store->width = probe_width((probe_point)i, s);
    store->each = info->per_slot ? s->top_k : 1;
    TRY(TAKE(&store->rows, (size_t)(max_batch * store->each * store->width), info->name));
    store->room = max_batch;
  }
  return 0;
}

void probe_given_close(probe_given *p) {
  if (!p) return;
  for (int i = 0; i < PROBE_COUNT; i++) free(p->store[i].rows);
  *p = (probe_given){.points = 0};
}

void probe_given_set(probe_given *p, probe_point point, int64_t row, const double *in) {
  const given_store *s = &p->store[point];
  int64_t n = s->each * s->width;
  memcpy(s->rows + row * n, in, (size_t)n * sizeof *in);
}

void probe_given_impose(void *context, probe_point point, int64_t row, void *numbers, size_t real_bytes) {
  const given_store *s = &((const probe_given *)context)->store[point];
  const double *in = s->rows + row * s->width;
  if (real_bytes == sizeof *in)
    memcpy(numbers, in, (size_t)s->width * sizeof *in);
  else
    for (int64_t i = 0; i < s->width; i++) ((float *)numbers)[i] = (float)in[i];
}
