#include "src/commands/verify.h"
#include "src/contract/judge.h"
#include <string.h>

typedef struct {
  const char *contract, *report, *out; // out: NULL, none
} verify_args;

static status parse(verify_args *a, int n_args, char **args) {
  *a = (verify_args){.contract = NULL};
  for (int i = 0; i < n_args; i++) {
    const char **free_one = !a->contract ? &a->contract : !a->report ? &a->report : NULL;
    if (!strcmp(args[i], "--out")) {
      if (++i == n_args) return REFUSE("verify: --out: expected a folder after it");
      a->out = args[i];
    } else if (args[i][0] == '-')
      return REFUSE("verify: unknown argument \"%.64s\"; see verify --help", args[i]);
    else if (!free_one)
      return REFUSE("verify: expected a contract and a report, found \"%.64s\" as well", args[i]);
    else
      *free_one = args[i];
  }
  return a->report ? 0 : REFUSE("verify: expected a contract and a report, or its folder; see verify --help");
}

static status verify(comm *c, int n_args, char **args) {
  verify_args a;
  TRY(parse(&a, n_args, args));
  return comm_rank(c) == 0 ? judge_files(a.contract, a.report, a.out) : 0;
}

status verify_run(comm *c, int n_args, char **args) {
  return comm_agree(c, verify(c, n_args, args), "verify");
}

void verify_print_options(FILE *out) {
  fprintf(out,
          "  CONTRACT is a TOML file (docs/contracts.md), REPORT a report.json or its folder.\n"
          "  --out DIR        writes DIR/verify.json as well\n\n"
          "  Exit code: 0 it holds; 3 a gate fails, or the report contradicts itself; 2 the contract is\n"
          "  malformed, or is not for this report; 1 files or memory.\n");
}
