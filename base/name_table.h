// name_table: a hash table from texts to numbers.
//
// Owns: the slots of an open-addressed hash table, at most half of them taken. The texts stay the caller's,
// who keeps them where they are while the table is open.
#pragma once
#include "base/status.h"
#include <stddef.h>

typedef struct {
  struct name_slot {
    const char *text; // NULL: free; need not end with a NUL
    size_t length, index;
  } * slot;
  size_t mask; // slots - 1
} name_table;

status name_table_open(name_table *t, size_t count); // room for `count` texts
void name_table_close(name_table *t);                // takes a zeroed table
// False: the text is not in the table.
bool name_table_find(size_t *index, const name_table *t, const char *text, size_t length);
// Adds the text with `index`; or false, and *index_there is the index of the equal text that is there
// already.
bool name_table_add(size_t *index_there, name_table *t, const char *text, size_t length, size_t index);
