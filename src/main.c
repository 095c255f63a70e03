// main: the command line, and the one place that prints a fault and ends the ranks.
#include "base/temporary.h"
#include "build_info.h"
#include "src/commands/bench.h"
#include "src/commands/generate.h"
#include "src/commands/inspect.h"
#include "src/commands/parity.h"
#include "src/commands/perplexity.h"
#include "src/report/report_diff.h"
#include "src/commands/synth.h"
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct {
  const char *name;
  status (*run)(job *j);
  input_use input;
  const char *help;
  // A command that has no job: it reads the words after its name itself. Then `run` is NULL.
  status (*run_args)(comm *c, int n_args, char **words);
  // One that needs no ranks either; *code is what the program ends with, and a fault ends it with 2.
  status (*run_alone)(int *code, int n_args, char **words);
  void (*print_options)(FILE *out);
} command;

static const command commands[] = {
    {.name = "parity",
     .run = parity_run,
     .input = INPUT_REQUIRED,
     .help =
         "Runs every arm of run.arms over the same tokens and measures each against the truth (f64@cpu, or\n"
         "else the first arm) and against each other, layer by layer and at the logits. The default\n"
         "command.\n"},
    {.name = "generate",
     .run = generate_run,
     .input = INPUT_REQUIRED,
     .help = "Each arm of run.arms reads the input and writes run.generate tokens on.\n"},
    {.name = "perplexity",
     .run = perplexity_run,
     .input = INPUT_REQUIRED,
     .help = "Each arm's perplexity of the input, in windows of run.context tokens that do not overlap; the\n"
             "tokens after position perplexity.skip of a window (its half) are scored.\n"},
    {.name = "bench",
     .run = bench_run,
     .input = INPUT_UNUSED,
     .help =
         "Prompt and decode rates of each arm of run.arms, each beside the digest of the same run, and how\n"
         "much of the memory's bandwidth it takes.\n"},
    {.name = "inspect",
     .run = inspect_run,
     .input = INPUT_UNUSED,
     .help = "Prints what the model file holds and what each rank of this job would hold. Reads no\n"
             "weights but the few that the placement \"balanced\" times.\n"},
    {.name = "synth",
     .run_args = synth_run,
     .print_options = synth_print_options,
     .help = "Writes a synthetic model: moe_run synth --shape NAME --out FILE [OPTION]...\n"},
    {.name = "compare",
     .run_alone = compare_run,
     .print_options = compare_print_options,
     .help = "Says of two reports, of one machine or two, whether the same path gave the same bits:\n"
             "moe_run compare A B\n"},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

typedef struct {
  const command *command;
  const char *file;
  const char **sets;
  size_t n_sets;
  const char *out; // --out DIR, NULL: not given
  char **words;    // after the name of a command that reads them itself
  int n_args;
  bool help, version, named;
} arguments;

// ---- arguments ----

static status find_command(arguments *a, const char *name) {
  char known[128] = "";
  for (size_t i = 0; i < N_COMMANDS; i++) {
    if (!strcmp(commands[i].name, name)) {
      a->command = &commands[i];
      a->named = true;
      return 0;
    }
    snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", commands[i].name);
  }
  return FAIL("unknown command \"%s\": there are %s", name, known);
}

static void take_args(arguments *a, int n_args, char **words) {
  a->words = words;
  a->n_args = n_args;
  for (int i = 0; i < n_args; i++)
    a->help = a->help || !strcmp(words[i], "--help") || !strcmp(words[i], "-h");
}

static status parse_arguments(arguments *a, int argc, char **argv) {
  *a = (arguments){.command = &commands[0]};
  a->sets = calloc((size_t)argc + 1, sizeof *a->sets);
  if (!a->sets) return FAIL("out of memory");
  for (int i = 1; i < argc; i++) {
    const char *word = argv[i];
    bool takes_value = !strcmp(word, "--config") || !strcmp(word, "--set") || !strcmp(word, "--out");
    if (takes_value && i + 1 == argc) return FAIL("%s: expected a value after it", word);
    if (!strcmp(word, "--config")) {
      if (a->file) return FAIL("--config %s: expected one config, found %s before", argv[i + 1], a->file);
      a->file = argv[++i];
    } else if (!strcmp(word, "--set")) {
      a->sets[a->n_sets++] = argv[++i];
    } else if (!strcmp(word, "--out")) {
      a->out = argv[++i];
    } else if (!strcmp(word, "--help") || !strcmp(word, "-h")) {
      a->help = true;
    } else if (!strcmp(word, "--version")) {
      a->version = true;
    } else if (word[0] == '-' || a->named) {
      return FAIL("unknown argument \"%s\"%s; see --help", word,
                  word[0] == '-' ? "" : " (a model is named by --set model.path=FILE)");
    } else {
      TRY(find_command(a, word));
      if (!a->command->run_args && !a->command->run_alone) continue;
      if (i > 1) return FAIL("%s takes its options after its name, and none of the others", word);
      take_args(a, argc - i - 1, argv + i + 1);
      return 0;
    }
  }
  return 0;
}

static void print_help(const arguments *a) {
  printf("moe_run [COMMAND] --config FILE [--set KEY=VALUE]... [--out DIR]\n\n");
  for (size_t i = 0; i < N_COMMANDS; i++)
    if (!a->named || a->command == &commands[i]) printf("%s\n  %s\n", commands[i].name, commands[i].help);
  if (a->command->print_options) {
    a->command->print_options(stdout);
    return;
  }
  printf("  --set KEY=VALUE  sets a key over the file's; VALUE is TOML, a later one wins\n"
         "  --out DIR        the same as --set output.dir=\"DIR\"\n"
         "  --help, --version\n\nKeys:\n");
  config_print_keys(stdout);
}

static void print_version(void) {
  printf("moe_run %s\nbuilt for %s by %s with %s\n", MOE_VERSION, MOE_BUILD_SYSTEM, MOE_BUILD_COMPILER,
         MOE_BUILD_FLAGS);
  for (const backend_ops *const *b = backend_table(); *b; b++)
    printf("backend %s, rows that run here: %s\n", (*b)->name, (*b)->rows());
  printf("transports %s\n", transport_list());
  for (int p = 0; p < PATH_COUNT; p++)
    printf("path %s, version %d\n", path_get((path_kind)p)->name, path_get((path_kind)p)->version);
}

// ---- faults ----

// c NULL: before there are ranks. One write, so that ranks' lines do not mix. A fault quotes files, which
// anyone may have written.
static void print_fault(const comm *c) {
  char line[4096];
  snprintf(line, sizeof line, "%s", status_text());
  report_make_plain(line);
  if (c)
    fprintf(stderr, "rank %d (%s): %s\n", comm_rank(c), comm_host(c), line);
  else
    fprintf(stderr, "moe_run: %s\n", line);
  fflush(stderr);
}

// A page of the map that cannot be read any more (a file cut short, a disk or server gone) arrives as SIGBUS.
static char bus_error_text[1024] =
    "moe_run: a mapped file changed or became unreadable\n"; // the rank is not known yet

static struct timespec own_turn; // see comm_turn_seconds

static void on_bus_error(int signal_number) {
  static atomic_flag told = ATOMIC_FLAG_INIT;
  (void)signal_number;
  while (atomic_flag_test_and_set(&told)) pause(); // another thread's fault, which ends this process
  nanosleep(&own_turn, NULL);
  if (write(STDERR_FILENO, bus_error_text, strlen(bus_error_text)) < 0) _exit(1);
  _exit(1);
}

// Every rank has an agreed fault, so all end in order; from any other fault the rest must be told by force.
static int end_with_fault(comm *c) {
  if (comm_wait_has_failed(c)) nanosleep(&own_turn, NULL);
  if (!comm_error_is_reported_elsewhere(c)) print_fault(c);
  if (!comm_error_is_agreed(c)) comm_abort(c, 1);
  comm_close(c);
  return 1;
}

static status run_command(const arguments *a, comm *c) {
  config cfg;
  job j;
  status mine = config_load(&cfg, a->file, a->sets, a->n_sets);
  if (!mine && a->out) mine = config_set_dir(&cfg, a->out);
  TRY(comm_agree(c, mine, "reading the configuration"));
  comm_set_deadline(c, cfg.comm.deadline);
  snprintf(bus_error_text, sizeof bus_error_text,
           "rank %d (%s): %.800s: expected the bytes that were there at the start, found the file cut short "
           "or unreadable\n",
           comm_rank(c), comm_host(c), cfg.model.path);
  status result = job_open(&j, a->command->name, &cfg, c, a->command->input);
  if (!result) result = a->command->run(&j);
  if (result) job_explain_fault(&j);
  job_close(&j);
  config_close(&cfg);
  return result;
}

int main(int argc, char **argv) {
  arguments a;
  comm *c = NULL;
  if (parse_arguments(&a, argc, argv)) {
    print_fault(NULL);
    return 2;
  }
  if (a.help || a.version) {
    if (a.help) print_help(&a);
    if (a.version) print_version();
    free(a.sets);
    return fflush(stdout) ? 1 : 0;
  }
  if (a.command->run_alone) {
    int code;
    status result = a.command->run_alone(&code, a.n_args, a.words);
    if (result) print_fault(NULL);
    free(a.sets);
    return result ? 2 : code;
  }
  temporary_guard();
  signal(SIGBUS, on_bus_error);
  signal(SIGXFSZ, SIG_IGN); // a file over its size limit is an error that names the file, not a kill
  if (comm_open(&c, &argc, &argv)) {
    print_fault(NULL);
    if (c) comm_abort(c, 1);
    return 1;
  }
  own_turn.tv_sec = comm_turn_seconds(c);
  status result = a.command->run_args ? a.command->run_args(c, a.n_args, a.words) : run_command(&a, c);
  free(a.sets);
  if (!result) result = comm_agree(c, 0, "the end of the run"); // what ends MPI has no deadline of this kind
  if (result) return end_with_fault(c);
  comm_close(c);
  return 0;
}
