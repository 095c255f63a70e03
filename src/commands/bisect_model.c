#include "src/commands/bisect_model.h"
#include "src/report/bisect_report.h"
#include "src/report/job_report.h"
#include <stdlib.h>
#include <string.h>

typedef struct { // all that is set of one of the two
  arm_choice choice;
  model *m;
  kv_type kv;
  char *row; // of the configuration
} side;

typedef struct {
  job *j;
  side a, b;
  model *other; // bisect.model_b; NULL: none
  arm *arm_a, *arm_b;
  hybrid *h;
  model_bisection found;
  model_reference *kept;
} bisection;

// ---- the two sides ----

static status refuse_shape(const model *a, const model *b, const char *what, int64_t found,
                           int64_t expected) {
  return found == expected ? 0
                           : REFUSE("%s: expected %s of %lld as in %s, found %lld", gguf_path(b->file), what,
                                    (long long)expected, gguf_path(a->file), (long long)found);
}

static status check_shape(const model *a, const model *b) {
  const model_shape *s = &a->weights.shape, *t = &b->weights.shape;
  TRY(refuse_shape(a, b, "a number of layers", t->n_layers, s->n_layers));
  TRY(refuse_shape(a, b, "a width", t->hidden, s->hidden));
  TRY(refuse_shape(a, b, "a number of heads", t->n_heads, s->n_heads));
  TRY(refuse_shape(a, b, "a number of key/value heads", t->n_kv_heads, s->n_kv_heads));
  TRY(refuse_shape(a, b, "a width of heads", t->head_dim, s->head_dim));
  TRY(refuse_shape(a, b, "a number of experts", t->n_experts, s->n_experts));
  TRY(refuse_shape(a, b, "a top-k", t->top_k, s->top_k));
  TRY(refuse_shape(a, b, "a width of experts", t->expert_width, s->expert_width));
  return refuse_shape(a, b, "a vocabulary", t->vocabulary, s->vocabulary);
}

static status open_other(bisection *x) {
  uint64_t shared, owned;
  const char *path = x->j->cfg->bisect.model_b;
  if (!path[0]) return 0;
  TRY(model_open(&x->other, path));
  TRY(check_shape(x->j->m, x->other));
  expert_map held = placement_map(&x->j->experts);
  return model_check_weights(x->other, &held, comm_rank(x->j->c), topology_threads(x->j->place), &shared,
                             &owned, NULL);
}

static status agree_other(bisection *x) {
  uint64_t hash = x->other ? gguf_header_hash(x->other->file) : 0;
  return comm_equal(x->j->c, &hash, sizeof hash, "the header of bisect.model_b");
}

static kv_type kv_of(kv_choice choice, kv_type same) {
  switch (choice) {
  case KV_CHOICE_F16:
    return KV_F16;
  case KV_CHOICE_F32:
    return KV_F32;
  case KV_CHOICE_SAME:
    return same;
  }
  __builtin_unreachable();
}

static void choose_sides(bisection *x) {
  const config *c = x->j->cfg;
  x->a = (side){c->bisect.a, x->j->m, c->run.kv, c->run.rows};
  x->b = (side){c->bisect.b, x->other ? x->other : x->j->m, kv_of(c->bisect.kv_b, c->run.kv),
                c->bisect.rows_b[0] ? c->bisect.rows_b : c->run.rows};
}

static status check_cache(const bisection *x) {
  if (x->j->cfg->bisect.kv_b == KV_CHOICE_SAME || path_reads_kv(arm_path(x->arm_b))) return 0;
  return REFUSE(
      "bisect.kv_b = \"%s\": expected an arm whose cache is of the type that run.kv says (f32), found "
      "bisect.b = \"%s\"",
      x->b.kv == KV_F16 ? "f16" : "f32", x->b.choice.name);
}

// The job and the arm keep references, so that `room` and `cfg` live as long as the arm.
static status open_side(job *room, config *cfg, const job *j, const side *s, arm **out) {
  *room = *j;
  *cfg = *j->cfg;
  cfg->run.kv = s->kv;
  cfg->run.rows = s->row;
  cfg->run.chunk = j->chunk; // the two sides take the same batches
  room->cfg = cfg;
  room->m = s->m;
  return job_open_arm(room, &s->choice, out);
}

// ---- settings ----

typedef enum { SETTING_MODEL, SETTING_ARM, SETTING_CACHE, SETTING_ROW } setting;
enum { SETTINGS = SETTING_ROW + 1 };

static const char *setting_name(setting s) {
  static const char *const names[SETTINGS] = {[SETTING_MODEL] = "model file",
                                              [SETTING_ARM] = "path",
                                              [SETTING_CACHE] = "cache type",
                                              [SETTING_ROW] = "ISA row"};
  return names[s];
}

// a with one setting as in b; false: in this they do not differ.
static bool with_setting(side *out, const side *a, const side *b, setting s) {
  *out = *a;
  switch (s) {
  case SETTING_MODEL:
    out->m = b->m;
    return a->m != b->m;
  case SETTING_ARM:
    out->choice = b->choice;
    return !arm_choice_equal(&a->choice, &b->choice);
  case SETTING_CACHE:
    out->kv = b->kv;
    return a->kv != b->kv;
  case SETTING_ROW:
    out->row = b->row;
    return strcmp(a->row, b->row);
  }
  __builtin_unreachable();
}

static status try_setting(bisection *x, setting s, const side *like_a) {
  job room;
  config cfg;
  arm *a;
  TRY(open_side(&room, &cfg, x->j, like_a, &a));
  status result = model_bisection_setting(&x->found, x->kept, setting_name(s), &room, a);
  arm_close(a);
  return result;
}

static status try_settings(bisection *x) {
  side like_a;
  int n = 0, last = 0;
  for (int s = 0; s < SETTINGS; s++)
    if (with_setting(&like_a, &x->a, &x->b, (setting)s)) {
      n++;
      last = s;
    }
  if (n == 1) model_bisection_only_setting(&x->found, setting_name((setting)last));
  for (int s = 0; s < SETTINGS && n > 1; s++)
    if (with_setting(&like_a, &x->a, &x->b, (setting)s)) TRY(try_setting(x, (setting)s, &like_a));
  return 0;
}

// ---- the whole ----

static bisect_side report_of(const side *s, const arm *a, uint64_t digest) {
  return (bisect_side){
      .arm = s->choice.name,
      .digest = digest,
      .model = gguf_path(s->m->file),
      .kv = report_cache_name(arm_path(a), s->kv == KV_F16 ? "f16" : "f32"),
      .row = arm_row(a),
  };
}

static status report_found(const bisection *x) {
  const char *dir = x->j->cfg->output.dir;
  bisect_model m = {
      .warnings = &x->j->warnings,
      .a = report_of(&x->a, x->arm_a, x->found.digest_a),
      .b = report_of(&x->b, x->arm_b, x->found.digest_b),
      .n_tokens = x->j->n_tokens,
      .found = &x->found,
  };
  if (dir[0]) TRY(bisect_write_model(dir, &m));
  bisect_print_model(stdout, &m);
  return fflush(stdout) ? FAIL("standard output: the report could not be written: %m") : 0;
}

static status bisect_sides(bisection *x) {
  job *j = x->j;
  TRY(hybrid_open(&x->h, j, x->arm_a, x->arm_b));
  TRY(model_bisection_start(&x->found, &x->kept, x->h, j, x->arm_a, x->arm_b, j->cfg->bisect.budget));
  if (!x->found.a_b.same_bits) TRY(try_settings(x));
  TRY(model_bisection_search(&x->found, x->kept, x->h));
  return job_agree(j, job_is_reporting(j) ? report_found(x) : 0, "the report of a bisection");
}

status bisect_model_run(job *j) {
  bisection x = {.j = j};
  job room_a, room_b;
  config cfg_a, cfg_b;
  status result;
  TRY(job_read_input(j));
  TRY_DONE(result, job_agree(j, open_other(&x), "opening bisect.model_b"));
  TRY_DONE(result, agree_other(&x));
  choose_sides(&x);
  TRY_DONE(result, open_side(&room_a, &cfg_a, j, &x.a, &x.arm_a));
  TRY_DONE(result, open_side(&room_b, &cfg_b, j, &x.b, &x.arm_b));
  TRY_DONE(result, job_agree(j, check_cache(&x), "bisect.kv_b"));
  result = bisect_sides(&x);
done:
  hybrid_close(x.h);
  model_bisection_close(&x.found, x.kept);
  arm_close(x.arm_b);
  arm_close(x.arm_a);
  model_close(x.other);
  return result;
}
