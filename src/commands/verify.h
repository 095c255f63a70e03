// verify: the command that holds a contract against a report.
#pragma once
#include "dist/comm.h"
#include <stdio.h>

// Collective; rank 0 reads, prints and writes. args: CONTRACT REPORT [--out DIR]. STATUS_DIFFERS: the
// contract does not hold.
status verify_run(comm *c, int n_args, char **args);
void verify_print_options(FILE *out);
