// tokenizer: text to token ids and back, from what a GGUF says of its vocabulary.
//
// Owns: the vocabulary, merges and special tokens of a byte-level BPE (`tokenizer.ggml.model` = "gpt2",
// `tokenizer.ggml.pre` = "qwen2"): NFC, the qwen2 pre-tokenizer's pattern, merges by rank.
// Independent of: the model. Invariant: decode(encode(s)) == NFC(s) for every valid UTF-8 s.
#pragma once
#include "src/model/gguf.h"

typedef struct tokenizer tokenizer;

// Sets *out to NULL, with status 0, when the file has no tokenizer; another kind of tokenizer is an error.
status tokenizer_open(tokenizer **out, const gguf *g);
void tokenizer_close(tokenizer *t); // takes NULL

// Token ids of UTF-8 text; special tokens ("<|im_end|>") in the text become their ids. *ids: caller frees.
// Text that is not valid UTF-8 is an error that names the byte's offset.
status tokenizer_encode(const tokenizer *t, const char *text, size_t length, int32_t **ids, size_t *count);
// The bytes that the ids stand for, zeros among them; *text is NUL-terminated beyond *length; caller frees.
// Of an id beyond the vocabulary, which a padded embedding has, U+FFFD; a negative one is an error.
status tokenizer_decode(const tokenizer *t, const int32_t *ids, size_t count, char **text, size_t *length);

size_t tokenizer_vocabulary(const tokenizer *t); // number of token ids
