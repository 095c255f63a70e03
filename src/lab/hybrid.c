#include "src/lab/hybrid.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>

enum {
  HEADS = 1 << PROBE_QCUR | 1 << PROBE_KCUR | 1 << PROBE_VCUR,
  ATTENDED = 1 << PROBE_KQV_OUT,
  STREAM = 1 << PROBE_FFN_INP,
  GATE_AND_UP = 1 << PROBE_FFN_MOE_GATE | 1 << PROBE_FFN_MOE_UP,
  HIDDEN = 1 << PROBE_FFN_MOE_SWIGLU,
  OUTPUTS = 1 << PROBE_FFN_MOE_DOWN,
  OF_SLOTS = GATE_AND_UP | HIDDEN | OUTPUTS,
  HANDED = HEADS | ATTENDED | STREAM | OF_SLOTS,
};

struct hybrid {
  job *j;
  arm *a, *b;
  const model_shape *s;
  const model_part *part;
  comm_part *broadcast;      // [ranks][ranks]
  token_batch batch;         // of the pass
  double *x;                 // [max_batch][hidden] the residual stream before the next step of the table
  double *rows[PROBE_COUNT]; // of the points that are handed over, the last that were taken
  double *of_a[PROBE_COUNT]; // of the points of slots, those of a while b computes its experts'
  routing route;             // [max_batch][top_k]
  double *logits;            // [vocabulary]
};

const char *model_step_name(model_step step) {
  static const char *const names[MODEL_STEPS] = {
      [STEP_EMBED] = "embedding",     [STEP_QKV] = "q, k, v",
      [STEP_ATTENTION] = "attention", [STEP_O] = "o",
      [STEP_ROUTER] = "router",       [STEP_GATE_UP] = "gate and up",
      [STEP_SWIGLU] = "SwiGLU",       [STEP_DOWN] = "down",
      [STEP_HEAD] = "head",
  };
  return names[step];
}

// ---- open and close ----

static int64_t numbers_of(const hybrid *h, probe_point point, int64_t n_tokens) {
  return n_tokens * probe_width(point, h->s) * (probe_get(point)->per_slot ? h->s->top_k : 1);
}

static status open_rooms(hybrid *h) {
  int64_t n = h->j->max_batch;
  size_t slots = (size_t)(n * h->s->top_k), size = (size_t)comm_size(h->j->c);
  for (int p = 0; p < PROBE_COUNT; p++) {
    size_t numbers = (size_t)numbers_of(h, (probe_point)p, n);
    if (HANDED >> p & 1) TRY(TAKE(&h->rows[p], numbers, probe_get((probe_point)p)->name));
    if (OF_SLOTS >> p & 1) TRY(TAKE(&h->of_a[p], numbers, probe_get((probe_point)p)->name));
  }
  TRY(TAKE(&h->x, (size_t)(n * h->s->hidden), "the residual stream"));
  TRY(TAKE(&h->route.expert, slots, "a routing"));
  TRY(TAKE(&h->route.weight, slots, "a routing"));
  TRY(TAKE(&h->logits, (size_t)h->s->vocabulary, "logits"));
  return TAKE(&h->broadcast, size * size, "a broadcast");
}

static status open_arm(arm *a) {
  TRY(arm_impose_open(a, HANDED));
  return arm_probes_open(a, HANDED);
}

static status open_local(hybrid *h) {
  TRY(open_arm(h->a));
  TRY(open_arm(h->b));
  return open_rooms(h);
}

status hybrid_open(hybrid **out, job *j, arm *a, arm *b) {
  hybrid *h;
  *out = NULL;
  TRY(memory_take((void **)&h, 1, sizeof *h, "a hybrid of two arms"));
  *h = (hybrid){.j = j, .a = a, .b = b, .s = &j->m->weights.shape};
  arm_watch_layers(a, true);
  arm_watch_layers(b, true);
  status result = job_agree(j, open_local(h), "opening a hybrid of two arms");
  if (result)
    hybrid_close(h);
  else
    *out = h;
  return result;
}

void hybrid_close(hybrid *h) {
  if (!h) return;
  for (int p = 0; p < PROBE_COUNT; p++) {
    free(h->rows[p]);
    free(h->of_a[p]);
  }
  free(h->x);
  free(h->route.expert);
  free(h->route.weight);
  free(h->logits);
  free(h->broadcast);
  free(h);
}

// ---- what is handed over is on every rank ----

// From the reporting rank.
static status broadcast(hybrid *h, void *data, size_t bytes) {
  int size = comm_size(h->j->c), from = h->j->roles.reporting;
  if (size == 1) return 0;
  for (int r = 0; r < size * size; r++)
    h->broadcast[r] = (comm_part){0, r / size == from && r % size != from ? bytes : 0};
  return comm_exchange(h->j->c, data, h->broadcast, "what two arms hand over");
}

static status take_probe(hybrid *h, arm *from, probe_point point) {
  size_t bytes = (size_t)numbers_of(h, point, h->batch.n) * sizeof(double);
  const double *numbers;
  TRY(arm_probe_take(from, point, &numbers));
  if (numbers) memcpy(h->rows[point], numbers, bytes);
  return broadcast(h, h->rows[point], bytes);
}

static status take_stream(hybrid *h, arm *from) {
  status mine = job_is_reporting(h->j) ? arm_stream_read(from, h->x) : 0;
  TRY(job_agree(h->j, mine, "the residual stream"));
  return broadcast(h, h->x, (size_t)(h->batch.n * h->s->hidden) * sizeof *h->x);
}

static status take_routing(hybrid *h, arm *from) {
  size_t k = (size_t)h->s->top_k, slots = (size_t)h->batch.n * k;
  for (int64_t t = 0; t < h->batch.n && job_is_reporting(h->j); t++) {
    memcpy(h->route.expert + (size_t)t * k, arm_experts(from, t), k * sizeof *h->route.expert);
    memcpy(h->route.weight + (size_t)t * k, arm_weights(from, t), k * sizeof *h->route.weight);
  }
  TRY(broadcast(h, h->route.expert, slots * sizeof *h->route.expert));
  return broadcast(h, h->route.weight, slots * sizeof *h->route.weight);
}

// ---- one arm's layer, with what it is given and what is taken from it ----

typedef struct {
  unsigned points; // bits 1 << probe_point of HANDED
  bool routing;
  bool stream; // after the layer; what is given before it is always h->x
} handed;

static status run_layer(hybrid *h, arm *on, int64_t layer, handed given, handed taken) {
  status mine = arm_stream_write(on, h->x);
  for (int p = 0; p < PROBE_COUNT && !mine; p++)
    if (given.points >> p & 1) mine = arm_impose_probe(on, (probe_point)p, h->rows[p]);
  if (given.routing && !mine) mine = arm_impose_routing(on, ROUTING_EXPERTS | ROUTING_WEIGHTS, &h->route);
  if (!mine) mine = arm_probes_want(on, taken.points);
  TRY(job_agree(h->j, mine, "what two arms hand over"));
  TRY(arm_layer(on, layer));
  for (int p = 0; p < PROBE_COUNT; p++)
    if (taken.points >> p & 1) TRY(take_probe(h, on, (probe_point)p));
  if (taken.routing) TRY(take_routing(h, on));
  return taken.stream ? take_stream(h, on) : 0;
}

// ---- a layer whose steps are shared between the arms ----

// What a run of steps that starts at `first` is given.
static handed inputs_of(model_step first) {
  switch (first) {
  case STEP_ATTENTION:
    return (handed){.points = HEADS};
  case STEP_O:
    return (handed){.points = ATTENDED};
  case STEP_ROUTER:
    return (handed){.points = STREAM};
  case STEP_GATE_UP:
    return (handed){.points = STREAM, .routing = true};
  case STEP_SWIGLU:
    return (handed){.points = STREAM | GATE_AND_UP, .routing = true};
  case STEP_DOWN:
    return (handed){.points = STREAM | HIDDEN, .routing = true};
  case STEP_EMBED:
  case STEP_QKV:
  case STEP_HEAD:
    break;
  }
  return (handed){.points = 0};
}

// The points that the last of a run of steps leaves for the next.
static unsigned points_after(model_step last) {
  switch (last) {
  case STEP_QKV:
    return HEADS;
  case STEP_ATTENTION:
    return ATTENDED;
  case STEP_GATE_UP:
    return GATE_AND_UP;
  case STEP_SWIGLU:
    return HIDDEN;
  case STEP_O:      // the stream, which outputs_of has
  case STEP_ROUTER: // the routing
  case STEP_DOWN:   // the stream after the layer
  case STEP_EMBED:
  case STEP_HEAD:
    break;
  }
  return 0;
}

// What those from `first` to `last` leave for the steps after them.
static handed outputs_of(model_step first, model_step last) {
  handed out = {.points = points_after(last), .stream = last == STEP_DOWN};
  out.routing = first <= STEP_ROUTER && last >= STEP_ROUTER;
  if (first <= STEP_O && last >= STEP_O && last != STEP_DOWN) out.points |= STREAM;
  return out;
}

static bool owns(unsigned steps_of_b, model_step step, unsigned owner) {
  return (steps_of_b >> step & 1) == owner;
}

// What an arm is given that computes the steps from `first` on. Where it has attended to another arm's keys
// and values before, in the same layer, it gets these again: its cache must keep them for the batches to
// come.
static handed given_to(unsigned owner, model_step first, unsigned steps_of_b) {
  handed given = inputs_of(first);
  if (first > STEP_ATTENTION && owns(steps_of_b, STEP_ATTENTION, owner) && !owns(steps_of_b, STEP_QKV, owner))
    given.points |= HEADS;
  return given;
}

// Runs of neighbouring steps that one arm computes, one after the other; the arm computes the other steps of
// the layer too, and nothing reads them.
static status share_steps(hybrid *h, int64_t layer, unsigned steps_of_b) {
  for (int first = STEP_QKV, last; first <= STEP_DOWN; first = last + 1) {
    unsigned owner = steps_of_b >> first & 1;
    for (last = first; last < STEP_DOWN && owns(steps_of_b, (model_step)(last + 1), owner);) last++;
    TRY(run_layer(h, owner ? h->b : h->a, layer, given_to(owner, (model_step)first, steps_of_b),
                  outputs_of((model_step)first, (model_step)last)));
  }
  return 0;
}

// ---- a layer in which b computes some experts ----

static bool is_of_part(const hybrid *h, int64_t slot) {
  int32_t e = h->route.expert[slot].id;
  return e >= h->part->first_expert && e < h->part->end_expert;
}

static bool part_is_hit(const hybrid *h) {
  for (int64_t i = 0; i < h->batch.n * h->s->top_k; i++)
    if (is_of_part(h, i)) return true;
  return false;
}

static void keep_slots(hybrid *h, unsigned points) {
  for (int p = 0; p < PROBE_COUNT; p++)
    if (points >> p & 1)
      memcpy(h->of_a[p], h->rows[p], (size_t)numbers_of(h, (probe_point)p, h->batch.n) * sizeof *h->rows[p]);
}

// rows = those of b where the slot's expert is of the part, else those of a.
static void mix_slots(hybrid *h, unsigned points) {
  for (int p = 0; p < PROBE_COUNT; p++) {
    int64_t width = probe_width((probe_point)p, h->s);
    for (int64_t i = 0; i < h->batch.n * h->s->top_k && points >> p & 1; i++)
      if (!is_of_part(h, i))
        memcpy(h->rows[p] + i * width, h->of_a[p] + i * width, (size_t)width * sizeof *h->rows[p]);
  }
}

// Steps first .. last of the experts: a computes those of all slots, and where they are of the part b does it
// again on the same inputs.
static status share_slots(hybrid *h, int64_t layer, model_step first, model_step last, bool of_b) {
  bool from_start = first == STEP_GATE_UP; // then a's run is that of the whole layer up to here
  unsigned left = last == STEP_DOWN ? OUTPUTS : points_after(last);
  handed taken = outputs_of(from_start ? STEP_QKV : first, last);
  if (of_b) taken.stream = false;
  if (of_b) taken.points |= left;
  if (from_start) taken.points |= STREAM;
  TRY(run_layer(h, h->a, layer, inputs_of(from_start ? STEP_QKV : first), taken));
  if (!of_b || !part_is_hit(h)) return 0;
  keep_slots(h, left);
  TRY(run_layer(h, h->b, layer, inputs_of(first), (handed){.points = left}));
  mix_slots(h, left);
  return 0;
}

static status share_experts(hybrid *h, int64_t layer, unsigned steps_of_b) {
  bool of_b = false;
  for (int first = STEP_GATE_UP, last; first <= STEP_DOWN; first = last + 1) {
    of_b = steps_of_b >> first & 1;
    for (last = first; last < STEP_DOWN && owns(steps_of_b, (model_step)(last + 1), of_b);) last++;
    TRY(share_slots(h, layer, (model_step)first, (model_step)last, of_b));
  }
  if (!of_b) return 0;
  return run_layer(h, h->a, layer, (handed){.points = OUTPUTS, .routing = true}, (handed){.stream = true});
}

static bool takes_all_experts(const hybrid *h) {
  return h->part->first_expert == 0 && h->part->end_expert == h->s->n_experts;
}

static status pass_layer(hybrid *h, int64_t layer) {
  const model_part *p = h->part;
  bool of_part = layer >= p->first_layer && layer < p->end_layer;
  unsigned steps = of_part ? p->steps & STEPS_OF_LAYER : 0;
  return steps && !takes_all_experts(h) ? share_experts(h, layer, steps & STEPS_OF_EXPERTS)
                                        : share_steps(h, layer, steps);
}

// ---- a pass ----

static status pass_head(hybrid *h, const hybrid_show *show, int64_t position) {
  arm *on = h->part->steps >> STEP_HEAD & 1 ? h->b : h->a;
  TRY(job_agree(h->j, arm_stream_write(on, h->x), "the residual stream"));
  for (int64_t first = 0; first < h->batch.n; first += LOGIT_ROWS) {
    int64_t count = h->batch.n - first < LOGIT_ROWS ? h->batch.n - first : LOGIT_ROWS;
    TRY(job_agree(h->j, arm_head(on, first, count), "the head"));
    for (int64_t i = 0; i < count && job_is_reporting(h->j); i++) {
      arm_logits(on, i, h->logits);
      show->logits(show->context, position + first + i, h->logits);
    }
  }
  return 0;
}

static status pass_batch(hybrid *h, const token_batch *batch, const hybrid_show *show, int64_t position) {
  h->batch = *batch;
  TRY(arm_embed(h->a, batch));
  TRY(arm_embed(h->b, batch));
  TRY(take_stream(h, h->part->steps >> STEP_EMBED & 1 ? h->b : h->a));
  for (int64_t layer = 0; layer < h->s->n_layers; layer++) {
    TRY(pass_layer(h, layer));
    for (int64_t t = 0; t < batch->n && job_is_reporting(h->j); t++)
      show->experts(show->context, layer, position + t, h->route.expert + t * h->s->top_k);
  }
  return pass_head(h, show, position);
}

status hybrid_pass(hybrid *h, const model_part *part, const hybrid_show *show) {
  const job *j = h->j;
  int64_t position = 0;
  batcher batches;
  token_batch batch;
  h->part = part;
  TRY(arm_probes_want(h->a, 0));
  TRY(arm_probes_want(h->b, 0));
  status result = batcher_open(&batches, j->sequences, j->n_sequences, j->chunk);
  while (!result && batcher_next(&batches, &batch)) {
    result = pass_batch(h, &batch, show, position);
    position += batch.n;
  }
  batcher_close(&batches);
  return result;
}
