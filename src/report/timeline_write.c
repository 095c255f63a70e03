#include "src/report/timeline_write.h"
#include "base/memory.h"
#include "base/whole_file.h"
#include "src/report/json_tree.h"
#include "src/report/report_file.h"
#include <stdlib.h>

// 48 bytes each, and about 100 in the file, which Perfetto reads up to some 2 GB of: of 48 layers, 2,000
// decoded tokens.
enum { MOST_SPANS = 1 << 20 };

static const char FILE_NAME[] = "timeline.json";

// ---- start ----

static status prepare(const job *j) {
  const char *dir = j->cfg->output.dir;
  if (!dir[0])
    return REFUSE("output.timeline: expected a folder for timeline.json, with --out DIR or output.dir");
  return job_is_reporting(j) ? report_file_retract_name(dir, FILE_NAME) : 0;
}

status timeline_start(job *j) {
  if (!j->cfg->output.timeline) return 0;
  TRY(job_agree(j, prepare(j), "output.timeline"));
  return timeline_open(&j->timeline, j->c, j->roles.reporting, MOST_SPANS);
}

// ---- events ----

typedef struct {
  FILE *f;
  const timeline *t;
  branch ranks; // of the file's otherData
  size_t n;     // events written
  uint64_t lost;
} event_writer;

// Whole nanoseconds, so that what nests still does when it is rounded.
static int64_t nanoseconds(double seconds) {
  double n = seconds * 1e9;
  return (int64_t)(n < 0 ? n - 0.5 : n + 0.5);
}

static void put_time(FILE *f, const char *key, int64_t n) {
  int64_t size = n < 0 ? -n : n;
  fprintf(f, ", \"%s\": %s%" PRId64 ".%03d", key, n < 0 ? "-" : "", size / 1000, (int)(size % 1000));
}

// The start of a complete event; its args and the closing braces follow.
static void start_event(event_writer *w, int rank, span_kind kind, int64_t start, int64_t end) {
  const span_info *info = span_get(kind);
  fprintf(w->f, "%s\n{\"ph\": \"X\", \"pid\": %d, \"tid\": 0, \"name\": \"%s\", \"cat\": \"%s\"",
          w->n++ ? "," : "", rank, info->name, info->category);
  put_time(w->f, "ts", start);
  put_time(w->f, "dur", end > start ? end - start : 0);
  fputs(", \"args\": {", w->f);
}

static void put_span(event_writer *w, int rank, const span *s) {
  const span_info *info = span_get((span_kind)s->kind);
  const char *separator = "", *label = timeline_label_name(w->t, s->label);
  int64_t start = nanoseconds(s->start), end = nanoseconds(s->end);
  start_event(w, rank, (span_kind)s->kind, start, end);
  if (!s->depth && *label) {
    fprintf(w->f, "\"arm\": \"%s\"", label);
    separator = ", ";
  }
  if (s->layer != SPAN_NO_LAYER) {
    fprintf(w->f, "%s\"layer\": %d", separator, s->layer);
    separator = ", ";
  }
  if (info->amount && s->amount != SPAN_NO_AMOUNT)
    fprintf(w->f, "%s\"%s\": %" PRId64, separator, info->amount, s->amount);
  fputs("}}", w->f);
  int64_t waited = nanoseconds(s->start + s->wait);
  if (s->kind != SPAN_EXCHANGE || s->last < 0 || waited <= start) return;
  start_event(w, rank, SPAN_WAIT, start, waited < end ? waited : end);
  fprintf(w->f, "\"rank\": %d}}", s->last);
}

static void put_name(event_writer *w, int rank) {
  fprintf(w->f,
          "%s\n{\"ph\": \"M\", \"pid\": %d, \"tid\": 0, \"name\": \"process_name\", \"args\": {\"name\": ",
          w->n++ ? "," : "", rank);
  fprintf(w->f, "\"rank %d\"}},", rank);
  fprintf(w->f,
          "\n{\"ph\": \"M\", \"pid\": %d, \"tid\": 0, \"name\": \"process_sort_index\", \"args\": "
          "{\"sort_index\": %d}}",
          rank, rank);
}

static void put_clock(branch rank, const char *key, const clock_skew *s) {
  branch o = put_object(rank, key);
  put_real(o, "skew_seconds", s->seconds);
  put_real(o, "bound_seconds", s->bound);
}

static status take_rank(void *context, const rank_spans *r) {
  event_writer *w = (event_writer *)context;
  w->lost += r->lost;
  branch o = put_object(w->ranks, NULL);
  put_integer(o, "rank", r->rank);
  put_text(o, "host", comm_host_of(timeline_comm(w->t), r->rank));
  put_integer(o, "spans", (int64_t)r->n_spans);
  put_integer(o, "lost", (int64_t)r->lost);
  put_clock(o, "clock_at_start", &r->clock.start);
  put_clock(o, "clock_at_end", &r->clock.end);
  put_name(w, r->rank);
  for (size_t i = 0; i < r->n_spans; i++) put_span(w, r->rank, &r->spans[i]);
  return ferror(w->f) ? FAIL("%s: cannot be written: %m", FILE_NAME) : 0;
}

// ---- the file ----

static status put_rest(event_writer *w, branch other) {
  fputs("\n],\n\"otherData\": ", w->f);
  bool bad = *other.bad || !other.node || json_dumpf(other.node, w->f, JSON_INDENT(1));
  fputs("\n}\n", w->f);
  return bad ? FAIL("%s: cannot be written: %m", FILE_NAME) : 0;
}

static status open_file(const job *j, whole_file *f) {
  if (!job_is_reporting(j)) return 0;
  TRY(whole_file_open(f, j->cfg->output.dir, FILE_NAME));
  fputs("{\"displayTimeUnit\": \"ms\",\n\"traceEvents\": [", f->f);
  return 0;
}

static status close_file(const job *j, whole_file *f, event_writer *w, branch other) {
  if (!job_is_reporting(j)) return 0;
  if (w->lost) fprintf(stderr, "warning: %s lacks %" PRIu64 " spans that had no room\n", FILE_NAME, w->lost);
  TRY(put_rest(w, other));
  TRY(whole_file_sync(f));
  TRY(whole_file_name(f));
  return whole_file_sync_dir(j->cfg->output.dir);
}

status timeline_write(job *j) {
  whole_file f = {.f = NULL};
  bool bad = false;
  if (!j->timeline) return 0;
  branch other = {json_object(), &bad};
  put_text(other, "command", command_name(j->command));
  put_integer(other, "clock_of_rank", j->roles.reporting);
  put_text(other, "profilers", timeline_profilers());
  event_writer w = {.t = j->timeline, .ranks = put_array(other, "ranks")};
  status result = job_agree(j, open_file(j, &f), "the timeline's file");
  w.f = f.f;
  if (!result) result = timeline_merge(j->timeline, take_rank, &w);
  if (!result) result = job_agree(j, close_file(j, &f, &w, other), "the timeline's file");
  whole_file_abandon(&f);
  json_decref(other.node);
  return result;
}
