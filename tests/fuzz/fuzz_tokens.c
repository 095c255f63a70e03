// fuzz_tokens: any numbers as token ids of a real vocabulary: decoded, and encoded again where they are text.
//
// An input: 2 bytes an id; ff ff is followed by 4 bytes of one that may be any number.
#include "tests/fuzz/fuzz.h"
#include "src/text/tokenizer.h"
#include "src/text/tokenizer_text.h"
#include <stdlib.h>
#include <string.h>

enum { MOST_IDS = 256 };

// *good: none is negative.
static size_t read_ids(int32_t *ids, bool *good, const tokenizer *t, const uint8_t *data, size_t size) {
  fuzz_input in = {data, size};
  size_t count = 0, n_ids = tokenizer_vocabulary(t);
  for (*good = true; in.left && count < MOST_IDS; count++) {
    uint32_t id = (uint32_t)fuzz_take(&in, 2);
    id = id == 0xffff ? (uint32_t)fuzz_take(&in, 4) : id % (uint32_t)n_ids;
    ids[count] = (int32_t)id;
    *good = *good && ids[count] >= 0;
  }
  return count;
}

// The text of the ids is that of each, one after another.
static void check_pieces(const tokenizer *t, const int32_t *ids, size_t count, const char *text,
                         size_t length) {
  size_t at = 0, n;
  char *piece;
  for (size_t i = 0; i < count; i++) {
    REQUIRE(!tokenizer_decode(t, ids + i, 1, &piece, &n) && n <= length - at && !memcmp(piece, text + at, n));
    REQUIRE((size_t)ids[i] < tokenizer_vocabulary(t) || !strcmp(piece, "\xef\xbf\xbd"));
    free(piece);
    at += n;
  }
  REQUIRE(at == length);
}

static void check_again(const tokenizer *t, const char *text, size_t length) {
  int32_t *ids;
  size_t count;
  status result = tokenizer_encode(t, text, length, &ids, &count);
  REQUIRE(result == text_check(text, length));
  free(ids);
}

FUZZ_TARGET(tokens) {
  const tokenizer *t = fuzz_golden_tokenizer();
  int32_t ids[MOST_IDS];
  bool good;
  char *text;
  size_t length, count = read_ids(ids, &good, t, data, size);
  status_reset();
  status result = tokenizer_decode(t, ids, count, &text, &length);
  REQUIRE((result == 0) == good && (result == 0) == (text != NULL));
  if (result) return 0;
  REQUIRE(!text[length]);
  check_pieces(t, ids, count, text, length);
  check_again(t, text, length);
  free(text);
  return 0;
}
