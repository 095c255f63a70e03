#include "base/plain_text.h"
#include <string.h>

size_t plain_control_bytes(const char *text, size_t length) {
  unsigned char c = (unsigned char)text[0], next = length > 1 ? (unsigned char)text[1] : 0;
  if (c == 0xc2 && next >= 0x80 && next < 0xa0) return 2; // U+0080 to U+009F
  return c < 0x20 || c == 0x7f;
}

void plain_make(char *text) {
  char *to = text;
  for (size_t length = strlen(text); length;) {
    size_t n = plain_control_bytes(text, length), taken = n ? n : 1;
    *to++ = n ? '?' : *text;
    text += taken;
    length -= taken;
  }
  *to = 0;
}
