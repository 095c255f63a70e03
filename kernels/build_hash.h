// build_hash: of the sources that decide the bits, as this program was built from them.
//
// CMake computes it at every build from the files' contents (arithmetic_hash.cmake).
#pragma once
#include <stdint.h>

typedef struct {
  uint64_t common; // formats, the cpu backend, the interface, and what src/run computes around them
  uint64_t cuda;   // the cuda backend; 0: not built in, so there is nothing to compare
} build_hash;

build_hash build_hash_get(void);
