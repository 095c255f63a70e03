// falsify_report: what `falsify` found: console and falsify.json (docs/falsify.schema.json).
//
// Local: only the reporting rank calls it.
#pragma once
#include "base/message_list.h"
#include "src/lab/experiment.h"
#include <stdio.h>

enum { FALSIFY_SCHEMA = 1 };

void falsify_print_heading(FILE *out, const char *model);
void falsify_print(FILE *out, const experiment_result *r); // one experiment, judged
void falsify_print_verdicts(FILE *out, const experiment_result *results, size_t n);
// Writes DIR/falsify.json whole or not at all. model: path of the file; warnings: of the job.
status falsify_write(const char *dir, const char *model, const message_list *warnings,
                     const experiment_result *results, size_t n);
