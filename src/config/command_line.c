#include "src/config/command_line.h"
#include "base/memory.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static status find_command(command_line *l, const char *name) {
  char known[128] = "";
  if (command_find(&l->command, name)) {
    l->named = true;
    return 0;
  }
  for (int i = 0; i < COMMAND_COUNT; i++)
    snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "",
             command_name((command_kind)i));
  return REFUSE("unknown command \"%s\": expected one of %s", name, known);
}

static bool is_help(const char *arg) {
  return !strcmp(arg, "--help") || !strcmp(arg, "-h");
}

// The value after the option argv[i]; NULL, with an error, where there is none.
static status take_value(const char **out, int argc, char **argv, int *i) {
  if (*i + 1 == argc) return REFUSE("%s: expected a value after it", argv[*i]);
  *out = argv[++*i];
  return 0;
}

static status take_config(command_line *l, int argc, char **argv, int *i) {
  const char *before = l->file;
  TRY(take_value(&l->file, argc, argv, i));
  return before ? REFUSE("--config %s: expected one config, found %s before", l->file, before) : 0;
}

static status take_deadline(command_line *l, int argc, char **argv, int *i) {
  const char *text;
  char *end;
  TRY(take_value(&text, argc, argv, i));
  l->deadline = strtod(text, &end);
  if (*end || end == text || !(l->deadline > 0 && l->deadline <= COMMAND_MOST_DEADLINE))
    return REFUSE("--deadline %s: expected seconds, above 0 and at most %d", text, COMMAND_MOST_DEADLINE);
  free(l->deadline_set);
  size_t room = strlen(text) + sizeof "comm.deadline=";
  TRY(TAKE(&l->deadline_set, room, "the arguments"));
  snprintf(l->deadline_set, room, "comm.deadline=%s", text);
  return 0;
}

// Over the configuration's file, but under every --set.
static void set_deadline(command_line *l) {
  if (!l->deadline_set) return;
  memmove(l->sets + 1, l->sets, l->n_sets++ * sizeof *l->sets);
  l->sets[0] = l->deadline_set;
}

static status refuse(const char *arg) {
  return REFUSE("unknown argument \"%s\"%s; see --help", arg,
                arg[0] == '-' ? "" : " (a model is named by --set model.path=FILE)");
}

static void pass_on(command_line *l, int n_args, char **args) {
  l->args = args;
  l->n_args = n_args;
  for (int i = 0; i < n_args; i++) l->help = l->help || is_help(args[i]);
}

static status parse(command_line *l, int argc, char **argv, bool (*takes_args)(command_kind)) {
  int at_start = 1; // where the options of every command, which may stand before its name, end
  for (int i = 1; i < argc; i++) {
    const char *arg = argv[i];
    if (!strcmp(arg, "--config")) {
      TRY(take_config(l, argc, argv, &i));
    } else if (!strcmp(arg, "--set")) {
      TRY(take_value(&l->sets[l->n_sets++], argc, argv, &i));
    } else if (!strcmp(arg, "--out")) {
      TRY(take_value(&l->out, argc, argv, &i));
    } else if (!strcmp(arg, "--deadline")) {
      TRY(take_deadline(l, argc, argv, &i));
      if (i == at_start + 1) at_start = i + 1;
    } else if (!strcmp(arg, "--resume")) {
      l->sets[l->n_sets++] = "run.resume=true";
    } else if (!strcmp(arg, "--tell-deadline")) {
      l->tells_deadline = true;
      if (i == at_start) at_start = i + 1;
    } else if (is_help(arg)) {
      l->help = true;
    } else if (!strcmp(arg, "--version")) {
      l->version = true;
    } else if (arg[0] == '-' || l->named) {
      return refuse(arg);
    } else {
      TRY(find_command(l, arg));
      if (!takes_args(l->command)) continue;
      if (i > at_start)
        return REFUSE("%s: expected its options after its name, found %s before", arg, argv[at_start]);
      pass_on(l, argc - i - 1, argv + i + 1);
      return 0;
    }
  }
  return 0;
}

// --option=VALUE as two arguments, for every command: split[0 .. *n - 1], at most twice as many.
static status split_options(command_line *l, int *n, int argc, char **argv) {
  TRY(TAKE(&l->split, 2 * (size_t)argc + 1, "the arguments"));
  for (int i = 0; i < argc; i++) {
    const char *equals = i && argv[i][0] == '-' && argv[i][1] == '-' ? strchr(argv[i], '=') : NULL;
    l->split[(*n)++] = argv[i];
    if (!equals) continue;
    TRY(memory_grow((void **)&l->names, &l->names_room, l->n_names, sizeof *l->names, "the arguments"));
    char *name = strndup(argv[i], (size_t)(equals - argv[i]));
    if (!name) return FAIL("cannot allocate the arguments: out of memory");
    l->names[l->n_names++] = name;
    l->split[*n - 1] = name;
    l->split[(*n)++] = argv[i] + (equals - argv[i]) + 1;
  }
  return 0;
}

status command_line_parse(command_line *out, int argc, char **argv, bool (*takes_args)(command_kind)) {
  *out = (command_line){.command = COMMAND_PARITY};
  int n = 0;
  TRY(TAKE(&out->sets, 2 * (size_t)argc + 2, "the arguments"));
  status result = split_options(out, &n, argc, argv);
  if (!result) result = parse(out, n, out->split, takes_args);
  if (!result) set_deadline(out);
  if (result) command_line_close(out);
  return result;
}

void command_line_close(command_line *l) {
  for (size_t i = 0; i < l->n_names; i++) free(l->names[i]);
  free(l->names);
  free(l->split);
  free(l->sets);
  free(l->deadline_set);
  *l = (command_line){.command = l->command};
}
