#include "src/report/trace_pair.h"
#include "base/memory.h"
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char LETTER[SIDES] = {'A', 'B'};

// Once for each text; further ones than there is room for are not kept.
__attribute__((format(printf, 2, 3))) static void note(trace_pair *p, const char *format, ...) {
  char text[NOTE_BYTES];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  for (int i = 0; i < p->n_notes; i++)
    if (!strcmp(p->notes[i], text)) return;
  if (p->n_notes < MOST_NOTES) strcpy(p->notes[p->n_notes++], text);
}

bool pair_has(const trace_pair *p, int side, probe_point point, int64_t layer) {
  return trace_has(p->trace[side], p->arm[side], point, layer);
}

static status open_file(npy_file *out, const trace_pair *p, int side, probe_point point, int64_t layer) {
  char path[4096];
  const char *folder = p->arm[side]->folder, *name = probe_get(point)->name;
  int n = layer == NO_LAYER ? snprintf(path, sizeof path, "%s/%s.npy", folder, name)
                            : snprintf(path, sizeof path, "%s/%s-%" PRId64 ".npy", folder, name, layer);
  return n < (int)sizeof path ? npy_file_open(out, path) : REFUSE("%s: the path is too long", folder);
}

// ---- widths, from any file of a probe; those of a trace of this program rule ----

static int64_t first_layer_with(const trace_pair *p, int side, probe_point point) {
  if (pair_has(p, side, point, NO_LAYER)) return NO_LAYER;
  for (int64_t l = 0; l < p->trace[side]->n_layers; l++)
    if (pair_has(p, side, point, l)) return l;
  return NO_LAYER - 1;
}

static void learn_shape(trace_pair *p, probe_point point, const npy_header *h) {
  if (h->n_dims != 3) return;
  if (probe_get(point)->per_slot) p->top_k = h->size[1];
  if (point == PROBE_QCUR) p->heads.n_heads = h->size[1];
  if (point == PROBE_KCUR) p->heads.n_kv_heads = h->size[1];
  if (point == PROBE_QCUR) p->heads.head_dim = h->size[2];
}

static status learn_width(trace_pair *p, int side, probe_point point) {
  int64_t layer = first_layer_with(p, side, point);
  npy_file file;
  if (p->width[point] || layer < NO_LAYER) return 0;
  TRY(open_file(&file, p, side, point, layer));
  const npy_header *h = &file.header;
  // Of a folder the first size counts tokens; one of a single token may lack it.
  int64_t rows = p->trace[side]->tree ? p->trace[side]->n_tokens : h->n_dims > 1 ? h->size[0] : 1;
  status result = 0;
  if (rows < 1 || h->count < 1 || h->count % rows)
    result =
        REFUSE("%s: %" PRId64 " numbers, which are no rows of %" PRId64 " tokens", file.path, h->count, rows);
  else
    p->width[point] = h->count / rows;
  bool is_told = p->trace[0]->n_tokens || p->trace[1]->n_tokens;
  if (!is_told && rows > p->n_tokens) p->n_tokens = rows;
  learn_shape(p, point, h);
  npy_file_close(&file);
  return result;
}

static status check_slots(const trace_pair *p) {
  for (int point = 0; point < PROBE_COUNT; point++) {
    int64_t width = p->width[point];
    if (width && probe_get((probe_point)point)->per_slot && (!p->top_k || width % p->top_k))
      return REFUSE("%s and %s: %s has %" PRId64 " numbers a token, which are no slots of %" PRId64
                    " experts; expected ffn_moe_topk, or three sizes",
                    p->trace[0]->given, p->trace[1]->given, probe_get((probe_point)point)->name, width,
                    p->top_k);
  }
  return 0;
}

// The numbers a token that a probe must have as input `i` of the step that gives `point`; 0: any.
static int64_t width_as_input(const trace_pair *p, probe_point point, int i) {
  const step_info *step = step_of(point);
  int64_t width = p->width[point];
  switch (step->kind) {
  case STEP_NORM:
  case STEP_SWIGLU:
  case STEP_ADD:
    return width;
  case STEP_COMBINE:
    return i ? width * p->top_k : p->top_k;
  case STEP_WEIGHTS:
    return i ? width : 0;
  case STEP_PRODUCT:
    return i ? width : 0; // the stream that it is added to
  case STEP_LOOKUP:
  case STEP_SELECT:
  case STEP_ATTENTION: // without heads, which fit (learn_widths), it is not recomputed
    break;
  }
  return 0;
}

static status check_inputs(const trace_pair *p, probe_point point) {
  const step_info *step = step_of(point);
  for (int i = 0; i < step->n_inputs && p->width[point]; i++) {
    probe_point in = step->input[i];
    int64_t expected = width_as_input(p, point, i);
    if (!expected || !p->width[in] || p->width[in] == expected) continue;
    return REFUSE("%s and %s: %s has %" PRId64
                  " numbers a token, so %s, of which it is computed, should have %" PRId64 ", found %" PRId64,
                  p->trace[0]->given, p->trace[1]->given, probe_get(point)->name, p->width[point],
                  probe_get(in)->name, expected, p->width[in]);
  }
  return 0;
}

// Of one model: each step's inputs are as wide as it reads them.
static status check_widths(const trace_pair *p) {
  for (int point = 0; point < PROBE_COUNT; point++) TRY(check_inputs(p, (probe_point)point));
  if (p->width[PROBE_INP_EMBD] && p->width[PROBE_L_OUT] && p->width[PROBE_INP_EMBD] != p->width[PROBE_L_OUT])
    return REFUSE("%s and %s: inp_embd has %" PRId64 " numbers a token, l_out %" PRId64, p->trace[0]->given,
                  p->trace[1]->given, p->width[PROBE_INP_EMBD], p->width[PROBE_L_OUT]);
  return 0;
}

static status learn_widths(trace_pair *p) {
  for (int known = 1; known >= 0; known--)
    for (int side = 0; side < SIDES; side++)
      for (int point = 0; point < PROBE_COUNT && known == (p->trace[side]->tree != NULL); point++)
        TRY(learn_width(p, side, (probe_point)point));
  head_shape *h = &p->heads;
  bool whole =
      h->n_kv_heads > 0 && h->n_heads % h->n_kv_heads == 0 &&
      p->width[PROBE_KCUR] == h->n_kv_heads * h->head_dim && p->width[PROBE_VCUR] == p->width[PROBE_KCUR] &&
      p->width[PROBE_QCUR] == h->n_heads * h->head_dim && p->width[PROBE_KQV_OUT] == p->width[PROBE_QCUR];
  if (!whole) *h = (head_shape){0, 0, 0};
  int64_t chosen =
      p->width[PROBE_FFN_MOE_TOPK] ? p->width[PROBE_FFN_MOE_TOPK] : p->width[PROBE_FFN_MOE_WEIGHTS_NORM];
  if (chosen) p->top_k = chosen;
  TRY(check_slots(p));
  return check_widths(p);
}

// ---- tokens ----

static status match_tokens(trace_pair *p) {
  const recorded_trace *t = p->trace[0], *u = p->trace[1];
  if (t->tree && u->tree && t->fingerprint != u->fingerprint)
    note(p, "the models' files differ (fingerprint %016" PRIx64 " and %016" PRIx64 ")", t->fingerprint,
         u->fingerprint);
  if (t->n_tokens && u->n_tokens && t->n_tokens != u->n_tokens)
    return REFUSE("%s and %s cannot be compared: %" PRId64 " and %" PRId64 " tokens", t->given, u->given,
                  t->n_tokens, u->n_tokens);
  for (int64_t i = 0; t->token && u->token && i < t->n_tokens; i++)
    if (t->token[i] != u->token[i])
      return REFUSE("%s and %s cannot be compared: token %" PRId64 " is %" PRId32 " and %" PRId32, t->given,
                    u->given, i, t->token[i], u->token[i]);
  for (int64_t i = 0; t->sequence && u->sequence && i < t->n_tokens; i++)
    if (t->sequence[i] != u->sequence[i] || t->position[i] != u->position[i])
      return REFUSE("%s and %s cannot be compared: token %" PRId64 " is in another sequence or position",
                    t->given, u->given, i);
  for (int side = 0; side < SIDES; side++)
    if (!p->trace[side]->token)
      note(p, "%c has no tokens.npy: that it read the same tokens was not checked", LETTER[side]);
  p->n_tokens = t->n_tokens ? t->n_tokens : u->n_tokens;
  p->token = t->token ? t->token : u->token;
  p->sequence = t->sequence ? t->sequence : u->sequence;
  return 0;
}

static status find_last(trace_pair *p) {
  TRY(TAKE(&p->last, (size_t)p->n_tokens, "the last tokens"));
  for (int64_t i = 0; i < p->n_tokens; i++)
    if (i + 1 == p->n_tokens || (p->sequence && p->sequence[i + 1] != p->sequence[i]))
      p->last[p->n_last++] = i;
  return 0;
}

static void note_folders(trace_pair *p) {
  for (int side = 0; side < SIDES; side++)
    if (p->trace[side]->other_files)
      note(p, "%c has %zu .npy of names that are no probe's, which are not compared", LETTER[side],
           p->trace[side]->other_files);
}

status trace_pair_open(trace_pair *out, const recorded_trace *t, const recorded_trace_arm *a,
                       const recorded_trace *u, const recorded_trace_arm *b) {
  status result;
  *out = (trace_pair){.trace = {t, u}, .arm = {a, b}};
  out->n_layers = t->n_layers > u->n_layers ? t->n_layers : u->n_layers;
  TRY_DONE(result, match_tokens(out));
  TRY_DONE(result, learn_widths(out));
  TRY_DONE(result, find_last(out));
  TRY_DONE(result, TAKE(&out->slot_of, (size_t)(out->n_tokens * out->top_k), "slots"));
  note_folders(out);
  return 0;
done:
  trace_pair_close(out);
  return result;
}

void trace_pair_close(trace_pair *p) {
  free(p->last);
  free(p->slot_of);
  p->last = NULL;
  p->slot_of = NULL;
}

// ---- rows ----

static void note_shape(trace_pair *p, int side, probe_point point, const recorded_rows *r) {
  const npy_header *h = &r->file.header;
  bool has_heads = step_of(point)->kind == STEP_ATTENTION || point == PROBE_QCUR || point == PROBE_KCUR ||
                   point == PROBE_VCUR;
  int expected = 2 + (probe_get(point)->per_slot || has_heads);
  if (h->n_dims != expected)
    note(p, "%s of %c has %d sizes instead of %d: read as %" PRId64 " numbers a token",
         probe_get(point)->name, LETTER[side], h->n_dims, expected, r->width);
  if (h->is_fortran && h->n_dims > 1)
    note(p, "%s of %c is in Fortran order", probe_get(point)->name, LETTER[side]);
  if (r->scale != 1)
    note(p, "%s of %c times %.9g, which is its factor here", probe_get(point)->name, LETTER[side], r->scale);
  if (r->only_last)
    note(p, "%s of %c has only the last token of each sequence: only these are compared",
         probe_get(point)->name, LETTER[side]);
}

// A folder's numbers have llama.cpp's meaning; beside a trace of this program they take its factor.
static double scale_of(const trace_pair *p, int side, probe_point point) {
  if (p->trace[side]->tree || !p->trace[!side]->tree) return 1;
  return p->trace[!side]->factor[point];
}

status recorded_rows_open(recorded_rows *out, trace_pair *p, int side, probe_point point, int64_t layer) {
  *out = (recorded_rows){.width = p->width[point], .scale = scale_of(p, side, point)};
  TRY(open_file(&out->file, p, side, point, layer));
  int64_t count = out->file.header.count;
  out->rows = count / out->width;
  out->only_last = out->rows == p->n_last && p->n_last < p->n_tokens;
  if (count % out->width || (out->rows != p->n_tokens && !out->only_last)) {
    status result = REFUSE("%s: expected %" PRId64 " tokens, or the last of each of %" PRId64
                           " sequences, of %" PRId64 " numbers each, found %" PRId64 " numbers",
                           out->file.path, p->n_tokens, p->n_last, out->width, count);
    recorded_rows_close(out);
    return result;
  }
  note_shape(p, side, point, out);
  return 0;
}

void recorded_rows_close(recorded_rows *r) {
  npy_file_close(&r->file);
}

int64_t recorded_rows_find(const recorded_rows *r, const trace_pair *p, int64_t token) {
  if (!r->only_last) return token;
  for (int64_t i = 0; i < p->n_last; i++)
    if (p->last[i] == token) return i;
  return -1;
}

status recorded_rows_read(const recorded_rows *r, int64_t row, double *out) {
  TRY(npy_file_numbers(&r->file, row * r->width, r->width, out));
  for (int64_t i = 0; i < r->width && r->scale != 1; i++) out[i] *= r->scale;
  return 0;
}

// ---- slots ----

static void match_row(trace_pair *p, int64_t token, const double *a, const double *b, bool *moved) {
  int32_t *to = p->slot_of + token * p->top_k;
  for (int64_t k = 0; k < p->top_k; k++) {
    to[k] = -1;
    for (int64_t j = 0; j < p->top_k && to[k] < 0; j++)
      if (a[k] == b[j]) to[k] = (int32_t)j;
    *moved = *moved || (to[k] >= 0 && to[k] != k);
  }
}

static status match_by_experts(trace_pair *p, int64_t layer) {
  recorded_rows r[SIDES] = {{.rows = 0}, {.rows = 0}};
  double *ids[SIDES] = {NULL, NULL};
  bool moved = false;
  status result;
  for (int side = 0; side < SIDES; side++) {
    TRY_DONE(result, TAKE(&ids[side], (size_t)p->top_k, "experts"));
    TRY_DONE(result, recorded_rows_open(&r[side], p, side, PROBE_FFN_MOE_TOPK, layer));
  }
  for (int64_t t = 0; t < p->n_tokens; t++) {
    int64_t row[SIDES];
    for (int side = 0; side < SIDES; side++) {
      row[side] = recorded_rows_find(&r[side], p, t);
      if (row[side] >= 0) TRY_DONE(result, recorded_rows_read(&r[side], row[side], ids[side]));
    }
    if (row[0] >= 0 && row[1] >= 0) match_row(p, t, ids[0], ids[1], &moved);
  }
  if (moved) note(p, "slots of B are put in the order of A's experts");
  result = 0;
done:
  for (int side = 0; side < SIDES; side++) {
    recorded_rows_close(&r[side]);
    free(ids[side]);
  }
  return result;
}

status trace_pair_match_slots(trace_pair *p, int64_t layer) {
  for (int64_t i = 0; i < p->n_tokens * p->top_k; i++) p->slot_of[i] = (int32_t)(i % p->top_k);
  if (pair_has_both(p, PROBE_FFN_MOE_TOPK, layer)) return match_by_experts(p, layer);
  if (pair_has_both(p, PROBE_FFN_MOE_GATE, layer) || pair_has_both(p, PROBE_FFN_MOE_DOWN, layer))
    note(p, "slots are matched by their order: not both traces have ffn_moe_topk");
  return 0;
}
