#include "src/run/job.h"
#include "base/memory.h"
#include "base/whole_file.h"
#include "kernels/formats/numerics.h"
#include "src/run/rank_speed.h"
#include <fcntl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

status job_agree(job *j, status mine, const char *what) {
  return comm_agree(j->c, mine, what);
}

bool job_is_reporting(const job *j) {
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

static status read_bytes(int fd, const char *path, char **text, size_t *length) {
  struct stat s;
  if (fstat(fd, &s) || !S_ISREG(s.st_mode) || s.st_size > (off_t)1 << 30)
    return FAIL("input.file %s: expected a regular file of at most 1 GiB", path);
  TRY(TAKE(text, (size_t)s.st_size + 1, "the input"));
  ssize_t n;
  while ((n = read(fd, *text + *length, (size_t)s.st_size - *length)) > 0) *length += (size_t)n;
  if (n < 0) return FAIL("input.file %s: cannot be read: %m", path);
  if (*length != (size_t)s.st_size)
    return FAIL("input.file %s: read %zu of %lld bytes", path, *length, (long long)s.st_size);
  return 0;
}

static status read_text_file(const char *path, char **text, size_t *length) {
  *text = NULL;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a pipe is refused, not waited for
  if (fd < 0) return FAIL("input.file %s: cannot be opened: %m", path);
  status result = read_bytes(fd, path, text, length);
  close(fd);
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
      TRY(add_text(j, c->input.kind == INPUT_PROMPT ? "input.prompt" : "input.prompts", c->input.prompts[i],
                   strlen(c->input.prompts[i])));
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
  if (given > j->m->context_length)
    return FAIL("run.context = %lld: expected at most the model's context of %lld (%s)", (long long)given,
                (long long)j->m->context_length, gguf_path(j->m->file));
  if (j->context > j->m->context_length)
    return FAIL("%s: the input's %lld tokens and run.generate = %lld need %lld positions, but the model's "
                "context is %lld; the command perplexity cuts a text into windows",
                gguf_path(j->m->file), (long long)longest, (long long)j->cfg->run.generate,
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
    result = job_agree(j, rank_roles_open(&j->roles, j->cfg, has_gpu, comm_size(j->c)), "the ranks' roles");
  free(has_gpu);
  if (!result && !j->roles.shared[comm_rank(j->c)])
    comm_set_patience(j->c, 1.5); // it hears from shared ranks
  return result;
}

bool job_is_mixed(const char *name) {
  return !strcmp(name, "ranks");
}

// The arm of a rank's experts.
const char *job_arm_of_rank(const job *j, const char *name, int rank) {
  return job_is_mixed(name) ? j->roles.arm[rank] : name;
}

static status measure_own_speed(const job *j, double *speed) {
  const config *c = j->cfg;
  double seconds = 0;
  for (size_t i = 0; i < c->run.arms.count; i++) {
    arm_spec own;
    TRY(arm_spec_parse(&own, job_arm_of_rank(j, c->run.arms.name[i], comm_rank(j->c))));
    TRY(rank_speed_measure(&seconds, j->m, &own, j->place, comm_host_rank(j->c), c->run.rows));
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
    result =
        job_agree(j,
                  placement_open(&j->experts, c->experts.placement, c->experts.rank_of_expert,
                                 c->experts.n_experts, speed, n_experts, comm_size(j->c), comm_rank(j->c)),
                  "the placement of experts");
  free(speed);
  return result;
}

static status check_output(const job *j) {
  return job_is_reporting(j) && j->cfg->output.dir[0] ? output_dir_check(j->cfg->output.dir) : 0;
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

// Every team of threads is counted on to be whole, so one that would be smaller is refused here.
static status check_threads(const job *j) {
  int asked = topology_threads(j->place), given = 0;
  omp_set_dynamic(false); // the setting decides, not the machine's load
#pragma omp parallel num_threads(asked) reduction(+ : given)
  given++;
  if (given != asked)
    return FAIL("run.threads: expected %d, OpenMP gives %d: set run.threads = %d or raise OMP_THREAD_LIMIT",
                asked, given, given);
  return 0;
}

status job_open(job *out, const char *command, const config *cfg, comm *c, input_use input) {
  *out = (job){.command = command, .cfg = cfg, .c = c};
  job *j = out;
  TRY(compare_config(j));
  TRY(job_agree(j, open_model(j), "opening the model"));
  TRY(compare_model(j));
  j->device = find_device(j);
  TRY(topology_open(&j->place, c, cfg->run.threads, cfg->run.bind, &j->device));
  TRY(job_agree(j, check_threads(j), "the threads"));
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
  placement_close(&j->experts);
  rank_roles_close(&j->roles);
  tokenizer_close(j->words);
  model_close(j->m);
  topology_close(j->place);
}

// ---- arms ----

static status resolve_arm(const job *j, const char *name, arm_spec *shared, arm_spec *own) {
  if (job_is_mixed(name) && !j->roles.mixed) return FAIL("run.arms has \"ranks\", but ranks.arm is not set");
  TRY(arm_spec_parse(own, job_arm_of_rank(j, name, comm_rank(j->c))));
  return arm_spec_parse(shared, job_is_mixed(name) ? j->roles.shared_arm : name);
}

status job_open_arm(job *j, const char *name, arm **out) {
  *out = NULL;
  arm_params p = {
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
      .computes_shared = job_is_mixed(name) ? j->roles.shared : NULL,
      .reporting = j->roles.printer,
  };
  TRY(job_agree(j, resolve_arm(j, name, &p.shared, &p.own), name));
  return arm_open(out, &p);
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

status job_check_digest(job *j, arm *e) {
  TRY(arm_finish(e));
  TRY(job_agree(j, refuse_change(j), "the model file"));
  uint64_t digest = arm_digest(e);
  char what[96];
  TRY(arm_broadcast(e, &digest, sizeof digest, "the digest"));
  snprintf(what, sizeof what, "the digest of %s (the law: same path, same bits)", arm_name(e));
  return comm_equal(j->c, &digest, sizeof digest, what);
}
