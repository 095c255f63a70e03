// tokenizer_text: what happens to UTF-8 text before the vocabulary is used: check, NFC, split into words.
//
// Owns: the Unicode side of the "qwen2" tokenizer: which characters are letters, numbers and white space,
// the normal form, the pre-tokenizer's pattern.
// Independent of: tokens, merges, files.
// Invariant: the words of a text, put one after another, are the text.
#pragma once
#include "base/status.h"
#include <stddef.h>

typedef struct splitter splitter;               // the compiled pattern; constant after open
typedef struct splitter_cursor splitter_cursor; // what one thread needs beside it

// Fails with the offset of the first byte that is not part of valid UTF-8.
status text_check(const char *text, size_t length);

// *out: NFC of valid UTF-8, by Unicode 9 (docs/tokenizer.md says why); caller frees.
status text_normalize(char **out, size_t *out_length, const char *text, size_t length);

status splitter_open(splitter **out);
void splitter_close(splitter *s); // takes NULL
status splitter_cursor_open(splitter_cursor **out);
void splitter_cursor_close(splitter_cursor *c); // takes NULL

// *end: where the word that starts at `start` < length ends, in valid UTF-8; start < *end <= length.
status splitter_next(size_t *end, const splitter *s, splitter_cursor *c, const char *text, size_t length,
                     size_t start);
