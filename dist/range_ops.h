// range_ops: where named ranges of the host's time are also told to while a timeline is kept, as a row of the
// table in timeline.c: profilers. What a build cannot have (NVTX) is missing from the table.
#pragma once

typedef struct {
  const char *name; // "nvtx"
  void (*push)(const char *name);
  void (*pop)(void);
} range_ops;
