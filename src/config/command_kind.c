#include "src/config/command_kind.h"
#include <string.h>

static const char *const NAMES[] = {
    [COMMAND_PARITY] = "parity",     [COMMAND_GENERATE] = "generate", [COMMAND_PERPLEXITY] = "perplexity",
    [COMMAND_TRACE] = "trace",       [COMMAND_BENCH] = "bench",       [COMMAND_INSPECT] = "inspect",
    [COMMAND_SYNTH] = "synth",       [COMMAND_COMPARE] = "compare",   [COMMAND_VERIFY] = "verify",
    [COMMAND_BISECT] = "bisect",     [COMMAND_FALSIFY] = "falsify",   [COMMAND_SCREEN] = "screen",
    [COMMAND_TOPOLOGY] = "topology", [COMMAND_ROUTE] = "route",
};
_Static_assert(sizeof NAMES / sizeof *NAMES == COMMAND_COUNT, "a name for each command");

const char *command_name(command_kind kind) {
  return NAMES[kind];
}

bool command_cuts_windows(command_kind kind) {
  switch (kind) {
  case COMMAND_PERPLEXITY:
  case COMMAND_ROUTE:
    return true;
  case COMMAND_PARITY:
  case COMMAND_GENERATE:
  case COMMAND_TRACE:
  case COMMAND_BENCH:
  case COMMAND_INSPECT:
  case COMMAND_SYNTH:
  case COMMAND_COMPARE:
  case COMMAND_VERIFY:
  case COMMAND_BISECT:
  case COMMAND_FALSIFY:
  case COMMAND_SCREEN:
  case COMMAND_TOPOLOGY:
    return false;
  }
  __builtin_unreachable();
}

bool command_writes_text(command_kind kind) {
  switch (kind) {
  case COMMAND_PARITY:
  case COMMAND_GENERATE:
    return true;
  case COMMAND_PERPLEXITY:
  case COMMAND_TRACE:
  case COMMAND_BENCH:
  case COMMAND_INSPECT:
  case COMMAND_SYNTH:
  case COMMAND_COMPARE:
  case COMMAND_VERIFY:
  case COMMAND_BISECT:
  case COMMAND_FALSIFY:
  case COMMAND_SCREEN:
  case COMMAND_TOPOLOGY:
  case COMMAND_ROUTE:
    return false;
  }
  __builtin_unreachable();
}

bool command_find(command_kind *out, const char *name) {
  for (int i = 0; i < COMMAND_COUNT; i++)
    if (!strcmp(NAMES[i], name)) {
      *out = (command_kind)i;
      return true;
    }
  return false;
}
