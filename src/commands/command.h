// command: a row of the table of commands (src/main.c), and what --help says of it.
//
// Independent of: which commands there are.
#pragma once
#include "src/config/command_line.h"
#include "src/run/job.h"
#include <stdio.h>

typedef enum {   // each also needs what those before it need, but for the arguments
  NEEDS_NOTHING, // runs alone, without MPI; parses its arguments itself
  NEEDS_RANKS,   // parses its arguments itself
  NEEDS_CONFIG,  // a configuration, but no job: it must work where a job is refused
  NEEDS_MODEL,   // a job
  NEEDS_INPUT,
} command_needs;

typedef struct {
  command_needs needs;
  unsigned keys; // key_groups that it reads
  union {
    status (*run_alone)(int n_args, char **args);
    status (*run_ranks)(comm *c, int n_args, char **args);
    status (*run_config)(const config *cfg, comm *c);
    status (*run_job)(job *j);
  };
  void (*print_args)(FILE *out); // of a command that parses its arguments itself
  const char *args, *summary;    // "A B"; one line
  const char *help;              // more lines, each with its newline; NULL: none
} command;

bool command_reads_config(const command *c); // false: it parses its arguments itself

// For --help and --version. table[COMMAND_COUNT].
void command_print_help(FILE *out, const command *table, const command_line *l);
void command_print_version(FILE *out);
