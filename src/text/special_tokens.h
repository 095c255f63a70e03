// special_tokens: finds special tokens ("<|im_end|>") in a text: a trie of their bytes.
//
// Independent of: what a special token means, Unicode.
// Invariant: the longest token at a place wins, and the leftmost place.
#pragma once
#include "base/status.h"
#include <stddef.h>
#include <stdint.h>

typedef struct special_tokens special_tokens;

status special_tokens_open(special_tokens **out,
                           size_t bytes);     // room for tokens of `bytes` in all, < INT32_MAX
void special_tokens_close(special_tokens *s); // takes NULL
void special_tokens_add(special_tokens *s, const char *text, size_t length, int32_t id);
// The first special token from `from` on: its id, and where it stands. -1: none, and *start == length.
int32_t special_tokens_next(size_t *start, size_t *end, const special_tokens *s, const char *text,
                            size_t length, size_t from);
