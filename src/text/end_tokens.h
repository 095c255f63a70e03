// end_tokens: the tokens that end what a model generates, from what a GGUF says of its vocabulary.
//
// Owns: the keys and lists that name such tokens, and the texts by which they are known.
// Independent of: the tokenizer: ids alone, of a file whose text cannot be read, end a sequence as well.
// Invariant: no file is refused here; an id that is none (-1, 2^32 - 1) or beyond the vocabulary is passed
// over.
#pragma once
#include "src/model/gguf.h"

typedef struct end_tokens end_tokens;

// Of a file without a vocabulary only the keys count.
status end_tokens_open(end_tokens **out, const gguf *g);
void end_tokens_close(end_tokens *e); // takes NULL

size_t end_tokens_count(const end_tokens *e);
int32_t end_tokens_id(const end_tokens *e, size_t i);         // ascending
const char *end_tokens_text(const end_tokens *e, size_t i);   // "<|im_end|>"; "": the file has no vocabulary
const char *end_tokens_find(const end_tokens *e, int32_t id); // its text; NULL: the token ends nothing
