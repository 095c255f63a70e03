// verify: the command that holds a contract against a report, or derives one.
#pragma once
#include "dist/comm.h"
#include <stdio.h>

// Collective. args: CONTRACT REPORT [--out DIR], where rank 0 reads, prints and writes; or --derive and the
// options of a job, which all ranks run. STATUS_DIFFERS: the contract does not hold.
status verify_run(comm *c, int n_args, char **args);
void verify_print_options(FILE *out);
