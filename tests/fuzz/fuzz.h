// fuzz: what the fuzz targets share: files without a disk, a writer of GGUF pieces, a broken promise.
//
// Each fuzz_*.c beside it is one target, and owns what it checks of the module that it is named after.
// Invariant: a target leaves nothing behind, so the result of an input does not depend on those before it.
#pragma once
#include "base/status.h"
#include <stddef.h>
#include <stdint.h>

// The head of a target's one function: libFuzzer's entry in its build (FUZZ_MEMORY, see below), else one of
// several that tests/fuzz/test_fuzz_corpus.c runs.
#ifdef FUZZ_MEMORY
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
#define FUZZ_TARGET(name) int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
#else
#define FUZZ_TARGET(name) static int target_##name(const uint8_t *data, size_t size)
#endif

// A promise of a header that does not hold: tells which, with the stored fault, and ends the program.
#define REQUIRE(condition) ((condition) ? (void)0 : fuzz_broken(#condition, __FILE__, __LINE__))
_Noreturn void fuzz_broken(const char *condition, const char *file, int line);

enum { FUZZ_MOST_FILES = 2 };
// Numbers of the GGUF specification.
enum { VALUE_U32 = 4, VALUE_I32 = 5, VALUE_F32 = 6, VALUE_STRING = 8, VALUE_ARRAY = 9 };

// The path under which `size` bytes can be read as file `no` (from 0) of a split set of `of`, until the next
// call for that place. FUZZ_MEMORY: the bytes are in memory of their own, so that AddressSanitizer sees a
// read beyond the file's last byte (a real map goes on to the end of the page), and no system call is made;
// it needs fuzz_memory.c and the linker's --wrap. Else: a file in a temporary folder.
const char *fuzz_file(size_t no, size_t of, const void *data, size_t size);

struct tokenizer;
// The vocabulary of tests/golden/tokenizer, opened once: it is constant, so that it may serve all inputs.
const struct tokenizer *fuzz_golden_tokenizer(void);

// A small input as numbers; beyond its end it is all zeros.
typedef struct {
  const uint8_t *at;
  size_t left;
} fuzz_input;

uint64_t fuzz_take(fuzz_input *in, size_t bytes); // 1 to 8, little-endian

enum { GGUF_BYTES = 1 << 16, GGUF_FIELDS = 512 };

typedef struct { // a GGUF under construction; what does not fit is dropped
  uint8_t bytes[GGUF_BYTES];
  size_t count;
  uint32_t field[GGUF_FIELDS]; // where the numbers stand that an edit may change
  size_t fields;
} gguf_bytes;

void gguf_put(gguf_bytes *g, const void *data, size_t size);
void gguf_put_number(gguf_bytes *g, uint64_t value, size_t size); // and notes its place
void gguf_put_text(gguf_bytes *g, const char *text, size_t size);
void gguf_put_name(gguf_bytes *g, const char *name);
void gguf_put_head(gguf_bytes *g, uint64_t tensors, uint64_t keys); // starts anew
void gguf_put_u32(gguf_bytes *g, const char *key, uint32_t value);
void gguf_put_f32(gguf_bytes *g, const char *key, float value);
void gguf_put_string(gguf_bytes *g, const char *key, const char *value);
void gguf_put_array(gguf_bytes *g, const char *key, uint32_t element, uint64_t count); // the elements follow
