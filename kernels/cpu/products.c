#include "kernels/cpu/products.h"
#include "kernels/product_form.h"

enum {
  SHARES = 2,         // with few tokens a thread takes half of its equal part of what is left
  FIXED_EIGHTHS = 6,  // of such tasks are divided beforehand: no atomic, and the same memory each time
  TASKS_A_THREAD = 6, // of few tokens at least, so that the threads end together
  // Rows of the smallest tile: the ISA rows' kernels take 16 rows of K-quants side by side, and 4 of others.
  LEAST_ROUNDED = 16,
  LEAST_REAL = 4,
};

char *cpu_thread_scratch(cpu_backend *b) {
  return b->scratch + (size_t)team_thread() * b->scratch_bytes;
}

matrix matrix_rows(const matrix *m, int64_t first, int64_t count) {
  matrix rows = *m;
  rows.data = (const char *)m->data + (size_t)first * type_row_bytes(type_find(m->type), (size_t)m->cols);
  rows.rows = count;
  return rows;
}

int64_t matrix_tiles(const matrix *m, int64_t tile) {
  return (m->rows + tile - 1) / tile;
}

int64_t tile_rows_of(const cpu_backend *b, const path_kernels *kernels, const matrix *m, int64_t copies,
                     int64_t tokens) {
  bool rounded = product_form(kernels->path->kind, m->type) != ACTIVATION_REAL;
  int64_t least = rounded ? LEAST_ROUNDED : LEAST_REAL, rows = ROW_TILE;
  if (tokens > FEW_TOKENS) return rows;
  while (rows > least && copies * matrix_tiles(m, rows) < TASKS_A_THREAD * b->n_threads) rows /= 2;
  return rows;
}

tile_range tile_at(const matrix *m, int64_t tile, int64_t index) {
  int64_t first = index * tile, rest = m->rows - first;
  return (tile_range){first, rest < tile ? rest : tile};
}

static void times_rounded(const cpu_backend *b, const matrix *rows, float *const *out,
                          const block_q8_K *const *x, int64_t n) {
  if (type_find(rows->type)->on_q8k == ACTIVATION_Q8_0)
    b->row->product_q8_0(out, rows, x, n);
  else
    (type_has_q8k_kernels(rows->type) ? b->row->product_q8k : b->row->product_unpacked)(out, rows, x, n);
}

// What the path adds to a product with rounded activations: the outliers' terms.
static void add_parts(cpu_backend *b, const product *p, const matrix *rows, float *const *out, int64_t t,
                      int64_t n) {
  bool few = !type_has_q8k_kernels(rows->type);
  if (path_splits_outliers(p->kernels->path->kind) && rows->cols % QK_K == 0)
    (few ? b->row->add_outliers_few_bits : b->row->add_outliers)(out, rows, p->q8k + t, n);
}

// `rows` times up to TOKEN_TILE tokens from t on.
static void times_tokens(cpu_backend *b, const product *p, activation_form form, const matrix *rows,
                         void *const *out, int64_t t, int64_t n) {
  const real_ops *ops = p->kernels->ops;
  switch (form) {
  case ACTIVATION_REAL:
    (ops->product_tile ? ops->product_tile : ops->product)(out, rows, (const void *const *)(p->reals + t), n,
                                                           (float *)cpu_thread_scratch(b));
    break;
  case ACTIVATION_Q8K:
  case ACTIVATION_Q8_0:
    times_rounded(b, rows, (float *const *)out, p->q8k + t, n);
    add_parts(b, p, rows, (float *const *)out, t, n);
    break;
  }
}

void product_tile(cpu_backend *b, const product *p, int64_t index, const void *ahead) {
  const real_ops *ops = p->kernels->ops;
  tile_range at = tile_at(p->m, p->tile, index);
  matrix rows = matrix_rows(p->m, at.first, at.count);
  activation_form form = product_form(p->kernels->path->kind, p->m->type);
  if (form == ACTIVATION_Q8K && p->n == 1 && ops->vector_q8k && type_has_q8k_kernels(p->m->type)) {
    float *out = (float *)p->out[0] + at.first;
    ops->vector_q8k(out, &rows, p->q8k[0], ahead);
    add_parts(b, p, &rows, &out, 0, 1);
    return;
  }
  for (int64_t t = 0; t < p->n; t += TOKEN_TILE) {
    int64_t n = p->n - t < TOKEN_TILE ? p->n - t : TOKEN_TILE;
    void *to[TOKEN_TILE];
    for (int64_t i = 0; i < n; i++) to[i] = (char *)p->out[t + i] + (size_t)at.first * ops->bytes;
    times_tokens(b, p, form, &rows, to, t, n);
  }
}

const void *matrix_tile_data(const matrix *m, int64_t tile, int64_t index) {
  return matrix_rows(m, index * tile, 0).data;
}

// ---- tasks ----

task_queue task_queue_of(int64_t count, bool ahead) {
  return (task_queue){.count = count, .fixed = ahead ? count * FIXED_EIGHTHS / 8 : 0, .ahead = ahead};
}

// What is not divided beforehand. One task, or with few tokens a share of what is left: neighbours in memory,
// so that a thread reads long streams, and so that it seldom executes the atomic, which no load overtakes.
// Shares shrink, so that threads finish together.
static team_range take_tasks(const cpu_backend *b, task_queue *q) {
  int64_t left = q->count - q->fixed, share = 1, start = __atomic_load_n(&q->next, __ATOMIC_RELAXED);
  if (start >= left) return (team_range){0, 0}; // read only: the line stays with all threads
  if (q->ahead) {
    share = (left - start) / (SHARES * team_size(b->team));
    if (share < 1) share = 1;
  }
  start = __atomic_fetch_add(&q->next, share, __ATOMIC_RELAXED);
  int64_t end = start + share < left ? start + share : left;
  return (team_range){q->fixed + start, q->fixed + end};
}

void tasks_run(cpu_backend *b, task_queue *q, task_function *run, const void *what) {
  team_range at = team_share(b->team, q->fixed);
  if (at.first == at.end) at = take_tasks(b, q);
  while (at.first < at.end) {
    int64_t task = at.first++;
    if (q->ahead && at.first == at.end) at = take_tasks(b, q);
    run(b, what, task, q->ahead && at.first < at.end ? at.first : -1);
    if (!q->ahead) at = take_tasks(b, q);
  }
}

void product_list_add(product_list *l, product p) {
  l->part[l->count] = p;
  l->tasks = task_queue_of(l->tasks.count + matrix_tiles(p.m, p.tile), p.n <= FEW_TOKENS);
  l->end[l->count++] = l->tasks.count;
}

const product *product_list_find(const product_list *l, int64_t task, int64_t *index) {
  int64_t i = 0;
  while (task >= l->end[i]) i++;
  *index = task - (i ? l->end[i - 1] : 0);
  return &l->part[i];
}

static void list_task(cpu_backend *b, const void *what, int64_t task, int64_t after) {
  const product_list *l = (const product_list *)what;
  int64_t index, next;
  const product *p = product_list_find(l, task, &index),
                *q = after >= 0 ? product_list_find(l, after, &next) : NULL;
  product_tile(b, p, index, q ? matrix_tile_data(q->m, q->tile, next) : NULL);
}

void product_list_run(cpu_backend *b, product_list *l) {
  tasks_run(b, &l->tasks, list_task, l);
}
