// settings: a file's metadata, read and checked by the table of its architecture.
#pragma once
#include "src/model/architecture.h"
#include "src/model/gguf.h"

// The architecture that the file names, and its settings. Errors name file, key, what was expected and found.
// Keys under the architecture's name that it does not know are added to `warnings`. refusals NULL: the first
// error ends it; else all but an unknown architecture are added to it, and what could not be read is 0.
status settings_read(const architecture **which, model_settings *out, const gguf *g, message_list *warnings,
                     message_list *refusals);
