// screen_report: what screen found, for the console and as DIR/screen.json (docs/screen.schema.json).
//
// Independent of: how it was found.
#pragma once
#include "src/lab/screen.h"
#include "src/report/known_answers.h"
#include <stdio.h>

enum { SCREEN_SCHEMA = 1 };

typedef struct {
  const screen_result *result;
  const char *model; // the file
  uint64_t fingerprint;
  const known_answers *known;
} screen_report;

bool screen_report_is_clean(const screen_report *r);
void screen_report_print(const screen_report *r, FILE *out);
// Writes DIR/screen.json, which gets its name only when it is whole.
status screen_report_write(const screen_report *r, const char *dir);
