// derive: bounds from the spread of honest perturbations of a run, in place of guesses.
//
// A draw is the run of the configuration with two things changed that must not matter to its gates: the text,
// a window of derive.file (or of the input) as long as each sequence, and the last bit of the embedding's
// output, the same change for every arm. Draw 0 has the input itself and changes no bit. Owns: the draws,
// which figures become gates, and the draft's text. Independent of: how arms run (src/run/arms_in_step.h) and
// are measured (src/lab/pair_figures.h). Invariant: what is proposed depends on the configuration alone, not
// on ranks.
#pragma once
#include "src/run/job.h"

// Collective. Prints the bounds, and writes DIR/contract.toml, a draft, where output.dir is set. run: the
// command line that the draft names.
status derive_run(job *j, const char *run);
