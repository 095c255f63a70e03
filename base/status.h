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

typedef int status; // 0: success; any other value: an error, whose text status_text() returns

// Stores the error, unless one is stored already. The text names which file or tensor, what
// was expected and what was found. Thread-safe. Use it through FAIL.
void status_fail(const char *file, int line, const char *format, ...) __attribute__((format(printf, 3, 4)));

// Adds where the caller was to the stored error, ahead of its text: "file.c:212: layer 3, route: text".
void status_within(const char *format, ...) __attribute__((format(printf, 1, 2)));

const char *status_text(void); // "file.c:212: text" of the stored error, "" if there is none
void status_reset(void);       // forgets the stored error: for tests and for callers that recover

#define FAIL(...) (status_fail(__FILE__, __LINE__, __VA_ARGS__), (status)1)

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
