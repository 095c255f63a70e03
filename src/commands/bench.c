#include "src/commands/bench.h"
#include "base/memory.h"
#include "base/progress.h"
#include "base/stolen_time.h"
#include "base/whole_file.h"
#include "src/commands/known.h"
#include "src/commands/memory_bandwidth.h"
#include "src/commands/phase_work.h"
#include "src/commands/rank_clocks.h"
#include "src/commands/rank_work.h"
#include "src/commands/stolen_runs.h"
#include "src/report/bench_report.h"
#include "src/report/report.h"
#include "src/run/input.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  bool decode;
  int64_t tokens, depth, batch;
} test;

typedef struct {
  job *j;
  bench_report report;
  test *tests; // of every arm
  size_t n_tests;
  int32_t *token, *sequence, *position; // the batch that is being put together [max_batch]
  int64_t *from;                        // [n_sequences] position where a pass starts
  int64_t *filled;                      // [n_sequences] cached positions of the open arm
  double *seconds;                      // [repeats] of this rank
  phase_counter counter;
  rank_work ranks;
  rank_clocks clocks;
  bool clocked;       // the pass that runs, with clocks
  phase_work *work;   // of the pass that runs; NULL: not counted
  int64_t n_batches;  // of the pass
  bench_link largest; // of the open arm
} bench;

// ---- the tests to run ----

static int64_t largest(const size_list *list) {
  int64_t most = 0;
  for (size_t i = 0; i < list->count; i++) most = list->size[i] > most ? list->size[i] : most;
  return most;
}

static status list_tests(bench *b) {
  const config *c = b->j->cfg;
  const size_list *sizes[2] = {&c->bench.prompt, &c->bench.generate};
  size_t most = (sizes[0]->count + sizes[1]->count) * c->bench.depth.count * c->bench.batch.count;
  if (!most)
    return REFUSE(
        "nothing to measure: bench.prompt and bench.generate are empty, or bench.depth or bench.batch is");
  TRY(TAKE(&b->tests, most, "the tests"));
  for (size_t n = 0; n < c->bench.batch.count; n++)
    for (size_t d = 0; d < c->bench.depth.count; d++)
      for (int decode = 0; decode < 2; decode++)
        for (size_t i = 0; i < sizes[decode]->count; i++)
          b->tests[b->n_tests++] =
              (test){decode, sizes[decode]->size[i], c->bench.depth.size[d], c->bench.batch.size[n]};
  return 0;
}

static int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// The caches and the largest batch that the tests need, where job.c would take them from the input.
static status choose_context(bench *b) {
  job *j = b->j;
  const config *c = j->cfg;
  int64_t prompt = largest(&c->bench.prompt), depth = largest(&c->bench.depth),
          decoded = largest(&c->bench.generate);
  int64_t needed = depth + (prompt > decoded ? prompt : decoded), given = c->run.context;
  int64_t at_once = prompt > depth ? prompt : depth, sequences = largest(&c->bench.batch);
  if (needed > j->m->context_length)
    return REFUSE("%s: bench needs %lld positions, but the model's context is %lld", gguf_path(j->m->file),
                  (long long)needed, (long long)j->m->context_length);
  if (given && given < needed)
    return REFUSE("run.context = %lld: bench needs %lld positions", (long long)given, (long long)needed);
  j->context = given ? given : needed;
  j->max_batch = least(at_once * sequences, j->chunk);
  if (j->max_batch < sequences) j->max_batch = sequences;
  return 0;
}

static status make_sequences(bench *b) {
  job *j = b->j;
  int64_t n = largest(&j->cfg->bench.batch);
  TRY(TAKE(&j->sequences, (size_t)n, "the sequences"));
  for (; j->n_sequences < n; j->n_sequences++) {
    token_sequence *s = &j->sequences[j->n_sequences];
    s->n = j->context;
    TRY(TAKE(&s->tokens, (size_t)j->context, "the sequences"));
    for (int64_t t = 0; t < j->context; t++)
      s->tokens[t] = input_drawn(j->cfg->run.seed, j->m->weights.shape.vocabulary, j->n_sequences, t);
  }
  return 0;
}

static status take_arrays(bench *b) {
  const job *j = b->j;
  size_t repeats = (size_t)j->cfg->bench.repeats, rows = b->n_tests * j->cfg->run.arms.count;
  TRY(TAKE(&b->token, (size_t)j->max_batch, "a batch"));
  TRY(TAKE(&b->sequence, (size_t)j->max_batch, "a batch"));
  TRY(TAKE(&b->position, (size_t)j->max_batch, "a batch"));
  TRY(TAKE(&b->from, (size_t)j->n_sequences, "the sequences"));
  TRY(TAKE(&b->filled, (size_t)j->n_sequences, "the sequences"));
  TRY(TAKE(&b->seconds, repeats, "times"));
  b->counter = (phase_counter){j->m, &j->experts, j->cfg->run.kv == KV_F16, comm_rank(j->c), NULL};
  TRY(TAKE(&b->counter.chosen, (size_t)j->m->weights.shape.n_experts, "chosen experts"));
  TRY(TAKE(&b->report.rows, rows, "the rates"));
  for (size_t i = 0; i < rows; i++) TRY(TAKE(&b->report.rows[i].rate, repeats, "the rates"));
  for (size_t i = 0; i < rows; i++) {
    TRY(TAKE(&b->report.rows[i].rank_seconds, repeats * (size_t)comm_size(j->c), "times"));
    TRY(TAKE(&b->report.rows[i].stolen_seconds, repeats, "times"));
  }
  if (!j->cfg->bench.phases) return 0;
  for (size_t i = 0; i < rows; i++) {
    TRY(TAKE(&b->report.rows[i].phases, 1, "the phases"));
    TRY(bench_ranks_open(&b->report.rows[i].ranks, comm_size(j->c)));
  }
  TRY(rank_work_open(&b->ranks, j->m, &j->experts));
  return rank_clocks_open(&b->clocks, j->m->weights.shape.n_layers);
}

static status bench_open(bench *b) {
  TRY(list_tests(b));
  TRY(known_check_table(b->j->cfg));
  TRY(choose_context(b));
  TRY(make_sequences(b));
  TRY(take_arrays(b));
  const char *dir = b->j->cfg->output.dir;
  return job_is_reporting(b->j) && dir[0] ? output_dir_check(dir) : 0;
}

static void bench_close(bench *b) {
  for (size_t i = 0; b->report.rows && i < b->n_tests * b->j->cfg->run.arms.count; i++) {
    free(b->report.rows[i].rate);
    free(b->report.rows[i].rank_seconds);
    free(b->report.rows[i].stolen_seconds);
    free(b->report.rows[i].phases);
    bench_ranks_close(b->report.rows[i].ranks);
  }
  free(b->report.rows);
  free(b->tests);
  free(b->token);
  free(b->sequence);
  free(b->position);
  free(b->from);
  free(b->filled);
  free(b->seconds);
  free(b->counter.chosen);
  rank_work_close(&b->ranks);
  rank_clocks_close(&b->clocks);
}

// ---- what a pass reads ----

static status forward_counted(bench *b, arm *a, const token_batch *batch) {
  arm_watch_layers(a, true);
  status result = arm_embed(a, batch);
  if (!result && arm_computes_shared(a)) phase_work_add_shared(b->work, &b->counter, a, batch);
  for (int64_t layer = 0; layer < b->j->m->weights.shape.n_layers && !result; layer++) {
    result = arm_layer(a, layer);
    if (result) break;
    phase_work_add_experts(b->work, &b->counter, a, layer, batch);
    rank_work_add_layer(&b->ranks, a, layer, batch);
  }
  arm_watch_layers(a, false);
  return result;
}

static status forward(bench *b, arm *a, const token_batch *batch) {
  if (b->clocked) return rank_clocks_forward(&b->clocks, a, batch);
  return b->work ? forward_counted(b, a, batch) : arm_forward(a, batch);
}

// ---- passes ----

// Heads of the batch's rows first .. first + count - 1.
static status compute_heads(bench *b, arm *a, int64_t first, int64_t count) {
  if (b->work && arm_computes_shared(a)) phase_work_add_heads(b->work, &b->counter, a, count);
  for (int64_t end = first + count; first < end; first += LOGIT_ROWS) {
    int64_t rows = least(LOGIT_ROWS, end - first);
    rank_work_add_head(&b->ranks, a, rows);
    TRY(arm_head(a, first, rows));
  }
  return 0;
}

static status read_batch(bench *b, arm *a, const token_batch *batch, const int64_t *last) {
  b->n_batches++;
  TRY(forward(b, a, batch));
  for (int64_t i = 0; i < batch->n && last; i++)
    if (batch->position[i] == *last) TRY(compute_heads(b, a, i, 1));
  for (int64_t i = 0; i < batch->n; i++)
    if (b->filled[batch->sequence[i]] == batch->position[i]) b->filled[batch->sequence[i]]++;
  return 0;
}

// Positions from[s] .. to - 1 of the first n sequences, in batches as a prompt is read; with `head` the
// logits of each one's last position.
static status read_positions(bench *b, arm *a, int64_t n_sequences, const int64_t *from, int64_t to,
                             bool head) {
  int64_t n = 0, last = to - 1;
  for (int64_t s = 0; s < n_sequences; s++)
    for (int64_t p = from[s]; p < to; p++) {
      b->token[n] = b->j->sequences[s].tokens[p];
      b->sequence[n] = (int32_t)s;
      b->position[n++] = (int32_t)p;
      if (n < b->j->max_batch && !(p == last && s == n_sequences - 1)) continue;
      token_batch batch = {n, b->token, b->sequence, b->position};
      TRY(read_batch(b, a, &batch, head ? &last : NULL));
      n = 0;
    }
  if (!n) return 0;
  token_batch rest = {n, b->token, b->sequence, b->position}; // where the last sequence had nothing to read
  return read_batch(b, a, &rest, head ? &last : NULL);
}

static status decode(bench *b, arm *a, const test *t) {
  token_batch batch = {t->batch, b->token, b->sequence, b->position};
  for (int64_t p = t->depth; p < t->depth + t->tokens; p++) {
    for (int64_t s = 0; s < t->batch; s++) {
      b->token[s] = b->j->sequences[s].tokens[p];
      b->sequence[s] = (int32_t)s;
      b->position[s] = (int32_t)p;
    }
    b->n_batches++;
    TRY(forward(b, a, &batch));
    TRY(compute_heads(b, a, 0, t->batch));
  }
  return 0;
}

// One run of a test.
static status pass(bench *b, arm *a, const test *t) {
  arm_reset(a);
  b->n_batches = 0;
  arm_keep_logits(a, false); // their digest is taken where they lie
  for (int64_t s = 0; s < t->batch; s++) b->from[s] = t->depth;
  if (t->decode)
    TRY(decode(b, a, t));
  else
    TRY(read_positions(b, a, t->batch, b->from, t->depth + t->tokens, true));
  return arm_finish(a);
}

// Keeps what an earlier test left in the caches: keys and values of the same tokens.
static status fill_caches(bench *b, arm *a, const test *t) {
  memcpy(b->from, b->filled, (size_t)t->batch * sizeof *b->from);
  TRY(read_positions(b, a, t->batch, b->from, t->depth, false));
  return arm_finish(a);
}

// Batches after which it is chosen how attention is computed (attention.placement), before the clock runs.
enum { CHOOSING = 32 };

// ---- a test ----

typedef struct { // of a rank, gathered by all
  uint64_t bytes;
  int32_t on_cpu;
} rank_reads;

static bool is_on_cpu(const arm *a) {
  return !backend_is_on_device(arm_backend(a));
}

// The bandwidth is that of the hosts' memory, so it bounds only what all ranks compute from there.
static status gather_bytes(const bench *b, const arm *a, const test *t, uint64_t bytes, bench_row *row) {
  comm *c = b->j->c;
  rank_reads mine = {bytes, is_on_cpu(a)}, *all;
  double sum = 0;
  row->bytes_per_token = __builtin_nan("");
  if (!t->decode) return 0;
  TRY(TAKE(&all, (size_t)comm_size(c), "ranks' bytes"));
  status result = comm_allgather(c, all, &mine, sizeof mine, "the gathering of ranks' bytes");
  for (int r = 0; r < comm_size(c); r++) sum += all[r].on_cpu ? (double)all[r].bytes : __builtin_nan("");
  if (!result) row->bytes_per_token = sum / (double)(t->tokens * t->batch);
  free(all);
  return result;
}

// Every step waits for all ranks, so the slowest rank's clock is the job's.
static status gather_rates(bench *b, const test *t, bench_row *row) {
  comm *c = b->j->c;
  TRY(comm_allgather(c, row->rank_seconds, b->seconds, row->n * sizeof *b->seconds,
                     "the gathering of times"));
  for (size_t i = 0; i < row->n; i++) {
    double slowest = 0;
    for (size_t r = 0; r < (size_t)comm_size(c); r++) {
      double seconds = row->rank_seconds[r * row->n + i];
      slowest = seconds > slowest ? seconds : slowest;
    }
    row->rate[i] = (double)(t->tokens * t->batch) / slowest;
  }
  return 0;
}

// An exchange in a captured graph cannot be timed there, so it is measured alone, without the wait for the
// slowest rank.
static status measure_exchange(const bench *b, arm *a, const test *t, bench_row *row) {
  int64_t all = t->tokens * t->batch, n = t->decode ? t->batch : least(all, b->j->max_batch);
  double each;
  row->exchange_seconds = comm_size(b->j->c) == 1 ? __builtin_nan("") : arm_exchange_seconds(a);
  if (arm_has_peers(a)) row->exchange_seconds = __builtin_nan(""); // inside kernels
  row->exchange_is_alone = arm_exchange_is_captured(a, n);
  if (!row->exchange_is_alone) return 0;
  TRY(arm_measure_exchange(a, &each, n));
  row->exchange_seconds = each * (double)(b->j->m->weights.shape.n_layers * ((all + n - 1) / n));
  return 0;
}

static status time_passes(bench *b, arm *a, const test *t, bench_row *row) {
  for (size_t i = 0; i < row->n; i++) {
    TRY(job_agree(b->j, 0, "the start of a timed run")); // a barrier: no clock runs while ranks arrive
    const double stolen = stolen_seconds();
    TRY(pass(b, a, t));
    b->seconds[i] = arm_seconds(a);
    row->stolen_seconds[i] = stolen_seconds() - stolen;
    TRY(arm_add_parts(a));
    if (!i) row->digest = arm_digest(a);
    if (arm_digest(a) != row->digest)
      return FAIL(
          "%s: run %zu of %zu has logits of digest %016llx, the first %016llx: the same run gave other bits",
          row->arm, i + 1, row->n, (unsigned long long)arm_digest(a), (unsigned long long)row->digest);
  }
  return 0;
}

// A pass for the counts alone: watching the routing slows a device down.
static status counted_pass(bench *b, arm *a, const test *t, phase_work *work, bench_row *row) {
  *work = (phase_work){0};
  b->work = work;
  rank_work_start(&b->ranks, row->ranks);
  status result = pass(b, a, t);
  rank_work_end(&b->ranks);
  b->work = NULL;
  return result;
}

// What was counted from the routing is what was sent, where it can be seen.
static status check_sent(const bench *b, const arm *a, uint64_t sent, const bench_row *row) {
  uint64_t counted = row->ranks->sent[comm_rank(b->j->c)];
  if (!arm_computes_shared(a) || arm_has_peers(a) || sent == counted) return 0;
  return FAIL("%s: the exchange sent %llu bytes, but the routing has %llu", row->arm,
              (unsigned long long)sent, (unsigned long long)counted);
}

static status watched_pass(bench *b, arm *a, const test *t, const bench_row *row) {
  uint64_t before = arm_exchange_bytes(a);
  TRY(rank_clocks_start(&b->clocks, a));
  b->clocked = true;
  status result = pass(b, a, t);
  b->clocked = false;
  TRY(result);
  TRY(rank_clocks_end(&b->clocks, a));
  return check_sent(b, a, arm_exchange_bytes(a) - before, row);
}

static status measure_link(arm *a, bench_link *out, uint64_t bytes) {
  *out = (bench_link){bytes, __builtin_nan("")};
  return bytes ? arm_measure_link(a, &out->seconds, bytes) : 0;
}

// An all-gather of what a layer of a batch transfers on average, and one of many bytes: LARGE, or less where
// they would take much memory.
static status measure_links(bench *b, arm *a, bench_row *row) {
  static const uint64_t LARGE = (uint64_t)8 << 20, LARGE_OF_ALL = (uint64_t)256 << 20;
  comm *c = b->j->c;
  uint64_t size = (uint64_t)comm_size(c), sum = 0, *all;
  for (uint64_t r = 0; r < size; r++) sum += row->ranks->received[r];
  if (size == 1) return 0;
  sum /= size * (size - 1) * (uint64_t)(b->n_batches * b->j->m->weights.shape.n_layers);
  TRY(TAKE(&all, size, "the exchange's bytes"));
  status result = comm_allgather(c, all, &sum, sizeof sum, "the exchange's bytes");
  for (uint64_t r = 0; r < size; r++) sum = all[r] > sum ? all[r] : sum; // an expert rank counts none
  free(all);
  TRY(result);
  if (!b->largest.bytes)
    TRY(measure_link(a, &b->largest, size * LARGE > LARGE_OF_ALL ? LARGE_OF_ALL / size : LARGE));
  row->ranks->largest = b->largest;
  return measure_link(a, &row->ranks->same, sum);
}

// Another pass, for clocks between the phases may slow it down.
static status measure_phases(bench *b, arm *a, const test *t, const phase_work *work, bench_row *row) {
  bench_phases *p = row->phases;
  phase_time *exchange = &p->times.of[PHASE_EXCHANGE];
  if (!p) return 0;
  TRY(job_agree(b->j, watched_pass(b, a, t, row), "the pass by phase"));
  rank_clocks_sum(&b->clocks, &p->times);
  TRY(job_agree(b->j, arm_peaks(a, &p->peaks), "what the hardware can do"));
  p->seconds = b->clocks.seconds;
  p->tokens = t->tokens * t->batch;
  p->batches = b->n_batches;
  p->layers = b->j->m->weights.shape.n_layers;
  p->threads = row->threads;
  if (!exchange->count && comm_size(b->j->c) > 1)
    *exchange = (phase_time){arm_exchange_seconds(a), __builtin_nan(""), p->batches * p->layers};
  memcpy(p->bytes, work->bytes, sizeof p->bytes);
  memcpy(p->int8_operations, work->int8_operations, sizeof p->int8_operations);
  TRY(rank_clocks_gather(&b->clocks, b->j->c, a, row->ranks));
  return measure_links(b, a, row);
}

static status run_test(bench *b, arm *a, const test *t, bench_row *row) {
  phase_work work = {0};
  int64_t counted = t->decode || row->phases;
  arm_hold_attention(a, false);
  TRY(fill_caches(b, a, t));
  for (int64_t done = 0; t->decode && arm_attention_is_open(a, t->batch) && done < CHOOSING;
       done += t->tokens)
    TRY(pass(b, a, t));
  arm_hold_attention(a, true); // all passes that follow run in one way
  if (counted) TRY(counted_pass(b, a, t, &work, row));
  for (int64_t i = counted; i < b->j->cfg->bench.warmup; i++) TRY(pass(b, a, t));
  TRY(job_agree(b->j, time_passes(b, a, t, row), "the timed runs"));
  TRY(job_check_digest(b->j, a));
  row->threads = arm_threads(a, t->decode ? t->batch : least(t->tokens * t->batch, b->j->max_batch));
  arm_attention(a, row->attention, sizeof row->attention);
  TRY(measure_exchange(b, a, t, row));
  TRY(gather_rates(b, t, row));
  TRY(stolen_runs_gather(b->j->c, row->stolen_seconds, row->n));
  TRY(gather_bytes(b, a, t, t->decode ? phase_work_bytes(&work) : 0, row));
  return measure_phases(b, a, t, &work, row);
}

static status run_arm(bench *b, const arm_choice *choice) {
  arm *a;
  TRY(job_open_arm(b->j, choice, &a));
  status result = 0;
  progress shown = progress_start(job_is_reporting(b->j), choice->name, "tests", (int64_t)b->n_tests);
  memset(b->filled, 0, (size_t)b->j->n_sequences * sizeof *b->filled);
  b->largest = (bench_link){0};
  for (size_t i = 0; i < b->n_tests && !result; i++) {
    const test *t = &b->tests[i];
    bench_row *row = &b->report.rows[b->report.n_rows++];
    row->arm = choice->name;
    snprintf(row->row_name, sizeof row->row_name, "%s", arm_row(a));
    row->decode = t->decode;
    row->tokens = t->tokens;
    row->depth = t->depth;
    row->batch = t->batch;
    row->n = (size_t)b->j->cfg->bench.repeats;
    result = run_test(b, a, t, row);
    progress_at(&shown, (int64_t)i + 1);
  }
  progress_end(&shown);
  arm_close(a);
  return result;
}

// ---- the command ----

static void describe(bench *b) {
  const job *j = b->j;
  bench_report *r = &b->report;
  r->model = j->m->name;
  r->warnings = &j->warnings;
  r->timeline = timeline_describe(j->timeline);
  r->types = j->m->types;
  r->cpu = topology_cpu(j->place);
  r->ranks = comm_size(j->c);
  r->threads = topology_threads(j->place);
  r->hosts = topology_hosts(j->place);
  r->fingerprint = j->fingerprint;
  for (size_t i = 0; i < gguf_file_count(j->m->file); i++) r->model_bytes += gguf_file_bytes(j->m->file, i);
}

static status print(const bench *b) {
  const config *c = b->j->cfg;
  if (!job_is_reporting(b->j)) return 0;
  if (c->output.dir[0]) TRY(bench_report_write(&b->report, c->output.dir));
  bench_report_print(&b->report, c->bench.format, stdout);
  return fflush(stdout) ? FAIL("standard output: the rates could not be written: %m") : 0;
}

status bench_run(job *j) {
  bench b = {.j = j};
  double bandwidth;
  status result;
  TRY_DONE(result, job_agree(j, bench_open(&b), "the tests of bench"));
  TRY_DONE(result, job_check_weights(j)); // no clock runs while a page is missing from memory
  describe(&b);
  for (size_t a = 0; a < j->cfg->run.arms.count; a++) TRY_DONE(result, run_arm(&b, &j->cfg->run.arms.arm[a]));
  // Last: freed memory, which a virtual machine gives back to its host seconds later, costs the runs cores.
  TRY_DONE(result, memory_bandwidth_measure(&bandwidth, j->c, j->place));
  bench_report_set_bandwidth(&b.report, bandwidth);
  TRY_DONE(result, job_agree(j, print(&b), "writing the rates"));
  result = known_judge_bench(j, &b.report);
done:
  bench_close(&b);
  return result;
}
