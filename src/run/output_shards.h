// output_shards: which small batches have their shared steps divided among the ranks (attention.placement):
// never, always, or where it was measured to be quicker; and in which of two ways. Where every rank's backend
// can, ranks divide outputs: heads, and rows of matrices, so that each weight is read once by all of them
// together. Else they divide tokens (token_shards.h), which every backend can; docs/running.md says why GPUs
// do. A head's rows are divided wherever every backend can.
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

typedef struct {    // of a rank
  bool outputs;     // its backend divides those of attention (backend_ops.heads_part)
  bool head;        // and those of the head
  char why_not[96]; // it divides nothing, and why, in a few words; "": it does
} output_ability;

typedef struct {
  attention_placement asked;
  comm *c;
  bool possible[OUTPUT_KINDS];
  bool by_tokens;      // layers divide a batch's tokens, not outputs
  int64_t least, most; // tokens of the batches whose layers may be divided
  bool held;           // what is not decided yet stays replicated and is not timed
  char why_not[96];    // where nothing is possible
  output_size size[OUTPUT_KINDS][OUTPUT_SIZES];
} output_shards;

// Collective. most: tokens of the largest batch that is not token-sharded anyway.
status output_shards_open(output_shards *out, comm *c, attention_placement asked, const output_ability *mine,
                          int64_t most);

// Local. Whether the next batch of n rows divides them.
bool output_shards_apply(const output_shards *s, output_kind kind, int64_t n);
// Local. Whether batches of n rows are still timed: output_shards_note then follows each.
bool output_shards_are_timed(const output_shards *s, output_kind kind, int64_t n);
// Collective. The last batch of n rows took `seconds` here.
status output_shards_note(output_shards *s, output_kind kind, int64_t n, double seconds);

// Local. What ran and why: "replicated", "sharded", "sharded by tokens", "batches of 8: sharded by
// tokens, 12.1 ms (17.2)".
void output_shards_tell(const output_shards *s, char *out, size_t bytes);
