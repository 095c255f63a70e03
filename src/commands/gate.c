#include "src/commands/gate.h"
#include "src/contract/judge.h"
#include "src/report/report_json.h"
#include <stdlib.h>
#include <string.h>

static status check(const contract *c, command_kind command) {
  if (c->state == CONTRACT_RETIRED) return REFUSE("contract.path: %s is retired: it gates nothing", c->file);
  if (c->scope.command && strcmp(c->scope.command, command_name(command)))
    return REFUSE("contract.path: %s is for reports of %s, found the command %s", c->file, c->scope.command,
                  command_name(command));
  return 0;
}

status gate_check(const config *cfg, command_kind command, bool reports) {
  contract c;
  if (!cfg->contract.path[0]) return 0;
  if (!reports)
    return REFUSE("contract.path: %s writes no report that a contract can be held against",
                  command_name(command));
  TRY(contract_read(&c, cfg->contract.path));
  status result = check(&c, command);
  if (!result && c.files && !cfg->output.dir[0])
    result = REFUSE("%s: structure.files: expected a folder for the report (--out, output.dir), found none",
                    c.file);
  contract_close(&c);
  return result;
}

static status judge(const config *cfg, const report *r) {
  json_t *tree;
  const char *dir = cfg->output.dir;
  TRY(report_json(&tree, r));
  char *text = json_dumps(tree, JSON_REAL_PRECISION(17));
  json_decref(tree);
  status result = text ? judge_text(cfg->contract.path, text, strlen(text), dir, *dir ? dir : NULL)
                       : FAIL("cannot allocate the report");
  free(text);
  return result;
}

status gate_report_finish(job *j, report *r) {
  bool judges = j->cfg->contract.path[0] && job_is_reporting(j);
  TRY(job_report_finish(j, r));
  return job_agree(j, judges ? judge(j->cfg, r) : 0, "the contract");
}
