#include "src/report/report_json.h"

// ---- sections ----

void report_json_model(branch root, const report *r) {
  branch o = put_object(root, "model");
  put_text(o, "name", r->model.name);
  put_text(o, "path", r->model.path);
  put_text(o, "architecture", r->model.architecture);
  put_digest(o, "fingerprint", r->model.fingerprint);
  put_integer(o, "bytes", (int64_t)r->model.bytes);
  put_text(o, "types", r->model.types);
  put_integer(o, "n_layers", r->model.n_layers);
  put_integer(o, "hidden", r->model.hidden);
  put_integer(o, "n_heads", r->model.n_heads);
  put_integer(o, "n_kv_heads", r->model.n_kv_heads);
  put_integer(o, "head_dim", r->model.head_dim);
  put_integer(o, "n_experts", r->model.n_experts);
  put_integer(o, "top_k", r->model.top_k);
  put_integer(o, "expert_width", r->model.expert_width);
  put_integer(o, "vocabulary", r->model.vocabulary);
}

static void put_surroundings(branch root, const report *r) {
  branch machine = put_object(root, "machine");
  put_text(machine, "cpu", r->machine.cpu);
  put_text(machine, "os", r->machine.os);
  put_integer(machine, "hosts", r->machine.hosts);
  put_integer(machine, "cores", r->machine.cores);
  branch build = put_object(root, "build");
  put_text(build, "version", r->build.version);
  put_text(build, "compiler", r->build.compiler);
  put_text(build, "flags", r->build.flags);
  put_text(build, "mpi", r->build.mpi);
  put_text(build, "row", r->build.row);
  branch run = put_object(root, "run");
  put_text(run, "config", r->config_text);
  put_text(run, "transport", r->transport);
  put_text(run, "transport_reason", r->transport_reason);
  put_text(run, "peers", r->peers);
  put_text(run, "placement", r->placement);
  put_text(run, "placement_reason", r->placement_reason);
  put_digest(run, "expert_map", r->expert_map);
  put_integer(run, "replicas", r->replicas);
  if (r->counted_load > 0) { // left out where nothing was counted
    put_real(run, "counted_load", r->counted_load);
    put_real(run, "contiguous_load", r->contiguous_load);
  }
  put_text(run, "kv", r->kv);
  put_digest(run, "input", r->input);
  if (r->reference) {
    branch reference = put_object(run, "reference");
    put_text(reference, "path", r->reference);
    put_digest(reference, "fingerprint", r->reference_fingerprint);
  } else
    put(run, "reference", json_null());
  if (r->imposes_routes)
    put_digest(run, "routes", r->imposed_routes);
  else
    put(run, "routes", json_null());
  put_integer(run, "chunk", r->chunk);
  put_integer(run, "context", r->context);
  put_integer(run, "sequences", (int64_t)r->n_sequences);
  if (r->timeline.profilers) { // left out where there is none
    branch o = put_object(run, "timeline");
    put_real(o, "largest_skew_seconds", r->timeline.largest_skew);
    put_real(o, "skew_bound_seconds", r->timeline.largest_bound);
    put_text(o, "profilers", r->timeline.profilers);
  }
  if (r->skip < 0)
    put(run, "skip", json_null());
  else
    put_integer(run, "skip", r->skip);
}

// null where the rank takes no device
static void put_device(branch rank, const report_rank *k) {
  if (k->gpu < 0) {
    put(rank, "gpu", json_null());
    return;
  }
  branch o = put_object(rank, "gpu");
  put_integer(o, "index", k->gpu);
  put_text(o, "pci", k->gpu_pci);
  put_text(o, "name", k->gpu_name);
  if (k->gpu_node >= 0)
    put_integer(o, "numa_node", k->gpu_node);
  else
    put(o, "numa_node", json_null());
}

static void put_ranks(branch root, const report *r) {
  branch list = put_array(root, "ranks");
  for (size_t i = 0; i < r->n_ranks; i++) {
    const report_rank *k = &r->ranks[i];
    branch o = put_object(list, NULL);
    put_integer(o, "rank", k->rank);
    put_text(o, "host", k->host);
    put_text(o, "cores", k->cores);
    put_integer(o, "threads", k->threads);
    put_text(o, "arm", k->arm);
    put_text(o, "role", k->role);
    put_integer(o, "experts", k->experts);
    put_integer(o, "experts_bytes", (int64_t)k->experts_bytes);
    put_integer(o, "shared_bytes", (int64_t)k->shared_bytes);
    put_integer(o, "state_bytes", (int64_t)k->state_bytes);
    put_device(o, k);
  }
}

static void put_texts(branch arm, const report_arm *a) {
  branch list = put_array(arm, "generated");
  for (size_t i = 0; i < a->n_texts; i++) {
    const report_text *t = &a->texts[i];
    branch o = put_object(list, NULL), ids = put_array(o, "tokens");
    for (size_t n = 0; n < t->n_tokens; n++) put_integer(ids, NULL, t->tokens[n]);
    put_integer(o, "sequence", t->sequence);
    if (t->text)
      put_text(o, "text", t->text);
    else
      put(o, "text", json_null());
    put_text(o, "stopped_by", t->stopped_by);
    put_digest(o, "digest", t->digest);
  }
}

// null where the command does not watch the arm's layers
static void put_checks(branch arm, const arm_checks *c) {
  if (!c->layer_rms) {
    put(arm, "invariants", json_null());
    return;
  }
  branch o = put_object(arm, "invariants");
  put_bool(o, "finite", c->finite);
  put_real(o, "weight_sum_error", c->weight_sum_error);
  put_integer(o, "least_expert", c->least_expert);
  put_integer(o, "most_expert", c->most_expert);
  put_bool(o, "distinct_experts", c->distinct_experts);
  branch streams = put_array(o, "layer_rms"), updates = put_array(o, "layer_update");
  for (int64_t l = 0; l < c->n_layers; l++) {
    put_real(streams, NULL, c->layer_rms[l]);
    put_real(updates, NULL, c->layer_update[l]);
  }
}

branch report_json_arm(branch list, const report *r, const report_arm *a) {
  branch o = put_object(list, NULL);
  put_text(o, "name", a->name);
  put_text(o, "path", a->path);
  put_integer(o, "path_version", a->path_version);
  put_text(o, "cache", a->cache);
  put_digest(o, "expert_paths", a->expert_paths);
  put_digest(o, "digest", a->digest);
  branch layers = put_array(o, "layer_digests");
  for (size_t i = 0; i < r->n_layers && a->layer_digests; i++) put_digest(layers, NULL, a->layer_digests[i]);
  return o;
}

// Left out where there was none.
static void put_audit(branch arm, const audit_coverage *c) {
  if (!(c->share > 0)) return;
  branch o = put_object(arm, "audit");
  put_real(o, "share", c->share);
  put_integer(o, "slots", c->slots);
  put_integer(o, "slots_of_others", c->slots_seen);
  put_integer(o, "experts", c->experts);
  put_integer(o, "experts_used", c->experts_used);
  put_integer(o, "ranks", c->ranks);
  put_real(o, "bad_expert_missed", report_bad_expert_missed(c));
  put_real(o, "bad_rank_missed", report_bad_rank_missed(c));
  put_real(o, "seconds", c->seconds);
}
static void put_arm(branch list, const report *r, const report_arm *a) {
  branch o = report_json_arm(list, r, a);
  put_integer(o, "ranks", (int64_t)r->n_ranks);
  put_integer(o, "threads", r->n_ranks ? r->ranks[0].threads : 0);
  put_integer(o, "tokens", a->tokens);
  put_real(o, "prefill_tokens_per_s", a->prefill_tokens_per_s);
  put_real(o, "decode_tokens_per_s", a->decode_tokens_per_s);
  put_text(o, "transport", a->transport);
  put_text(o, "attention", a->attention);
  put_real(o, "exchange_seconds", a->exchange_seconds);
  put_audit(o, &a->audit);
  put_real(o, "perplexity", a->perplexity);
  put_integer(o, "scored", a->scored);
  branch bytes = put_array(o, "bytes_per_rank"), arms = put_array(o, "rank_arms"),
         sequences = put_array(o, "sequences");
  for (size_t i = 0; i < r->n_ranks; i++) {
    put_integer(bytes, NULL, (int64_t)(r->ranks[i].experts_bytes + r->ranks[i].shared_bytes));
    if (a->rank_arms) put_text(arms, NULL, a->rank_arms[i]);
  }
  for (size_t i = 0; i < r->n_sequences && a->sequences; i++) {
    branch s = put_object(sequences, NULL);
    put_integer(s, "tokens", a->sequences[i].tokens);
    put_digest(s, "digest", a->sequences[i].digest);
  }
  put_checks(o, &a->checks);
  put_texts(o, a);
}

status report_json(json_t **out, const report *r) {
  bool bad = false;
  branch root = {json_object(), &bad};
  put_integer(root, "schema", REPORT_SCHEMA);
  put_text(root, "command", command_name(r->command));
  report_json_model(root, r);
  put_surroundings(root, r);
  put_messages(root, "warnings", r->warnings);
  put_ranks(root, r);
  branch arms = put_array(root, "arms");
  for (size_t i = 0; i < r->n_arms; i++) put_arm(arms, r, &r->arms[i]);
  report_json_pairs(root, r);
  put_bool(root, "complete", true);
  *out = root.node;
  if (!bad && root.node) return 0;
  json_decref(root.node);
  *out = NULL;
  return FAIL("report.json: cannot allocate the report");
}
