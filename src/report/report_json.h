// report_json: the report as a JSON tree. For report_write alone; docs/report.schema.json is its shape.
#pragma once
#include "src/report/report.h"
#include "src/report/json_tree.h"

// *out: caller releases with json_decref. `complete` is the last key, so a file cut short never has it.
status report_json(json_t **out, const report *r);
void report_json_model(branch root, const report *r); // its key "model"
void report_json_pairs(branch root, const report *r); // "pairs", "modes", "accounts"
