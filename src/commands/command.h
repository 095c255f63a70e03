// command: a row of the table of commands (src/main.c), and what --help says of it.
//
// Independent of: which commands there are.
#pragma once
#include "src/config/command_line.h"
#include "src/run/job.h"
#include <stdio.h>

typedef enum {   // each needs what stands before it as well, but for the arguments
  NEEDS_NOTHING, // runs alone, without MPI, and reads its own arguments
  NEEDS_RANKS,   // reads its own arguments
  NEEDS_MODEL,   // a configuration, and so a job
  NEEDS_INPUT,
} command_needs;

typedef struct {
  command_needs needs;
  unsigned keys; // key_groups that it reads
  union {
    // *code is what the program ends with; an error ends it with 2.
    status (*run_alone)(int *code, int n_args, char **args);
    status (*run_ranks)(comm *c, int n_args, char **args);
    status (*run_job)(job *j);
  };
  void (*print_args)(FILE *out); // of a command that reads its own
  const char *args, *summary;    // "A B"; one line
  const char *help;              // more lines, each ended; NULL: the summary says it all
} command;

bool command_reads_config(const command *c); // else it reads its own arguments

// What the command line asked for by --help and --version. table[COMMAND_COUNT]
void command_print_help(FILE *out, const command *table, const command_line *l);
void command_print_version(FILE *out);
