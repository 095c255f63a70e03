#include "src/job.h"
#include "base/memory.h"
#include "kernels/numerics.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "build_info.h"

status job_agree(job *j, status mine, const char *what) {
  return comm_agree(j->c, mine, what);
}

bool job_is_printer(const job *j) {
  return comm_rank(j->c) == 0;
}

// ---- input ----

static status add_sequence(job *j, int32_t *tokens, size_t n) {
  j->sequences[j->n_sequences++] = (token_sequence){tokens, (int64_t)n};
  j->n_tokens += (int64_t)n;
  return n ? 0 : FAIL("the input has no tokens");
}

static status add_text(job *j, const char *what, const char *text, size_t length) {
  int32_t *ids;
  size_t n;
  if (!j->words)
    return FAIL("%s: %s is text, but this model has no tokenizer; give input.tokens", gguf_path(j->m->file),
                what);
  TRY(tokenizer_encode(j->words, text, length, &ids, &n));
  return add_sequence(j, ids, n);
}

static status read_text_file(const char *path, char **text, size_t *length) {
  struct stat s;
  FILE *f = fopen(path, "rb");
  *text = NULL;
  if (!f) return FAIL("input.file %s: cannot be opened: %m", path);
  status result = 0;
  if (fstat(fileno(f), &s) || !S_ISREG(s.st_mode) || s.st_size > (off_t)1 << 30)
    result = FAIL("input.file %s: expected a regular file of at most 1 GiB", path);
  if (!result) result = TAKE(text, (size_t)s.st_size + 1, "the input");
  if (!result) {
    *length = fread(*text, 1, (size_t)s.st_size, f);
    if (*length != (size_t)s.st_size)
      result = FAIL("input.file %s: read %zu of %lld bytes", path, *length, (long long)s.st_size);
  }
  fclose(f);
  return result;
}

static status add_file(job *j, const char *path) {
  char *text;
  size_t length = 0;
  status result = read_text_file(path, &text, &length);
  if (!result) result = add_text(j, "input.file", text, length);
  free(text);
  return result;
}

static status add_tokens(job *j, const int32_t *tokens, size_t n) {
  int32_t *copy;
  TRY(TAKE(&copy, n, "the input"));
  if (n) memcpy(copy, tokens, n * sizeof *copy);
  return add_sequence(j, copy, n);
}

static status read_input(job *j) {
  const config *c = j->cfg;
  size_t n = c->input.kind == INPUT_PROMPTS ? c->input.n_prompts : 1;
  TRY(TAKE(&j->sequences, n, "the sequences"));
  switch (c->input.kind) {
  case INPUT_NONE:
    return FAIL("no input: set input.tokens, input.prompt, input.prompts or input.file");
  case INPUT_TOKENS:
    return add_tokens(j, c->input.tokens, c->input.n_tokens);
  case INPUT_FILE:
    return add_file(j, c->input.file);
  case INPUT_PROMPT:
  case INPUT_PROMPTS:
    for (size_t i = 0; i < c->input.n_prompts; i++)
      TRY(add_text(j, "input.prompt", c->input.prompts[i], strlen(c->input.prompts[i])));
  }
  return n ? 0 : FAIL("input.prompts: expected at least one prompt");
}

static status check_tokens(const job *j) {
  int64_t vocabulary = j->m->weights.shape.vocabulary;
  for (int64_t s = 0; s < j->n_sequences; s++)
    for (int64_t t = 0; t < j->sequences[s].n; t++) {
      int32_t id = j->sequences[s].tokens[t];
      if (id < 0 || id >= vocabulary)
        return FAIL(
            "input: token %lld of sequence %lld: expected an id below the vocabulary's %lld, found %d",
            (long long)t, (long long)s, (long long)vocabulary, id);
    }
  return 0;
}

// What the input and run.generate need; perplexity cuts its input into windows of run.context itself.
static status plan_context(job *j) {
  int64_t longest = 0, given = j->cfg->run.context;
  bool windows = !strcmp(j->command, "perplexity");
  for (int64_t s = 0; s < j->n_sequences; s++)
    longest = j->sequences[s].n > longest ? j->sequences[s].n : longest;
  int64_t needed = longest + (windows ? 0 : j->cfg->run.generate);
  j->context = given ? given : windows ? (needed < 512 ? needed : 512) : needed;
  if (j->context > j->m->context_length)
    return FAIL("%s: %lld positions are needed, but the model's context is %lld", gguf_path(j->m->file),
                (long long)j->context, (long long)j->m->context_length);
  if (!windows && needed > j->context)
    return FAIL("run.context = %lld: the input's %lld tokens and run.generate = %lld need %lld positions",
                (long long)j->context, (long long)longest, (long long)j->cfg->run.generate,
                (long long)needed);
  int64_t most = j->n_tokens < j->cfg->run.chunk ? j->n_tokens : j->cfg->run.chunk;
  j->max_batch = most > j->n_sequences ? most : j->n_sequences; // decoding takes all sequences at once
  return 0;
}

static status open_input(job *j) {
  TRY(read_input(j));
  TRY(check_tokens(j));
  return plan_context(j);
}

static status compare_input(job *j) {
  uint64_t sum = num_mix64((uint64_t)j->n_sequences);
  for (int64_t s = 0; s < j->n_sequences; s++)
    for (int64_t t = 0; t < j->sequences[s].n; t++)
      sum = num_mix64(sum + (uint64_t)j->sequences[s].tokens[t] + ((uint64_t)s << 32));
  j->input = sum;
  return comm_equal(j->c, &sum, sizeof sum, "the input's tokens");
}

// ---- open ----

static status open_model(job *j) {
  if (!j->cfg->model.path || !j->cfg->model.path[0]) return FAIL("no model: set model.path");
  TRY(model_open(&j->m, j->cfg->model.path));
  TRY(tokenizer_open(&j->words, j->m->file));
  if (j->words && (int64_t)tokenizer_vocabulary(j->words) > j->m->weights.shape.vocabulary)
    return FAIL("%s: key tokenizer.ggml.tokens: expected at most the embedding's %lld tokens, found %zu",
                gguf_path(j->m->file), (long long)j->m->weights.shape.vocabulary,
                tokenizer_vocabulary(j->words));
  return 0;
}

static status compare_config(job *j) {
  char *text;
  TRY(config_text(j->cfg, &text));
  status result = comm_equal(j->c, text, strlen(text), "the configuration");
  free(text);
  return result;
}

static status compare_model(job *j) {
  uint64_t hash = gguf_header_hash(j->m->file);
  return comm_equal(j->c, &hash, sizeof hash, "the model file's header");
}

// Every rank reads the shared tensors and its own experts once: values are checked, pages are warm, and the
// sum over ranks is the fingerprint of the whole file.
static status check_weights(job *j) {
  uint64_t shared, own, *all;
  status mine = model_check_weights(j->m, j->experts.local, topology_threads(j->place), &shared, &own);
  TRY(job_agree(j, mine, "the check of the weights"));
  TRY(comm_equal(j->c, &shared, sizeof shared, "the model's shared tensors"));
  TRY(TAKE(&all, (size_t)comm_size(j->c), "the fingerprint"));
  status result = comm_allgather(j->c, all, &own, sizeof own, "the sum of the fingerprint");
  j->fingerprint = num_mix64(gguf_header_hash(j->m->file)) + shared;
  for (int r = 0; r < comm_size(j->c); r++) j->fingerprint += all[r];
  free(all);
  return result;
}

static status open_plan(job *j) {
  const config *c = j->cfg;
  return plan_open(&j->experts, c->experts.placement, c->experts.rank_of_expert, c->experts.n_experts,
                   j->m->weights.shape.n_experts, comm_size(j->c), comm_rank(j->c));
}

static status check_output(const job *j) {
  return job_is_printer(j) && j->cfg->output.dir[0] ? report_dir_check(j->cfg->output.dir) : 0;
}

status job_open(job *out, const char *command, const config *cfg, comm *c, input_use input) {
  *out = (job){.command = command, .cfg = cfg, .c = c};
  job *j = out;
  TRY(compare_config(j));
  TRY(job_agree(j, open_model(j), "opening the model"));
  TRY(compare_model(j));
  TRY(job_agree(j, open_plan(j), "the placement of experts"));
  TRY(topology_open(&j->place, c, cfg->run.threads, cfg->run.bind));
  topology_bind_threads(j->place);
  if (input == INPUT_UNUSED) return 0;
  TRY(job_agree(j, open_input(j), "the input"));
  TRY(compare_input(j));
  TRY(job_agree(j, check_output(j), "the output folder"));
  return check_weights(j);
}

void job_close(job *j) {
  for (int64_t s = 0; s < j->n_sequences; s++) free(j->sequences[s].tokens);
  free(j->sequences);
  plan_close(&j->experts);
  tokenizer_close(j->words);
  model_close(j->m);
  topology_close(j->place);
}

// ---- arms ----

// The arm of rank r's experts when `name` is "ranks": ranks.arm, repeated over ranks.
static const char *mixed_arm(const config *c, int rank) {
  return c->ranks.arm.name[(size_t)rank % c->ranks.arm.count];
}

static status resolve_arm(const job *j, const char *name, arm *shared, arm *own) {
  const config *c = j->cfg;
  bool mixed = !strcmp(name, "ranks");
  if (mixed && !c->ranks.arm.count) return FAIL("run.arms has \"ranks\", but ranks.arm is not set");
  const char *shared_name = !mixed ? name : c->ranks.shared[0] ? c->ranks.shared : mixed_arm(c, 0);
  TRY(arm_parse(shared, shared_name));
  return arm_parse(own, mixed ? mixed_arm(c, comm_rank(j->c)) : name);
}

status job_open_arm(job *j, const char *name, engine **out) {
  *out = NULL;
  engine_params p = {
      .name = name,
      .m = j->m,
      .experts = &j->experts,
      .c = j->c,
      .place = j->place,
      .transport = j->cfg->comm.transport,
      .row = j->cfg->run.rows,
      .n_sequences = j->n_sequences,
      .context = j->context,
      .max_batch = j->max_batch,
      .kv_f16 = j->cfg->run.kv == KV_F16,
  };
  status mine = resolve_arm(j, name, &p.shared, &p.own);
  if (!mine) mine = engine_open(out, &p);
  return job_agree(j, mine, name);
}

static status refuse_change(const job *j) {
  const char *path = gguf_changed_file(j->m->file);
  return path ? FAIL("%s: the file changed while the run read it: no number of this run is good", path) : 0;
}

void job_explain_fault(const job *j) {
  if (!j->m || !gguf_changed_file(j->m->file)) return;
  status_reset();
  refuse_change(j);
}

status job_check_digest(job *j, engine *e) {
  TRY(engine_finish(e));
  TRY(job_agree(j, refuse_change(j), "the model file"));
  uint64_t digest = engine_digest(e);
  char what[96];
  snprintf(what, sizeof what, "the digest of %s (the law: same path, same bits)", e->params.name);
  return comm_equal(j->c, &digest, sizeof digest, what);
}

// ---- report ----

typedef struct { // what a rank tells rank 0
  char host[64], cores[96], arm[ARM_NAME_BYTES];
  int32_t threads;
  uint64_t experts_bytes, shared_bytes, state_bytes;
  int64_t experts;
} rank_facts;

static rank_facts own_facts(const job *j, uint64_t state_bytes) {
  rank_facts f = {.threads = topology_threads(j->place),
                  .experts_bytes = model_experts_bytes(j->m, j->experts.local),
                  .shared_bytes = j->m->shared_bytes,
                  .state_bytes = state_bytes,
                  .experts = j->experts.n_own};
  snprintf(f.host, sizeof f.host, "%s", comm_host(j->c));
  snprintf(f.cores, sizeof f.cores, "%s", topology_cores(j->place));
  if (j->cfg->ranks.arm.count) snprintf(f.arm, sizeof f.arm, "%s", mixed_arm(j->cfg, comm_rank(j->c)));
  return f;
}

static status report_ranks(job *j, report *r) {
  size_t n = (size_t)comm_size(j->c);
  rank_facts mine = own_facts(j, 0), *all;
  TRY(TAKE(&all, n, "ranks' facts"));
  r->n_ranks = n;
  status result = TAKE(&r->ranks, n, "the report");
  if (!result) result = comm_allgather(j->c, all, &mine, sizeof mine, "the gathering of ranks' facts");
  for (size_t i = 0; i < n && !result; i++)
    r->ranks[i] = (report_rank){.rank = (int)i,
                                .host = strdup(all[i].host),
                                .cores = strdup(all[i].cores),
                                .arm = strdup(all[i].arm),
                                .threads = all[i].threads,
                                .experts_bytes = all[i].experts_bytes,
                                .shared_bytes = all[i].shared_bytes,
                                .experts = all[i].experts};
  free(all);
  return result;
}

static void report_model(const job *j, report *r) {
  const model_shape *s = &j->m->weights.shape;
  uint64_t bytes = 0;
  for (size_t i = 0; i < gguf_file_count(j->m->file); i++) bytes += gguf_file_bytes(j->m->file, i);
  r->model.name = j->m->name;
  r->model.path = gguf_path(j->m->file);
  r->model.architecture = "qwen3moe";
  r->model.fingerprint = j->fingerprint;
  r->model.n_layers = s->n_layers;
  r->model.hidden = s->hidden;
  r->model.n_heads = s->n_heads;
  r->model.n_kv_heads = s->n_kv_heads;
  r->model.head_dim = s->head_dim;
  r->model.n_experts = s->n_experts;
  r->model.top_k = s->top_k;
  r->model.expert_width = s->expert_width;
  r->model.vocabulary = s->vocabulary;
  r->model.bytes = bytes;
  r->model.types = j->m->types;
}

static void report_build(const job *j, report *r) {
  r->machine.cpu = topology_cpu(j->place);
  r->machine.os = MOE_BUILD_SYSTEM;
  r->machine.hosts = topology_hosts(j->place);
  r->machine.cores = topology_host_cores(j->place);
  r->build.version = MOE_VERSION;
  r->build.compiler = MOE_BUILD_COMPILER;
  r->build.flags = MOE_BUILD_FLAGS;
  r->build.mpi = comm_library(j->c);
}

status job_report_open(job *j, report *out, size_t n_arms, size_t n_pairs, size_t n_token_rows) {
  *out = (report){.command = j->command, .n_arms = n_arms, .n_pairs = n_pairs, .n_tokens = n_token_rows};
  report *r = out;
  report_model(j, r);
  report_build(j, r);
  r->n_layers = (size_t)j->m->weights.shape.n_layers;
  r->n_sequences = (size_t)j->n_sequences;
  r->chunk = j->cfg->run.chunk;
  r->context = j->context;
  r->input = j->input;
  r->kv = j->cfg->run.kv == KV_F16 ? "f16" : "f32";
  r->placement = placement_name(j->cfg->experts.placement);
  char *text;
  TRY(config_text(j->cfg, &text));
  r->config_text = text;
  TRY(TAKE(&r->arms, n_arms, "the report"));
  TRY(TAKE(&r->pairs, n_pairs, "the report"));
  TRY(TAKE(&r->tokens, n_token_rows, "the report"));
  for (size_t i = 0; i < n_pairs; i++) TRY(TAKE(&r->pairs[i].layers, r->n_layers, "the report"));
  return report_ranks(j, r);
}

static void close_arm(report_arm *a) {
  free(a->layer_digests);
  free(a->sequences);
  free(a->rank_arms);
  for (size_t t = 0; t < a->n_texts; t++) {
    free(a->texts[t].tokens);
    free(a->texts[t].text);
  }
  free(a->texts);
}

void job_report_close(report *r) {
  for (size_t i = 0; i < r->n_arms && r->arms; i++) close_arm(&r->arms[i]);
  for (size_t i = 0; i < r->n_pairs && r->pairs; i++) free(r->pairs[i].layers);
  for (size_t i = 0; i < r->n_ranks && r->ranks; i++) {
    free((char *)r->ranks[i].host);
    free((char *)r->ranks[i].cores);
    free((char *)r->ranks[i].arm);
  }
  free(r->arms);
  free(r->pairs);
  free(r->tokens);
  free(r->ranks);
  free((char *)r->config_text);
}

static uint64_t path_tag(const char *arm_name) {
  char path[16];
  snprintf(path, sizeof path, "%.*s", (int)strcspn(arm_name, "@"), arm_name);
  const path_info *info = path_find(path);
  return info ? info->tag : 0;
}

// Equal where the experts have equal paths, whatever ranks own them and whichever backends compute them.
static uint64_t hash_expert_paths(const job *j, const char *const *rank_arms) {
  uint64_t sum = 0;
  for (int64_t e = 0; e < j->m->weights.shape.n_experts; e++)
    sum = num_mix64(sum + path_tag(rank_arms[j->experts.rank_of_expert[e]]));
  return sum;
}

status job_report_arm(const job *j, engine *e, report *r, size_t index, int64_t tokens) {
  TRY(engine_finish(e));
  report_arm *a = &r->arms[index];
  size_t n_layers = r->n_layers, n_sequences = r->n_sequences;
  uint64_t state = e->forward.compute->ops->state_bytes(e->forward.compute);
  for (size_t i = 0; i < r->n_ranks; i++)
    if (state > r->ranks[i].state_bytes) r->ranks[i].state_bytes = state;
  r->transport = exchange_transport(e->forward.slots);
  r->build.row = e->forward.compute->ops->row(e->forward.compute);
  a->name = e->params.name;
  a->path = e->forward.path->name;
  a->path_version = e->forward.path->version;
  a->digest = engine_digest(e);
  a->tokens = tokens;
  a->prefill_tokens_per_s = e->seconds > 0 ? (double)tokens / e->seconds : 0;
  a->decode_tokens_per_s = __builtin_nan("");
  a->perplexity = __builtin_nan("");
  a->exchange_seconds = engine_exchange_seconds(e);
  TRY(TAKE(&a->layer_digests, n_layers, "the report"));
  TRY(TAKE(&a->sequences, n_sequences, "the report"));
  TRY(TAKE(&a->rank_arms, r->n_ranks, "the report"));
  for (size_t l = 0; l < n_layers; l++) a->layer_digests[l] = engine_layer_digest(e, (int64_t)l);
  for (size_t s = 0; s < n_sequences; s++)
    a->sequences[s] = (report_sequence){j->sequences[s].n, e->logit_digest[s]};
  for (size_t i = 0; i < r->n_ranks; i++)
    a->rank_arms[i] = strcmp(a->name, "ranks") ? a->name : mixed_arm(j->cfg, (int)i);
  a->expert_paths = hash_expert_paths(j, a->rank_arms);
  return 0;
}

status job_report_finish(job *j, report *r) {
  status mine = 0;
  if (job_is_printer(j)) {
    if (j->cfg->output.dir[0]) mine = report_write(r, j->cfg->output.dir);
    if (!mine) {
      report_print(r, stdout);
      if (fflush(stdout)) mine = FAIL("standard output: the report could not be written: %m");
    }
  }
  return job_agree(j, mine, "writing the report");
}
