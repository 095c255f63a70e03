// known_answers: digests that are known to be right, of models that anybody can make again, and a run's
// digests held against them.
//
// Owns: the table (configs/known-answers.toml, built in). Independent of: who computed a digest.
// Invariant: an answer of another version of a path is never compared, and is said to be there.
#pragma once
#include "kernels/backend.h"
#include <stdio.h>

enum { KNOWN_TEST = 80, KNOWN_ARM = 24 };

typedef enum { KNOWN_HOLDS, KNOWN_DIFFERS, KNOWN_OTHER_VERSION } known_verdict;

typedef struct {
  char arm[KNOWN_ARM], test[KNOWN_TEST];
  const path_info *path;
  int version; // of the known answer
  uint64_t expected, found;
  known_verdict verdict;
} known_check;

typedef struct {
  void *rows; // of the table: those of this model
  size_t n_rows, room;
  known_check *checks;
  size_t n_checks, checks_room;
} known_answers;

// Reads the table, "" for the built-in one, and keeps what it has of the model. Errors are refusals.
status known_open(known_answers *out, const char *path, uint64_t fingerprint);
void known_close(known_answers *k); // of zeros too
// test: bench's name of it ("tg128", "pp512 @ d4096", "tg32 x32"), "input HASH" or "written N after HASH".
// What is not in the table is not checked.
status known_add(known_answers *k, const char *arm, const path_info *path, const char *test, uint64_t found);
bool known_differs(const known_answers *k);
// A line for each check that differs or is of another version, and one that says how many hold; nothing where
// the table has nothing.
void known_print(const known_answers *k, FILE *out);
