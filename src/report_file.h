// report_file: a file that has its name only when it is whole. For the report's writers alone.
//
// Invariant: until report_file_name the folder shows nothing but a hidden temporary file; whatever fails, the
// temporary file is gone after report_file_abandon. The faults name the file by its final path.
#pragma once
#include "base/status.h"
#include <stdio.h>

typedef struct {
  FILE *f;
  char *path, *temporary; // NULL: never opened, or done with
} report_file;

status report_file_open(report_file *out, const char *dir, const char *name);
// Flushes to the disk and closes: after it every write is known to have succeeded.
status report_file_sync(report_file *f);
status report_file_name(report_file *f);  // gives a synced file its name and releases `f`
void report_file_abandon(report_file *f); // closes, removes, releases; nothing to do is fine

// Removes DIR/report.json of an earlier run: called before the first file of a new report takes its name, so
// that a report.json never stands beside files of another run.
status report_file_retract(const char *dir);
// Removes each logits.<arm>.npy of an earlier run: all but those of the `n_kept` arms that this run wrote.
// Called after report_file_retract, so that the new report.json does not stand beside them.
status report_file_sweep(const char *dir, const char *const *kept, size_t n_kept);
status report_file_sync_dir(const char *dir); // makes the names themselves last
