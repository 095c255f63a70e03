// whole_file: writes a file that gets its name only when it is whole, and checks the folder that it goes to.
//
// Invariant: until whole_file_name the folder shows nothing but a hidden temporary file; whatever fails, the
// temporary file is gone after whole_file_abandon. The errors name the file by its final path.
#pragma once
#include "base/status.h"
#include <stdio.h>

typedef struct {
  FILE *f;
  char *path, *temporary; // NULL: not open
} whole_file;

status whole_file_open(whole_file *out, const char *dir, const char *name);
// Closes the stream and opens it again at its end, so that more files can be under way than can be open. In
// between `f->f` is NULL.
status whole_file_pause(whole_file *f);
status whole_file_resume(whole_file *f);
// Flushes to the disk and closes: after it every write is known to have succeeded.
status whole_file_sync(whole_file *f);
status whole_file_name(whole_file *f);  // gives a synced file its name and releases `f`
void whole_file_abandon(whole_file *f); // closes, removes, releases; one that was never opened is fine

status whole_file_sync_dir(const char *dir); // makes the names durable
// Creates DIR where it does not exist, and checks that a file can be written there.
status output_dir_check(const char *dir);
