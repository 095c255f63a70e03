// fuzz_report: report.json of another run. What is taken holds together, and is equal to itself.
//
// An input: a byte 0, then the file; or another byte, then edits of a good report: place (2 bytes), how many
// bytes go there (1), how many come (1), and these.
#include "tests/fuzz/fuzz.h"
#include "src/report/report_diff.h"
#include "tests/support/good_report.h"
#include <stdlib.h>
#include <string.h>

enum { REPORT_BYTES = 4096, REPORT_EDITS = 8 };

static size_t edit_report(char *text, size_t length, fuzz_input *in) {
  size_t at = fuzz_take(in, 2) % (length + 1), out = fuzz_take(in, 1), come = fuzz_take(in, 1);
  if (out > length - at) out = length - at;
  if (come > in->left) come = in->left;
  if (length - out + come > REPORT_BYTES) return length;
  memmove(text + at + come, text + at + out, length - at - out);
  if (come) memcpy(text + at, in->at, come);
  in->at += come;
  in->left -= come;
  return length - out + come;
}

static status read_report_exact(recorded_report *r, const char *text, size_t length) {
  char *exact = malloc(length ? length : 1);
  if (length) memcpy(exact, text, length);
  status_reset();
  status result = report_read_text(r, "r", exact, length);
  free(exact); // the report keeps nothing of it
  REQUIRE((result != 0) == (*status_text() != 0));
  return result;
}

static void check_report(const recorded_report *r) {
  REQUIRE(r->n_arms && r->n_ranks && r->n_layers > 0 && r->context > 0 && r->skip >= -1 && r->config);
  for (size_t i = 0; i < r->n_arms; i++) {
    const recorded_arm *a = &r->arms[i];
    volatile uint64_t seen = 0; // so that a sanitizer sees each read
    uint64_t sum = 0;
    for (size_t s = 0; s < a->n_sequences; s++) sum += a->sequences[s].digest;
    for (int64_t l = 0; l < r->n_layers; l++) seen += a->layer_digests[l];
    for (size_t t = 0; t < a->n_texts; t++)
      for (size_t n = 0; n < a->texts[t].n_tokens; n++) REQUIRE(a->texts[t].tokens[n] >= 0);
    REQUIRE(sum == a->digest && a->n_sequences == r->arms[0].n_sequences);
    REQUIRE(!a->n_texts || a->n_texts == a->n_sequences);
    for (size_t k = 0; k < i; k++) REQUIRE(strcmp(a->name, r->arms[k].name));
  }
}

static void check_compared(const recorded_report *a, const recorded_report *b, bool equal) {
  static FILE *nowhere;
  bool same = false;
  if (!nowhere) REQUIRE(nowhere = fopen("/dev/null", "w"));
  status_reset();
  status result = report_diff(&same, nowhere, a, b);
  REQUIRE((result != 0) == (*status_text() != 0));
  if (equal) REQUIRE(!result && same);
}

FUZZ_TARGET(report) {
  static char text[REPORT_BYTES];
  fuzz_input in = {data, size};
  bool edited = fuzz_take(&in, 1) != 0;
  size_t length = edited ? sizeof GOOD_REPORT - 1 : in.left < REPORT_BYTES ? in.left : REPORT_BYTES;
  if (length) memcpy(text, edited ? (const void *)GOOD_REPORT : (const void *)in.at, length);
  for (int i = 0; edited && i < REPORT_EDITS && in.left; i++) length = edit_report(text, length, &in);
  recorded_report r, good;
  if (read_report_exact(&r, text, length)) {
    REQUIRE(!r.arms && !r.tree && !r.file);
    return 0;
  }
  check_report(&r);
  check_compared(&r, &r, true);
  REQUIRE(!report_read_text(&good, "good", GOOD_REPORT, sizeof GOOD_REPORT - 1));
  check_compared(&r, &good, false);
  check_compared(&good, &r, false);
  report_read_close(&good);
  report_read_close(&r);
  while (length && strchr(" \n\r\t", text[length - 1])) length--;
  REQUIRE(length && read_report_exact(&r, text, length - 1)); // without its last brace
  return 0;
}
