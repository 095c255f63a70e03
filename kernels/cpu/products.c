#include "kernels/cpu/products.h"
#include "kernels/product_form.h"
#include <omp.h>

enum { SHARES = 2 }; // with few tokens a thread takes half of its equal part of what is left

char *cpu_thread_scratch(cpu_backend *b) {
  return b->scratch + (size_t)omp_get_thread_num() * b->scratch_bytes;
}

matrix matrix_rows(const matrix *m, int64_t first, int64_t count) {
  matrix rows = *m;
  rows.data = (const char *)m->data + (size_t)first * type_row_bytes(type_find(m->type), (size_t)m->cols);
  rows.rows = count;
  return rows;
}

int64_t matrix_tiles(const matrix *m) {
  return (m->rows + ROW_TILE - 1) / ROW_TILE;
}

// out += `rows` times the remainders of up to TOKEN_TILE tokens from t on, each product whole first.
static void add_remainder(cpu_backend *b, const product *p, const matrix *rows, float *const *out, int64_t t,
                          int64_t n) {
  float *room = (float *)cpu_thread_scratch(b), *at[TOKEN_TILE];
  for (int64_t i = 0; i < n; i++) at[i] = room + i * ROW_TILE;
  if (n == 1 && p->kernels->ops->vector_q8k)
    p->kernels->ops->vector_q8k(room, rows, p->remainder[t], NULL);
  else
    b->row->product_q8k(at, rows, p->remainder + t, n);
  for (int64_t i = 0; i < n; i++)
    for (int64_t r = 0; r < rows->rows; r++) out[i][r] = out[i][r] + at[i][r];
}

// What the path adds to a product with rounded activations: first the remainder's, then the outliers' terms.
static void add_parts(cpu_backend *b, const product *p, const matrix *rows, float *const *out, int64_t t,
                      int64_t n) {
  if (p->remainder) add_remainder(b, p, rows, out, t, n);
  if (path_splits_outliers(p->kernels->path->kind)) b->row->add_outliers(out, rows, p->q8k + t, n);
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
    b->row->product_q8k((float *const *)out, rows, p->q8k + t, n);
    add_parts(b, p, rows, (float *const *)out, t, n);
    break;
  case ACTIVATION_NONE:
    __builtin_trap(); // the arm was refused
  }
}

void product_tile(cpu_backend *b, const product *p, int64_t tile, const void *ahead) {
  const real_ops *ops = p->kernels->ops;
  int64_t first = tile * ROW_TILE, count = p->m->rows - first < ROW_TILE ? p->m->rows - first : ROW_TILE;
  matrix rows = matrix_rows(p->m, first, count);
  activation_form form = product_form(p->kernels->path->kind, p->m->type);
  if (form == ACTIVATION_Q8K && p->n == 1 && ops->vector_q8k) {
    float *out = (float *)p->out[0] + first;
    ops->vector_q8k(out, &rows, p->q8k[0], ahead);
    add_parts(b, p, &rows, &out, 0, 1);
    return;
  }
  for (int64_t t = 0; t < p->n; t += TOKEN_TILE) {
    int64_t n = p->n - t < TOKEN_TILE ? p->n - t : TOKEN_TILE;
    void *at[TOKEN_TILE];
    for (int64_t i = 0; i < n; i++) at[i] = (char *)p->out[t + i] + (size_t)first * ops->bytes;
    times_tokens(b, p, form, &rows, at, t, n);
  }
}

const void *matrix_tile_data(const matrix *m, int64_t tile) {
  return matrix_rows(m, tile * ROW_TILE, 0).data;
}

typedef struct {
  int64_t next, end;
} task_range;

// One task, or with few tokens a share of what is left: neighbours in memory, so that a thread reads long
// streams, and so that it seldom executes the atomic, which no load overtakes. Shares shrink, so that threads
// finish together.
static task_range take_tasks(task_queue *q) {
  int64_t start, share = 1;
  if (q->ahead) {
#pragma omp atomic read
    start = q->next;
    share = (q->count - start) / (SHARES * omp_get_num_threads());
    if (share < 1) share = 1;
  }
#pragma omp atomic capture
  {
    start = q->next;
    q->next += share;
  }
  return (task_range){start, start + share < q->count ? start + share : q->count};
}

void tasks_phase(cpu_backend *b, task_queue *q, task_function *run, const void *what) {
  task_range at = take_tasks(q);
  while (at.next < at.end) {
    int64_t task = at.next++;
    if (q->ahead && at.next == at.end) at = take_tasks(q);
    run(b, what, task, q->ahead && at.next < at.end ? at.next : -1);
    if (!q->ahead) at = take_tasks(q);
  }
#pragma omp barrier
}

void product_list_add(product_list *l, product p) {
  l->part[l->count] = p;
  l->tasks.count += matrix_tiles(p.m);
  l->tasks.ahead = p.n <= FEW_TOKENS;
  l->end[l->count++] = l->tasks.count;
}

static const product *list_find(const product_list *l, int64_t task, int64_t *tile) {
  int64_t i = 0;
  while (task >= l->end[i]) i++;
  *tile = task - (i ? l->end[i - 1] : 0);
  return &l->part[i];
}

static void list_task(cpu_backend *b, const void *what, int64_t task, int64_t after) {
  const product_list *l = (const product_list *)what;
  int64_t tile, next;
  const product *p = list_find(l, task, &tile), *q = after >= 0 ? list_find(l, after, &next) : NULL;
  product_tile(b, p, tile, q ? matrix_tile_data(q->m, next) : NULL);
}

void products_phase(cpu_backend *b, product_list *l) {
  tasks_phase(b, &l->tasks, list_task, l);
}
