#include "src/commands/errors.h"
#include "base/plain_text.h"
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

// One write, so that ranks' lines do not mix. An error quotes files, which anyone may have written.
void errors_print(const comm *c) {
  char line[4096];
  snprintf(line, sizeof line, "%s", status_text());
  if (!*line) return; // STATUS_DIFFERS: the output says what
  plain_make(line);
  if (c)
    fprintf(stderr, "rank %d (%s): %s\n", comm_rank(c), comm_host(c), line);
  else
    fprintf(stderr, "moe_run: %s\n", line);
  fflush(stderr);
}

// An agreed error is on every rank, so all end in order; after any other error the other ranks are aborted.
int errors_end(comm *c, status error) {
  if (comm_wait_has_failed(c)) nanosleep(&(struct timespec){.tv_sec = comm_turn_seconds(c)}, NULL);
  if (!comm_error_is_reported_elsewhere(c)) errors_print(c);
  if (!comm_error_is_agreed(c)) comm_abort(c, error);
  comm_close(c);
  return error;
}

// ---- signals ----

// A page of a mapped file that can no longer be read (a file cut short, a disk or server gone) raises SIGBUS.
static char bus_error_text[1024] =
    "moe_run: a mapped file changed or became unreadable\n"; // the rank is not known yet
static struct timespec turn;                                 // see comm_turn_seconds

static void on_bus_error(int signal_number) {
  static atomic_flag printed = ATOMIC_FLAG_INIT;
  (void)signal_number;
  while (atomic_flag_test_and_set(&printed)) pause(); // another thread's, which ends this process
  nanosleep(&turn, NULL);
  if (write(STDERR_FILENO, bus_error_text, strlen(bus_error_text)) < 0) _exit(1);
  _exit(1);
}

void errors_catch_signals(void) {
  signal(SIGBUS, on_bus_error);
  signal(SIGXFSZ, SIG_IGN);
}

void errors_name_mapped_file(const comm *c, const char *path) {
  turn.tv_sec = comm_turn_seconds(c);
  snprintf(bus_error_text, sizeof bus_error_text,
           "rank %d (%s): %.800s: expected the bytes that were there at the start, found the file cut short "
           "or unreadable\n",
           comm_rank(c), comm_host(c), path);
}
