// synth: the command that writes a synthetic model of any shape.
#pragma once
#include "dist/comm.h"
#include <stdio.h>

// Collective. args: what follows `synth` on the command line, as docs/synth.md describes it. Writes
// FILE.partial, each rank its part, and renames it when it is whole; after an error the partial file is
// removed.
status synth_run(comm *c, int n_args, char **args);
void synth_print_options(FILE *out);
