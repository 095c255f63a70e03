// stops: where a sequence that an arm continues ends: at an end token of the model, or at one of run.stop.
//
// Independent of: arms and ranks: every rank sees the same tokens and so finds the same ends. Local.
#pragma once
#include "src/config/config_types.h"
#include "src/text/end_tokens.h"
#include "src/text/tokenizer.h"

typedef struct stops stops;

// Refuses a text in run.stop where no text can be read (t NULL), and ids beyond the vocabulary.
status stops_check(const config *c, const tokenizer *t, int64_t vocabulary);

// Of settings that were checked. `c`, `ends` and `t` stay open as long.
status stops_open(stops **out, const config *c, const end_tokens *ends, const tokenizer *t,
                  int64_t n_sequences);
void stops_close(stops *s); // takes NULL

// `id` was written after sequence `sequence`. *ended: with it the sequence ends.
status stops_see(bool *ended, stops *s, int64_t sequence, int32_t id);
// What ended it: "run.generate" where nothing else has. Valid until stops_close.
const char *stops_reason(const stops *s, int64_t sequence);
