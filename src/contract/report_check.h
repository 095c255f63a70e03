// report_check: whether a report agrees with itself: what the reader (report_read.h) does not look at.
//
// Owns: every relation between numbers of one report that an honest run keeps, whatever its arms and paths.
// Independent of: contracts. Local.
// Invariant: an honest report of any command passes; what fails says which two numbers exclude each other.
#pragma once
#include "src/contract/verdict.h"
#include "src/report/report_read.h"

// report.json alone.
void report_check(verdict *v, const recorded_report *r);
// layers.csv and tokens.csv of the folder `dir` against it. A file that is missing is a line that fails.
void report_check_files(verdict *v, const recorded_report *r, const char *dir);
