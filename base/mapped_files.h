// mapped_files: which file lies where in memory, so that the one that becomes unreadable can be named.
//
// Local; files are mapped and unmapped by one thread at a time. Of more files at once than there is room for,
// the rest are not found.
#pragma once
#include <stddef.h>

void mapped_files_add(const void *at, size_t bytes, const char *path); // path stays the caller's, until then:
void mapped_files_remove(const void *at);                              // of a file not added: nothing
// The path of the file at an address; NULL: none. For signal handlers.
const char *mapped_files_find(const void *address);
