// synth_write: the file of a synthetic model, written by all ranks together.
//
// Owns: the file's cut into pieces, who writes which, the temporary name, and that a failed one leaves
// nothing behind. Independent of: what the pieces hold.
#pragma once
#include "dist/comm.h"
#include "src/synth/synth_layout.h"

// Collective; every rank has the same layout and path, which all of them see. Writes PATH.partial, each rank
// its part with so many threads, and gives it its name when it is whole; after an error the partial file is
// gone.
status synth_write(comm *c, const char *path, const synth_layout *l, int threads);
