// main: the table of commands, and the way from a command line to one of them.
#include "base/temporary.h"
#include "dist/launched.h"
#include "src/commands/bench.h"
#include "src/commands/bisect.h"
#include "src/commands/command.h"
#include "src/commands/compare.h"
#include "src/commands/errors.h"
#include "src/commands/falsify.h"
#include "src/commands/gate.h"
#include "src/commands/generate.h"
#include "src/commands/inspect.h"
#include "src/commands/parity.h"
#include "src/commands/perplexity.h"
#include "src/commands/route.h"
#include "src/commands/screen.h"
#include "src/commands/synth.h"
#include "src/commands/topology.h"
#include "src/commands/trace.h"
#include "src/commands/verify.h"
#include "src/report/timeline_write.h"
#include <string.h>

enum { KEYS_RUN = KEYS_MODEL | KEYS_ARMS | KEYS_RANKS | KEYS_FORWARD | KEYS_OUTPUT };

static const command commands[] = {
    [COMMAND_PARITY] =
        {
            .needs = NEEDS_INPUT,
            .keys =
                KEYS_RUN | KEYS_INPUT | KEYS_WRITE | KEYS_LOGITS | KEYS_PARITY | KEYS_CONTRACT | KEYS_KNOWN,
            .run_job = parity_run,
            .summary = "runs every arm of run.arms over the same tokens and compares them",
            .help = "  Each arm is measured against the truth (f64, or else against the first arm), and the\n"
                    "  others against each other, layer by layer and at the logits.\n",
        },
    [COMMAND_GENERATE] =
        {
            .needs = NEEDS_INPUT,
            .keys = KEYS_RUN | KEYS_INPUT | KEYS_WRITE | KEYS_CONTRACT | KEYS_RESUME,
            .run_job = generate_run,
            .summary = "each arm continues the input by run.generate tokens",
        },
    [COMMAND_PERPLEXITY] =
        {
            .needs = NEEDS_INPUT,
            .keys = KEYS_RUN | KEYS_INPUT | KEYS_PERPLEXITY | KEYS_CONTRACT | KEYS_RESUME,
            .run_job = perplexity_run,
            .summary = "each arm's perplexity of the input",
            .help =
                "  In windows of run.context tokens that do not overlap; of each window the tokens after\n"
                "  position perplexity.skip (by default its half) are scored.\n",
        },
    [COMMAND_TRACE] =
        {
            .needs = NEEDS_INPUT,
            .keys = KEYS_RUN | KEYS_INPUT | KEYS_TRACE,
            .run_job = trace_run,
            .summary = "each arm's tensors by name, for each layer, as .npy files in the folder of --out",
            .help = "  docs/trace.md says what each of them is.\n",
        },
    [COMMAND_BENCH] =
        {
            .needs = NEEDS_MODEL,
            .keys = KEYS_RUN | KEYS_BENCH | KEYS_KNOWN,
            .run_job = bench_run,
            .summary = "prompt and decode rates of each arm, each beside the digest of the same run",
            .help = "  And how much of the memory bandwidth decoding takes.\n",
        },
    [COMMAND_INSPECT] =
        {
            .needs = NEEDS_MODEL,
            .keys = KEYS_MODEL | KEYS_ARMS | KEYS_RANKS | KEYS_FORWARD | KEYS_FORMAT,
            .run_job = inspect_run,
            .summary = "what the model file holds, and what each rank of this job would hold",
            .help = "  Reads no weights but the few with which experts.placement = \"balanced\" is measured. "
                    "A file\n"
                    "  that a run would refuse is shown as far as it can be read, with every reason.\n",
        },
    [COMMAND_SYNTH] =
        {
            .needs = NEEDS_RANKS,
            .run_ranks = synth_run,
            .args = "--shape NAME --out FILE [OPTION]...",
            .summary = "writes a synthetic model",
            .print_args = synth_print_options,
        },
    [COMMAND_BISECT] =
        {
            .needs = NEEDS_MODEL,
            .keys = KEYS_RUN | KEYS_INPUT | KEYS_BISECT,
            .run_job = bisect_run,
            .summary = "why two ways of computing differ: of one product, or of two arms of the whole model",
            .help =
                "  One product (bisect.tensor) in every way at hand, one axis switched at a time; or, with\n"
                "  bisect.a and bisect.b, which steps, layers and experts make the difference. "
                "docs/bisect.md\n",
        },
    [COMMAND_FALSIFY] =
        {
            .needs = NEEDS_MODEL,
            .keys = KEYS_RUN | KEYS_INPUT | KEYS_FALSIFY,
            .run_job = falsify_command_run,
            .summary = "ten experiments that try to refute causes of a difference between two arms",
            .help = "  Each has a claim, the figures that it predicts, and a verdict. Input, where there is "
                    "one, is\n"
                    "  what experiments 8 to 10 compute; ids that are drawn follow it. docs/falsify.md\n",
        },
    [COMMAND_SCREEN] =
        {
            .needs = NEEDS_MODEL,
            .keys = KEYS_MODEL | KEYS_RANKS | KEYS_OUTPUT | KEYS_SCREEN | KEYS_KNOWN,
            .run_job = screen_command_run,
            .summary =
                "finds the machine that computes other bits: every rank the same work, again and again",
            .help =
                "  Cores, GPUs and the links between ranks; exit code 3 where one differs. docs/screen.md\n",
        },
    [COMMAND_TOPOLOGY] =
        {
            .needs = NEEDS_CONFIG,
            .keys = KEYS_MODEL | KEYS_RANKS,
            .run_config = topology_run,
            .summary = "what each rank sees: cores, GPU, links, network; and what makes a run slow or wrong",
            .help = "  Opens no model, and warns of what a run would refuse. docs/centres.md\n",
        },
    [COMMAND_ROUTE] =
        {
            .needs = NEEDS_INPUT,
            .keys = KEYS_RUN | KEYS_INPUT,
            .run_job = route_run,
            .summary = "how often a text chooses each expert, and how even the ranks' loads would be",
            .help = "  Of one arm, in windows of run.context tokens. With --out counts.npy, for "
                    "experts.counts.\n"
                    "  docs/placement.md\n",
        },
    [COMMAND_COMPARE] =
        {
            .needs = NEEDS_NOTHING,
            .run_alone = compare_run,
            .args = "A B [--out DIR]",
            .summary = "whether two reports or traces are the same for the same path, and where they part",
            .print_args = compare_print_options,
        },
    [COMMAND_VERIFY] =
        {
            .needs = NEEDS_RANKS,
            .run_ranks = verify_run,
            .args = "CONTRACT REPORT [--out DIR] | --derive --config FILE [--set KEY=VALUE]... [--out DIR]",
            .summary = "whether a report keeps a contract: its gates, invariants and digests",
            .print_args = verify_print_options,
        },
};
_Static_assert(sizeof commands / sizeof *commands == COMMAND_COUNT, "a row for each command");

static bool takes_args(command_kind kind) {
  return !command_reads_config(&commands[kind]);
}

static status run_job(const command_line *l, const config *cfg, comm *c) {
  const command *row = &commands[l->command];
  job j;
  if (row->needs == NEEDS_CONFIG) return row->run_config(cfg, c);
  errors_name_rank(c);
  status result = job_open(&j, l->command, cfg, c, row->needs == NEEDS_INPUT);
  if (!result && row->keys & KEYS_OUTPUT) result = timeline_start(&j);
  if (!result) result = row->run_job(&j);
  if (!result || result == STATUS_DIFFERS) {
    status written = timeline_write(&j);
    if (written) result = written;
  }
  if (result) job_explain_error(&j);
  timeline_close(j.timeline);
  job_close(&j);
  return result;
}

// The configuration is read before there are ranks, since their start has a deadline too; an error in it is
// then an error of all ranks.
static status run_with_ranks(const command_line *l, const config *cfg, status loaded, comm *c) {
  const char *name = command_name(l->command);
  char what[64];
  snprintf(what, sizeof what, "the command (%s here)", name);
  TRY(comm_equal_request(c, name, strlen(name), what));
  TRY(comm_agree(c, loaded, "reading the configuration"));
  if (cfg)
    TRY(comm_agree(c, gate_check(cfg, l->command, commands[l->command].keys & KEYS_CONTRACT),
                   "the contract"));
  if (cfg) comm_set_deadline(c, cfg->comm.deadline);
  TRY(cfg ? run_job(l, cfg, c) : commands[l->command].run_ranks(c, l->n_args, l->args));
  return comm_agree(c, 0, "the end of the run"); // what ends MPI has no deadline of this kind
}

static status load_config(config *cfg, const command_line *l) {
  if (!command_reads_config(&commands[l->command])) return 0;
  TRY(config_load(cfg, l->file, l->sets, l->n_sets));
  return l->out ? config_set_dir(cfg, l->out) : 0;
}

// Without --deadline a start has comm.deadline and somewhat more: unknown, and so the default, until the
// configuration is read.
static double start_seconds(const command_line *l, const config *cfg) {
  if (l->deadline > 0) return l->deadline;
  return (cfg ? cfg->comm.deadline : COMM_DEADLINE) + COMM_START_SECONDS;
}

static int run_ranks(const command_line *l, int argc, char **argv) {
  config cfg = {.file = NULL};
  comm *c = NULL;
  bool has_config = command_reads_config(&commands[l->command]);
  comm_limit_start(start_seconds(l, NULL));
  temporary_guard();
  errors_catch_signals();
  status loaded = load_config(&cfg, l);
  status result = comm_open(&c, &argc, &argv, start_seconds(l, has_config && !loaded ? &cfg : NULL));
  if (result) {
    errors_print(NULL);
    if (c) comm_abort(c, result);
    return result;
  }
  if (!has_config && l->deadline > 0) comm_set_deadline(c, l->deadline);
  result = run_with_ranks(l, has_config ? &cfg : NULL, loaded, c);
  config_close(&cfg);
  if (result) return errors_end(c, result);
  comm_close(c);
  return 0;
}

// For launchers, whose own deadlines follow from it.
static int tell_deadline(const command_line *l) {
  config cfg = {.file = NULL};
  bool has_config = command_reads_config(&commands[l->command]);
  status result = load_config(&cfg, l);
  if (result)
    errors_print(NULL);
  else
    printf("%g\n", has_config ? cfg.comm.deadline : l->deadline > 0 ? l->deadline : COMM_DEADLINE);
  config_close(&cfg);
  return result ? result : fflush(stdout) ? 1 : 0;
}

// One of a launcher's processes does it, so that it is done and printed once.
static int run_alone(const command_line *l) {
  if (launched_rank() > 0) return 0;
  status result = commands[l->command].run_alone(l->n_args, l->args);
  if (result) errors_print(NULL);
  return result;
}

static int run(const command_line *l, int argc, char **argv) {
  if ((l->help || l->version) && launched_rank() > 0) return 0;
  if (l->tells_deadline) return tell_deadline(l);
  if (l->help) command_print_help(stdout, commands, l);
  if (l->version) command_print_version(stdout);
  if (l->help || l->version) return fflush(stdout) ? 1 : 0;
  switch (commands[l->command].needs) {
  case NEEDS_NOTHING:
    return run_alone(l);
  case NEEDS_RANKS:
  case NEEDS_CONFIG:
  case NEEDS_MODEL:
  case NEEDS_INPUT:
    return run_ranks(l, argc, argv);
  }
  __builtin_unreachable();
}

int main(int argc, char **argv) {
  command_line l;
  status parsed = command_line_parse(&l, argc, argv, takes_args);
  if (parsed) {
    errors_print(NULL);
    return parsed;
  }
  int code = run(&l, argc, argv);
  command_line_close(&l);
  return code;
}
