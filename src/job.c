#include "src/job.h"
#include "base/memory.h"
#include "kernels/numerics.h"
#include "src/calibrate.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "build_info.h"

status job_agree(job *j, status mine, const char *what) {
  return comm_agree(j->c, mine, what);
}

bool job_is_printer(const job *j) {
  return comm_rank(j->c) == j->roles.printer;
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

status job_check_weights(job *j) {
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

// Its host has no fewer GPUs than ranks up to it. Asked only where an arm wants to know: a driver takes time
// to start.
static bool has_own_gpu(const job *j) {
  const arm_list *arms = &j->cfg->ranks.arm;
  const backend_ops *cuda = backend_find("cuda");
  bool wanted = false;
  for (size_t i = 0; i < arms->count; i++) wanted = wanted || strstr(arms->name[i], "@auto");
  return wanted && cuda && comm_host_rank(j->c) < cuda->devices();
}

static status open_roles(job *j) {
  bool mine = has_own_gpu(j), *has_gpu;
  TRY(TAKE(&has_gpu, (size_t)comm_size(j->c), "the ranks' roles"));
  status result = comm_allgather(j->c, has_gpu, &mine, sizeof mine, "the gathering of ranks' GPUs");
  if (!result)
    result = job_agree(j, roles_open(&j->roles, j->cfg, has_gpu, comm_size(j->c)), "the ranks' roles");
  free(has_gpu);
  if (!result && !j->roles.shared[comm_rank(j->c)])
    comm_set_patience(j->c, 1.5); // it hears from shared ranks
  return result;
}

static bool is_mixed(const char *name) {
  return !strcmp(name, "ranks");
}

// The arm of a rank's experts.
static const char *arm_of_rank(const job *j, const char *name, int rank) {
  return is_mixed(name) ? j->roles.arm[rank] : name;
}

static status measure_own_speed(const job *j, double *speed) {
  const config *c = j->cfg;
  double seconds = 0;
  for (size_t i = 0; i < c->run.arms.count; i++) {
    arm own;
    TRY(arm_parse(&own, arm_of_rank(j, c->run.arms.name[i], comm_rank(j->c))));
    TRY(calibrate_arm(&seconds, j->m, &own, j->place, comm_host_rank(j->c), c->run.rows));
  }
  *speed = 1 / seconds;
  return 0;
}

// All ranks at the same time, as in the forward pass: those of a host share its memory.
static status measure_speeds(job *j, double *all) {
  double mine = 0;
  TRY(job_agree(j, 0, "the measurement of ranks' speeds"));
  TRY(job_agree(j, measure_own_speed(j, &mine), "the measurement of ranks' speeds"));
  return comm_allgather(j->c, all, &mine, sizeof mine, "the gathering of ranks' speeds");
}

static status open_plan(job *j) {
  const config *c = j->cfg;
  int64_t n_experts = j->m->weights.shape.n_experts;
  double *speed;
  TRY(TAKE(&speed, (size_t)comm_size(j->c), "ranks' speeds"));
  status result = 0;
  if (c->experts.placement == PLACEMENT_BALANCED) result = measure_speeds(j, speed);
  if (!result)
    result = job_agree(j,
                       plan_open(&j->experts, c->experts.placement, c->experts.rank_of_expert,
                                 c->experts.n_experts, speed, n_experts, comm_size(j->c), comm_rank(j->c)),
                       "the placement of experts");
  free(speed);
  return result;
}

static status check_output(const job *j) {
  return job_is_printer(j) && j->cfg->output.dir[0] ? report_dir_check(j->cfg->output.dir) : 0;
}

static bool names_backend(const char *arm_name, const backend_ops *b) {
  const char *at = strchr(arm_name, '@');
  return at && (!strcmp(at + 1, b->name) || !strcmp(at + 1, "auto"));
}

// Devices are asked for only where one has a part: it takes time.
static bool needs_device(const config *c, const backend_ops *b) {
  bool needs = !strcmp(c->comm.transport, "nccl");
  for (size_t i = 0; i < c->run.arms.count; i++) needs = needs || names_backend(c->run.arms.name[i], b);
  for (size_t i = 0; i < c->ranks.arm.count; i++) needs = needs || names_backend(c->ranks.arm.name[i], b);
  return needs;
}

static device_id find_device(const job *j) {
  device_id found;
  for (const backend_ops *const *b = backend_table(); *b; b++)
    if ((*b)->device && needs_device(j->cfg, *b) && (*b)->device(&found, comm_host_rank(j->c))) return found;
  return (device_id){.index = -1};
}

status job_open(job *out, const char *command, const config *cfg, comm *c, input_use input) {
  *out = (job){.command = command, .cfg = cfg, .c = c};
  job *j = out;
  TRY(compare_config(j));
  TRY(job_agree(j, open_model(j), "opening the model"));
  TRY(compare_model(j));
  j->device = find_device(j);
  TRY(topology_open(&j->place, c, cfg->run.threads, cfg->run.bind, &j->device));
  topology_bind_threads(j->place);
  TRY(open_roles(j));
  TRY(open_plan(j));
  if (input == INPUT_UNUSED) return 0;
  TRY(job_agree(j, open_input(j), "the input"));
  TRY(compare_input(j));
  TRY(job_agree(j, check_output(j), "the output folder"));
  return job_check_weights(j);
}

void job_close(job *j) {
  for (int64_t s = 0; s < j->n_sequences; s++) free(j->sequences[s].tokens);
  free(j->sequences);
  plan_close(&j->experts);
  roles_close(&j->roles);
  tokenizer_close(j->words);
  model_close(j->m);
  topology_close(j->place);
}

// ---- arms ----

static status resolve_arm(const job *j, const char *name, arm *shared, arm *own) {
  if (is_mixed(name) && !j->roles.mixed) return FAIL("run.arms has \"ranks\", but ranks.arm is not set");
  TRY(arm_parse(own, arm_of_rank(j, name, comm_rank(j->c))));
  return arm_parse(shared, is_mixed(name) ? j->roles.shared_arm : name);
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
      .device = &j->device,
      .row = j->cfg->run.rows,
      .n_sequences = j->n_sequences,
      .context = j->context,
      .max_batch = j->max_batch,
      .kv_f16 = j->cfg->run.kv == KV_F16,
      .computes_shared = is_mixed(name) ? j->roles.shared : NULL,
  };
  TRY(job_agree(j, resolve_arm(j, name, &p.shared, &p.own), name));
  return engine_open(out, &p);
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
  TRY(engine_tell(e, &digest, sizeof digest, "the digest"));
  snprintf(what, sizeof what, "the digest of %s (the law: same path, same bits)", e->params.name);
  return comm_equal(j->c, &digest, sizeof digest, what);
}

// ---- report ----

typedef struct { // what a rank tells the printer
  char host[64], cores[96], arm[ARM_NAME_BYTES];
  device_id device;
  int32_t threads, device_node;
  uint64_t experts_bytes, shared_bytes;
  int64_t experts;
} rank_facts;

// In some arm of the job.
static bool computes_shared(const job *j) {
  bool computes = j->roles.shared[comm_rank(j->c)];
  for (size_t a = 0; a < j->cfg->run.arms.count; a++)
    computes = computes || !is_mixed(j->cfg->run.arms.name[a]);
  return computes;
}

static rank_facts own_facts(const job *j) {
  rank_facts f = {.device = j->device,
                  .device_node = topology_device_node(j->place),
                  .threads = topology_threads(j->place),
                  .experts_bytes = model_experts_bytes(j->m, j->experts.local),
                  .shared_bytes = computes_shared(j) ? j->m->shared_bytes : 0,
                  .experts = j->experts.n_own};
  snprintf(f.host, sizeof f.host, "%s", comm_host(j->c));
  snprintf(f.cores, sizeof f.cores, "%s", topology_cores(j->place));
  memcpy(f.arm, j->roles.arm[comm_rank(j->c)], sizeof f.arm);
  return f;
}

static status report_ranks(job *j, report *r) {
  size_t n = (size_t)comm_size(j->c);
  rank_facts mine = own_facts(j), *all;
  TRY(TAKE(&all, n, "ranks' facts"));
  r->n_ranks = n;
  status result = TAKE(&r->ranks, n, "the report");
  if (!result) result = comm_allgather(j->c, all, &mine, sizeof mine, "the gathering of ranks' facts");
  for (size_t i = 0; i < n && !result; i++)
    r->ranks[i] = (report_rank){.rank = (int)i,
                                .host = strdup(all[i].host),
                                .cores = strdup(all[i].cores),
                                .arm = strdup(all[i].arm),
                                .role = j->roles.shared[i] ? "shared" : "experts",
                                .threads = all[i].threads,
                                .experts_bytes = all[i].experts_bytes,
                                .shared_bytes = all[i].shared_bytes,
                                .experts = all[i].experts,
                                .gpu = all[i].device.index,
                                .gpu_node = all[i].device_node,
                                .gpu_pci = strdup(all[i].device.pci),
                                .gpu_name = strdup(all[i].device.name)};
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
    free((char *)r->ranks[i].gpu_pci);
    free((char *)r->ranks[i].gpu_name);
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

static status report_state(job *j, const engine *e, report *r) {
  uint64_t mine = e->forward.compute->ops->state_bytes(e->forward.compute), *all;
  TRY(TAKE(&all, r->n_ranks, "ranks' bytes"));
  status result = comm_allgather(j->c, all, &mine, sizeof mine, "the gathering of ranks' bytes");
  for (size_t i = 0; i < r->n_ranks && !result; i++)
    if (all[i] > r->ranks[i].state_bytes) r->ranks[i].state_bytes = all[i];
  free(all);
  return result;
}

status job_report_arm(job *j, engine *e, report *r, size_t index, int64_t tokens) {
  TRY(engine_finish(e));
  TRY(report_state(j, e, r));
  report_arm *a = &r->arms[index];
  size_t n_layers = r->n_layers, n_sequences = r->n_sequences;
  a->transport = transport_name(e->carrier);
  if (!r->transport || *transport_reason(e->carrier)) { // an arm that needs no words does not hide another's
    r->transport = a->transport;
    snprintf(r->transport_reason, sizeof r->transport_reason, "%s", transport_reason(e->carrier));
  }
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
  for (size_t i = 0; i < r->n_ranks; i++) a->rank_arms[i] = arm_of_rank(j, a->name, (int)i);
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
