// The one vocabulary that fuzz_tokenizer and fuzz_tokens share.
#include "tests/fuzz/fuzz.h"
#include "src/text/tokenizer.h"

const tokenizer *fuzz_golden_tokenizer(void) {
  static tokenizer *opened;
  gguf *g;
  if (opened) return opened;
  REQUIRE(!gguf_open(&g, MOE_SOURCE_DIR "/tests/golden/tokenizer/vocabulary.gguf"));
  REQUIRE(!tokenizer_open(&opened, g) && opened);
  gguf_close(g);
  return opened;
}
