#include "src/text/vocabulary.h"
#include "base/memory.h"
#include "base/name_table.h"
#include "src/text/tokenizer_text.h"
#include <stdlib.h>
#include <string.h>

#define KEY_MODEL  "tokenizer.ggml.model"
#define KEY_PRE    "tokenizer.ggml.pre"
#define KEY_MERGES "tokenizer.ggml.merges"
#define KEY_TYPES  "tokenizer.ggml.token_type"

enum { ALPHABET_END = 324, SHOWN_BYTES = 48 };

// The numbers are those of the GGUF key.
enum { TOKEN_NORMAL = 1, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER, TOKEN_UNUSED, TOKEN_BYTE };

static const char *const end_keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};

// ---- the byte alphabet ----

// GPT-2's map of bytes to characters that are visible: a byte that is a visible character of Latin-1 stands
// for itself, the others for U+0100 on, in ascending order.
typedef struct {
  uint16_t code_of[BYTES];
  int16_t byte_of[ALPHABET_END]; // -1: not in the alphabet
} alphabet;

static void alphabet_init(alphabet *a) {
  uint16_t next = 0x100;
  memset(a->byte_of, -1, sizeof a->byte_of);
  for (int b = 0; b < BYTES; b++) {
    bool visible = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    a->code_of[b] = visible ? (uint16_t)b : next++;
    a->byte_of[a->code_of[b]] = (int16_t)b;
  }
}

static size_t alphabet_text(char out[2], const alphabet *a, unsigned char byte) {
  uint16_t code = a->code_of[byte];
  if (code < 0x80) return out[0] = (char)code, 1;
  out[0] = (char)(0xC0 | code >> 6);
  out[1] = (char)(0x80 | (code & 0x3F));
  return 2;
}

// The bytes that a token's text stands for, at most as many as it has; false: not all of it is in the
// alphabet.
static bool alphabet_bytes(char *out, size_t *count, const alphabet *a, gguf_string text) {
  *count = 0;
  for (size_t i = 0; i < text.length;) {
    unsigned code = (unsigned char)text.text[i++];
    if (code >= 0x80) {
      if (code < 0xC2 || code > 0xC5 || i == text.length || (text.text[i] & 0xC0) != 0x80) return false;
      code = (code & 0x1F) << 6 | (text.text[i++] & 0x3F);
    }
    if (code >= ALPHABET_END || a->byte_of[code] < 0) return false;
    out[(*count)++] = (char)a->byte_of[code];
  }
  return true;
}

// ---- loading: what lives only while a file is read ----

typedef struct {
  const char *path;
  gguf_string *token, *merge;
  int32_t *type; // NULL: all normal
  size_t count, merges, types;
  name_table ids; // of the tokens' texts
  alphabet bytes;
} loader;

typedef struct {
  char text[SHOWN_BYTES + 4];
} shown;

static shown show(gguf_string s) { // for an error: cut, and without control characters
  shown out = {{0}};
  size_t n = s.length < SHOWN_BYTES ? s.length : SHOWN_BYTES;
  for (size_t i = 0; i < n; i++)
    out.text[i] = (unsigned char)s.text[i] < 0x20 || s.text[i] == 0x7F ? '?' : s.text[i];
  if (n < s.length) memcpy(out.text + n, "...", 3);
  return out;
}

static bool is_special(const loader *l, size_t id) {
  return l->type && (l->type[id] == TOKEN_CONTROL || l->type[id] == TOKEN_USER);
}

static bool same(gguf_string a, gguf_string b) {
  return a.length == b.length && !memcmp(a.text, b.text, a.length);
}

static int32_t find_token(const loader *l, gguf_string text) { // its id; -1: no token
  size_t id;
  return name_table_find(&id, &l->ids, text.text, text.length) ? (int32_t)id : -1;
}

static status load_kind(const gguf *g, const char *key, const char *expected) {
  gguf_string found, wanted = {expected, strlen(expected)};
  TRY(gguf_key_string(g, key, &found));
  if (same(found, wanted)) return 0;
  return FAIL("%s: key \"%s\": expected \"%s\", found \"%s\"; no other tokenizer is known", gguf_path(g), key,
              expected, show(found).text);
}

static status load_arrays(loader *l, const gguf *g) {
  TRY(gguf_key_array_strings(g, VOCABULARY_KEY_TOKENS, &l->token, &l->count));
  TRY(gguf_key_array_strings(g, KEY_MERGES, &l->merge, &l->merges));
  if (!l->count || l->count > INT32_MAX)
    return FAIL("%s: key \"%s\": expected 1 to %d tokens, found %zu", l->path, VOCABULARY_KEY_TOKENS,
                INT32_MAX, l->count);
  if (!gguf_key_exists(g, KEY_TYPES)) return 0;
  TRY(gguf_key_array_i32(g, KEY_TYPES, &l->type, &l->types));
  if (l->types != l->count)
    return FAIL("%s: key \"%s\": expected one type for each of %zu tokens, found %zu", l->path, KEY_TYPES,
                l->count, l->types);
  for (size_t i = 0; i < l->count; i++)
    if (l->type[i] < TOKEN_NORMAL || l->type[i] > TOKEN_BYTE)
      return FAIL("%s: key \"%s\": expected types 1 to %d, found %d for token %zu", l->path, KEY_TYPES,
                  TOKEN_BYTE, l->type[i], i);
  return 0;
}

static status index_tokens(loader *l) {
  TRY(name_table_open(&l->ids, l->count));
  for (size_t i = 0; i < l->count; i++) {
    gguf_string text = l->token[i];
    size_t there;
    if (!text.length) return FAIL("%s: key \"%s\": token %zu is empty", l->path, VOCABULARY_KEY_TOKENS, i);
    if (!name_table_add(&there, &l->ids, text.text, text.length, i))
      return FAIL("%s: key \"%s\": token %zu repeats token %zu, \"%s\"", l->path, VOCABULARY_KEY_TOKENS, i,
                  there, show(text).text);
  }
  return 0;
}

// The bytes of each token: a special token is its text, the others go through the alphabet.
static status load_bytes(vocabulary *v, const loader *l) {
  size_t total = 0, n = 0;
  for (size_t i = 0; i < l->count; i++)
    if (!size_add(&total, total, l->token[i].length))
      return FAIL("%s: key \"%s\" is too long", l->path, VOCABULARY_KEY_TOKENS);
  TRY(TAKE(&v->bytes, total, "bytes of the tokens"));
  TRY(TAKE(&v->start, l->count + 1, "bytes of the tokens"));
  for (size_t i = 0; i < l->count; i++) {
    gguf_string text = l->token[i];
    size_t length = text.length;
    bool as_text = is_special(l, i) || !alphabet_bytes(v->bytes + n, &length, &l->bytes, text);
    if (as_text && !is_special(l, i) && !(l->type && l->type[i] == TOKEN_UNUSED))
      return FAIL("%s: key \"%s\": token %zu, \"%s\", is not a special token, but not all of it is in the "
                  "byte alphabet",
                  l->path, VOCABULARY_KEY_TOKENS, i, show(text).text);
    if (as_text) memcpy(v->bytes + n, text.text, length = text.length);
    n += length;
    v->start[i + 1] = n;
  }
  return 0;
}

static void load_single_bytes(vocabulary *v, const loader *l) {
  for (int b = 0; b < BYTES; b++) {
    char text[2];
    size_t length = alphabet_text(text, &l->bytes, (unsigned char)b);
    int32_t id = find_token(l, (gguf_string){text, length});
    // A special token beyond ASCII stands for its text, which is not the byte.
    v->byte_id[b] = id >= 0 && v->start[id + 1] - v->start[id] == 1 ? id : -1;
  }
}

// A special token is its text. Where that is not what the alphabet reads in it, merges cannot make it: the
// same id would stand for two texts.
static bool merges_may_use(const loader *l, int32_t id) {
  gguf_string text = l->token[id];
  if (!is_special(l, (size_t)id)) return true;
  for (size_t i = 0; i < text.length; i++)
    if (text.text[i] < 0x21 || text.text[i] > 0x7E) return false;
  return true;
}

static status load_part(int32_t *id, const loader *l, size_t merge, gguf_string part) {
  *id = find_token(l, part);
  if (*id < 0)
    return FAIL("%s: key \"%s\": merge %zu is \"%s\", but \"%s\" is not a token", l->path, KEY_MERGES, merge,
                show(l->merge[merge]).text, show(part).text);
  if (!merges_may_use(l, *id))
    return FAIL("%s: key \"%s\": merge %zu is \"%s\", but \"%s\" is a special token beyond ASCII", l->path,
                KEY_MERGES, merge, show(l->merge[merge]).text, show(part).text);
  return 0;
}

// `joined` is room for the text of the longest merge.
static status load_merge(vocabulary *v, const loader *l, size_t i, char *joined) {
  gguf_string text = l->merge[i];
  const char *space = text.length ? memchr(text.text, ' ', text.length) : NULL;
  size_t left_length = space ? (size_t)(space - text.text) : 0;
  int32_t left, right, whole;
  uint32_t known;
  if (!left_length || left_length + 1 == text.length || memchr(space + 1, ' ', text.length - left_length - 1))
    return FAIL("%s: key \"%s\": merge %zu is \"%s\": expected two tokens with one space between them",
                l->path, KEY_MERGES, i, show(text).text);
  TRY(load_part(&left, l, i, (gguf_string){text.text, left_length}));
  TRY(load_part(&right, l, i, (gguf_string){space + 1, text.length - left_length - 1}));
  memcpy(joined, text.text, left_length);
  memcpy(joined + left_length, space + 1, text.length - left_length - 1);
  TRY(load_part(&whole, l, i, (gguf_string){joined, text.length - 1}));
  bpe_add(&known, v->merges, left, right, whole, (uint32_t)i);
  if (known != i)
    return FAIL("%s: key \"%s\": merge %zu repeats merge %u, \"%s\"", l->path, KEY_MERGES, i, known,
                show(text).text);
  return 0;
}

static status load_merges(vocabulary *v, const loader *l) {
  size_t longest = 0;
  char *joined = NULL;
  status result = 0;
  for (size_t i = 0; i < l->merges; i++)
    if (l->merge[i].length > longest) longest = l->merge[i].length;
  TRY(bpe_open(&v->merges, l->merges));
  TRY(TAKE(&joined, longest, "text of a merge"));
  for (size_t i = 0; i < l->merges && !result; i++) result = load_merge(v, l, i, joined);
  free(joined);
  return result;
}

// ---- special tokens ----

// A special token is cut out of a text before it is split further: half a character would leave the other
// half.
static status check_special(const loader *l, size_t id) {
  if (!text_check(l->token[id].text, l->token[id].length)) return 0;
  status_reset();
  return FAIL("%s: key \"%s\": special token %zu, \"%s\", is not valid UTF-8", l->path, VOCABULARY_KEY_TOKENS,
              id, show(l->token[id]).text);
}

static status load_special(vocabulary *v, const loader *l) {
  size_t bytes = 0;
  for (size_t i = 0; i < l->count; i++) {
    if (!is_special(l, i)) continue;
    TRY(check_special(l, i));
    bytes += l->token[i].length; // cannot overflow: they lie in one file
  }
  if (bytes >= INT32_MAX)
    return FAIL("%s: key \"%s\": special tokens of %zu bytes are too long", l->path, VOCABULARY_KEY_TOKENS,
                bytes);
  TRY(special_tokens_open(&v->special, bytes));
  for (size_t i = 0; i < l->count; i++)
    if (is_special(l, i)) special_tokens_add(v->special, l->token[i].text, l->token[i].length, (int32_t)i);
  return 0;
}

// Which tokens these are, end_tokens.c says; 2^32 - 1 and -1 are what writers put for none.
static status check_end(const vocabulary *v, const gguf *g) {
  for (size_t i = 0; i < sizeof end_keys / sizeof *end_keys; i++) {
    double id;
    if (!gguf_key_exists(g, end_keys[i])) continue;
    if (!gguf_key_number(g, end_keys[i], 0, &id))
      return FAIL("%s: key \"%s\": expected an id, found no number", v->path, end_keys[i]);
    if (id == UINT32_MAX || id == -1) continue;
    if (!(id >= 0 && id < (double)v->count))
      return FAIL("%s: key \"%s\": expected an id below %zu, found %.0f", v->path, end_keys[i], v->count, id);
  }
  return 0;
}

// ---- the whole ----

static status load(vocabulary *v, const gguf *g, loader *l) {
  l->path = gguf_path(g);
  alphabet_init(&l->bytes);
  TRY(TAKE(&v->path, strlen(l->path) + 1, "path"));
  memcpy(v->path, l->path, strlen(l->path));
  TRY(load_kind(g, KEY_MODEL, "gpt2"));
  TRY(load_kind(g, KEY_PRE, "qwen2"));
  TRY(load_arrays(l, g));
  v->count = l->count;
  TRY(index_tokens(l));
  TRY(load_bytes(v, l));
  load_single_bytes(v, l);
  TRY(load_merges(v, l));
  TRY(load_special(v, l));
  return check_end(v, g);
}

status vocabulary_open(vocabulary *out, const gguf *g) {
  loader l = {0};
  *out = (vocabulary){.count = 0};
  status result = load(out, g, &l);
  free(l.token);
  free(l.merge);
  free(l.type);
  name_table_close(&l.ids);
  return result;
}

void vocabulary_close(vocabulary *v) {
  free(v->path);
  free(v->bytes);
  free(v->start);
  bpe_close(v->merges);
  special_tokens_close(v->special);
  *v = (vocabulary){.count = 0};
}

// A file without the key has no tokenizer, and so has one that says "none": converters write it for models
// without a vocabulary.
status vocabulary_exists(bool *out, const gguf *g) {
  gguf_string model;
  *out = false;
  if (!gguf_key_exists(g, KEY_MODEL) && !gguf_key_exists(g, VOCABULARY_KEY_TOKENS)) return 0;
  TRY(gguf_key_string(g, KEY_MODEL, &model));
  *out = !same(model, (gguf_string){"none", strlen("none")});
  return 0;
}
