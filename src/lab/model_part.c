#include "src/lab/model_part.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static bool has_all_experts(const model_part *p, const model_shape *s) {
  return p->first_expert == 0 && p->end_expert == s->n_experts;
}

static void name_steps(char *out, size_t size, unsigned steps) {
  int n = 0;
  out[0] = 0;
  for (int s = 0; s < MODEL_STEPS; s++)
    if (steps >> s & 1) {
      size_t used = strlen(out);
      snprintf(out + used, size - used, "%s%s", n++ ? ", " : "", model_step_name((model_step)s));
    }
}

static void name_layers(char *out, size_t size, const model_part *p, const model_shape *s) {
  bool all = p->first_layer == 0 && p->end_layer == s->n_layers;
  if (p->end_layer - p->first_layer == 1)
    snprintf(out, size, "layer %" PRId64, p->first_layer);
  else if (all)
    snprintf(out, size, "all layers");
  else
    snprintf(out, size, "layers %" PRId64 " to %" PRId64, p->first_layer, p->end_layer - 1);
}

static void name_experts(char *out, size_t size, const model_part *p) {
  if (p->end_expert - p->first_expert == 1)
    snprintf(out, size, "expert %" PRId64, p->first_expert);
  else
    snprintf(out, size, "experts %" PRId64 " to %" PRId64, p->first_expert, p->end_expert - 1);
}

void model_part_name(char out[PART_NAME_BYTES], const model_part *p, const model_shape *s) {
  char steps[80], layers[64], experts[64];
  name_steps(steps, sizeof steps, p->steps);
  name_layers(layers, sizeof layers, p, s);
  name_experts(experts, sizeof experts, p);
  if (p->steps == STEPS_ALL && has_all_experts(p, s) && p->end_layer - p->first_layer == s->n_layers)
    snprintf(out, PART_NAME_BYTES, "the whole model");
  else if (!(p->steps & STEPS_OF_LAYER))
    snprintf(out, PART_NAME_BYTES, "%s", steps);
  else if (!has_all_experts(p, s) && p->steps == STEPS_OF_EXPERTS)
    snprintf(out, PART_NAME_BYTES, "%s of %s", experts, layers);
  else if (!has_all_experts(p, s))
    snprintf(out, PART_NAME_BYTES, "%s of %s of %s", steps, experts, layers);
  else if (p->steps == STEPS_OF_EXPERTS)
    snprintf(out, PART_NAME_BYTES, "experts of %s", layers);
  else if (p->steps == STEPS_OF_LAYER)
    snprintf(out, PART_NAME_BYTES, "%s", layers);
  else
    snprintf(out, PART_NAME_BYTES, "%s of %s", steps, layers);
}

bool model_part_equal(const model_part *a, const model_part *b) {
  return a->steps == b->steps && a->first_layer == b->first_layer && a->end_layer == b->end_layer &&
         a->first_expert == b->first_expert && a->end_expert == b->end_expert;
}

static int halve(model_part *out, const model_part *p, bool by_layer) {
  int64_t first = by_layer ? p->first_layer : p->first_expert, end = by_layer ? p->end_layer : p->end_expert,
          middle = first + (end - first) / 2;
  for (int i = 0; i < 2; i++) {
    out[i] = *p;
    out[i].steps &= STEPS_OF_LAYER; // embedding and head are parts of their own
    *(by_layer ? &out[i].first_layer : &out[i].first_expert) = i ? middle : first;
    *(by_layer ? &out[i].end_layer : &out[i].end_expert) = i ? end : middle;
  }
  return 2;
}

// Each of its steps; of a whole layer, its experts as one part too.
static int split_steps(model_part *out, const model_part *p) {
  int n = 0;
  for (int s = 0; s < MODEL_STEPS; s++)
    if (p->steps >> s & 1) {
      out[n] = *p;
      out[n++].steps = 1u << s;
    }
  if (p->steps == STEPS_OF_LAYER) {
    out[n] = *p;
    out[n++].steps = STEPS_OF_EXPERTS;
  }
  return n;
}

int model_part_split(model_part *out, const model_part *p, const model_shape *s) {
  bool of_experts = !(p->steps & ~(unsigned)STEPS_OF_EXPERTS);
  if (p->steps == STEPS_ALL) return split_steps(out, p);
  if (!(p->steps & STEPS_OF_LAYER)) return 0;
  bool by_layer = p->end_layer - p->first_layer > 1;
  bool by_expert = of_experts && p->end_expert - p->first_expert > 1;
  if (by_layer && by_expert && p->steps == STEPS_OF_EXPERTS)
    return halve(out, p, true) +
           halve(out + 2, p, false); // both ways: an expert of every layer is a part too
  if (by_layer) return halve(out, p, true);
  if (by_expert) return halve(out, p, false);
  return p->steps & (p->steps - 1) && (of_experts || has_all_experts(p, s)) ? split_steps(out, p) : 0;
}

double model_part_size(const model_part *p, const model_shape *s) {
  double share = (double)(p->end_expert - p->first_expert) / (double)s->n_experts, of_layer = 0, alone = 0;
  for (int i = 0; i < MODEL_STEPS; i++) {
    if (!(p->steps >> i & 1)) continue;
    if (STEPS_OF_EXPERTS >> i & 1)
      of_layer += share;
    else if (STEPS_OF_LAYER >> i & 1)
      of_layer += 1;
    else
      alone += 1;
  }
  return alone + of_layer * (double)(p->end_layer - p->first_layer);
}
