// synth_header: the header of a synthetic model: keys and table of tensors, as a GGUF has them.
#pragma once
#include "src/synth/synth_model.h"

enum { SYNTH_ALIGNMENT = 32 }; // of the header's end and of each tensor; GGUF's default

// *out, *bytes: all bytes before the first tensor; caller frees. The settings are those that the
// architecture's table has for new files.
status synth_header(char **out, size_t *bytes, const architecture *a, const synth_model *m,
                    const synth_tensor *tensors, size_t n_tensors);
