#include "src/commands/synth_options.h"
#include "src/model/qwen3moe.h"
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

// From the published configurations (config.json) of the models of these names; tiny is made for tests.
static const struct {
  const char *name;
  model_shape shape;
  int64_t context;
} shapes[] = {
    {"tiny", {4, 256, 4, 2, 64, 16, 4, 256, 1024, 1e-6, 1e6}, 4096},
    {"qwen3-30b-a3b", {48, 2048, 32, 4, 128, 128, 8, 768, 151936, 1e-6, 1e6}, 40960},
    {"qwen3-235b-a22b", {94, 4096, 64, 4, 128, 128, 8, 1536, 151936, 1e-6, 1e6}, 40960},
    {"qwen3-coder-480b-a35b", {62, 6144, 96, 8, 128, 160, 8, 2560, 151936, 1e-6, 1e7}, 262144},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

typedef struct {
  const char *name;
  size_t offset; // of an int64_t in synth_options
  const char *help;
  const char *setting; // the option has the bounds of this setting of qwen3moe; NULL: its own
  int64_t low, high;
} option;

#define AT(field)    offsetof(synth_options, field)
#define SHAPE(field) AT(model.settings.shape.field)
#define AS(key)      .setting = (key)
#define RANGE(a, b)  .low = (a), .high = (b)

static const option options[] = {
    {"--layers", SHAPE(n_layers), "blocks", AS("block_count")},
    {"--hidden", SHAPE(hidden), "width of the residual stream", AS("embedding_length")},
    {"--heads", SHAPE(n_heads), "query heads", AS("attention.head_count")},
    {"--kv-heads", SHAPE(n_kv_heads), "key/value heads; they divide the query heads",
     AS("attention.head_count_kv")},
    {"--head-dim", SHAPE(head_dim), "width of a head; even", RANGE(2, 4096)},
    {"--experts", SHAPE(n_experts), "experts in each layer", AS("expert_count")},
    {"--top-k", SHAPE(top_k), "experts to a token", AS("expert_used_count")},
    {"--expert-width", SHAPE(expert_width), "inner width of an expert", AS("expert_feed_forward_length")},
    {"--vocab", SHAPE(vocabulary), "token ids", RANGE(1, INT32_MAX)},
    {"--context", AT(model.settings.context_length), "positions", AS("context_length")},
    {"--rope-base", AT(rope_base), "RoPE base", RANGE(2, 1000000000000)},
    {"--seed", AT(model.seed), "default 1", RANGE(0, INT64_MAX)},
    {"--outliers", AT(model.outliers), "outlier channels of the residual stream; default 0", RANGE(0, 1024)},
    {"--threads", AT(threads), "of a rank; 0, the default: its cores. No byte depends on it", RANGE(0, 4096)},
};
enum { N_OPTIONS = sizeof options / sizeof *options };

static status take_shape(synth_options *o, const char *name) {
  char known[128] = "";
  for (int i = 0; i < N_SHAPES; i++) {
    if (!strcmp(shapes[i].name, name)) {
      o->shape_name = shapes[i].name;
      o->model.settings = (model_settings){.shape = shapes[i].shape, .context_length = shapes[i].context};
      o->rope_base = (int64_t)shapes[i].shape.rope_base;
      return 0;
    }
    snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", shapes[i].name);
  }
  return REFUSE("--shape: expected one of %s, found \"%.64s\"", known, name);
}

static status take_mix(synth_options *o, const char *name) {
  char known[128] = "";
  const synth_mix *mix = synth_mix_find(name);
  if (mix) {
    o->model.mix = mix;
    return 0;
  }
  for (int i = 0; (mix = synth_mix_at(i)); i++)
    snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", mix->name);
  return REFUSE("--types: expected one of %s, found \"%.64s\"", known, name);
}

static void find_bounds(int64_t *low, int64_t *high, const option *k) {
  *low = k->low;
  *high = k->high;
  for (size_t i = 0; k->setting && i < qwen3moe.n_settings; i++)
    if (!strcmp(qwen3moe.settings[i].name, k->setting)) {
      *low = (int64_t)qwen3moe.settings[i].low;
      *high = (int64_t)qwen3moe.settings[i].high;
    }
}

static status take_integer(synth_options *o, const option *k, const char *text) {
  char *end;
  int64_t low, high;
  find_bounds(&low, &high, k);
  errno = 0;
  long long value = strtoll(text, &end, 10);
  if (errno || end == text || *end || value < low || value > high)
    return REFUSE("%s: expected an integer from %lld to %lld, found \"%.64s\"", k->name, (long long)low,
                  (long long)high, text);
  *(int64_t *)((char *)o + k->offset) = value;
  return 0;
}

static const option *find_option(const char *arg) {
  for (int i = 0; i < N_OPTIONS; i++)
    if (!strcmp(options[i].name, arg)) return &options[i];
  return NULL;
}

static status take_option(synth_options *o, const char *arg, const char *value) {
  const option *k = find_option(arg);
  if (k) return take_integer(o, k, value);
  if (!strcmp(arg, "--types") || !strcmp(arg, "--mix")) return take_mix(o, value);
  if (!strcmp(arg, "--out")) o->out = value;
  return 0; // --shape: taken before all others
}

static bool takes_value(const char *arg) {
  return find_option(arg) || !strcmp(arg, "--types") || !strcmp(arg, "--mix") || !strcmp(arg, "--out") ||
         !strcmp(arg, "--shape");
}

static status check_whole(const synth_options *o) {
  const model_shape *s = &o->model.settings.shape;
  if (!o->out || !*o->out) return REFUSE("synth: expected --out FILE");
  if (s->n_heads % s->n_kv_heads)
    return REFUSE("synth: %lld query heads cannot share %lld key/value heads", (long long)s->n_heads,
                  (long long)s->n_kv_heads);
  if (s->head_dim % 2)
    return REFUSE("--head-dim: expected an even number, found %lld", (long long)s->head_dim);
  if (s->top_k > s->n_experts)
    return REFUSE("synth: --top-k %lld of --experts %lld", (long long)s->top_k, (long long)s->n_experts);
  if (o->model.outliers > s->hidden / 4)
    return REFUSE("--outliers: expected at most a quarter of the %lld hidden channels, found %lld",
                  (long long)s->hidden, (long long)o->model.outliers);
  return 0;
}

// All that the bytes depend on, as options that reproduce them.
static void describe(synth_model *m, const synth_options *o) {
  size_t used = (size_t)snprintf(m->made_with, sizeof m->made_with, "--shape %s --types %s%s", o->shape_name,
                                 m->mix->name, m->tied ? " --tied" : "");
  for (int i = 0; i < N_OPTIONS && used < sizeof m->made_with; i++) {
    if (options[i].offset == AT(threads)) continue;
    int64_t value = *(const int64_t *)((const char *)o + options[i].offset);
    used += (size_t)snprintf(m->made_with + used, sizeof m->made_with - used, " %s %lld", options[i].name,
                             (long long)value);
  }
  snprintf(m->name, sizeof m->name, "synthetic %s, seed %lld", o->shape_name, (long long)m->seed);
}

// The settings that follow from others.
static void complete_settings(model_settings *s, int64_t rope_base) {
  s->shape.rope_base = (double)rope_base;
  s->value_length = s->rotated = s->shape.head_dim;
  s->dense_width = 3 * s->shape.hidden;
  s->vocab_size = s->shape.vocabulary;
}

static status take_all(synth_options *o, int n_args, char **args) {
  for (int i = 0; i < n_args; i++) {
    if (!strcmp(args[i], "--tied")) {
      o->model.tied = true;
      continue;
    }
    if (!takes_value(args[i])) return REFUSE("synth: unknown argument \"%.64s\"; see synth --help", args[i]);
    if (++i == n_args) return REFUSE("%s: expected a value after it", args[i - 1]);
    if (!strcmp(args[i - 1], "--shape")) TRY(take_shape(o, args[i]));
  }
  if (!o->shape_name) return REFUSE("synth: expected --shape NAME");
  for (int i = 0; i < n_args; i++) {
    if (!strcmp(args[i], "--tied")) continue;
    TRY(take_option(o, args[i], args[i + 1]));
    i++;
  }
  return check_whole(o);
}

status synth_options_parse(synth_options *out, int n_args, char **args) {
  *out = (synth_options){.model = {.mix = synth_mix_at(0), .seed = 1}};
  TRY(take_all(out, n_args, args));
  complete_settings(&out->model.settings, out->rope_base);
  describe(&out->model, out);
  return 0;
}

enum { MIXES_A_LINE = 10 };

void synth_options_print(FILE *out) {
  fprintf(out, "  --shape NAME      the shape to start from:");
  for (int i = 0; i < N_SHAPES; i++) fprintf(out, " %s", shapes[i].name);
  fprintf(out, "\n  --out FILE        the file to write; FILE.partial until it is whole\n  --mix MIX, "
               "--types MIX:");
  for (int i = 0; synth_mix_at(i); i++)
    fprintf(out, "%s %s", i % MIXES_A_LINE ? "" : "\n                   ", synth_mix_at(i)->name);
  fprintf(out,
          ";\n                    default %s\n  --tied            the embedding is the output matrix too\n",
          synth_mix_at(0)->name);
  for (int i = 0; i < N_OPTIONS; i++) fprintf(out, "  %-14s N  %s\n", options[i].name, options[i].help);
}
