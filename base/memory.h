// memory: allocation that cannot overflow and whose failure is a status with a name.
#pragma once
#include "base/status.h"
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// Sets *out to a 64-byte aligned, zeroed array of count * size bytes (release with free). `what` names it in
// the error: "cannot allocate ... for <what>". count or size 0 gives a valid, releasable pointer.
status memory_take(void **out, size_t count, size_t size, const char *what);

// As memory_take for an array of `type`: TAKE(&x, n, "slot outputs") with `float *x`.
#define TAKE(pointer, count, what) memory_take((void **)(pointer), (count), sizeof **(pointer), (what))

// Makes room for one element more than `count` in an array of *capacity elements of `size` bytes (NULL and 0:
// none yet). A full array moves to one of twice the capacity; the old one is freed.
status memory_grow(void **array, size_t *capacity, size_t count, size_t size, const char *what);

// a * b or a + b into *out; false when the result does not fit.
static inline bool size_mul(size_t *out, size_t a, size_t b) {
  return !__builtin_mul_overflow(a, b, out);
}
static inline bool size_add(size_t *out, size_t a, size_t b) {
  return !__builtin_add_overflow(a, b, out);
}

#ifdef __cplusplus
}
#endif
