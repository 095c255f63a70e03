#include "src/synth/synth_options.h"
#include "kernels/backend.h"
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

// Of the published configurations (config.json) of the models that the names say; tiny is our own.
static const struct {
  const char *name;
  synth_shape shape;
} shapes[] = {
    {"tiny", {4, 256, 4, 2, 64, 16, 4, 256, 1024, 4096, 1000000}},
    {"qwen3-30b-a3b", {48, 2048, 32, 4, 128, 128, 8, 768, 151936, 40960, 1000000}},
    {"qwen3-235b-a22b", {94, 4096, 64, 4, 128, 128, 8, 1536, 151936, 40960, 1000000}},
    {"qwen3-coder-480b-a35b", {62, 6144, 96, 8, 128, 160, 8, 2560, 151936, 262144, 10000000}},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static const char *const mixes[] = {"q4_k_m", "q5_k_m", "q6_k",
                                    "q8_0",   "f16",    "f32"}; // in the order of synth_mix
enum { N_MIXES = sizeof mixes / sizeof *mixes };

typedef struct {
  const char *name;
  size_t offset; // of an int64_t in synth_options
  int64_t low, high;
  const char *help;
} option;

#define AT(field) offsetof(synth_options, field)

// Bounds are those of model.c.
static const option options[] = {
    {"--layers", AT(shape.layers), 1, 4096, "blocks"},
    {"--hidden", AT(shape.hidden), 2, 1 << 20, "width of the residual stream"},
    {"--heads", AT(shape.heads), 1, 4096, "query heads"},
    {"--kv-heads", AT(shape.kv_heads), 1, 4096, "key/value heads; they divide the query heads"},
    {"--head-dim", AT(shape.head_dim), 2, 4096, "width of a head; even"},
    {"--experts", AT(shape.experts), 1, 65536, "experts in each layer"},
    {"--top-k", AT(shape.top_k), 1, MAX_TOP_K, "experts to a token"},
    {"--expert-width", AT(shape.expert_width), 1, 1 << 20, "inner width of an expert"},
    {"--vocab", AT(shape.vocab), 1, INT32_MAX, "token ids"},
    {"--context", AT(shape.context), 1, INT32_MAX, "positions"},
    {"--rope-base", AT(shape.rope_base), 2, 1000000000000, "base of the rotary positions"},
    {"--seed", AT(seed), 0, INT64_MAX, "default 1"},
    {"--outliers", AT(outliers), 0, 1024, "hidden channels that stand far above their block; default 0"},
    {"--threads", AT(threads), 0, 4096, "of a rank; 0, the default: its cores. No byte depends on it"},
};
enum { N_OPTIONS = sizeof options / sizeof *options };

static status take_shape(synth_options *o, const char *name) {
  char known[128] = "";
  for (int i = 0; i < N_SHAPES; i++) {
    if (!strcmp(shapes[i].name, name)) {
      o->shape_name = shapes[i].name;
      o->shape = shapes[i].shape;
      return 0;
    }
    snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", shapes[i].name);
  }
  return FAIL("--shape: expected one of %s, found \"%.64s\"", known, name);
}

static status take_mix(synth_options *o, const char *name) {
  char known[64] = "";
  for (int i = 0; i < N_MIXES; i++) {
    if (!strcmp(mixes[i], name)) {
      o->types_name = mixes[i];
      o->mix = (synth_mix)i;
      return 0;
    }
    snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", mixes[i]);
  }
  return FAIL("--types: expected one of %s, found \"%.64s\"", known, name);
}

static status take_integer(synth_options *o, const option *k, const char *text) {
  char *end;
  errno = 0;
  long long value = strtoll(text, &end, 10);
  if (errno || end == text || *end || value < k->low || value > k->high)
    return FAIL("%s: expected an integer from %lld to %lld, found \"%.64s\"", k->name, (long long)k->low,
                (long long)k->high, text);
  *(int64_t *)((char *)o + k->offset) = value;
  return 0;
}

static const option *find_option(const char *word) {
  for (int i = 0; i < N_OPTIONS; i++)
    if (!strcmp(options[i].name, word)) return &options[i];
  return NULL;
}

static status take_option(synth_options *o, const char *word, const char *value) {
  const option *k = find_option(word);
  if (k) return take_integer(o, k, value);
  if (!strcmp(word, "--types")) return take_mix(o, value);
  if (!strcmp(word, "--out")) o->out = value;
  return 0; // --shape: taken before all others
}

static bool takes_value(const char *word) {
  return find_option(word) || !strcmp(word, "--types") || !strcmp(word, "--out") || !strcmp(word, "--shape");
}

static status check_whole(const synth_options *o) {
  const synth_shape *s = &o->shape;
  if (!o->out || !*o->out) return FAIL("synth: expected --out FILE");
  if (s->heads % s->kv_heads)
    return FAIL("synth: %lld query heads cannot share %lld key/value heads", (long long)s->heads,
                (long long)s->kv_heads);
  if (s->head_dim % 2) return FAIL("--head-dim: expected an even number, found %lld", (long long)s->head_dim);
  if (s->top_k > s->experts)
    return FAIL("synth: --top-k %lld of --experts %lld", (long long)s->top_k, (long long)s->experts);
  if (o->outliers > s->hidden / 4)
    return FAIL("--outliers: expected at most a quarter of the %lld hidden channels, found %lld",
                (long long)s->hidden, (long long)o->outliers);
  return 0;
}

status synth_options_parse(synth_options *out, int n_args, char **words) {
  *out = (synth_options){.seed = 1, .types_name = mixes[MIX_Q4_K_M], .mix = MIX_Q4_K_M};
  for (int i = 0; i < n_args; i++) {
    if (!strcmp(words[i], "--tied")) {
      out->tied = 1;
      continue;
    }
    if (!takes_value(words[i])) return FAIL("synth: unknown argument \"%.64s\"; see synth --help", words[i]);
    if (++i == n_args) return FAIL("%s: expected a value after it", words[i - 1]);
    if (!strcmp(words[i - 1], "--shape")) TRY(take_shape(out, words[i]));
  }
  if (!out->shape_name) return FAIL("synth: expected --shape NAME");
  for (int i = 0; i < n_args; i++) {
    if (!strcmp(words[i], "--tied")) continue;
    TRY(take_option(out, words[i], words[i + 1]));
    i++;
  }
  return check_whole(out);
}

void synth_options_print(FILE *out) {
  fprintf(out, "  --shape NAME      the shape to begin with:");
  for (int i = 0; i < N_SHAPES; i++) fprintf(out, " %s", shapes[i].name);
  fprintf(out,
          "\n  --out FILE        the file to write; FILE.partial until it is whole\n  --types MIX      ");
  for (int i = 0; i < N_MIXES; i++) fprintf(out, " %s", mixes[i]);
  fprintf(out, "; default %s\n  --tied            the embedding is the output matrix too\n", mixes[0]);
  for (int i = 0; i < N_OPTIONS; i++) fprintf(out, "  %-14s N  %s\n", options[i].name, options[i].help);
}

void synth_options_text(char *out, size_t size, const synth_options *o) {
  size_t used = (size_t)snprintf(out, size, "--shape %s --types %s%s", o->shape_name, o->types_name,
                                 o->tied ? " --tied" : "");
  for (int i = 0; i < N_OPTIONS && used < size; i++) {
    if (options[i].offset == AT(threads)) continue;
    int64_t value = *(const int64_t *)((const char *)o + options[i].offset);
    used += (size_t)snprintf(out + used, size - used, " %s %lld", options[i].name, (long long)value);
  }
}
