// settings: a file's metadata, read and checked by the table of its architecture.
#pragma once
#include "src/model/architecture.h"
#include "src/model/gguf.h"

// The architecture that the file names, and its settings. Errors name file, key, what was expected and found.
status settings_read(const architecture **which, model_settings *out, const gguf *g);
