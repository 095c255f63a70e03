// trace_files: the .npy files of a trace, DIR/<arm>/<probe>-<layer>.npy.
//
// Independent of how the numbers came about. Only the reporting rank has them.
// Invariant: a file of a trace has its name only when all of them are whole and on the disk, and then no file
// of an earlier trace stands in DIR.
//
// All files of all arms grow at once, 771 for each arm of a model with 48 layers, which may be more than a
// process can open: so each is closed again after a batch's rows. Three calls of the system for a file and a
// batch are nothing beside the batch.
#pragma once
#include "kernels/backend.h"
#include "src/report/npy.h"

typedef struct {
  char name[64]; // "l_out-7.npy"
  probe_point point;
  int64_t layer; // -1: has none
  npy_type type;
  int n_dims;
  int64_t size[NPY_ROW_DIMS + 1]; // with the tokens first, which are counted as they come
  npy *file;                      // NULL: named or never opened
} trace_file;

typedef struct {
  const char *name; // of the arm, and of its folder
  char *dir;
  npy_type reals;
  size_t n_files;
  trace_file *files;
} trace_arm;

typedef struct {
  const char *dir;
  const model_shape *shape;
  uint32_t points;    // bits 1 << probe_point
  const bool *layers; // [n_layers] that are traced
  size_t n_arms;
  trace_arm *arms;
  char *numbers; // of one append, as the file has them
  size_t numbers_bytes;
} trace_files;

// All that is given is kept by reference. max_rows: most tokens in an append. After an error as well,
// trace_files_close releases what there is, and removes the files that have no name yet.
status trace_files_open(trace_files *out, const char *dir, const model_shape *shape, uint32_t points,
                        const bool *layers, size_t n_arms, int64_t max_rows);
void trace_files_close(trace_files *t);

// The files of the arm `index`, of no rows. is_f64: its reals are doubles.
status trace_files_add(trace_files *t, size_t index, const char *arm_name, bool is_f64);
// Numbers of n tokens, exact in the file's type. layer: -1 for a probe without.
status trace_files_append(trace_files *t, size_t index, probe_point point, int64_t layer,
                          const double *numbers, int64_t n_tokens);

status trace_files_complete(trace_files *t); // all but the names
// Of complete ones. The trace that was in DIR goes first, its index.json before all.
status trace_files_name(trace_files *t);
