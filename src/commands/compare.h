// compare: the command that compares two reports or traces, of one machine or two.
#pragma once
#include "base/status.h"
#include <stdio.h>

// Local: it needs no ranks. args: two reports, or two traces and --out DIR; files or their folders.
// STATUS_DIFFERS: other bits, or of traces a probe beyond its bound.
status compare_run(int n_args, char **args);
void compare_print_options(FILE *out);
