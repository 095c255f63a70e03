// fuzz_npy: the header of a .npy file. What is taken holds together; what is not has an error that names the
// file.
//
// An input: how many bytes the file has beyond those that are given (2 bytes), then the file's first bytes.
#include "tests/fuzz/fuzz.h"
#include "src/run/npy_read.h"
#include <stdlib.h>
#include <string.h>

static void check_npy(const npy_header *h, uint64_t file_bytes) {
  static const uint64_t number_bytes[] = {
      [NPY_HAS_F16] = 2, [NPY_HAS_F32] = 4, [NPY_HAS_F64] = 8, [NPY_HAS_I32] = 4, [NPY_HAS_I64] = 8};
  uint64_t count = 1;
  REQUIRE(h->n_dims >= 0 && h->n_dims <= NPY_MOST_DIMS && h->count >= 0);
  for (int i = 0; i < h->n_dims; i++) {
    REQUIRE(h->size[i] >= 0);
    count *= (uint64_t)h->size[i];
  }
  REQUIRE(count == (uint64_t)h->count);
  REQUIRE(*npy_content_name(h->content) && h->start + count * number_bytes[h->content] == file_bytes);
}

FUZZ_TARGET(npy) {
  fuzz_input in = {data, size};
  npy_header h;
  uint64_t more = fuzz_take(&in, 2), file_bytes = in.left + more;
  char *exact = malloc(in.left ? in.left : 1); // of its own size, so that a read beyond it is seen
  if (in.left) memcpy(exact, in.at, in.left);
  status_reset();
  status result = npy_header_parse(&h, "f.npy", exact, in.left, file_bytes);
  free(exact);
  REQUIRE((result != 0) == (*status_text() != 0));
  if (result)
    REQUIRE(strstr(status_text(), "f.npy"));
  else
    check_npy(&h, file_bytes);
  status_reset();
  return 0;
}
