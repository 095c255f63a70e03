// command_line: the program's arguments: which command, and where its configuration comes from.
//
// Owns: the options of every command with a configuration. Independent of: what a command does; the arguments
// of a command with other options (synth, compare, verify) are passed on unread.
#pragma once
#include "base/status.h"
#include "src/config/command_kind.h"
#include <stddef.h>

enum { COMMAND_MOST_DEADLINE = 1000000000 }; // seconds

typedef struct { // views of argv, but for `sets` and `deadline_set`
  command_kind command;
  bool named;        // false: no command was named, so it is the default one
  const char *file;  // --config FILE, NULL: not given
  const char **sets; // [n_sets] --set KEY=VALUE, in their order
  size_t n_sets;
  const char *out;     // --out DIR, NULL: not given
  double deadline;     // --deadline SECONDS, 0: not given. It also stands in `sets`, as comm.deadline
  bool tells_deadline; // --tell-deadline
  char **args;         // [n_args] after the name of a command that reads them itself
  int n_args;
  bool help, version;
  char **split; // the arguments, --option=VALUE as two; `args` lies in it
  char **names; // of options that were split
  size_t n_names, names_room;
  char *deadline_set; // "comm.deadline=SECONDS"; NULL: none
} command_line;

// takes_args(c): command c parses the arguments after its name itself. On an error there is nothing to close.
status command_line_parse(command_line *out, int argc, char **argv, bool (*takes_args)(command_kind));
void command_line_close(command_line *l);
