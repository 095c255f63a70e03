// tokenizer_internal: what a tokenizer is made of; for tokenizer.c, and for fuzz targets that bring one of
// the parts.
#pragma once
#include "src/text/tokenizer_text.h"
#include "src/text/vocabulary.h"

struct tokenizer {
  vocabulary tokens;
  splitter *words;
};
