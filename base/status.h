// status: what every function that can fail returns.
//
// Owns: the text, file and line of the first error of this process.
// Independent of: ranks, printing, exiting. Only src/commands/errors.c prints a status.
// Invariant: the first error stays; later ones, which are mostly its consequences, do not overwrite it.
#pragma once
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

// 0: success; any other value: an error, whose text status_text() returns. The value is the exit code with
// which that error ends the program (docs/running.md has the table), whatever ranks there are.
typedef int status;
enum {
  STATUS_FAILED = 1,  // a run failed: files, memory, MPI, a broken model file, the law itself
  STATUS_REFUSED = 2, // what was asked is wrong: command line, configuration, contract
  STATUS_DIFFERS = 3, // what was asked was done, and a gate fails or things differ; mostly without a text
};

// Stores the error, unless one is stored already. The text names which file or tensor, what
// was expected and what was found. Thread-safe. Use it through FAIL or REFUSE.
void status_fail(const char *file, int line, const char *format, ...) __attribute__((format(printf, 3, 4)));

// Adds where the caller was to the stored error, ahead of its text: "file.c:212: layer 3, route: text".
void status_within(const char *format, ...) __attribute__((format(printf, 1, 2)));

const char *status_text(void); // "file.c:212: text" of the stored error, "" if there is none
void status_reset(void);       // forgets the stored error: for tests and for callers that recover

#define FAIL(...)   (status_fail(__FILE__, __LINE__, __VA_ARGS__), (status)STATUS_FAILED)
#define REFUSE(...) (status_fail(__FILE__, __LINE__, __VA_ARGS__), (status)STATUS_REFUSED)

// The same error, as one of what was asked: of a file that is itself the request, as --config names it.
static inline status status_as_refusal(status s) {
  return s ? STATUS_REFUSED : 0;
}

// Returns from the calling function when `expression` is an error; for functions that own nothing yet.
#define TRY(expression)                                                                                      \
  do {                                                                                                       \
    status try_status_ = (expression);                                                                       \
    if (try_status_) return try_status_;                                                                     \
  } while (0)

// Jumps to the label `done` with `result` set; for functions that clean up.
#define TRY_DONE(result, expression)                                                                         \
  do {                                                                                                       \
    (result) = (expression);                                                                                 \
    if (result) goto done;                                                                                   \
  } while (0)

#ifdef __cplusplus
}
#endif
