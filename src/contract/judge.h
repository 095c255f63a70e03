// judge: a contract held against a report.
//
// Owns: the order: is it the contract's scope, does the report agree with itself, then invariants, recorded
// bits and gates. Independent of: how a report came about. Local. Invariant: a gate is judged at the worst
// position of every layer it names, position 0 included, and NaN fails it; a report that contradicts itself
// is not judged any further.
#pragma once
#include "src/contract/verdict.h"
#include "src/report/report_read.h"

// Fills *out, which the caller closes with verdict_close after an error too. dir: the report's folder, for
// structure.files; NULL: there is none. Fails where the contract cannot be held against this report
// (STATUS_REFUSED): its scope is not the report's, it names what the report lacks, or it is retired.
status judge_report(verdict *out, const contract *c, const recorded_report *r, const char *dir);

// Reads the contract CONTRACT and the report PATH (the file or its folder), judges, prints the verdict, and
// writes verify.json to OUT where it is not NULL. STATUS_DIFFERS: the contract does not hold.
status judge_files(const char *contract_path, const char *path, const char *out);
// The same with a report that is still in memory, as the text of its report.json; dir: its folder, or "".
status judge_text(const char *contract_path, const char *text, size_t length, const char *dir,
                  const char *out);
