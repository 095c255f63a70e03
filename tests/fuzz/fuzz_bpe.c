// fuzz_bpe: a table of merges and a word, held against the plain definition of byte-pair encoding.
//
// An input: how many merges, 3 bytes each (left, right, joined, each an id below 32), then the word's
// symbols.
#include "tests/fuzz/fuzz.h"
#include "src/text/tokenizer_bpe.h"
#include <stdlib.h>
#include <string.h>

enum { IDS = 32, MOST_MERGES = 48, MOST_SYMBOLS = 256 };

typedef struct {
  int32_t joined[IDS][IDS];
  uint32_t rank[IDS][IDS]; // UINT32_MAX: does not merge
} plain_table;

static size_t encode_plain(int32_t *word, size_t count, const plain_table *table) {
  for (;;) {
    size_t best = count;
    uint32_t rank = UINT32_MAX;
    for (size_t i = 0; i + 1 < count; i++)
      if (table->rank[word[i]][word[i + 1]] < rank) rank = table->rank[word[best = i]][word[i + 1]];
    if (best == count) return count;
    word[best] = table->joined[word[best]][word[best + 1]];
    memmove(word + best + 1, word + best + 2, (count - best - 2) * sizeof *word);
    count--;
  }
}

static bpe *read_merges(plain_table *table, fuzz_input *in) {
  bpe *b;
  size_t merges = (size_t)fuzz_take(in, 1) % (MOST_MERGES + 1);
  memset(table->rank, 0xff, sizeof table->rank);
  REQUIRE(!bpe_open(&b, merges));
  for (uint32_t rank = 0; rank < merges; rank++) {
    int32_t left = (int32_t)fuzz_take(in, 1) % IDS, right = (int32_t)fuzz_take(in, 1) % IDS,
            joined = (int32_t)fuzz_take(in, 1) % IDS;
    uint32_t known;
    bpe_add(&known, b, left, right, joined, rank);
    REQUIRE(known == (table->rank[left][right] == UINT32_MAX ? rank : table->rank[left][right]));
    if (known != rank) continue;
    table->rank[left][right] = rank;
    table->joined[left][right] = joined;
  }
  return b;
}

FUZZ_TARGET(bpe) {
  static plain_table table;
  static bpe_work *work; // scratch: what it holds must not matter
  fuzz_input in = {data, size};
  int32_t word[MOST_SYMBOLS];
  size_t count = 0;
  id_list found = {0};
  if (!work) REQUIRE(!bpe_work_open(&work));
  bpe *b = read_merges(&table, &in);
  while (in.left && count < MOST_SYMBOLS) word[count++] = (int32_t)fuzz_take(&in, 1) % IDS;
  REQUIRE(!bpe_encode(&found, b, work, word, count));
  count = encode_plain(word, count, &table);
  REQUIRE(found.count == count && (!count || !memcmp(found.id, word, count * sizeof *word)));
  free(found.id);
  bpe_close(b);
  return 0;
}
