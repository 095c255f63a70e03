// temporary: files that are worth nothing before they are whole. A signal that ends the process (Ctrl-C, a
// launcher's SIGTERM) leaves none of them behind.
//
// Invariant: what the handler reads is set and cleared in single stores.
#pragma once

// Local, of one thread. The path is kept by reference until it is forgotten. A file that finds no room in the
// table is left behind by a signal. forget takes NULL and paths that are not there.
void temporary_remember(const char *path);
void temporary_forget(const char *path);

// From here on SIGINT, SIGTERM and SIGHUP remove the files, and then do what they do.
void temporary_guard(void);
