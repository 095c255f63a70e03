#include "src/commands/inspect.h"
#include "base/memory.h"
#include "src/report/report.h"
#include <stdio.h>
#include <stdlib.h>

static double mib(uint64_t bytes) {
  return (double)bytes / (1024.0 * 1024.0);
}

// Names out of a file, which anyone may have written.
static const char *plain(char out[256], const char *text) {
  snprintf(out, 256, "%s", text);
  report_make_plain(out);
  return out;
}

static void print_files(const gguf *g) {
  for (size_t i = 0; i < gguf_file_count(g); i++)
    printf("file     %s  %.1f MiB\n", gguf_file_path(g, i), mib(gguf_file_bytes(g, i)));
}

// What the architecture's table says of a key that is not simply obeyed.
static void print_note(const architecture *a, const char *key) {
  bool ours;
  const setting_row *row = architecture_setting(&ours, a, key);
  if (ours && !row) printf("  (without effect: no setting of %s that is known here)", a->name);
  if (!row) return;
  switch (row->kind) {
  case SETTING_SIZE:
  case SETTING_REAL:
    return;
  case SETTING_ONLY:
  case SETTING_ONLY_TEXT:
    printf("  (no other value is supported: %s)", row->why);
    return;
  case SETTING_UNUSED:
    printf("  (without effect: %s)", row->why);
    return;
  }
}

static void print_keys(const model *m) {
  char text[96], name[256];
  for (size_t i = 0; i < gguf_key_count(m->file); i++) {
    const char *key = gguf_key_name(m->file, i);
    gguf_key_describe(m->file, i, text, sizeof text);
    printf("key      %-46s %s", plain(name, key), text);
    print_note(m->architecture, key);
    putchar('\n');
  }
}

static void print_tensors(const gguf *g) {
  char name[256];
  for (size_t i = 0; i < gguf_tensor_count(g); i++) {
    const gguf_tensor *t = gguf_tensor_at(g, i);
    printf("tensor   %-32s %-5s [%lld", plain(name, t->name), t->type->name, (long long)t->dim[0]);
    for (int d = 1; d < t->n_dims; d++) printf(", %lld", (long long)t->dim[d]);
    printf("]  %.2f MiB\n", mib(t->bytes));
  }
}

static void print_shape(const model *m) {
  const model_shape *s = &m->weights.shape;
  char name[256];
  printf("model    %s: %lld layers, hidden %lld, %lld query and %lld key/value heads of %lld,\n",
         plain(name, m->name), (long long)s->n_layers, (long long)s->hidden, (long long)s->n_heads,
         (long long)s->n_kv_heads, (long long)s->head_dim);
  printf("         %lld experts of width %lld, top-%lld, vocabulary %lld%s, RoPE base %g, epsilon %g, "
         "context %lld\n",
         (long long)s->n_experts, (long long)s->expert_width, (long long)s->top_k, (long long)s->vocabulary,
         m->tied ? " (tied)" : "", s->rope_base, s->rms_epsilon, (long long)m->context_length);
  printf("types    %s\n", m->types);
}

typedef struct {
  int64_t experts;
  uint64_t bytes;
} holding;

static void print_rank(const job *j, int rank, const holding *h) {
  printf("rank %-3d %4lld experts a layer, %9.1f MiB owned + %.1f MiB shared; experts", rank,
         (long long)h->experts, mib(h->bytes), mib(j->m->shared_bytes));
  int shown = 0;
  for (int64_t e = 0; e < j->experts.n_experts; e++) {
    if (j->experts.rank_of_expert[e] != rank) continue;
    if (shown++ < 8) printf(" %lld", (long long)e);
  }
  printf("%s\n", shown > 8 ? " ..." : "");
}

// Of a head's key or value in the cache of an arm of this path.
static uint64_t vector_bytes(const job *j, const path_info *path) {
  uint64_t n = (uint64_t)j->m->weights.shape.head_dim;
  switch (path->attention) {
  case ATTENTION_REALS:
    return n * path->real_bytes;
  case ATTENTION_RUN_KV:
    return n * (j->cfg->run.kv == KV_F16 ? 2 : 4);
  case ATTENTION_EXACT:
    return n * 2 + sizeof(float);
  }
  __builtin_unreachable();
}

// What a batch system must grant: weights are pages of the file, which ranks of a host share; on a GPU a rank
// holds its own.
static void print_memory(const job *j, const holding *all) {
  const model_shape *s = &j->m->weights.shape;
  uint64_t most = 0, sum = 0;
  for (int r = 0; r < comm_size(j->c); r++) {
    sum += all[r].bytes;
    most = all[r].bytes > most ? all[r].bytes : most;
  }
  printf("memory   weights: %.1f MiB for all ranks on one host, at most %.1f MiB for one rank on a host or "
         "GPU of its "
         "own\n",
         mib(sum + j->m->shared_bytes), mib(most + j->m->shared_bytes));
  for (size_t i = 0; i < j->cfg->run.arms.count; i++) {
    const arm_choice *a = &j->cfg->run.arms.arm[i];
    if (a->kind != ARM_PLAIN) continue;
    uint64_t each = 2 * (uint64_t)(s->n_layers * s->n_kv_heads) * vector_bytes(j, path_get(a->path));
    printf("memory   %s: %.1f KiB of keys and values for each position of a sequence, on every shared rank\n",
           a->name, (double)each / 1024);
  }
  printf("memory   and work space for a batch; a run's report has each rank's whole (state bytes). "
         "docs/running.md says "
         "what --mem covers\n");
}

status inspect_run(job *j) {
  holding mine = {j->experts.n_owned, model_experts_bytes(j->m, j->experts.local)}, *all;
  TRY(TAKE(&all, (size_t)comm_size(j->c), "ranks' holdings"));
  status result = comm_allgather(j->c, all, &mine, sizeof mine, "the gathering of ranks' holdings");
  if (!result && job_is_reporting(j)) {
    print_files(j->m->file);
    print_shape(j->m);
    print_keys(j->m);
    print_tensors(j->m->file);
    for (int r = 0; r < comm_size(j->c); r++) print_rank(j, r, &all[r]);
    print_memory(j, all);
    if (fflush(stdout)) result = FAIL("standard output: could not be written: %m");
  }
  free(all);
  return job_agree(j, result, "the inspection");
}
