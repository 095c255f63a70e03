// trace_read: a trace as `moe_run trace` left it, or a folder of .npy files with a probe's name each, which
// another program wrote.
//
// Owns: which of the two a path is, the check of index.json, which arm has which probe of which layer.
// Independent of: the numbers, which are read probe by probe (npy_read.h).
// Invariant: what is neither is an error that names file and key.
#pragma once
#include "kernels/backend.h"

typedef struct {
  const char *name; // "q8k@cpu"; of another program's folder, the folder's name
  char *folder;     // where its files are
  bool is_plain;    // one path everywhere, which is `path`; false: a mixed job or another program
  path_kind path;
  int64_t path_version;
  uint64_t expert_paths;
  bool *has; // [n_layers + 1][PROBE_COUNT]; the last row is that of probes without a layer
} recorded_trace_arm;

typedef struct { // texts are views into `tree`
  char *given;   // the path that it was opened by
  void *tree;    // NULL: a folder of another program, of which the following two lines are not known
  const char *version, *model, *kv;
  uint64_t fingerprint, input;
  int64_t n_layers;                     // of a folder: as its files go
  int64_t n_tokens;                     // 0: not known. A folder may have tokens.npy
  int32_t *token, *sequence, *position; // [n_tokens]; NULL: not known
  double factor[PROBE_COUNT];           // its numbers are llama.cpp's times this
  recorded_trace_arm *arms;
  size_t n_arms;
  size_t other_files; // .npy of names that are no probe's
} recorded_trace;

enum { NO_LAYER = -1 };

// True: there is a trace, an arm's folder of a trace, or a folder with a probe's .npy.
bool trace_is_there(const char *path);
// After an error nothing stays open. PATH/<arm> of a trace opens with this arm alone.
status trace_read(recorded_trace *out, const char *path);
void trace_read_close(recorded_trace *t);

bool trace_has(const recorded_trace *t, const recorded_trace_arm *a, probe_point point, int64_t layer);
