#include "src/run/job.h"
#include "base/memory.h"
#include "base/plain_text.h"
#include "base/whole_file.h"
#include "dist/launched.h"
#include "kernels/formats/numerics.h"
#include "src/run/agreement.h"
#include "src/run/input.h"
#include "src/run/job_placement.h"
#include "src/run/stops.h"
#include "src/run/weight_check.h"
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- agreement ----

status job_agree(job *j, status mine, const char *what) {
  return comm_agree(j->c, mine, what);
}

bool job_is_reporting(const job *j) {
  return comm_rank(j->c) == j->roles.reporting;
}

static status compare_config(job *j) {
  char *text;
  TRY(job_agree(j, config_text(j->cfg, &text), "the configuration"));
  status result = comm_equal_request(j->c, text, strlen(text), "the configuration");
  free(text);
  return result;
}

static status compare_model(job *j) {
  uint64_t hash[] = {gguf_header_hash(j->m->file), j->reference ? gguf_header_hash(j->reference->file) : 0};
  return comm_equal(j->c, hash, sizeof hash, "the model file's header");
}

static status compare_input(job *j) {
  j->input = input_hash(j->sequences, j->n_sequences);
  return comm_equal_request(j->c, &j->input, sizeof j->input, "the input's tokens");
}

// ---- model and weights ----

static status open_model(job *j) {
  if (!j->cfg->model.path || !j->cfg->model.path[0]) return REFUSE("no model: set model.path");
  if (j->command == COMMAND_INSPECT) return model_open_to_show(&j->m, j->cfg->model.path, &j->refusals);
  return model_open(&j->m, j->cfg->model.path);
}

status job_need_tokenizer(job *j) {
  tokenizer *t;
  if (j->tokenizer) return 0;
  TRY(tokenizer_open(&t, j->m->file));
  size_t n = t ? tokenizer_vocabulary(t) : 0, rows = (size_t)j->m->weights.shape.vocabulary;
  if (j->m->whole && n > rows) {
    tokenizer_close(t);
    return FAIL("%s: key tokenizer.ggml.tokens: expected at most the embedding's %zu tokens, found %zu",
                gguf_path(j->m->file), rows, n);
  }
  j->tokenizer = t;
  return 0;
}

status job_open_ends(job *j) {
  if (!j->ends) TRY(end_tokens_open(&j->ends, j->m->file));
  message_list why = {.count = 0};
  status result = message_list_take_error(&why, job_need_tokenizer(j));
  if (!result && why.count) result = message_list_add(&j->warnings, "text is left out: %s", why.text[0]);
  message_list_close(&why);
  return result ? result : job_warn(j);
}

// ---- warnings ----

static status take_warnings(job *j, model *m) {
  for (size_t i = 0; i < m->warnings.count; i++)
    TRY(message_list_add(&j->warnings, "%s", m->warnings.text[i]));
  message_list_close(&m->warnings);
  return 0;
}

status job_warn(job *j) {
  TRY(take_warnings(j, j->m));
  if (j->reference) TRY(take_warnings(j, j->reference));
  for (; j->n_told < j->warnings.count; j->n_told++) {
    char line[1024]; // it quotes a file, which anyone may have written
    snprintf(line, sizeof line, "%s", j->warnings.text[j->n_told]);
    plain_make(line);
    if (job_is_reporting(j)) fprintf(stderr, "warning: %s\n", line);
  }
  return 0;
}

// Whose weights the reference arm has: that arm is the first f64, or else the first.
static bool is_reference(const job *j, const arm_choice *choice) {
  const arm_list *arms = &j->cfg->run.arms;
  size_t reference = 0;
  for (size_t a = arms->count; a-- > 0;)
    if (arm_is_truth(&arms->arm[a])) reference = a;
  return choice == &arms->arm[reference];
}

static status open_reference(job *j) {
  const char *path = j->cfg->parity.reference;
  bool measures = j->command == COMMAND_PARITY || j->command == COMMAND_VERIFY;
  if (!measures || !path[0]) return 0;
  TRY(model_open(&j->reference, path));
  const model_shape *a = &j->m->weights.shape, *b = &j->reference->weights.shape;
  bool same = a->n_layers == b->n_layers && a->hidden == b->hidden && a->n_heads == b->n_heads &&
              a->n_kv_heads == b->n_kv_heads && a->head_dim == b->head_dim && a->n_experts == b->n_experts &&
              a->top_k == b->top_k && a->expert_width == b->expert_width && a->vocabulary == b->vocabulary;
  return same ? 0
              : REFUSE("parity.reference: expected a model of the shape of %s, found another in %s",
                       gguf_path(j->m->file), path);
}

status job_check_weights(job *j) {
  int threads = topology_threads(j->place);
  expert_map held = placement_map(&j->experts);
  TRY(weight_check(&j->fingerprint, j->c, j->m, &held, threads));
  if (j->reference) TRY(weight_check(&j->reference_fingerprint, j->c, j->reference, &held, threads));
  return job_agree(j, job_warn(j), "the warnings");
}

uint64_t job_reference_fingerprint(const job *j) {
  return j->reference ? j->reference_fingerprint : j->fingerprint;
}

// ---- ranks ----

// Backends are asked for their devices only where an arm may need one: a driver takes time to start.
static bool may_need(const config *c, command_kind command, backend_kind what) {
  bool needs = false;
  for (size_t i = 0; i < c->run.arms.count; i++) needs = needs || arm_may_need(&c->run.arms.arm[i], what);
  for (size_t i = 0; i < c->ranks.arm.count; i++) needs = needs || arm_may_need(&c->ranks.arm.arm[i], what);
  for (size_t i = 0; i < c->screen.arms.count && command == COMMAND_SCREEN; i++)
    needs = needs || arm_may_need(&c->screen.arms.arm[i], what);
  return needs || arm_may_need(&c->bisect.a, what) || arm_may_need(&c->bisect.b, what);
}

// Its host has at least as many GPUs as ranks up to this one.
static bool has_own_gpu(const job *j) {
  const rank_arm_list *arms = &j->cfg->ranks.arm;
  const backend_ops *cuda = backend_get(BACKEND_CUDA);
  bool wanted = false;
  for (size_t i = 0; i < arms->count; i++) wanted = wanted || arms->arm[i].kind == ARM_AUTO;
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
    comm_set_patience(j->c, 1.5); // expert ranks wait for shared ranks alone
  return result;
}

const arm_choice *job_arm_of_rank(const job *j, const arm_choice *choice, int rank) {
  return choice->kind == ARM_MIXED ? &j->roles.arm[rank] : choice;
}

uint64_t job_expert_paths(const job *j, const arm_choice *choice) {
  const model_shape *s = &j->m->weights.shape;
  uint64_t sum = 0;
  for (int64_t i = 0; i < j->experts.n_layers * s->n_experts; i++) { // all holders of an expert have one path
    int rank = placement_first_holder(&j->experts, i / s->n_experts, i % s->n_experts);
    sum = num_mix64(sum + path_for(job_arm_of_rank(j, choice, rank)->path, &j->m->weights)->tag);
  }
  return sum;
}

// ---- tokens at once ----

static int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

static int64_t chunk_of_backend(const arm_choice *a) {
  const backend_ops *ops = a->kind == ARM_PLAIN ? backend_get(a->backend) : NULL;
  return ops ? ops->prompt_chunk : INT64_MAX; // an arm that is not there is refused later, by name
}

// run.chunk = 0: what every backend that computes in an arm of run.arms, or in a side of bisect, is content
// with. The ranks' arms are known to all, so it is the same everywhere.
static int64_t choose_chunk(const job *j) {
  const arm_list *arms = &j->cfg->run.arms;
  int64_t chunk = INT64_MAX;
  if (j->cfg->run.chunk) return j->cfg->run.chunk;
  for (size_t a = 0; a < arms->count; a++) {
    chunk = least(chunk, chunk_of_backend(&arms->arm[a]));
    if (arms->arm[a].kind != ARM_MIXED || !j->roles.mixed) continue;
    chunk = least(chunk, chunk_of_backend(&j->roles.shared_arm));
    for (int r = 0; r < j->roles.n_ranks; r++) chunk = least(chunk, chunk_of_backend(&j->roles.arm[r]));
  }
  if (j->command == COMMAND_BISECT)
    chunk = least(chunk, least(chunk_of_backend(&j->cfg->bisect.a), chunk_of_backend(&j->cfg->bisect.b)));
  return chunk < INT64_MAX ? chunk : backend_get(BACKEND_CPU)->prompt_chunk;
}

static status check_audit(const job *j) {
  bool alone = comm_size(j->c) == 1;
  return j->cfg->ranks.audit > 0 && alone
             ? REFUSE("ranks.audit = %g: expected 0 where there is one rank, which has no other to recompute",
                      j->cfg->ranks.audit)
             : 0;
}

static device_id find_device(const job *j) {
  device_id found;
  bool nccl = j->cfg->comm.transport == TRANSPORT_NCCL;
  for (const backend_ops *const *b = backend_table(); *b; b++)
    if ((*b)->device && (nccl || may_need(j->cfg, j->command, (*b)->kind)) &&
        (*b)->device(&found, comm_host_rank(j->c)))
      return found;
  return (device_id){.index = -1};
}

// Kernels rely on teams of exactly this many threads, so a smaller team is refused here.
static status check_threads(const job *j) {
  int asked = topology_threads(j->place), given = 0;
  omp_set_dynamic(false); // the setting decides, not the machine's load
#pragma omp parallel num_threads(asked) reduction(+ : given)
  given++;
  if (given != asked)
    return REFUSE("run.threads: expected %d, OpenMP gives %d: set run.threads = %d or raise OMP_THREAD_LIMIT",
                  asked, given, given);
  return 0;
}

// ---- input ----

static status check_context(const job *j, const input_size *size, int64_t needed) {
  char which[64] = "the input's";
  if (j->n_sequences > 1)
    snprintf(which, sizeof which, "sequence %lld of the input:", (long long)size->which);
  int64_t longest = size->longest;
  int64_t given = j->cfg->run.context, most = j->m->context_length, generate = j->cfg->run.generate;
  if (given > most)
    return REFUSE("run.context = %lld: expected at most the model's context of %lld (%s)", (long long)given,
                  (long long)most, gguf_path(j->m->file));
  if (j->context > most)
    return REFUSE("%s: %s %lld tokens and run.generate = %lld need %lld positions, but the model's "
                  "context is %lld; the command perplexity cuts a text into windows",
                  gguf_path(j->m->file), which, (long long)longest, (long long)generate,
                  (long long)j->context, (long long)most);
  if (needed > j->context)
    return REFUSE("run.context = %lld: %s %lld tokens and run.generate = %lld need %lld positions",
                  (long long)j->context, which, (long long)longest, (long long)generate, (long long)needed);
  return 0;
}

// The positions and the largest batch that the input and run.generate need.
static status choose_context(job *j) {
  enum { WINDOW = 512 }; // of perplexity and route, where run.context is not set
  const config *c = j->cfg;
  input_size size = input_measure(j->sequences, j->n_sequences);
  bool windows = command_cuts_windows(j->command); // then the input may be longer than the context
  int64_t needed = windows ? least(size.longest, WINDOW) : size.longest + c->run.generate;
  j->n_tokens = size.total;
  j->context = c->run.context ? c->run.context : needed;
  TRY(check_context(j, &size, windows ? 0 : needed));
  int64_t most = least(j->n_tokens, j->chunk);
  j->max_batch = most > j->n_sequences ? most : j->n_sequences; // decoding takes all sequences at once
  return 0;
}

static bool input_is_text(const job *j) {
  switch (j->cfg->input.kind) {
  case INPUT_NONE:
  case INPUT_TOKENS:
    return false;
  case INPUT_PROMPT:
  case INPUT_PROMPTS:
  case INPUT_FILE:
    return true;
  }
  __builtin_unreachable();
}

static status open_input(job *j) {
  if (input_is_text(j)) TRY(job_need_tokenizer(j));
  if (command_writes_text(j->command) && j->cfg->run.generate) {
    TRY(job_open_ends(j));
    TRY(stops_check(j->cfg, j->tokenizer, j->m->weights.shape.vocabulary));
  }
  TRY(input_open(&j->sequences, &j->n_sequences, j->cfg, j->m, j->tokenizer));
  return choose_context(j);
}

static status check_output(const job *j) {
  return job_is_reporting(j) && j->cfg->output.dir[0] ? output_dir_check(j->cfg->output.dir) : 0;
}

status job_read_input(job *j) {
  TRY(job_agree(j, open_input(j), "the input"));
  TRY(compare_input(j));
  TRY(job_agree(j, check_output(j), "the output folder"));
  return job_check_weights(j);
}

// ---- open and close ----

status job_open(job *out, command_kind command, const config *cfg, comm *c, bool needs_input) {
  *out = (job){.command = command, .cfg = cfg, .c = c};
  job *j = out;
  TRY(job_agree(j, launched_check(c), "the launcher"));
  TRY(agreement_of_builds(c));
  TRY(compare_config(j));
  TRY(job_agree(j, open_model(j), "opening the model"));
  TRY(job_agree(j, open_reference(j), "opening the reference's model"));
  TRY(compare_model(j));
  j->device = find_device(j);
  TRY(topology_open(&j->place, c, cfg->run.threads, cfg->run.bind, &j->device));
  TRY(job_agree(j, check_threads(j), "the threads"));
  TRY(job_agree(j, check_audit(j), "ranks.audit"));
  topology_bind_threads(j->place);
  if (!j->m->whole) return job_agree(j, job_warn(j), "the warnings"); // it is only shown
  TRY(open_roles(j));
  j->chunk = choose_chunk(j);
  if (command != COMMAND_SCREEN) TRY(agreement_of_kernels(j)); // which names what differs itself
  TRY(job_open_placement(j));
  TRY(job_agree(j, job_warn(j), "the warnings"));
  return needs_input ? job_read_input(j) : 0;
}

void job_close(job *j) {
  input_close(j->sequences, j->n_sequences);
  placement_close(&j->experts);
  rank_roles_close(&j->roles);
  tokenizer_close(j->tokenizer);
  end_tokens_close(j->ends);
  message_list_close(&j->warnings);
  message_list_close(&j->refusals);
  model_close(j->m);
  model_close(j->reference);
  topology_close(j->place);
}

// ---- arms ----

static status resolve_arm(const job *j, const arm_choice *choice, arm_spec *shared, arm_spec *local) {
  bool mixed = choice->kind == ARM_MIXED;
  if (mixed && !j->roles.mixed) return REFUSE("run.arms has \"%s\", but ranks.arm is not set", choice->name);
  TRY(arm_choice_resolve(local, job_arm_of_rank(j, choice, comm_rank(j->c))));
  return arm_choice_resolve(shared, mixed ? &j->roles.shared_arm : choice);
}

// Of the arm p, where there is to be an audit; the caller frees its experts_path.
static status describe_audit(const job *j, const arm_choice *choice, arm_params *p, audit_params *out) {
  path_kind *paths;
  *out = (audit_params){.m = p->m,
                        .c = p->c,
                        .computes_shared = p->computes_shared,
                        .shared = p->shared.path->kind,
                        .threads = topology_threads(p->place),
                        .row = p->row,
                        .share = j->cfg->ranks.audit};
  if (!(out->share > 0)) return 0;
  TRY(TAKE(&paths, (size_t)comm_size(j->c), "the paths of ranks' experts"));
  for (int r = 0; r < comm_size(j->c); r++) paths[r] = job_arm_of_rank(j, choice, r)->path;
  out->experts_path = paths;
  p->audit = out;
  return 0;
}

status job_open_arm(job *j, const arm_choice *choice, arm **out) {
  *out = NULL;
  arm_params p = {
      .name = choice->name,
      .m = j->reference && is_reference(j, choice) ? j->reference : j->m,
      .experts = &j->experts,
      .c = j->c,
      .place = j->place,
      .transport = j->cfg->comm.transport,
      .attention = j->cfg->attention.placement,
      .peers = j->cfg->comm.peers,
      .device = &j->device,
      .row = j->cfg->run.rows,
      .n_sequences = j->n_sequences,
      .context = j->context,
      .max_batch = j->max_batch,
      .batch_may_shrink = !j->cfg->run.chunk,
      .kv_f16 = j->cfg->run.kv == KV_F16,
      .fits_team = j->cfg->run.threads == 0,
      .computes_shared = choice->kind == ARM_MIXED ? j->roles.shared : NULL,
      .reporting = j->roles.reporting,
  };
  audit_params audited;
  TRY(job_agree(j, resolve_arm(j, choice, &p.shared, &p.local), choice->name));
  TRY(job_agree(j, describe_audit(j, choice, &p, &audited), choice->name));
  status result = arm_open(out, &p);
  free((path_kind *)audited.experts_path);
  if (!result && arm_max_batch(*out) < j->max_batch) j->chunk = j->max_batch = arm_max_batch(*out);
  return result;
}

static const char *changed_file(const job *j) {
  const char *path = gguf_changed_file(j->m->file);
  return path || !j->reference ? path : gguf_changed_file(j->reference->file);
}

static status refuse_change(const job *j) {
  const char *path = changed_file(j);
  return path ? FAIL("%s: the file changed while the run read it: no result of this run is valid", path) : 0;
}

void job_explain_error(const job *j) {
  if (!j->m || !changed_file(j)) return;
  if (!comm_error_is_agreed(j->c)) comm_take_turns(j->c); // others may find it at the same time
  status_reset();
  refuse_change(j);
}

status job_check_digest(job *j, arm *a) {
  TRY(arm_finish(a));
  TRY(job_agree(j, refuse_change(j), "the model file"));
  uint64_t digest = arm_digest(a);
  char what[96];
  TRY(arm_broadcast(a, &digest, sizeof digest, "the digest"));
  snprintf(what, sizeof what, "the digest of %s (the law: same path, same bits)", arm_name(a));
  return comm_equal(j->c, &digest, sizeof digest, what);
}
