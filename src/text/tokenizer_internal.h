// tokenizer_internal: what the loader fills (tokenizer_load.c) and encode and decode read (tokenizer.c).
#pragma once
#include "src/text/tokenizer.h"
#include "src/text/tokenizer_bpe.h"
#include "src/text/tokenizer_text.h"

#define TOKENIZER_KEY_TOKENS "tokenizer.ggml.tokens"

enum { BYTES = 256, END_KEYS = 3 };

typedef struct {
  int32_t child, sibling; // 0: none, as the root is nobody's child
  int32_t id;             // of the special token that ends here, or -1
  unsigned char byte;
} trie_node;

struct tokenizer {
  char *path; // of the GGUF, for faults
  size_t count;
  char *bytes;            // of all tokens, one after another
  size_t *start;          // count + 1 offsets into bytes
  int32_t byte_id[BYTES]; // the token of a single byte, or -1
  bpe *merges;
  splitter *words;
  trie_node *trie; // [0] is the root
  size_t trie_count;
  int32_t first[BYTES];  // the root's children by byte, 0: none
  int64_t end[END_KEYS]; // -1: the file has no such key
};

status tokenizer_exists(bool *out, const gguf *g);
// Fills *t, all but `words`, from the file's keys. On a fault tokenizer_close takes what is there.
status tokenizer_load(tokenizer *t, const gguf *g);

// The child of `node` by `byte`; 0: none.
static inline int32_t trie_step(const tokenizer *t, int32_t node, unsigned char byte) {
  if (!node) return t->first[byte];
  int32_t child = t->trie[node].child;
  while (child && t->trie[child].byte != byte) child = t->trie[child].sibling;
  return child;
}
