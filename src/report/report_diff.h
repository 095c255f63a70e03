// report_compare: the law across machines: two reports of the same model and tokens, bit for bit.
//
// Owns: which arms of two reports must have the same bits, and what is said of those that do not.
// Refuses to know: how a report is read, how far apart two results are: a digest says only whether they
// differ.
#pragma once
#include "src/report/report_read.h"

// Prints what was compared and each pair of arms of one path. *same: all pairs have the same bits. Fails
// where nothing can be compared, and says why: another model, other tokens, no arm in common.
status report_compare(bool *same, FILE *out, const recorded_report *a, const recorded_report *b);

// The command: words are two reports, files or their folders. *code: 0 the same bits, 1 other bits. Local: it
// needs no ranks.
status compare_run(int *code, int n_args, char **words);
void compare_print_options(FILE *out);
