// synth_write: the file of a synthetic model, written by all ranks together.
//
// Owns: the file's cut into pieces, which rank writes which, the temporary name, and its removal after an
// error. Independent of: what the pieces hold.
#pragma once
#include "dist/comm.h"
#include "src/synth/synth_layout.h"

// Collective; every rank has the same layout and path, on a file system that all share. Writes PATH.partial,
// each rank its part with `threads` threads, and renames it when it is whole; after an error the partial file
// is removed.
status synth_write(comm *c, const char *path, const synth_layout *l, int threads);
