// limit: ends this process when a call that has no deadline of its own does not return in time.
//
// Owns: SIGALRM. For one thread, one limit at a time.
// Invariant: what runs at the end is async-signal-safe: one write of a text that was made before, and _Exit.
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

// In `seconds` (at least one, whole ones) the process writes the text, if there is one, to standard error and
// ends with `code`, unless limit_clear or another limit_set is called before.
void limit_set(double seconds, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
void limit_clear(void);

// The start of a program, one limit for all of its stages: limit_start begins it, or, called again, gives the
// seconds since the first call another number. limit_stage says what the program is about to wait for: its
// text follows "<who>: the start: after <seconds> s, ". who is kept by reference; NULL: as before. Without a
// limit_start limit_stage does nothing.
void limit_start(double seconds);
void limit_stage(const char *who, const char *format, ...) __attribute__((format(printf, 2, 3)));
// After `later` seconds more than the limit: of processes that pass it together, one speaks before the
// others.
void limit_turn(double later);
void limit_started(void); // the start is over

#ifdef __cplusplus
}
#endif
