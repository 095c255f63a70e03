// What a GGUF says is checked once, at open (vocabulary.c); what is left for encode and decode is three
// tables: the bytes of each id, the merges and the special tokens.
#include "src/text/tokenizer.h"
#include "src/text/tokenizer_internal.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT = BPE_MAX_WORD / 3 }; // NFC may have three times the bytes

// ---- open and close ----

status tokenizer_open(tokenizer **out, const gguf *g) {
  bool exists;
  *out = NULL;
  TRY(vocabulary_exists(&exists, g));
  if (!exists) return 0;
  TRY(TAKE(out, 1, "tokenizer"));
  status result = vocabulary_open(&(*out)->tokens, g);
  if (!result) result = splitter_open(&(*out)->words);
  if (result) {
    tokenizer_close(*out);
    *out = NULL;
  }
  return result;
}

void tokenizer_close(tokenizer *t) {
  if (!t) return;
  vocabulary_close(&t->tokens);
  splitter_close(t->words);
  free(t);
}

// ---- encode ----

typedef struct { // what one call needs beside the tokenizer
  id_list ids;
  splitter_cursor *cursor;
  bpe_work *work;
  int32_t *symbol; // room for the symbols of the longest word
  size_t symbols;
} encoder;

static status encode_word(const vocabulary *v, encoder *e, const char *word, size_t length) {
  if (length > e->symbols) {
    free(e->symbol);
    e->symbols = 0;
    TRY(TAKE(&e->symbol, 2 * length, "symbols of a word"));
    e->symbols = 2 * length;
  }
  for (size_t i = 0; i < length; i++) {
    unsigned char byte = (unsigned char)word[i];
    e->symbol[i] = v->byte_id[byte];
    if (e->symbol[i] < 0)
      return FAIL("%s: key \"%s\": no token stands for the single byte 0x%02x, which the text needs", v->path,
                  VOCABULARY_KEY_TOKENS, byte);
  }
  return bpe_encode(&e->ids, v->merges, e->work, e->symbol, length);
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
    TRY_DONE(result, encode_word(&t->tokens, e, normal + start, end - start));
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
  for (size_t at = 0, start, end = 0; at < length; at = end) {
    int32_t id = special_tokens_next(&start, &end, t->tokens.special, text, length, at);
    TRY(encode_plain(t, e, text + at, start - at));
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

// Of one id >= 0.
static const char *bytes_of(size_t *n, const vocabulary *v, int32_t id) {
  static const char none[] = "\xef\xbf\xbd"; // U+FFFD
  bool is_known = (size_t)id < v->count;
  *n = is_known ? v->start[id + 1] - v->start[id] : sizeof none - 1;
  return is_known ? v->bytes + v->start[id] : none;
}

status tokenizer_decode(const tokenizer *t, const int32_t *ids, size_t count, char **text, size_t *length) {
  size_t total = 1, at = 0, n;
  *text = NULL;
  *length = 0;
  for (size_t i = 0; i < count; i++) {
    if (ids[i] < 0)
      return FAIL("%s: token id %d at position %zu: expected 0 and above", t->tokens.path, ids[i], i);
    bytes_of(&n, &t->tokens, ids[i]);
    if (!size_add(&total, total, n)) return FAIL("text of %zu ids is too long", count);
  }
  TRY(TAKE(text, total, "decoded text"));
  for (size_t i = 0; i < count; i++) {
    const char *from = bytes_of(&n, &t->tokens, ids[i]);
    memcpy(*text + at, from, n);
    at += n;
  }
  *length = at;
  return 0;
}

size_t tokenizer_vocabulary(const tokenizer *t) {
  return t->tokens.count;
}
