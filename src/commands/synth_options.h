// synth_options: the arguments of `moe_run synth`: a known shape, changed by options.
//
// Owns: the table of shapes, the table of options and their bounds.
// Independent of: files, ranks, how weights are made.
// Invariant: after synth_options_parse the shape is one that the program itself would load.
#pragma once
#include "src/synth/synth_model.h"
#include <stdio.h>

typedef struct {
  const char *shape_name, *out; // of the table, of the arguments
  synth_model model;
  int64_t rope_base, threads; // threads 0: as many as the rank has cores
} synth_options;

status synth_options_parse(synth_options *out, int n_args, char **args);
void synth_options_print(FILE *out); // the help
