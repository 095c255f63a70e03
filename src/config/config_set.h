// config_set: the VALUE of a --set KEY=VALUE on a command line, as TOML and as people write it.
#pragma once
#include "src/config/config_value.h"

// VALUE as the document `v = VALUE`, which must hold that one value and nothing else. Text that is no TOML is
// a string, and so is a word in a list where nothing else can be meant. *out is a view of *document and
// `text`; the caller closes *document, after an error too.
status config_set_parse(toml_value *out, config_toml **document, const char *text, const char *key,
                        const value_origin *from);
