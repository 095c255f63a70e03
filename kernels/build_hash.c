#include "kernels/build_hash.h"
#include "arithmetic_hash.h"

build_hash build_hash_get(void) {
  return (build_hash){MOE_HASH_COMMON, MOE_HASH_CUDA};
}
