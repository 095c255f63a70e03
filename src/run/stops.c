#define _GNU_SOURCE // memmem
#include "src/run/stops.h"
#include "base/memory.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REASON_BYTES = 160, SHOWN_BYTES = 64 };

typedef struct { // the end of what was written after a sequence: what a text of run.stop may have begun in
  char *text;
  size_t length;
  char reason[REASON_BYTES]; // "": it has not ended
} tail;

struct stops {
  const struct config_stop *wanted;
  const end_tokens *ends; // NULL: run.ignore_eos
  const tokenizer *tokenizer;
  size_t room; // bytes of a tail: of the longest text of run.stop, less the one that must still come
  int64_t n;
  tail *tail; // [n]
};

status stops_check(const config *c, const tokenizer *t, int64_t vocabulary) {
  const struct config_stop *stop = &c->run.stop;
  if (stop->n_texts && !t)
    return REFUSE(
        "run.stop: \"%.64s\" is a text, but this model has no tokenizer that can be read; give token ids",
        stop->texts[0]);
  for (size_t i = 0; i < stop->n_ids; i++)
    if (stop->ids[i] >= vocabulary)
      return REFUSE("run.stop: expected ids below the vocabulary's %lld, found %d", (long long)vocabulary,
                    stop->ids[i]);
  return 0;
}

status stops_open(stops **out, const config *c, const end_tokens *ends, const tokenizer *t,
                  int64_t n_sequences) {
  *out = NULL;
  stops *s;
  TRY(TAKE(&s, 1, "the stops"));
  *s = (stops){.wanted = &c->run.stop, .ends = c->run.ignore_eos ? NULL : ends, .tokenizer = t};
  for (size_t i = 0; i < s->wanted->n_texts; i++) {
    size_t length = strlen(s->wanted->texts[i]);
    s->room = length > s->room ? length : s->room;
  }
  status result = TAKE(&s->tail, (size_t)n_sequences, "the stops");
  if (!result) s->n = n_sequences;
  for (int64_t i = 0; i < s->n && s->room && !result; i++)
    result = TAKE(&s->tail[i].text, s->room, "the stops");
  if (result) {
    stops_close(s);
    return result;
  }
  *out = s;
  return 0;
}

void stops_close(stops *s) {
  if (!s) return;
  for (int64_t i = 0; i < s->n; i++) free(s->tail[i].text);
  free(s->tail);
  free(s);
}

static void keep_tail(stops *s, tail *t, const char *text, size_t length) {
  size_t kept = length < s->room - 1 ? length : s->room - 1;
  memmove(t->text, text + length - kept, kept);
  t->length = kept;
}

// Texts are bytes here: a token may end within a character.
static status see_texts(stops *s, tail *t, int32_t id) {
  char *more, *all;
  size_t n;
  TRY(tokenizer_decode(s->tokenizer, &id, 1, &more, &n));
  status result = TAKE(&all, t->length + n + 1, "the end of a text");
  if (!result) {
    if (t->length) memcpy(all, t->text, t->length);
    memcpy(all + t->length, more, n);
    for (size_t i = 0; i < s->wanted->n_texts && !t->reason[0]; i++)
      if (memmem(all, t->length + n, s->wanted->texts[i], strlen(s->wanted->texts[i])))
        snprintf(t->reason, sizeof t->reason, "run.stop \"%.*s\"", SHOWN_BYTES, s->wanted->texts[i]);
    keep_tail(s, t, all, t->length + n);
    free(all);
  }
  free(more);
  return result;
}

status stops_see(bool *ended, stops *s, int64_t sequence, int32_t id) {
  tail *t = &s->tail[sequence];
  const char *end = s->ends ? end_tokens_find(s->ends, id) : NULL;
  if (end) snprintf(t->reason, sizeof t->reason, "end token %d%s%.*s", id, *end ? " " : "", SHOWN_BYTES, end);
  for (size_t i = 0; i < s->wanted->n_ids && !t->reason[0]; i++)
    if (s->wanted->ids[i] == id) snprintf(t->reason, sizeof t->reason, "run.stop %d", id);
  if (!t->reason[0] && s->wanted->n_texts) TRY(see_texts(s, t, id));
  *ended = t->reason[0] != 0;
  return 0;
}

const char *stops_reason(const stops *s, int64_t sequence) {
  return s->tail[sequence].reason[0] ? s->tail[sequence].reason : "run.generate";
}
