// errors: the one place that prints an error, and how ranks end after it.
//
// Invariant: an error that all ranks have is printed by one of them.
#pragma once
#include "dist/comm.h"

// Prints the stored error, if there is one. c NULL: there are no ranks yet.
void errors_print(const comm *c);

// Collective where the error is agreed. Prints the stored error, ends all ranks, and returns the exit code:
// the error itself (base/status.h), the same on all ranks where it is agreed.
int errors_end(comm *c, status error);

// From here on a mapped file that becomes unreadable (cut short, or its disk is gone) is an error of this
// rank (errors_name_rank) that names the file, and a file that grows beyond its size limit is an error where
// it is written.
void errors_catch_signals(void);
void errors_name_rank(const comm *c);
