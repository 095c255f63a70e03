// fuzz_vocabulary: a vocabulary of tokens, types and merges that the input makes, and a text for it.
//
// An input: flags, then lines that end with byte ff: `t` TYPE TEXT is a token, `m` TEXT a merge, all else is
// text. Flag 1: all 256 bytes are tokens from the start; 2: no types; 4: end tokens; 8: a wrong number of
// types.
#include "tests/fuzz/fuzz.h"
#include "src/text/tokenizer.h"
#include "src/text/tokenizer_internal.h"
#include <stdlib.h>
#include <string.h>

enum { LINE_END = 0xff, MOST_LINES = 64 };

typedef struct {
  const uint8_t *at;
  size_t size;
  uint8_t type;
} line;

typedef struct {
  line token[MOST_LINES], merge[MOST_LINES];
  size_t tokens, merges;
  const uint8_t *text;
  size_t text_size;
} lines;

static void read_lines(lines *out, const uint8_t *at, size_t left) {
  memset(out, 0, sizeof *out);
  while (left && out->tokens < MOST_LINES && out->merges < MOST_LINES) {
    size_t n = 0;
    while (n < left && at[n] != LINE_END) n++;
    if (n >= 2 && *at == 't')
      out->token[out->tokens++] = (line){at + 2, n - 2, at[1] & 15};
    else if (n && *at == 'm')
      out->merge[out->merges++] = (line){at + 1, n - 1, 0};
    else {
      out->text = at;
      out->text_size = n;
    }
    n += n < left;
    at += n;
    left -= n;
  }
}

static void put_byte_tokens(gguf_bytes *g) { // GPT-2's alphabet
  unsigned next = 0x100;
  for (unsigned b = 0; b < BYTES; b++) {
    bool visible = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b < 0xAD) || b > 0xAD;
    unsigned code = visible ? b : next++;
    char text[2] = {(char)code, 0};
    if (code >= 0x80) text[0] = (char)(0xC0 | code >> 6), text[1] = (char)(0x80 | (code & 63));
    gguf_put_text(g, text, code < 0x80 ? 1 : 2);
  }
}

static void write_vocabulary(gguf_bytes *g, const lines *in, unsigned flags) {
  size_t bytes = flags & 1 ? BYTES : 0, tokens = bytes + in->tokens;
  gguf_put_head(g, 0, 4 + !(flags & 2) + !!(flags & 4));
  gguf_put_string(g, "tokenizer.ggml.model", "gpt2");
  gguf_put_string(g, "tokenizer.ggml.pre", "qwen2");
  gguf_put_array(g, "tokenizer.ggml.tokens", VALUE_STRING, tokens);
  if (bytes) put_byte_tokens(g);
  for (size_t i = 0; i < in->tokens; i++) gguf_put_text(g, (const char *)in->token[i].at, in->token[i].size);
  gguf_put_array(g, "tokenizer.ggml.merges", VALUE_STRING, in->merges);
  for (size_t i = 0; i < in->merges; i++) gguf_put_text(g, (const char *)in->merge[i].at, in->merge[i].size);
  if (!(flags & 2)) {
    gguf_put_array(g, "tokenizer.ggml.token_type", VALUE_I32, tokens + !!(flags & 8));
    for (size_t i = 0; i < bytes; i++) gguf_put_number(g, 1, 4);
    for (size_t i = 0; i < in->tokens; i++) gguf_put_number(g, in->token[i].type, 4);
    if (flags & 8) gguf_put_number(g, 1, 4);
  }
  if (flags & 4) gguf_put_u32(g, "tokenizer.ggml.eos_token_id", flags >> 4);
}

// The pre-tokenizer is the same for all vocabularies, and compiling it would take most of the time.
static status open_vocabulary(tokenizer **out, const gguf *g) {
  static splitter *words;
  if (!words) REQUIRE(!splitter_open(&words));
  *out = calloc(1, sizeof **out);
  status result = vocabulary_open(&(*out)->tokens, g);
  if (!result) (*out)->words = words;
  return result;
}

static void close_vocabulary(tokenizer *t) {
  t->words = NULL;
  tokenizer_close(t);
}

// The bytes that come back are those of the text, if none of its parts changes in its normal form.
static void check_text(const tokenizer *t, const lines *in) {
  int32_t *ids;
  char *text;
  size_t count, length;
  bool ascii = true;
  for (size_t i = 0; i < in->text_size; i++) ascii = ascii && in->text[i] < 0x80;
  if (tokenizer_encode(t, (const char *)in->text, in->text_size, &ids, &count)) return;
  for (size_t i = 0; i < count; i++) REQUIRE(ids[i] >= 0 && (size_t)ids[i] < tokenizer_vocabulary(t));
  REQUIRE(!tokenizer_decode(t, ids, count, &text, &length));
  REQUIRE(!ascii || (length == in->text_size && (!length || !memcmp(text, in->text, length))));
  free(text);
  free(ids);
}

FUZZ_TARGET(vocabulary) {
  static gguf_bytes file;
  static lines in;
  unsigned flags = size ? *data : 0;
  gguf *g;
  tokenizer *t;
  read_lines(&in, data + (size != 0), size ? size - 1 : 0);
  write_vocabulary(&file, &in, flags);
  status_reset();
  REQUIRE(!gguf_open(&g, fuzz_file(0, 1, file.bytes, file.count)));
  status result = open_vocabulary(&t, g);
  gguf_close(g); // the tokenizer keeps nothing of the file
  REQUIRE((result != 0) == (*status_text() != 0));
  if (!result) check_text(t, &in);
  close_vocabulary(t);
  return 0;
}
