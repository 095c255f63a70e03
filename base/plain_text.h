// plain_text: what a file says may be anything; a terminal must not obey it.
#pragma once
#include <stddef.h>

// Bytes of the control character at the start of a text of `length` >= 1 bytes; 0: it starts with none.
size_t plain_control_bytes(const char *text, size_t length);
// In place: control characters, newline among them, become '?'.
void plain_make(char *text);
