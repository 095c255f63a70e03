// vocabulary: the tokens, merges and special tokens of a GGUF, checked.
//
// Owns: the keys' names and meaning, and GPT-2's byte alphabet.
// Independent of: text to encode.
// Invariant: once loaded, no id, merge or special token can lead out of its table; nothing of the file is
// kept.
#pragma once
#include "src/model/gguf.h"
#include "src/text/special_tokens.h"
#include "src/text/tokenizer_bpe.h"

#define VOCABULARY_KEY_TOKENS "tokenizer.ggml.tokens"

enum { BYTES = 256 };

typedef struct {
  char *path; // of the GGUF, for errors
  size_t count;
  char *bytes;            // of all tokens, one after another
  size_t *start;          // count + 1 offsets into bytes
  int32_t byte_id[BYTES]; // the token of a single byte, or -1
  bpe *merges;
  special_tokens *special;
} vocabulary;

status vocabulary_exists(bool *out, const gguf *g);     // false: the file has no tokenizer
status vocabulary_open(vocabulary *out, const gguf *g); // after an error too, vocabulary_close releases it
void vocabulary_close(vocabulary *v);
