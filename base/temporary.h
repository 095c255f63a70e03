// temporary: unfinished files. A signal that ends the process (Ctrl-C, a launcher's SIGTERM) removes them.
//
// Invariant: what the handler reads is set and cleared in single stores.
#pragma once

// For one thread. The path is kept by reference until temporary_forget. When the table is full, a file is not
// remembered. temporary_forget takes NULL and paths that are not in the table.
void temporary_remember(const char *path);
void temporary_forget(const char *path);

// From here on SIGINT, SIGTERM and SIGHUP remove the files, then have their default effect; an ignored one
// stays ignored.
void temporary_guard(void);
