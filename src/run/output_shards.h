// output_shards: which batches have the outputs of their shared steps divided among the ranks, heads and rows
// of matrices (attention.placement): never, always, or where it was measured to be quicker.
//
// Owns: the choice and its reason. Independent of: how outputs are computed and joined (forward.c).
// Invariant: the same on every rank at every batch. It changes no bit, so a run's own batches are what is
// timed: the first ones of a size run in both ways by turns, and the way with the least time of the slowest
// rank stays.
#pragma once
#include "dist/comm.h"
#include "src/config/config_types.h"

enum { OUTPUT_SIZES = 6 }; // batches of 1, 2 to 4, 5 to 16, 17 to 64, 65 to 256, more

typedef struct {   // batches of a size
  int turns;       // so far
  int timed;       // of these
  double least[2]; // seconds of this rank, replicated and sharded
  int64_t tokens;  // of the last one
  bool decided, sharded;
} output_size;

typedef enum { OUTPUTS_OF_LAYERS, OUTPUTS_OF_HEAD } output_kind; // chosen apart
enum { OUTPUT_KINDS = 2 };

typedef struct {
  attention_placement asked;
  comm *c;
  bool possible;
  bool held;        // what is not decided yet stays replicated and is not timed
  char why_not[96]; // where it is not possible
  output_size size[OUTPUT_KINDS][OUTPUT_SIZES];
} output_shards;

// Collective. able: this rank's backend can; why_not: else why, in a few words.
status output_shards_open(output_shards *out, comm *c, attention_placement asked, bool able,
                          const char *why_not);

// Local. Whether the next batch of n rows divides them.
bool output_shards_apply(const output_shards *s, output_kind kind, int64_t n);
// Local. Whether batches of n rows are still timed: output_shards_note then follows each.
bool output_shards_are_timed(const output_shards *s, output_kind kind, int64_t n);
// Collective. The last batch of n rows took `seconds` here.
status output_shards_note(output_shards *s, output_kind kind, int64_t n, double seconds);

// Local. What ran and why: "replicated", "sharded, as set", "sharded: 8 tokens 12.1 ms, replicated 17.2".
void output_shards_tell(const output_shards *s, char *out, size_t bytes);
