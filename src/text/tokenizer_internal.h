// tokenizer_internal: the parts of a tokenizer; for tokenizer.c, and for fuzz targets that replace one of
// them.
#pragma once
#include "src/text/tokenizer_text.h"
#include "src/text/vocabulary.h"

struct tokenizer {
  vocabulary tokens;
  splitter *words;
};
