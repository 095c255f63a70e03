#include "src/commands/verify.h"
#include "base/memory.h"
#include "src/commands/errors.h"
#include "src/config/command_line.h"
#include "src/contract/derive.h"
#include "src/contract/judge.h"
#include <stdlib.h>
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

// ---- verify --derive ----

static bool no_args(command_kind command) {
  (void)command;
  return false;
}

// A word as a shell takes it.
static void put_word(FILE *f, const char *text) {
  static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=+,:@%";
  if (*text && !text[strspn(text, plain)]) {
    fputs(text, f);
    return;
  }
  fputc('\'', f);
  for (; *text; text++) fputs(*text == '\'' ? "'\\''" : (char[]){*text, 0}, f);
  fputc('\'', f);
}

// The run that the draft is meant for: the same configuration, as parity.
static status text_of_run(char **out, const command_line *l) {
  size_t length;
  FILE *f = open_memstream(out, &length);
  if (!f) return FAIL("cannot allocate the command line");
  fputs("moe_run", f);
  if (l->file) {
    fputs(" --config ", f);
    put_word(f, l->file);
  }
  for (size_t i = 0; i < l->n_sets; i++) {
    if (!strncmp(l->sets[i], "derive.", strlen("derive."))) continue;
    fputs(" --set ", f);
    put_word(f, l->sets[i]);
  }
  fputs(" --out DIR", f);
  return fclose(f) ? FAIL("cannot allocate the command line") : 0;
}

static status load(config *cfg, char **run, int n_args, char **args) {
  command_line l;
  char **line;
  TRY(TAKE(&line, (size_t)n_args + 1, "the arguments"));
  line[0] = (char *)"verify";
  for (int i = 1; i < n_args; i++) line[i] = args[i]; // after --derive
  status result = command_line_parse(&l, n_args, line, no_args);
  free(line);
  TRY(result);
  result = l.named ? REFUSE("verify --derive: expected options after it, found the command %s",
                            command_name(l.command))
                   : config_load(cfg, l.file, l.sets, l.n_sets);
  if (!result && l.out) result = config_set_dir(cfg, l.out);
  if (!result) result = text_of_run(run, &l);
  command_line_close(&l);
  return result;
}

static status derive(comm *c, const config *cfg, const char *run) {
  job j;
  comm_set_deadline(c, cfg->comm.deadline);
  errors_name_rank(c);
  status result = job_open(&j, COMMAND_VERIFY, cfg, c, true);
  if (!result) result = derive_run(&j, run);
  if (result) job_explain_error(&j);
  job_close(&j);
  return result;
}

static status derive_with(comm *c, int n_args, char **args) {
  config cfg = {.file = NULL};
  char *run = NULL;
  status result = comm_agree(c, load(&cfg, &run, n_args, args), "reading the configuration");
  if (!result) result = derive(c, &cfg, run);
  free(run);
  config_close(&cfg);
  return result;
}

status verify_run(comm *c, int n_args, char **args) {
  bool derives = n_args && !strcmp(args[0], "--derive");
  TRY(comm_equal_request(c, &derives, sizeof derives, "verify --derive"));
  return derives ? derive_with(c, n_args, args) : comm_agree(c, verify(c, n_args, args), "verify");
}

void verify_print_options(FILE *out) {
  fprintf(
      out,
      "  CONTRACT is a TOML file (docs/contracts.md), REPORT a report.json or its folder.\n"
      "  --out DIR        writes DIR/verify.json as well\n\n"
      "  Exit code: 0 it holds; 3 a gate fails, or the report contradicts itself; 2 the contract is\n"
      "  malformed, or is not for this report; 1 files or memory.\n\n"
      "moe_run verify --derive --config FILE [--set KEY=VALUE]... [--out DIR]\n\n"
      "  Proposes bounds for parity with this configuration, from the spread of honest runs: other windows\n"
      "  of text, other last bits of the embedding. --out DIR writes them as the draft DIR/contract.toml.\n");
  config_print_keys(out, KEYS_DERIVE | KEYS_PARITY);
}
