// message_list: messages that are collected one after the other: warnings, or every reason for a refusal.
#pragma once
#include "base/status.h"
#include <stddef.h>

typedef struct { // zeroed: empty
  char **text;
  size_t count, capacity;
} message_list;

status message_list_add(message_list *list, const char *format, ...) __attribute__((format(printf, 2, 3)));
// For a caller that wants to go on after an error: with a list the stored error's text, without its place in
// the source, is added and the error forgotten (0). list NULL: the error itself.
status message_list_take_error(message_list *list, status error);
void message_list_close(message_list *list);
