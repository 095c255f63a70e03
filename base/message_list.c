#define _GNU_SOURCE // vasprintf
#include "base/message_list.h"
#include "base/memory.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

status message_list_add(message_list *list, const char *format, ...) {
  char *text;
  va_list args;
  TRY(memory_grow((void **)&list->text, &list->capacity, list->count, sizeof *list->text, "texts"));
  va_start(args, format);
  int n = vasprintf(&text, format, args);
  va_end(args);
  if (n < 0) return FAIL("cannot allocate a text: out of memory");
  list->text[list->count++] = text;
  return 0;
}

status message_list_take_error(message_list *list, status error) {
  if (!list || !error) return error;
  const char *said = strstr(status_text(), ": "); // after file and line
  char *text = strdup(said ? said + 2 : status_text());
  status_reset();
  status added = text ? message_list_add(list, "%s", text) : FAIL("cannot allocate a text: out of memory");
  free(text);
  return added;
}

void message_list_close(message_list *list) {
  for (size_t i = 0; i < list->count; i++) free(list->text[i]);
  free(list->text);
  *list = (message_list){0};
}
