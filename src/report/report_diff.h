// report_diff: the law across machines: two reports of the same model and tokens, bit for bit.
//
// Owns: which arms of two reports must have the same bits, and what is said of those that do not.
// Independent of: how a report is read. A digest says only whether two results differ, not by how much.
#pragma once
#include "src/report/report_read.h"

// Prints what was compared and each pair of arms of one path. *same: all pairs have the same bits. Fails
// where nothing can be compared, and says why: another model, other tokens, no arm in common.
status report_diff(bool *same, FILE *out, const recorded_report *a, const recorded_report *b);
