// tokenizer: see the header. What a GGUF says is checked once, at open (tokenizer_load.c); what is left for
// encode and decode is three tables: the bytes of each id, the merges (tokenizer_bpe) and a trie of the
// special tokens.
#include "src/text/tokenizer_internal.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT = BPE_MAX_WORD / 3 }; // NFC may have three times the bytes

// ---- open and close ----

status tokenizer_open(tokenizer **out, const gguf *g) {
  bool exists;
  *out = NULL;
  TRY(tokenizer_exists(&exists, g));
  if (!exists) return 0;
  TRY(TAKE(out, 1, "tokenizer"));
  status result = tokenizer_load(*out, g);
  if (!result) result = splitter_open(&(*out)->words);
  if (result) {
    tokenizer_close(*out);
    *out = NULL;
  }
  return result;
}

void tokenizer_close(tokenizer *t) {
  if (!t) return;
  free(t->path);
  free(t->bytes);
  free(t->start);
  bpe_close(t->merges);
  splitter_close(t->words);
  free(t->trie);
  free(t);
}

// ---- special tokens ----

// The longest special token at `start`: its id, or -1.
static int32_t special_at(size_t *end, const tokenizer *t, const char *text, size_t length, size_t start) {
  int32_t id = -1, node = 0;
  for (size_t i = start; i < length; i++) {
    node = trie_step(t, node, (unsigned char)text[i]);
    if (!node) break;
    if (t->trie[node].id < 0) continue;
    id = t->trie[node].id;
    *end = i + 1;
  }
  return id;
}

// The leftmost special token from `start` on. -1: none, and *begin == length.
static int32_t special_next(size_t *begin, size_t *end, const tokenizer *t, const char *text, size_t length,
                            size_t start) {
  for (*begin = start; *begin < length; ++*begin) {
    int32_t id = special_at(end, t, text, length, *begin);
    if (id >= 0) return id;
  }
  return -1;
}

// ---- encode ----

typedef struct { // what one call needs beside the tokenizer
  id_list ids;
  splitter_cursor *cursor;
  bpe_work *work;
  int32_t *symbol; // room for the symbols of the longest word
  size_t symbols;
} encoder;

static status encode_word(const tokenizer *t, encoder *e, const char *word, size_t length) {
  if (length > e->symbols) {
    free(e->symbol);
    e->symbols = 0;
    TRY(TAKE(&e->symbol, 2 * length, "symbols of a word"));
    e->symbols = 2 * length;
  }
  for (size_t i = 0; i < length; i++) {
    unsigned char byte = (unsigned char)word[i];
    e->symbol[i] = t->byte_id[byte];
    if (e->symbol[i] < 0)
      return FAIL("%s: key \"%s\": no token stands for the single byte 0x%02x, which the text needs", t->path,
                  TOKENIZER_KEY_TOKENS, byte);
  }
  return bpe_encode(&e->ids, t->merges, e->work, e->symbol, length);
}

static status encode_plain(const tokenizer *t, encoder *e, const char *text,
                           size_t length) { // no special tokens
  char *normal;
  size_t n, end = 0;
  status result = 0;
  if (!length) return 0;
  TRY(text_normalize(&normal, &n, text, length));
  for (size_t start = 0; start < n; start = end) {
    TRY_DONE(result, splitter_next(&end, t->words, e->cursor, normal, n, start));
    TRY_DONE(result, encode_word(t, e, normal + start, end - start));
  }
done:
  free(normal);
  return result;
}

// Special tokens first, in the text as it is; each part between them is normalised and split by itself.
static status encode_all(const tokenizer *t, encoder *e, const char *text, size_t length) {
  if (length > MAX_TEXT) return FAIL("text of %zu bytes is longer than the limit of %d", length, MAX_TEXT);
  TRY(text_check(text, length));
  TRY(splitter_cursor_open(&e->cursor));
  TRY(bpe_work_open(&e->work));
  for (size_t at = 0, begin, end = 0; at < length; at = end) {
    int32_t id = special_next(&begin, &end, t, text, length, at);
    TRY(encode_plain(t, e, text + at, begin - at));
    if (id < 0) break;
    TRY(id_list_push(&e->ids, id));
  }
  return 0;
}

status tokenizer_encode(const tokenizer *t, const char *text, size_t length, int32_t **ids, size_t *count) {
  encoder e = {0};
  status result = encode_all(t, &e, text, length);
  splitter_cursor_close(e.cursor);
  bpe_work_close(e.work);
  free(e.symbol);
  *ids = NULL;
  *count = 0;
  if (!result && !e.ids.id) result = TAKE(&e.ids.id, 1, "token ids"); // no text, no ids, yet no NULL
  if (result) {
    free(e.ids.id);
    return result;
  }
  *ids = e.ids.id;
  *count = e.ids.count;
  return 0;
}

// ---- decode ----

status tokenizer_decode(const tokenizer *t, const int32_t *ids, size_t count, char **text, size_t *length) {
  size_t total = 1, n = 0;
  *text = NULL;
  *length = 0;
  for (size_t i = 0; i < count; i++) {
    if (ids[i] < 0 || (size_t)ids[i] >= t->count)
      return FAIL("%s: token id %d at position %zu: expected 0 to %zu", t->path, ids[i], i, t->count - 1);
    if (!size_add(&total, total, t->start[ids[i] + 1] - t->start[ids[i]]))
      return FAIL("text of %zu ids is too long", count);
  }
  TRY(TAKE(text, total, "decoded text"));
  for (size_t i = 0; i < count; i++) {
    size_t begin = t->start[ids[i]], bytes = t->start[ids[i] + 1] - begin;
    memcpy(*text + n, t->bytes + begin, bytes);
    n += bytes;
  }
  *length = n;
  return 0;
}

size_t tokenizer_vocabulary(const tokenizer *t) {
  return t->count;
}

bool tokenizer_is_end(const tokenizer *t, int32_t id) {
  for (int i = 0; i < END_KEYS; i++)
    if (t->end[i] >= 0 && t->end[i] == id) return true;
  return false;
}
