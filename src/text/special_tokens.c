#include "src/text/special_tokens.h"
#include "base/memory.h"
#include <stdlib.h>

enum { BYTE_VALUES = 256 };

typedef struct {
  int32_t child, sibling; // 0: none, as the root is nobody's child
  int32_t id;             // of the token that ends here, or -1
  unsigned char byte;
} node;

struct special_tokens {
  node *nodes; // [0] is the root
  size_t count;
  int32_t first[BYTE_VALUES]; // the root's children by byte, 0: none
};

status special_tokens_open(special_tokens **out, size_t bytes) {
  TRY(TAKE(out, 1, "special tokens"));
  special_tokens *s = *out;
  if (TAKE(&s->nodes, bytes + 1, "special tokens")) {
    special_tokens_close(s);
    *out = NULL;
    return 1;
  }
  s->nodes[0].id = -1;
  s->count = 1;
  return 0;
}

void special_tokens_close(special_tokens *s) {
  if (!s) return;
  free(s->nodes);
  free(s);
}

// The child of `parent` by `byte`; 0: none.
static int32_t step(const special_tokens *s, int32_t parent, unsigned char byte) {
  if (!parent) return s->first[byte];
  int32_t child = s->nodes[parent].child;
  while (child && s->nodes[child].byte != byte) child = s->nodes[child].sibling;
  return child;
}

void special_tokens_add(special_tokens *s, const char *text, size_t length, int32_t id) {
  int32_t at = 0;
  for (size_t i = 0; i < length; i++) {
    unsigned char byte = (unsigned char)text[i];
    int32_t child = step(s, at, byte);
    if (!child) {
      child = (int32_t)s->count++;
      s->nodes[child] = (node){0, s->nodes[at].child, -1, byte};
      s->nodes[at].child = child;
      if (!at) s->first[byte] = child;
    }
    at = child;
  }
  s->nodes[at].id = id;
}

// The longest special token at `start`: its id, or -1.
static int32_t longest_at(size_t *end, const special_tokens *s, const char *text, size_t length,
                          size_t start) {
  int32_t id = -1, at = 0;
  for (size_t i = start; i < length; i++) {
    at = step(s, at, (unsigned char)text[i]);
    if (!at) break;
    if (s->nodes[at].id < 0) continue;
    id = s->nodes[at].id;
    *end = i + 1;
  }
  return id;
}

int32_t special_tokens_next(size_t *start, size_t *end, const special_tokens *s, const char *text,
                            size_t length, size_t from) {
  for (*start = from; *start < length; ++*start) {
    int32_t id = longest_at(end, s, text, length, *start);
    if (id >= 0) return id;
  }
  return -1;
}
