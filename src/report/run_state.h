// run_state: what a run has done so far, kept in the output folder so that a run which was ended goes on.
//
// Owns: state.json, its checks, and the signals (SIGTERM, SIGUSR1) that end a run in order.
// Independent of: what a command keeps: of each arm two lists, of numbers and of words of 64 bits.
// Invariant: the file is whole or not there; it is taken only by a run of the same model, input, arms and
// settings, and refused by name otherwise. All ranks stop at the same step.
#pragma once
#include "src/run/job.h"

typedef struct { // of one arm; empty: nothing was done
  int64_t *number;
  uint64_t *word;
  size_t n_numbers, n_words;
} run_state_arm;

typedef struct {
  job *j;
  bool is_kept;                       // output.dir is set; else every function does nothing
  run_state_arm arm[CONFIG_MAX_ARMS]; // by its place in run.arms
  double written;                     // clock_seconds of the last writing
  double asked;                       // and of the last agreement of the ranks
  int ends_by;                        // the signal that ranks have agreed to end by; 0: none
  int64_t steps, interval;            // since that agreement, and until the next
} run_state;

// Collective. With run.resume every rank gets the state that the reporting rank finds, if there is one. From
// here on SIGTERM and SIGUSR1, once, end the run at its next writing. run_state_close after an error too.
status run_state_open(run_state *out, job *j);
void run_state_close(run_state *s); // takes a zeroed state

// Collective, after each step of the work. *due: it is time to keep: the command calls run_state_keep and
// then run_state_write. Ranks agree on it about once a second.
status run_state_step(run_state *s, bool *due);
// Local. What arm `index` has done: copies.
status run_state_keep(run_state *s, size_t index, const int64_t *number, size_t n_numbers,
                      const uint64_t *word, size_t n_words);
// Collective. Writes the file; fails on every rank where a signal has asked for the end.
status run_state_write(run_state *s);
// Collective. The run is done, so there is nothing to go on with.
status run_state_remove(run_state *s);
