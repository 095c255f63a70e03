// command_kind: the commands by name. What each does and needs stands in the table of src/main.c.
#pragma once
#include <stdbool.h>

typedef enum {
  COMMAND_PARITY, // where none is named
  COMMAND_GENERATE,
  COMMAND_PERPLEXITY,
  COMMAND_TRACE,
  COMMAND_BENCH,
  COMMAND_INSPECT,
  COMMAND_SYNTH,
  COMMAND_COMPARE,
  COMMAND_VERIFY,
  COMMAND_BISECT,
  COMMAND_FALSIFY,
  COMMAND_SCREEN,
  COMMAND_TOPOLOGY,
  COMMAND_ROUTE,
} command_kind;

enum { COMMAND_COUNT = COMMAND_ROUTE + 1 };

const char *command_name(command_kind kind);
// True: the command cuts its input into windows of run.context; its digests cover the scored positions alone.
bool command_cuts_windows(command_kind kind);
// True: its arms continue the input by run.generate tokens.
bool command_writes_text(command_kind kind);
bool command_find(command_kind *out, const char *name); // false: there is none of that name
