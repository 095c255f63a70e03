// config: everything that a user can set, from one TOML file and --set KEY=VALUE on the command line.
//
// Owns: the table of keys (name, type, default, one line of help) and the values of one run.
// Independent of: MPI; the model: bounds that depend on it are checked once it is open.
// Invariant: after config_load every field is set and in its range; an unknown key never passes silently.
#pragma once
#include "base/status.h"
#include "src/config/config_types.h"
#include <stdio.h>

// Reads FILE (may be NULL) and then the n_sets texts "KEY=VALUE" in order, VALUE in TOML syntax; a bare word
// that is no TOML value (--set model.path=a.gguf) is taken as a string. Relative paths in the FILE's
// model.path and input.file are taken from the working directory. The error names the file and line (or the
// --set), the key, what was expected and found, and for an unknown key the nearest known one.
status config_load(config *out, const char *file, const char *const *sets, size_t n_sets);
void config_close(config *c); // takes NULL; releases what the fields own

// The command line's --out DIR: sets output.dir to the text as it is, not parsed as TOML.
status config_set_dir(config *c, const char *dir);

// A canonical text of every value (for comparing ranks and for the report): TOML that config_load would read
// back to the same values; caller frees.
status config_text(const config *c, char **out);

typedef enum { // keys that are used together, as bits: which commands read them
  KEYS_MODEL = 1,
  KEYS_INPUT = 1 << 1,
  KEYS_ARMS = 1 << 2,    // which arms there are
  KEYS_RANKS = 1 << 3,   // ranks, their threads and their experts
  KEYS_FORWARD = 1 << 4, // how a forward pass is cut, and its cache
  KEYS_WRITE = 1 << 5,   // sampling: how an arm continues the text
  KEYS_PERPLEXITY = 1 << 6,
  KEYS_BENCH = 1 << 7,
  KEYS_OUTPUT = 1 << 8,
  KEYS_LOGITS = 1 << 9,
  KEYS_TRACE = 1 << 10,
  KEYS_PARITY = 1 << 11,
  KEYS_CONTRACT = 1 << 12,
  KEYS_DERIVE = 1 << 13,
  KEYS_BISECT = 1 << 14,
  KEYS_FALSIFY = 1 << 15,
  KEYS_RESUME = 1 << 16, // what is kept of a run that is ended
  KEYS_SCREEN = 1 << 17,
  KEYS_KNOWN = 1 << 18,
  KEYS_FORMAT = 1 << 19, // how inspect prints
  KEYS_ALL = (1 << 20) - 1,
} key_groups;

// Prints the keys of these groups with types, defaults and help, each section under a heading.
void config_print_keys(FILE *out, unsigned groups);
