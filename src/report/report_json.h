// report_json: the report as a JSON tree, and the parts of it that other files share; docs/report.schema.json
// is its shape.
#pragma once
#include "src/report/report.h"
#include "src/report/json_tree.h"

// *out: caller releases with json_decref. `complete` is the last key, so a file cut short never has it.
status report_json(json_t **out, const report *r);
void report_json_model(branch root, const report *r); // its key "model"
void report_json_pairs(branch root, const report *r); // "pairs", "modes", "accounts"
// What an arm's run was, and its bits; returned for what else there is to say of it. Any command that lists
// arms.
branch report_json_arm(branch list, const report *r, const report_arm *a);
