#include "src/commands/errors.h"
#include "base/mapped_files.h"
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
static char speaker[384] = "moe_run"; // the rank is not known yet
static struct timespec turn;          // see comm_turn_seconds

// Adds `from` to the `used` bytes in `to`, as far as they stay within `room`; returns how many there are
// then. For a signal handler.
static size_t append(char *to, size_t used, size_t room, const char *from) {
  size_t n = strlen(from);
  if (n > room - used) n = room - used;
  memcpy(to + used, from, n);
  return used + n;
}

static void on_bus_error(int signal_number, siginfo_t *info, void *context) {
  static atomic_flag printed = ATOMIC_FLAG_INIT;
  static const char why[] =
      ": expected the bytes that were there at the start, found the file cut short or unreadable\n";
  static char text[4096];
  const char *path = mapped_files_find(info->si_addr);
  size_t used = 0, room = sizeof text - sizeof why;
  (void)signal_number;
  (void)context;
  while (atomic_flag_test_and_set(&printed)) pause(); // another thread's, which ends this process
  used = append(text, used, room, speaker);
  used = append(text, used, room, ": ");
  used = append(text, used, room, path ? path : "a file in memory");
  used = append(text, used, sizeof text, why);
  nanosleep(&turn, NULL);
  if (write(STDERR_FILENO, text, used) < 0) _exit(1);
  _exit(1);
}

void errors_catch_signals(void) {
  struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
  sigaction(SIGBUS, &action, NULL);
  signal(SIGXFSZ, SIG_IGN);
}

void errors_name_rank(const comm *c) {
  turn.tv_sec = comm_turn_seconds(c);
  snprintf(speaker, sizeof speaker, "rank %d (%s)", comm_rank(c), comm_host(c));
}
