#include "src/commands/command.h"
#include "build_info.h"

static const char USAGE[] = "moe_run [COMMAND] --config FILE [--set KEY=VALUE]... [--out DIR]\n";
static const char OPTIONS[] =
    "  --config FILE    keys and values, as TOML\n"
    "  --set KEY=VALUE  sets a key over the file's; VALUE is TOML, a later one wins\n"
    "  --out DIR        the same as --set output.dir=\"DIR\"\n"
    "  --resume         the same as --set run.resume=true\n"
    "  --deadline SECONDS   ends the start of every rank in time, also before it has read a configuration; "
    "and\n"
    "                       the same as --set comm.deadline=SECONDS. Before the name of synth and verify\n"
    "  --tell-deadline      prints comm.deadline as the other arguments give it, and nothing else\n"
    "  --help, --version\n";

bool command_reads_config(const command *c) {
  switch (c->needs) {
  case NEEDS_NOTHING:
  case NEEDS_RANKS:
    return false;
  case NEEDS_CONFIG:
  case NEEDS_MODEL:
  case NEEDS_INPUT:
    return true;
  }
  __builtin_unreachable();
}

static void print_one(FILE *out, const command *c, const char *name) {
  fprintf(out, "moe_run %s %s\n\n  %s\n", name,
          command_reads_config(c) ? "--config FILE [--set KEY=VALUE]... [--out DIR]" : c->args, c->summary);
  if (c->help) fputs(c->help, out);
  fputc('\n', out);
  if (c->print_args) c->print_args(out);
  if (!command_reads_config(c)) return;
  fputs(OPTIONS, out);
  config_print_keys(out, c->keys);
}

static void print_all(FILE *out, const command *table) {
  fputs(USAGE, out);
  fputs("\nCommands; moe_run COMMAND --help says more and lists its keys:\n", out);
  for (int i = 0; i < COMMAND_COUNT; i++)
    fprintf(out, "  %-11s %s%s\n", command_name((command_kind)i), table[i].summary,
            i == COMMAND_PARITY ? " (the default)" : "");
  fprintf(out, "\nOptions:\n%s\nKeys of all commands:\n", OPTIONS);
  config_print_keys(out, KEYS_ALL);
}

void command_print_help(FILE *out, const command *table, const command_line *l) {
  if (l->named)
    print_one(out, &table[l->command], command_name(l->command));
  else
    print_all(out, table);
}

static void print_path(FILE *out, path_kind kind) {
  const path_info *path = path_get(kind), *newest = path_newest(kind);
  fprintf(out, "path %s, version %d\n", path->name, path->version);
  if (newest->version != path->version)
    fprintf(out, "path %s, version %d: of models with weights in blocks of 32\n", path->name,
            newest->version);
}

void command_print_version(FILE *out) {
  fprintf(out, "moe_run %s\nbuilt for %s by %s with %s\n", MOE_VERSION, MOE_BUILD_SYSTEM, MOE_BUILD_COMPILER,
          MOE_BUILD_FLAGS);
  for (const backend_ops *const *b = backend_table(); *b; b++)
    fprintf(out, "backend %s, rows that run here: %s\n", backend_name((*b)->kind), (*b)->rows());
  fprintf(out, "transports %s\n", transport_list());
  fprintf(out, "profilers told of ranges %s\n", timeline_profilers());
  for (int p = 0; p < PATH_COUNT; p++) print_path(out, (path_kind)p);
}
