// experiment_files: the experiments' files, in a folder or as they were built in.
#pragma once
#include "src/lab/experiment.h"

// Local. *out[*n], by number: those of the folder (every NNN*.toml in it), or of configs/falsify as it was
// when the program was built, for dir "". The caller frees. Two with one number are an error.
status experiments_open(experiment **out, size_t *n, const char *dir);
