// report_file: removes what an earlier run left in the folder of a report. For the report's writers alone.
#pragma once
#include "base/status.h"
#include <stddef.h>

// Removes DIR/report.json of an earlier run: called before the first file of a new report takes its name, so
// that a report.json never stands beside files of another run.
status report_file_retract(const char *dir);
// The same of another file that is written last, by its name in the folder.
status report_file_retract_name(const char *dir, const char *name);
// Removes each logits.<arm>.npy of an earlier run: all but those of the `n_kept` arms that this run wrote.
// Called after report_file_retract, so that the new report.json does not stand beside them.
status report_file_sweep(const char *dir, const char *const *kept, size_t n_kept);
