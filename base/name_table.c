#include "base/name_table.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

status name_table_open(name_table *t, size_t count) {
  size_t slots = 16;
  while (slots / 2 < count) slots *= 2;
  t->mask = slots - 1;
  return TAKE(&t->slot, slots, "table of names");
}

void name_table_close(name_table *t) {
  free(t->slot);
  t->slot = NULL;
}

// The slot that holds the text, or the free one where it belongs.
static struct name_slot *find_slot(const name_table *t, const char *text, size_t length) {
  size_t i = XXH3_64bits(text, length) & t->mask;
  while (t->slot[i].text && (t->slot[i].length != length || memcmp(t->slot[i].text, text, length) != 0))
    i = (i + 1) & t->mask;
  return &t->slot[i];
}

bool name_table_find(size_t *index, const name_table *t, const char *text, size_t length) {
  if (!t->slot) return false;
  const struct name_slot *slot = find_slot(t, text, length);
  if (!slot->text) return false;
  *index = slot->index;
  return true;
}

bool name_table_add(size_t *index_there, name_table *t, const char *text, size_t length, size_t index) {
  struct name_slot *slot = find_slot(t, text, length);
  *index_there = slot->index;
  if (slot->text) return false;
  *slot = (struct name_slot){text, length, index};
  return true;
}
