#include "kernels/cuda/memory_plan.h"
#include <stdio.h>
#include <string.h>

// The driver gives out pages of 2 MiB; what is smaller than one shares it with its like.
static const uint64_t page = (uint64_t)2 << 20, grain = 512;

void memory_plan_add(memory_plan *p, const char *part, uint64_t bytes) {
  uint64_t unit = bytes >= page / 2 ? page : grain;
  int i = 0;
  if (!bytes) return;
  while (i < p->n && strcmp(p->part[i].name, part)) i++;
  if (i == MEMORY_PARTS) i--; // cannot be: there are as many as names
  if (i == p->n) p->part[p->n++] = (memory_part){part, 0};
  p->part[i].bytes += (bytes + unit - 1) / unit * unit;
}

uint64_t memory_plan_total(const memory_plan *p) {
  uint64_t sum = 0;
  for (int i = 0; i < p->n; i++) sum += p->part[i].bytes;
  return sum;
}

static uint64_t part_bytes(const memory_plan *p, const char *part) {
  for (int i = 0; i < p->n; i++)
    if (!strcmp(p->part[i].name, part)) return p->part[i].bytes;
  return 0;
}

static bool would_fit(const memory_question *q, int64_t context, int64_t chunk) {
  memory_plan p = {0};
  q->plan(&p, q->with, context, chunk);
  return memory_plan_total(&p) <= q->free_bytes;
}

// The largest context (or chunk) in [least, most] that fits while the other stays; 0: none. More of either
// never takes less memory.
static int64_t largest_fit(const memory_question *q, bool of_context, int64_t least, int64_t most) {
  int64_t good = least - 1;
  while (good < most) {
    int64_t middle = good + (most - good + 1) / 2;
    if (would_fit(q, of_context ? middle : q->context, of_context ? q->chunk : middle))
      good = middle;
    else
      most = middle - 1;
  }
  return good < least ? 0 : good;
}

// Ranks over which the experts would have to be spread; 0: that would not do, or not help.
static int64_t ranks_that_fit(const memory_plan *p, const memory_question *q) {
  uint64_t experts = part_bytes(p, PART_EXPERTS), others = memory_plan_total(p) - experts;
  if (!experts || others >= q->free_bytes) return 0;
  int64_t n = (int64_t)((q->free_bytes - others) / (experts / (uint64_t)q->n_local));
  return n < 1 || n >= q->n_local ? 0 : (q->n_experts + n - 1) / n;
}

static void suggest(char *out, size_t size, const memory_plan *p, const memory_question *q) {
  int64_t context = largest_fit(q, true, 1, q->context - 1);
  int64_t chunk = largest_fit(q, false, q->least_chunk, q->chunk - 1), ranks = ranks_that_fit(p, q);
  size_t used = (size_t)snprintf(out, size, "%s", context || chunk || ranks ? "; would fit: " : "");
  if (context) used += (size_t)snprintf(out + used, size - used, "run.context = %lld", (long long)context);
  if (chunk)
    used += (size_t)snprintf(out + used, size - used, "%srun.chunk = %lld", context ? ", or " : "",
                             (long long)chunk);
  if (ranks)
    snprintf(out + used, size - used, "%sthe experts over %lld ranks with a GPU each",
             context || chunk ? ", or " : "", (long long)ranks);
}

status memory_plan_check(const memory_plan *p, const memory_question *q) {
  uint64_t total = memory_plan_total(p);
  char parts[512] = "", fits[192];
  int largest = 0;
  if (total <= q->free_bytes) return 0;
  for (int i = 0; i < p->n; i++) {
    size_t used = strlen(parts);
    snprintf(parts + used, sizeof parts - used, "%s%s %llu", used ? ", " : "", p->part[i].name,
             (unsigned long long)(p->part[i].bytes >> 20));
    if (p->part[i].bytes > p->part[largest].bytes) largest = i;
  }
  suggest(fits, sizeof fits, p, q);
  return FAIL("%s: memory: expected %llu MiB (%s), found %llu of %llu MiB free; the largest is %s%s",
              q->device, (unsigned long long)(total >> 20), parts, (unsigned long long)(q->free_bytes >> 20),
              (unsigned long long)(q->total_bytes >> 20), p->n ? p->part[largest].name : "nothing", fits);
}
