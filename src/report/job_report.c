#include "src/report/job_report.h"
#include "base/memory.h"
#include "kernels/formats/numerics.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "build_info.h"

typedef struct { // of one rank, all-gathered
  char host[64], cores[96], arm[ARM_NAME_BYTES];
  device_id device;
  int32_t threads, device_node;
  uint64_t experts_bytes, shared_bytes;
  int64_t experts;
} rank_facts;

// This rank is a shared rank of some arm.
static bool computes_shared(const job *j) {
  bool computes = j->roles.shared[comm_rank(j->c)];
  for (size_t a = 0; a < j->cfg->run.arms.count; a++)
    computes = computes || j->cfg->run.arms.arm[a].kind != ARM_MIXED;
  return computes;
}

static rank_facts local_facts(const job *j) {
  rank_facts f = {.device = j->device,
                  .device_node = topology_device_node(j->place),
                  .threads = topology_threads(j->place),
                  .shared_bytes = computes_shared(j) ? j->m->shared_bytes : 0,
                  .experts = j->experts.n_held};
  expert_map held = placement_map(&j->experts);
  f.experts_bytes = model_experts_bytes(j->m, &held);
  snprintf(f.host, sizeof f.host, "%s", comm_host(j->c));
  snprintf(f.cores, sizeof f.cores, "%s", topology_cores(j->place));
  memcpy(f.arm, j->roles.arm[comm_rank(j->c)].name, sizeof f.arm);
  return f;
}

static status report_ranks(job *j, report *r) {
  size_t n = (size_t)comm_size(j->c);
  rank_facts mine = local_facts(j), *all;
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
  r->model.architecture = j->m->architecture->name;
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
  r->build.row = "none";
}

status job_report_open(job *j, report *out, size_t n_arms, size_t n_pairs, size_t n_token_rows) {
  *out = (report){.command = j->command, .n_arms = n_arms, .n_pairs = n_pairs, .n_tokens = n_token_rows};
  report *r = out;
  report_model(j, r);
  report_build(j, r);
  r->n_layers = (size_t)j->m->weights.shape.n_layers;
  r->n_sequences = (size_t)j->n_sequences;
  r->chunk = j->chunk;
  r->context = j->context;
  r->input = j->input;
  r->warnings = &j->warnings;
  r->reference = j->reference ? gguf_path(j->reference->file) : NULL;
  r->reference_fingerprint = job_reference_fingerprint(j);
  r->skip = command_cuts_windows(j->command) ? j->cfg->perplexity.skip : -1;
  r->timeline = timeline_describe(j->timeline);
  r->kv = j->cfg->run.kv == KV_F16 ? "f16" : "f32";
  r->counted_load = j->experts.counted_load;
  r->contiguous_load = j->experts.contiguous_load;
  r->placement = placement_name(j->experts.kind);
  r->placement_reason = j->experts.reason;
  r->expert_map = j->experts.hash;
  r->replicas = placement_replicas(&j->experts, j->m->weights.shape.n_layers);
  char *text;
  TRY(config_text(j->cfg, &text));
  r->config_text = text;
  TRY(TAKE(&r->arms, n_arms, "the report"));
  TRY(TAKE(&r->pairs, n_pairs, "the report"));
  TRY(TAKE(&r->tokens, n_token_rows, "the report"));
  for (size_t i = 0; i < n_pairs; i++) TRY(TAKE(&r->pairs[i].layers, r->n_layers, "the report"));
  return report_ranks(j, r);
}

const char *report_cache_name(const path_info *path, const char *kv) {
  switch (path->attention) {
  case ATTENTION_REALS:
    return path->real_bytes == sizeof(double) ? "f64" : "f32";
  case ATTENTION_RUN_KV:
    return kv;
  case ATTENTION_EXACT:
    return "limbs";
  }
  __builtin_unreachable();
}

static void close_arm(report_arm *a) {
  free(a->layer_digests);
  free(a->sequences);
  free(a->rank_arms);
  for (size_t t = 0; t < a->n_texts; t++) {
    free(a->texts[t].tokens);
    free(a->texts[t].text);
    free(a->texts[t].stopped_by);
  }
  free(a->texts);
  arm_checks_close(&a->checks);
}

static void close_pairs(pair_statistics *pairs, size_t n) {
  for (size_t i = 0; i < n && pairs; i++) {
    free(pairs[i].layers);
    free(pairs[i].probes);
    free(pairs[i].experts);
  }
  free(pairs);
}

void job_report_close(report *r) {
  for (size_t i = 0; i < r->n_arms && r->arms; i++) close_arm(&r->arms[i]);
  for (size_t m = 0; m < r->n_modes; m++) {
    free(r->modes[m].digests);
    free(r->modes[m].layer_digests);
    close_pairs(r->modes[m].pairs, r->n_pairs);
  }
  for (size_t i = 0; i < r->n_pairs && r->accounts; i++) free(r->accounts[i].layers);
  free(r->accounts);
  for (size_t i = 0; i < r->n_ranks && r->ranks; i++) {
    free((char *)r->ranks[i].host);
    free((char *)r->ranks[i].cores);
    free((char *)r->ranks[i].arm);
    free((char *)r->ranks[i].gpu_pci);
    free((char *)r->ranks[i].gpu_name);
  }
  free(r->arms);
  close_pairs(r->pairs, r->n_pairs);
  free(r->tokens);
  free(r->ranks);
  free((char *)r->config_text);
}

static status report_state(job *j, const arm *a, report *r) {
  uint64_t mine = arm_state_bytes(a), *all;
  TRY(TAKE(&all, r->n_ranks, "ranks' bytes"));
  status result = comm_allgather(j->c, all, &mine, sizeof mine, "the gathering of ranks' bytes");
  for (size_t i = 0; i < r->n_ranks && !result; i++)
    if (all[i] > r->ranks[i].state_bytes) r->ranks[i].state_bytes = all[i];
  free(all);
  return result;
}

status job_report_arm(job *j, arm *a, report *r, size_t index, int64_t tokens) {
  TRY(arm_finish(a));
  TRY(arm_add_parts(a));
  TRY(report_state(j, a, r));
  report_arm *out = &r->arms[index];
  const arm_choice *choice = &j->cfg->run.arms.arm[index];
  size_t n_layers = r->n_layers, n_sequences = r->n_sequences;
  const transport *t = arm_transport(a);
  out->transport = transport_name(t);
  if (!r->transport || *transport_reason(t)) { // an arm that needs no reason does not hide another's
    r->transport = out->transport;
    snprintf(r->transport_reason, sizeof r->transport_reason, "%s", transport_reason(t));
  }
  if (*arm_peers(a)) snprintf(r->peers, sizeof r->peers, "%s", arm_peers(a));
  if (!backend_is_on_device(arm_backend(a))) r->build.row = arm_row(a); // else it stays "none"
  arm_attention(a, out->attention, sizeof out->attention);
  out->name = choice->name;
  out->is_truth = arm_is_truth(choice);
  out->path = arm_path(a)->name;
  out->path_version = arm_path(a)->version;
  out->cache = report_cache_name(arm_path(a), r->kv);
  out->digest = arm_digest(a);
  out->tokens = tokens;
  out->prefill_tokens_per_s = arm_seconds(a) > 0 ? (double)tokens / arm_seconds(a) : 0;
  out->decode_tokens_per_s = __builtin_nan("");
  out->perplexity = __builtin_nan("");
  out->exchange_seconds = arm_exchange_seconds(a);
  TRY(TAKE(&out->layer_digests, n_layers, "the report"));
  TRY(TAKE(&out->sequences, n_sequences, "the report"));
  TRY(TAKE(&out->rank_arms, r->n_ranks, "the report"));
  for (size_t l = 0; l < n_layers; l++) out->layer_digests[l] = arm_layer_digest(a, (int64_t)l);
  for (size_t s = 0; s < n_sequences; s++)
    out->sequences[s] = (report_sequence){j->sequences[s].n, arm_sequence_digest(a, (int64_t)s)};
  for (size_t i = 0; i < r->n_ranks; i++) out->rank_arms[i] = job_arm_of_rank(j, choice, (int)i)->name;
  out->expert_paths = job_expert_paths(j, choice);
  return arm_audit_coverage(a, &out->audit);
}

static status open_mode(report *r, report_mode *m) {
  TRY(TAKE(&m->digests, r->n_arms, "the report"));
  TRY(TAKE(&m->layer_digests, r->n_arms * r->n_layers, "the report"));
  TRY(TAKE(&m->pairs, r->n_pairs, "the report"));
  for (size_t i = 0; i < r->n_pairs; i++) {
    TRY(TAKE(&m->pairs[i].layers, r->n_layers, "the report"));
    m->pairs[i].a = r->pairs[i].a;
    m->pairs[i].b = r->pairs[i].b;
  }
  return 0;
}

status job_report_mode_open(job *j, report *r, parity_mode mode, pair_statistics **pairs) {
  report_mode *m = &r->modes[r->n_modes++];
  m->mode = mode;
  TRY(job_agree(j, open_mode(r, m), "the report"));
  *pairs = m->pairs;
  return 0;
}

status job_report_mode(job *j, arm *const *arms, report *r) {
  report_mode *m = &r->modes[r->n_modes - 1];
  for (size_t a = 0; a < r->n_arms; a++) {
    TRY(arm_finish(arms[a]));
    TRY(arm_add_parts(arms[a]));
    m->digests[a] = arm_digest(arms[a]);
    for (size_t l = 0; l < r->n_layers; l++)
      m->layer_digests[a * r->n_layers + l] = arm_layer_digest(arms[a], (int64_t)l);
    TRY(job_check_digest(j, arms[a]));
  }
  return 0;
}

status job_report_accounts(report *r) {
  TRY(TAKE(&r->accounts, r->n_pairs, "the report"));
  for (size_t i = 0; i < r->n_pairs; i++) {
    TRY(TAKE(&r->accounts[i].layers, r->n_layers, "the report"));
    r->accounts[i].a = r->pairs[i].a;
    r->accounts[i].b = r->pairs[i].b;
  }
  return 0;
}

status job_report_finish(job *j, report *r) {
  r->chunk = j->chunk; // as far as it fell to fit the arms
  status mine = 0;
  if (job_is_reporting(j)) {
    if (j->cfg->output.dir[0]) mine = report_write(r, j->cfg->output.dir);
    if (!mine) {
      report_print(r, stdout);
      if (fflush(stdout)) mine = FAIL("standard output: the report could not be written: %m");
    }
  }
  return job_agree(j, mine, "writing the report");
}
