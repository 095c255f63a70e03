// memory_plan: what a rank is going to allocate on its GPU, part by part, before any of it is allocated; and,
// where it is too much, what would fit.
//
// Independent of: CUDA. Pure: numbers in, an error's text out.
#pragma once
#include "base/status.h"
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Names of the parts, for errors.
#define PART_SHARED    "shared weights"
#define PART_EXPERTS   "local experts"
#define PART_CACHE     "KV cache"
#define PART_ATTENTION "split attention"
#define PART_WORK      "work space"
#define PART_LOGITS    "logits"
#define PART_DRIVER    "graphs and local memory"

enum { MEMORY_PARTS = 7 };

typedef struct {
  const char *name;
  uint64_t bytes;
} memory_part;

typedef struct {
  memory_part part[MEMORY_PARTS]; // in the order in which they came up
  int n;
} memory_plan;

// Adds one allocation to a part, as large as the driver makes it.
void memory_plan_add(memory_plan *p, const char *part, uint64_t bytes);
uint64_t memory_plan_total(const memory_plan *p);

typedef struct {
  const char *device; // its name in the error
  uint64_t free_bytes, total_bytes;
  int64_t context, chunk, least_chunk; // positions and tokens, as configured
  int64_t n_local, n_experts;          // experts of a layer on this rank, and of all
  // The plan for another context and chunk.
  void (*plan)(memory_plan *out, void *with, int64_t context, int64_t chunk);
  void *with;
} memory_question;

// Good when the plan fits what is free. Else the error names each part in MiB, the largest part, the largest
// run.context and the largest run.chunk that would fit, each with the other unchanged, and over how many
// ranks the experts would.
status memory_plan_check(const memory_plan *p, const memory_question *q);

#ifdef __cplusplus
}
#endif
