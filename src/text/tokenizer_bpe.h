// tokenizer_bpe: byte-pair encoding of one word: the merges by rank.
//
// Owns: the table of merges and the order in which they are applied: lowest rank first, leftmost on a tie.
// Independent of: text, Unicode, special tokens, files.
// Invariant: the work for a word of n bytes is O(n log n).
#pragma once
#include "base/status.h"
#include <stddef.h>
#include <stdint.h>

typedef struct bpe bpe;           // constant after the last bpe_add
typedef struct bpe_work bpe_work; // scratch of one thread

enum { BPE_MAX_WORD = 1 << 30 }; // bytes: positions in a word are 32 bits

typedef struct { // a growing array
  int32_t *id;
  size_t count, capacity;
} id_list;

status id_list_push(id_list *list, int32_t id);

status bpe_open(bpe **out, size_t merges); // room for that many merges
void bpe_close(bpe *b);                    // takes NULL
// left, right -> joined with `rank`. Where the pair is known already nothing changes and *known is its rank;
// else *known == rank.
void bpe_add(uint32_t *known, bpe *b, int32_t left, int32_t right, int32_t joined, uint32_t rank);

status bpe_work_open(bpe_work **out);
void bpe_work_close(bpe_work *w); // takes NULL
// Appends the ids of a word of `count` <= BPE_MAX_WORD symbols: `symbol` are ids too, one for each byte.
status bpe_encode(id_list *out, const bpe *b, bpe_work *w, const int32_t *symbol, size_t count);
