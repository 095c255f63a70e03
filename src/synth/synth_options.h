// synth_options: what `moe_run synth` is asked for: a known shape, changed by options.
//
// Owns: the table of shapes, the table of options and their bounds.
// Refuses to know: files, ranks, how weights are made.
// Invariant: after synth_options_parse the shape is one that the program itself would load.
#pragma once
#include "base/status.h"
#include <stdint.h>
#include <stdio.h>

typedef struct {
  int64_t layers, hidden, heads, kv_heads, head_dim, experts, top_k, expert_width, vocab, context, rope_base;
} synth_shape;

typedef enum { MIX_Q4_K_M, MIX_Q5_K_M, MIX_Q6_K, MIX_Q8_0, MIX_F16, MIX_F32 } synth_mix;

typedef struct {
  const char *shape_name, *out, *types_name; // views of the words or of the tables
  synth_shape shape;
  synth_mix mix;
  int64_t seed, outliers, threads, tied; // threads 0: as many as the rank has cores; tied: 0 or 1
} synth_options;

status synth_options_parse(synth_options *out, int n_args, char **words);
void synth_options_print(FILE *out); // the help
// All that the bytes depend on, as the options that give it; no more than `size` bytes.
void synth_options_text(char *out, size_t size, const synth_options *o);
