#include "src/text/end_tokens.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>

#define KEY_TOKENS "tokenizer.ggml.tokens"
#define KEY_TYPES  "tokenizer.ggml.token_type"

enum { TOKEN_CONTROL = 3, TOKEN_USER = 4 }; // numbers of KEY_TYPES

// A number or an array of numbers each. llama.cpp's keys (src/llama-vocab.cpp; the last three end a text that
// is filled in), and Ollama's list of several.
static const char *const keys[] = {
    "tokenizer.ggml.eos_token_id",     "tokenizer.ggml.eot_token_id",     "tokenizer.ggml.eom_token_id",
    "tokenizer.ggml.eos_token_ids",    "tokenizer.ggml.fim_pad_token_id", "tokenizer.ggml.fim_rep_token_id",
    "tokenizer.ggml.fim_sep_token_id",
};

// llama.cpp takes these texts for ends whatever the keys say (src/llama-vocab.cpp): a base model's file names
// only <|endoftext|>, but a chat's turn ends with <|im_end|>. The first list counts for every type of token;
// the second, which text may hold as well, for special tokens only.
static const char *const texts[] = {
    "<|endoftext|>", "<|im_end|>",    "<|eot_id|>",   "<|eom_id|>",   "<|end_of_text|>",
    "<|end|>",       "<|return|>",    "<|call|>",     "<|flush|>",    "<|calls|>",
    "<|fim_pad|>",   "<|repo_name|>", "<|fim_repo|>", "<|file_sep|>",
};
static const char *const special_texts[] = {
    "</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_turn>", "<end_of_utterance>", "<turn|>",
};
enum {
  N_KEYS = sizeof keys / sizeof *keys,
  N_TEXTS = sizeof texts / sizeof *texts,
  N_SPECIAL_TEXTS = sizeof special_texts / sizeof *special_texts
};

typedef struct {
  int32_t id;
  char *text;
} end_token;

struct end_tokens {
  end_token *token;
  size_t count, capacity;
};

typedef struct { // what lives only while a file is read
  const gguf *g;
  gguf_string *token;
  size_t count; // 0: no vocabulary
} vocabulary_view;

static bool is_in(const char *const *list, size_t n, gguf_string text) {
  for (size_t i = 0; i < n; i++)
    if (text.length == strlen(list[i]) && !memcmp(text.text, list[i], text.length)) return true;
  return false;
}

static status add(end_tokens *e, const vocabulary_view *v, int32_t id) {
  if (end_tokens_find(e, id)) return 0;
  TRY(memory_grow((void **)&e->token, &e->capacity, e->count, sizeof *e->token, "end tokens"));
  char *text;
  size_t length = v->count ? v->token[id].length : 0;
  TRY(TAKE(&text, length + 1, "end tokens"));
  if (length) memcpy(text, v->token[id].text, length);
  e->token[e->count++] = (end_token){id, text};
  return 0;
}

static status add_keys(end_tokens *e, const vocabulary_view *v) {
  for (int k = 0; k < N_KEYS; k++) {
    size_t n = gguf_key_elements(v->g, keys[k]);
    for (size_t i = 0; i < n; i++) {
      double id, most = v->count ? (double)v->count - 1 : INT32_MAX;
      if (!gguf_key_number(v->g, keys[k], i, &id) || !(id >= 0 && id <= most) || id != (int32_t)id) continue;
      TRY(add(e, v, (int32_t)id));
    }
  }
  return 0;
}

static bool is_special(const vocabulary_view *v, size_t id) {
  double type;
  return gguf_key_number(v->g, KEY_TYPES, id, &type) && (type == TOKEN_CONTROL || type == TOKEN_USER);
}

static status add_texts(end_tokens *e, const vocabulary_view *v) {
  for (size_t i = 0; i < v->count && i <= INT32_MAX; i++)
    if (is_in(texts, N_TEXTS, v->token[i]) ||
        (is_in(special_texts, N_SPECIAL_TEXTS, v->token[i]) && is_special(v, i)))
      TRY(add(e, v, (int32_t)i));
  return 0;
}

static int by_id(const void *a, const void *b) {
  int32_t x = ((const end_token *)a)->id, y = ((const end_token *)b)->id;
  return (x > y) - (x < y);
}

status end_tokens_open(end_tokens **out, const gguf *g) {
  vocabulary_view v = {.g = g};
  TRY(TAKE(out, 1, "end tokens"));
  if (gguf_key_array_strings(g, KEY_TOKENS, &v.token, &v.count))
    status_reset(); // no vocabulary, or a bad one
  status result = add_keys(*out, &v);
  if (!result) result = add_texts(*out, &v);
  free(v.token);
  if (result) {
    end_tokens_close(*out);
    *out = NULL;
    return result;
  }
  if ((*out)->count) qsort((*out)->token, (*out)->count, sizeof *(*out)->token, by_id);
  return 0;
}

void end_tokens_close(end_tokens *e) {
  if (!e) return;
  for (size_t i = 0; i < e->count; i++) free(e->token[i].text);
  free(e->token);
  free(e);
}

size_t end_tokens_count(const end_tokens *e) {
  return e->count;
}

int32_t end_tokens_id(const end_tokens *e, size_t i) {
  return e->token[i].id;
}

const char *end_tokens_text(const end_tokens *e, size_t i) {
  return e->token[i].text;
}

const char *end_tokens_find(const end_tokens *e, int32_t id) {
  for (size_t i = 0; i < e->count; i++)
    if (e->token[i].id == id) return e->token[i].text;
  return NULL;
}
