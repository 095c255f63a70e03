// report_file: removes what an earlier run left in the folder of a report. For the report's writers alone.
#pragma once
#include "base/status.h"
#include <stddef.h>

// Removes DIR/report.json of an earlier run: called before the first file of a new report takes its name, so
// that a report.json never stands beside files of another run.
status report_file_retract(const char *dir);
// The same of another file that is written last, by its name in the folder.
status report_file_retract_name(const char *dir, const char *name);
// Removes what an earlier run may have left and this run has not written: logits.<arm>.npy, routes.<arm>.npy,
// routes.npy, the same of route_weights, placement.npy, timeline.json, modes.csv and experts.csv, but for the
// `n_kept` files of these names. Called after report_file_retract, so that the new report.json does not stand
// beside them.
status report_file_sweep(const char *dir, const char *const *kept, size_t n_kept);
