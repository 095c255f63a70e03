// stolen_time: how long this host's cores wanted to run and could not, as a hypervisor gave them to others.
//
// Where it does, a step takes as long as the thread that stood still: a rate of such a run says nothing about
// the program. Source: proc(5), /proc/stat, "steal"; in hundredths of a second, and 0 on a machine of its
// own.
#pragma once

// Core-seconds of all cores since the host started; NaN where the kernel does not say. `path` is
// "/proc/stat", or a test's.
double stolen_seconds_from(const char *path);
double stolen_seconds(void);
