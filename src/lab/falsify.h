// falsify: the ten experiments' methods, and the run of one of them.
//
// Each claims a cause for the known case's difference, as its file words it; docs/falsify.md has what was
// measured.
//
// Independent of: printing, files. Invariant: the result is that of the reporting rank, which computes what
// needs one rank; what needs the arms is computed by all.
#pragma once
#include "src/lab/experiment.h"
#include "src/run/job.h"

enum { FALSIFY_COUNT = 10 };

typedef struct {
  job *j;         // with its input open
  int64_t draws;  // over the experiments' own; 0: as they say
  int64_t tokens; // the same
} falsify_lab;

// Local. The file's inputs are those that the method of its id reads.
status falsify_check(const experiment *e);
bool falsify_runs_arms(const experiment *e); // needs whole passes, and all weights
// Collective. Measures and judges; on ranks that do not report the result has no figures. The caller closes
// it, after an error too. `e` is kept by reference.
status falsify_run(falsify_lab *lab, const experiment *e, experiment_result *out);
