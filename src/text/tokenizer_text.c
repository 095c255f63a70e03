// PCRE2 finds the words, utf8proc has the decompositions. Both implement other versions of Unicode than the
// tokenizer that models are trained with (Hugging Face `tokenizers` with Qwen2's settings). The differences
// are listed here, so results do not depend on the versions installed.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "src/text/tokenizer_text.h"
#include "base/memory.h"
#include <pcre2.h>
#include <utf8proc.h>
#include <stdlib.h>
#include <string.h>

// ---- check ----

status text_check(const char *text, size_t length) {
  size_t at = 0;
  while (at < length) {
    if ((unsigned char)text[at] < 0x80) {
      at++;
      continue;
    }
    int32_t code;
    ptrdiff_t step =
        utf8proc_iterate((const uint8_t *)text + at, length - at > 4 ? 4 : (ptrdiff_t)(length - at), &code);
    if (step <= 0)
      return FAIL("text is not valid UTF-8: byte 0x%02x at offset %zu of %zu", (unsigned char)text[at], at,
                  length);
    at += (size_t)step;
  }
  return 0;
}

static int32_t next_code(const char *text, size_t *at) { // text is valid
  const unsigned char *p = (const unsigned char *)text + *at;
  if (p[0] < 0x80) return *at += 1, p[0];
  if (p[0] < 0xE0) return *at += 2, (p[0] & 0x1F) << 6 | (p[1] & 0x3F);
  if (p[0] < 0xF0) return *at += 3, (p[0] & 0x0F) << 12 | (p[1] & 0x3F) << 6 | (p[2] & 0x3F);
  return *at += 4, (p[0] & 0x07) << 18 | (p[1] & 0x3F) << 12 | (p[2] & 0x3F) << 6 | (p[3] & 0x3F);
}

// ---- NFC ----

// What Unicode has given a combining class, a decomposition or a composition since version 9 (to version 18):
// the reference's NFC knows none of it, so these stand still. U+11A7 stands still in every version, but
// utf8proc before 2.10 takes it for an empty Hangul final and drops it.
static const struct {
  int32_t first, last;
} still[] = {
    {0x5c8, 0x5c9},     {0x7fd, 0x7fd},     {0x897, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},
    {0xc3c, 0xc3c},     {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x11a7, 0x11a7},   {0x1715, 0x1715},
    {0x1abf, 0x1af0},   {0x1df6, 0x1dfa},   {0xa82c, 0xa82c},   {0x105c9, 0x105c9}, {0x105d2, 0x105d2},
    {0x105da, 0x105da}, {0x105e4, 0x105e4}, {0x10d24, 0x10d27}, {0x10d69, 0x10d6d}, {0x10eab, 0x10eac},
    {0x10ecb, 0x10ecf}, {0x10ef0, 0x10efb}, {0x10efd, 0x10eff}, {0x10f46, 0x10f50}, {0x10f82, 0x10f85},
    {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x11382, 0x11385}, {0x1138b, 0x1138b}, {0x1138e, 0x1138e},
    {0x11390, 0x11391}, {0x113b8, 0x113b8}, {0x113bb, 0x113bb}, {0x113c2, 0x113c2}, {0x113c5, 0x113c5},
    {0x113c7, 0x113c9}, {0x113ce, 0x113d0}, {0x1145e, 0x1145e}, {0x11839, 0x1183a}, {0x11930, 0x11930},
    {0x11935, 0x11935}, {0x11938, 0x11938}, {0x1193d, 0x1193e}, {0x11943, 0x11943}, {0x119e0, 0x119e0},
    {0x11a34, 0x11a34}, {0x11a47, 0x11a47}, {0x11a99, 0x11a99}, {0x11d42, 0x11d42}, {0x11d44, 0x11d45},
    {0x11d97, 0x11d97}, {0x11f41, 0x11f42}, {0x1611e, 0x16129}, {0x1612f, 0x1612f}, {0x16d63, 0x16d63},
    {0x16d67, 0x16d6a}, {0x16ff0, 0x16ff1}, {0x1d127, 0x1d128}, {0x1d250, 0x1d252}, {0x1d25b, 0x1d25c},
    {0x1d25f, 0x1d25f}, {0x1d280, 0x1d281}, {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae},
    {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef}, {0x1e5ee, 0x1e5ef}, {0x1e6e3, 0x1e6e3}, {0x1e6e6, 0x1e6e6},
    {0x1e6ee, 0x1e6ef}, {0x1e6f5, 0x1e6f5},
};

enum {
  FIRST_MARK = 0x300, // below it no character decomposes out of NFC, joins the one before it, or is a mark
  MAX_EXPANSION = 3,  // bytes of NFC to a byte of UTF-8, at most (U+1D160)
  CLASS_COUNT = 256,  // combining classes are bytes
};

static bool is_still(int32_t code) {
  size_t low = 0, high = sizeof still / sizeof still[0];
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (still[middle].last < code)
      low = middle + 1;
    else
      high = middle;
  }
  return low < sizeof still / sizeof still[0] && still[low].first <= code;
}

static unsigned combining_class(int32_t code) {
  return (unsigned)utf8proc_get_property(code)->combining_class;
}

typedef struct {
  int32_t *code, *spare; // both of `capacity`
  size_t capacity;
} code_buffer;

static status reserve(code_buffer *b, size_t count) {
  if (count <= b->capacity) return 0;
  free(b->code);
  free(b->spare);
  b->capacity = count + count / 2;
  b->spare = NULL;
  TRY(TAKE(&b->code, b->capacity, "text to normalise"));
  return TAKE(&b->spare, b->capacity, "text to normalise");
}

// Marks between two starters into ascending class, equal classes in their order. utf8proc would do it too, by
// exchanging neighbours, which is quadratic in the length of a run of marks.
static void order_marks(int32_t *code, size_t count, int32_t *spare) {
  size_t first[CLASS_COUNT + 1] = {0};
  bool ordered = true;
  for (size_t i = 1; i < count && ordered; i++)
    ordered = combining_class(code[i - 1]) <= combining_class(code[i]);
  if (ordered) return;
  for (size_t i = 0; i < count; i++) first[combining_class(code[i]) + 1]++;
  for (size_t c = 1; c <= CLASS_COUNT; c++) first[c] += first[c - 1];
  for (size_t i = 0; i < count; i++) spare[first[combining_class(code[i])]++] = code[i];
  memcpy(code, spare, count * sizeof *code);
}

static void order_all_marks(int32_t *code, size_t count, int32_t *spare) {
  for (size_t i = 0; i < count;) {
    size_t run = 0;
    while (i + run < count && combining_class(code[i + run])) run++;
    if (run > 1) order_marks(code + i, run, spare);
    i += run + 1;
  }
}

// Appends the NFC of `text` (no character of `still` in it) at `out`; *added: its bytes.
static status compose(char *out, size_t *added, code_buffer *b, const char *text, size_t length) {
  size_t count = 0, at = 0;
  TRY(reserve(b, 2 * length)); // a character of 2, 3, 4 bytes decomposes into at most 3, 4, 3
  while (at < length) {
    int bound_class = 0; // of no use here, but utf8proc writes it
    ptrdiff_t n = utf8proc_decompose_char(next_code(text, &at), b->code + count,
                                          (ptrdiff_t)(b->capacity - count), UTF8PROC_COMPOSE, &bound_class);
    if (n < 0 || (size_t)n > b->capacity - count) return FAIL("utf8proc: %s", utf8proc_errmsg(n));
    count += (size_t)n;
  }
  order_all_marks(b->code, count, b->spare);
  ptrdiff_t composed =
      utf8proc_normalize_utf32(b->code, (ptrdiff_t)count, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
  if (composed < 0) return FAIL("utf8proc: %s", utf8proc_errmsg(composed));
  *added = 0;
  for (ptrdiff_t i = 0; i < composed; i++)
    *added += (size_t)utf8proc_encode_char(b->code[i], (uint8_t *)out + *added);
  return 0;
}

// Where the piece at `start` ends that normalises by itself: one character that stands still, or one and all
// after it that may join or pass it. *plain: the piece is its own NFC.
static size_t piece_end(bool *plain, const char *text, size_t length, size_t start) {
  size_t end = start, at;
  int32_t code = next_code(text, &end);
  *plain = true;
  if (is_still(code)) return end;
  *plain = code < FIRST_MARK;
  for (at = end; end < length; end = at) {
    code = next_code(text, &at);
    if (code < FIRST_MARK || is_still(code)) break;
    *plain = false;
  }
  return end;
}

status text_normalize(char **out, size_t *out_length, const char *text, size_t length) {
  code_buffer buffer = {0};
  size_t n = 0, capacity;
  status result = 0;
  *out = NULL;
  *out_length = 0;
  if (!size_mul(&capacity, length, MAX_EXPANSION)) return FAIL("text of %zu bytes is too long", length);
  TRY(TAKE(out, capacity, "normalised text"));
  for (size_t at = 0; at < length;) {
    bool plain;
    size_t piece = piece_end(&plain, text, length, at) - at, added = piece;
    if (plain)
      memcpy(*out + n, text + at, piece);
    else
      TRY_DONE(result, compose(*out + n, &added, &buffer, text + at, piece));
    n += added;
    at += piece;
  }
  *out_length = n;
done:
  free(buffer.code);
  free(buffer.spare);
  if (result) {
    free(*out);
    *out = NULL;
  }
  return result;
}

// ---- words ----

// Qwen2's pattern, as the Oniguruma library reads it with Unicode 16:
// clang-format off
//   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
// clang-format on
// PCRE2 takes U+180E for white space, where Unicode does not, so white space is spelt out; so are letters and
// numbers since Unicode 14, the version of PCRE2 10.40.
#define SPACES                                                                                               \
  "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}"                                           \
  "\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define LETTERS                                                                                              \
  "\\p{L}"                                                                                                   \
  "\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}\\x{10d4a}-\\x{10d65}"      \
  "\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}\\x{11380}-\\x{11389}\\x{1138b}"           \
  "\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}"             \
  "\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}\\x{1342f}\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}"           \
  "\\x{16100}-\\x{1611d}\\x{16d40}-\\x{16d6c}\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}"            \
  "\\x{1e030}-\\x{1e06d}\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}"                      \
  "\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"
#define NUMBERS                                                                                              \
  "\\p{N}"                                                                                                   \
  "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"                     \
  "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}"                     \
  "\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"

// U+017F is the only character beyond ASCII whose case folds into one of the contractions.
static const char pattern[] = "'(?:[sStTmMdD\\x{17f}]|[rR][eE]|[vV][eE]|[lL][lL])"
                              "|[^\\r\\n" LETTERS NUMBERS "]?[" LETTERS "]+"
                              "|[" NUMBERS "]"
                              "| ?[^" SPACES LETTERS NUMBERS "]+[\\r\\n]*"
                              "|[" SPACES "]*[\\r\\n]+"
                              "|[" SPACES "]+(?![^" SPACES "])"
                              "|[" SPACES "]+";

struct splitter {
  pcre2_code *code;
};

struct splitter_cursor {
  pcre2_match_data *match;
  pcre2_match_context *context;
};

status splitter_open(splitter **out) {
  int error;
  size_t offset;
  char text[128];
  TRY(TAKE(out, 1, "pre-tokenizer"));
  (*out)->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                               PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &offset, NULL);
  if ((*out)->code) {
    pcre2_jit_compile((*out)->code, PCRE2_JIT_COMPLETE); // where there is no JIT, pcre2_match interprets
    return 0;
  }
  pcre2_get_error_message(error, (PCRE2_UCHAR *)text, sizeof text);
  splitter_close(*out);
  *out = NULL;
  return FAIL("PCRE2 refuses the pre-tokenizer's pattern at offset %zu: %s", offset, text);
}

void splitter_close(splitter *s) {
  if (!s) return;
  pcre2_code_free(s->code);
  free(s);
}

status splitter_cursor_open(splitter_cursor **out) {
  TRY(TAKE(out, 1, "pre-tokenizer state"));
  splitter_cursor *c = *out;
  c->match = pcre2_match_data_create(1, NULL);
  c->context = pcre2_match_context_create(NULL);
  if (!c->match || !c->context) {
    splitter_cursor_close(c);
    *out = NULL;
    return FAIL("cannot allocate the pre-tokenizer's state: out of memory");
  }
  // No alternative looks at a character more than a few times, so a limit would only refuse long runs.
  pcre2_set_match_limit(c->context, UINT32_MAX);
  pcre2_set_depth_limit(c->context, UINT32_MAX);
  pcre2_set_heap_limit(c->context, UINT32_MAX);
  return 0;
}

void splitter_cursor_close(splitter_cursor *c) {
  if (!c) return;
  pcre2_match_data_free(c->match);
  pcre2_match_context_free(c->context);
  free(c);
}

status splitter_next(size_t *end, const splitter *s, splitter_cursor *c, const char *text, size_t length,
                     size_t start) {
  char message[128];
  // text_check has passed: PCRE2's own check would read all that is left of the text for each word.
  int found = pcre2_match(s->code, (PCRE2_SPTR)text, length, start, PCRE2_NO_UTF_CHECK, c->match, c->context);
  if (found == PCRE2_ERROR_JIT_STACKLIMIT)
    found = pcre2_match(s->code, (PCRE2_SPTR)text, length, start, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, c->match,
                        c->context);
  if (found < 0) {
    pcre2_get_error_message(found, (PCRE2_UCHAR *)message, sizeof message);
    return FAIL("the pre-tokenizer stops at offset %zu of %zu: %s", start, length, message);
  }
  *end = pcre2_get_ovector_pointer(c->match)[1];
  if (*end <= start) return FAIL("the pre-tokenizer finds an empty word at offset %zu of %zu", start, length);
  return 0;
}
