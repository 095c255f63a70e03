#include "base/plain_text.h"
#include "src/report/inspect_report.h"
#include "src/report/report.h"

static double mib(uint64_t bytes) {
  return (double)bytes / (1024.0 * 1024.0);
}

// Names out of a file, which anyone may have written.
static const char *plain(char out[256], const char *text) {
  snprintf(out, 256, "%s", text);
  plain_make(out);
  return out;
}

static void print_files(FILE *out, const gguf *g) {
  size_t n = gguf_file_count(g);
  for (size_t i = 0; i < n; i++) {
    const char *path = gguf_file_path(g, i);
    fprintf(out, "file     %s  %.1f MiB", path ? path : "missing", mib(gguf_file_bytes(g, i)));
    if (n > 1) fprintf(out, "  (%zu of a set of %zu)", i + 1, n);
    fputc('\n', out);
  }
}

// What the architecture's table says of a key that is not simply obeyed.
static void print_note(FILE *out, const architecture *a, const char *key) {
  bool ours;
  const setting_row *row = architecture_setting(&ours, a, key);
  if (ours && !row) fprintf(out, "  (without effect: no setting of %s that is known here)", a->name);
  if (!row) return;
  switch (row->kind) {
  case SETTING_SIZE:
  case SETTING_REAL:
    return;
  case SETTING_ONLY:
  case SETTING_ONLY_TEXT:
    fprintf(out, "  (no other value is supported: %s)", row->why);
    return;
  case SETTING_UNUSED:
    fprintf(out, "  (without effect: %s)", row->why);
    return;
  }
}

static void print_keys(FILE *out, const model *m) {
  char text[96], name[256];
  for (size_t i = 0; i < gguf_key_count(m->file); i++) {
    const char *key = gguf_key_name(m->file, i);
    gguf_key_describe(m->file, i, text, sizeof text);
    fprintf(out, "key      %-46s %s", plain(name, key), text);
    if (m->architecture) print_note(out, m->architecture, key);
    fputc('\n', out);
  }
}

static void print_tensors(FILE *out, const gguf *g) {
  char name[256];
  for (size_t i = 0; i < gguf_tensor_count(g); i++) {
    const gguf_tensor *t = gguf_tensor_at(g, i);
    fprintf(out, "tensor   %-32s %-5s [%lld", plain(name, t->name), type_name_any(t->type_number),
            (long long)t->dim[0]);
    for (int d = 1; d < t->n_dims; d++) fprintf(out, ", %lld", (long long)t->dim[d]);
    if (t->type)
      fprintf(out, "]  %.2f MiB%s\n", mib(t->bytes), t->data ? "" : ", not in the file");
    else
      fprintf(out, "]  no type that is computed with\n");
  }
}

static void print_shape(FILE *out, const model *m) {
  const model_shape *s = &m->weights.shape;
  char name[256];
  fprintf(out, "model    %s: %lld layers, hidden %lld, %lld query and %lld key/value heads of %lld,\n",
          plain(name, m->name), (long long)s->n_layers, (long long)s->hidden, (long long)s->n_heads,
          (long long)s->n_kv_heads, (long long)s->head_dim);
  fprintf(out,
          "         %lld experts of width %lld, top-%lld, vocabulary %lld%s, RoPE base %g, epsilon %g, "
          "context %lld\n",
          (long long)s->n_experts, (long long)s->expert_width, (long long)s->top_k, (long long)s->vocabulary,
          m->tied ? " (tied)" : "", s->rope_base, s->rms_epsilon, (long long)m->context_length);
  fprintf(out, "types    %s\n", m->types);
}

static void print_tokenizer(FILE *out, const inspection *i) {
  char text[256];
  if (i->tokenizer)
    fprintf(out, "text     %zu tokens\n", tokenizer_vocabulary(i->tokenizer));
  else if (i->tokenizer_error)
    fprintf(out, "text     cannot be read or written, token ids can: %s\n", plain(text, i->tokenizer_error));
  else
    fprintf(out, "text     no tokenizer\n");
  fprintf(out, "ends    ");
  for (size_t e = 0; e < end_tokens_count(i->ends); e++)
    fprintf(out, "%s %d %s", e ? "," : "", end_tokens_id(i->ends, e),
            plain(text, end_tokens_text(i->ends, e)));
  fputs(end_tokens_count(i->ends) ? "\n" : " none\n", out);
}

static void print_rank(FILE *out, const inspection *i, int rank) {
  const rank_holding *h = &i->ranks[rank];
  const placement *p = i->experts;
  fprintf(out, "rank %-3d %4lld experts a layer, %9.1f MiB owned + %.1f MiB shared; experts%s", rank,
          (long long)h->experts, mib(h->bytes), mib(i->m->shared_bytes),
          p->n_layers > 1 ? " of layer 0" : "");
  int shown = 0;
  for (int64_t e = 0; e < p->n_experts; e++)
    for (int32_t k = p->first[e]; k < p->first[e + 1]; k++)
      if (p->holder[k] == rank && shown++ < 8) fprintf(out, " %lld", (long long)e);
  fprintf(out, "%s\n", shown > 8 ? " ..." : "");
}

static void print_messages(FILE *out, const char *what, const message_list *list) {
  for (size_t i = 0; i < list->count; i++) {
    fprintf(out, "%-8s ", what);
    report_print_line(out, list->text[i], 1000, false);
    fputc('\n', out);
  }
}

void inspect_print(FILE *out, const inspection *i) {
  print_files(out, i->m->file);
  if (i->m->architecture) print_shape(out, i->m);
  print_keys(out, i->m);
  print_tensors(out, i->m->file);
  print_tokenizer(out, i);
  for (int r = 0; r < i->n_ranks && i->ranks; r++) print_rank(out, i, r);
  print_messages(out, "warning", i->warnings);
  print_messages(out, "refused", i->refusals);
  if (i->refusals->count)
    fprintf(out, "a run would refuse this file, for %zu reason%s\n", i->refusals->count,
            i->refusals->count == 1 ? "" : "s");
}
