// compare: the command that compares two reports, of one machine or two, bit by bit.
#pragma once
#include "base/status.h"
#include <stdio.h>

// Local: it needs no ranks. args: two reports, files or their folders. STATUS_DIFFERS:
// other bits.
status compare_run(int n_args, char **args);
void compare_print_options(FILE *out);
