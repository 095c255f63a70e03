// timeline_write: DIR/timeline.json, all ranks' spans as trace events that Perfetto and chrome://tracing
// read.
//
// Owns: its format (docs/timeline.md). Invariant: events of a rank nest, to the nanosecond.
#pragma once
#include "src/run/job.h"

// Collective. With output.timeline: removes an earlier timeline.json and starts to record.
status timeline_start(job *j);
// Collective, at the end of a command that was done. Merges and writes; nothing without output.timeline.
status timeline_write(job *j);
