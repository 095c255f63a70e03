#include "src/run/input.h"
#include "base/memory.h"
#include "base/read_file.h"
#include "kernels/formats/numerics.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_LIMIT = 1 << 30, KEY_BYTES = 120 }; // bytes of input.file; of a key and what it names, in errors

typedef struct {
  const model *m;
  const tokenizer *tokenizer; // NULL: the model has none
  token_sequence *sequences;
  int64_t n;
} input;

// ---- sequences ----

// Takes over `tokens`.
static status add_sequence(input *in, const char *key, int32_t *tokens, size_t n) {
  in->sequences[in->n++] = (token_sequence){tokens, (int64_t)n};
  return n ? 0 : REFUSE("%s: the input has no tokens", key);
}

static status add_text(input *in, const char *key, const char *text, size_t length) {
  int32_t *ids;
  size_t n;
  if (!in->tokenizer)
    return REFUSE("%s: %s is text, but this model has no tokenizer; give input.tokens",
                  gguf_path(in->m->file), key);
  status result = tokenizer_encode(in->tokenizer, text, length, &ids, &n);
  if (result) status_within("%s", key);
  return result ? result : add_sequence(in, key, ids, n);
}

static status add_file(input *in, const char *path) {
  char *text, key[KEY_BYTES];
  size_t length;
  snprintf(key, sizeof key, "input.file %s", path);
  TRY(read_file(&text, &length, path, "input.file", TEXT_LIMIT, READ_REGULAR));
  status result = add_text(in, key, text, length);
  free(text);
  return result;
}

static status add_tokens(input *in, const int32_t *tokens, size_t n) {
  int32_t *copy;
  TRY(TAKE(&copy, n, "the input"));
  if (n) memcpy(copy, tokens, n * sizeof *copy);
  return add_sequence(in, "input.tokens", copy, n);
}

static status add_prompts(input *in, const char *key, char *const *prompts, size_t n) {
  for (size_t i = 0; i < n; i++) {
    char which[KEY_BYTES];
    snprintf(which, sizeof which, n > 1 ? "%s, sequence %zu" : "%s", key, i);
    TRY(add_text(in, which, prompts[i], strlen(prompts[i])));
  }
  return n ? 0 : REFUSE("%s: expected at least one prompt", key);
}

static status read_all(input *in, const struct config_input *c) {
  TRY(TAKE(&in->sequences, c->kind == INPUT_PROMPTS ? c->n_prompts : 1, "the sequences"));
  switch (c->kind) {
  case INPUT_NONE:
    return REFUSE("no input: set input.tokens, input.prompt, input.prompts or input.file");
  case INPUT_TOKENS:
    return add_tokens(in, c->tokens, c->n_tokens);
  case INPUT_FILE:
    return add_file(in, c->file);
  case INPUT_PROMPT:
    return add_prompts(in, "input.prompt", c->prompts, c->n_prompts);
  case INPUT_PROMPTS:
    return add_prompts(in, "input.prompts", c->prompts, c->n_prompts);
  }
  __builtin_unreachable();
}

static status check_ids(const input *in) {
  int64_t vocabulary = in->m->weights.shape.vocabulary;
  for (int64_t s = 0; s < in->n; s++)
    for (int64_t t = 0; t < in->sequences[s].n; t++) {
      int32_t id = in->sequences[s].tokens[t];
      if (id < 0 || id >= vocabulary)
        return REFUSE(
            "input: token %lld of sequence %lld: expected an id below the vocabulary's %lld, found %d",
            (long long)t, (long long)s, (long long)vocabulary, id);
    }
  return 0;
}

status input_open(token_sequence **out, int64_t *n, const config *c, const model *m, const tokenizer *t) {
  input in = {.m = m, .tokenizer = t};
  status result = read_all(&in, &c->input);
  *out = in.sequences;
  *n = in.n;
  return result ? result : check_ids(&in);
}

void input_close(token_sequence *sequences, int64_t n) {
  for (int64_t s = 0; s < n; s++) free(sequences[s].tokens);
  free(sequences);
}

int32_t input_drawn(uint64_t seed, int64_t vocabulary, int64_t s, int64_t t) {
  uint64_t place = num_mix64(seed + 0x9e3779b97f4a7c15u) + ((uint64_t)s << 32) + (uint64_t)t;
  return (int32_t)(num_mix64(place) % (uint64_t)vocabulary);
}

input_size input_measure(const token_sequence *sequences, int64_t n) {
  input_size size = {0, 0, 0};
  for (int64_t s = 0; s < n; s++) {
    size.total += sequences[s].n;
    if (sequences[s].n <= size.longest) continue;
    size.longest = sequences[s].n;
    size.which = s;
  }
  return size;
}

uint64_t input_hash(const token_sequence *sequences, int64_t n) {
  uint64_t sum = num_mix64((uint64_t)n);
  for (int64_t s = 0; s < n; s++)
    for (int64_t t = 0; t < sequences[s].n; t++)
      sum = num_mix64(sum + (uint64_t)sequences[s].tokens[t] + ((uint64_t)s << 32));
  return sum;
}
