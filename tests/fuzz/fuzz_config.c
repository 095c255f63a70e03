// fuzz_config: a config file and --set texts. What is taken must be written as TOML that reads back the same.
//
// An input: a byte (its low 2 bits: how many --set texts; 4: no file), then these texts and last the file,
// with byte 1e between them.
#include "tests/fuzz/fuzz.h"
#include "src/config/config.h"
#include <stdlib.h>
#include <string.h>

enum { SEPARATOR = 0x1e, MOST_SETS = 4 };

static void check_written(const config *c) {
  char *first, *second;
  config again;
  REQUIRE(!config_text(c, &first));
  REQUIRE(!config_load(&again, fuzz_file(0, 1, first, strlen(first)), NULL, 0));
  REQUIRE(!config_text(&again, &second));
  REQUIRE(!strcmp(first, second));
  config_close(&again);
  free(first);
  free(second);
}

static char *next_text(const uint8_t **at, size_t *left) {
  size_t n = 0;
  while (n < *left && (*at)[n] != SEPARATOR) n++;
  char *text = malloc(n + 1); // exact, so that a byte too many is seen
  if (n) memcpy(text, *at, n);
  text[n] = 0;
  size_t step = n + (n < *left);
  *at += step;
  *left -= step;
  return text;
}

FUZZ_TARGET(config) {
  char *sets[MOST_SETS] = {"model.path=m"};
  size_t n = 1, left = size ? size - 1 : 0;
  const uint8_t *at = data + (size != 0);
  unsigned flags = size ? *data : 0;
  config c;
  for (; n <= (flags & 3); n++) sets[n] = next_text(&at, &left);
  status_reset();
  status result = config_load(&c, flags & 4 ? NULL : fuzz_file(0, 1, at, left), (const char *const *)sets, n);
  REQUIRE((result != 0) == (*status_text() != 0));
  if (!result) check_written(&c);
  config_close(&c);
  while (--n) free(sets[n]);
  return 0;
}
