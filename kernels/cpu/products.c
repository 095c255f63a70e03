#include "kernels/cpu/products.h"
#include "kernels/product_form.h"

enum {
  SHARES_FEW = 2,     // a thread takes half of its equal part of what is left,
  SHARES_MANY = 16,   // with many tokens less, as an expert may have many times the tokens of another
  FIXED_EIGHTHS = 6,  // of such tasks are divided beforehand: no atomic, and the same memory each time
  TASKS_A_THREAD = 6, // of few tokens at least, so that the threads end together
  // Such a task is a strip of tiles: between two streams a core waits some 200 ns for memory (Zen 5,
  // docs/measurements.md), which beyond so many tiles is nothing. Strips are as long as leaves each thread so
  // many.
  MOST_STRIP = 8,
  STRIPS_A_THREAD = 8,
  // The same of many. Tasks are cut by tokens: as many as a kernel unpacks or converts weights for at a time,
  // so that these tokens stay in a cache over the tiles; fewer where tiles are few, as a router's, down to so
  // many.
  TASKS_A_THREAD_MANY = 4,
  CHUNK_ROUNDED = 64,
  CHUNK_REAL = PACKED_TOKENS,
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

strip_cut strip_cut_of(const cpu_backend *b, const path_kernels *kernels, const matrix *m, int64_t copies,
                       int64_t tokens) {
  strip_cut cut = {.tile = tile_rows_of(b, kernels, m, copies, tokens), .strip = 1};
  cut.tiles = cut.tasks = matrix_tiles(m, cut.tile);
  while (tokens <= FEW_TOKENS && cut.strip < MOST_STRIP) {
    int64_t strip = 2 * cut.strip, tasks = (cut.tiles + strip - 1) / strip;
    if (copies * tasks < STRIPS_A_THREAD * b->n_threads) break;
    cut.strip = strip;
    cut.tasks = tasks;
  }
  return cut;
}

tile_range strip_tiles(const strip_cut *cut, int64_t task) {
  int64_t first = task * cut->strip, rest = cut->tiles - first;
  return (tile_range){first, rest < cut->strip ? rest : cut->strip};
}

tile_range strip_rows(const strip_cut *cut, const matrix *m, int64_t task) {
  return tile_at(m, cut->tile * cut->strip, task);
}

const void *strip_data(const strip_cut *cut, const matrix *m, int64_t task) {
  return matrix_tile_data(m, cut->tile, task * cut->strip);
}

// ---- packed rows ----

bool has_packed(const packed_rows *rows) {
  return rows->of_256.groups || rows->of_32.groups;
}

packed_groups packed_for(const path_kernels *kernels, const packed_rows *rows, int64_t first, const matrix *m,
                         int64_t n) {
  activation_form form = product_form(kernels->path->kind, m->type);
  packed_groups groups = form == ACTIVATION_Q8_0 ? rows->of_32 : rows->of_256;
  if (form == ACTIVATION_REAL || n < LEAST_PACKED || !groups.groups || !groups.ops->takes(m->type))
    return (packed_groups){0};
  groups.groups += (size_t)first * groups.group_bytes;
  return groups;
}

static int64_t blocks_of(const packed_groups *groups, int64_t width) {
  return groups->groups ? width / groups->ops->block : 0;
}

// Blocks of a group, in both forms.
static int64_t packed_blocks(const packed_rows *rows) {
  return blocks_of(&rows->of_256, rows->width) + blocks_of(&rows->of_32, rows->width);
}

// Item `item` of a group's blocks after those of the group before.
static void pack_item(const packed_rows *to, const block_q8_K *const *rows, slot_group group, int64_t item) {
  int64_t blocks = packed_blocks(to), of_256 = blocks_of(&to->of_256, to->width), block = item % blocks;
  const packed_groups *groups = block < of_256 ? &to->of_256 : &to->of_32;
  groups->ops->pack(groups->groups + (size_t)(item / blocks) * groups->group_bytes, rows + group.first,
                    to->width, group.n, block < of_256 ? block : block - of_256);
}

void pack_rows(cpu_backend *b, const packed_rows *to, const block_q8_K *const *rows, int64_t n) {
  int64_t blocks = packed_blocks(to), groups = (n + PACKED_TOKENS - 1) / PACKED_TOKENS;
  team_range part = team_share(b->team, groups * blocks);
  for (int64_t i = part.first; i < part.end; i++) {
    int64_t first = i / blocks * PACKED_TOKENS, rest = n - first;
    slot_group group = {(int32_t)first, (int32_t)(rest < PACKED_TOKENS ? rest : PACKED_TOKENS)};
    pack_item(to, rows, group, i);
  }
}

void pack_slots(cpu_backend *b, const packed_rows *to, const block_q8_K *const *rows) {
  int64_t blocks = packed_blocks(to);
  team_range part = team_share(b->team, b->n_groups * blocks);
  for (int64_t i = part.first; i < part.end; i++) pack_item(to, rows, b->groups[i / blocks], i);
}

// ---- a tile ----

// x, packed: from token t on, a multiple of PACKED_TOKENS.
static void times_rounded(const cpu_backend *b, const matrix *rows, float *const *out,
                          const block_q8_K *const *x, const packed_groups *packed, int64_t t, int64_t n) {
  if (packed->groups)
    packed->ops->product(out, rows, packed->groups + (size_t)(t / PACKED_TOKENS) * packed->group_bytes, n);
  else if (type_find(rows->type)->on_q8k == ACTIVATION_Q8_0)
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
    times_rounded(b, rows, (float *const *)out, p->q8k + t, &p->packed, t, n);
    add_parts(b, p, rows, (float *const *)out, t, n);
    break;
  }
}

static int64_t chunks_of(const product *p) {
  return p->chunk ? (p->n + p->chunk - 1) / p->chunk : 1;
}

int64_t product_tasks(const product *p) {
  return matrix_tiles(p->m, p->tile) * chunks_of(p);
}

product_part product_part_of(const product *p, int64_t task) {
  int64_t tiles = matrix_tiles(p->m, p->tile), first = task / tiles * p->chunk, rest = p->n - first;
  return (product_part){tile_at(p->m, p->tile, task % tiles),
                        {first, p->chunk && p->chunk < rest ? p->chunk : rest}};
}

int64_t token_chunk_of(const cpu_backend *b, const path_kernels *kernels, const matrix *m, int64_t tile,
                       int64_t tokens, bool packed) {
  bool rounded = product_form(kernels->path->kind, m->type) != ACTIVATION_REAL;
  int64_t least = rounded ? CHUNK_ROUNDED : CHUNK_REAL, chunk = packed ? PACKED_CHUNK : TOKEN_TILE;
  const int64_t tiles = matrix_tiles(m, tile), wanted = TASKS_A_THREAD_MANY * b->n_threads;
  if (tokens <= FEW_TOKENS) return 0;
  while (chunk > least && tiles * ((tokens + chunk - 1) / chunk) < wanted) chunk /= 2;
  return chunk;
}

void product_tile(cpu_backend *b, const product *p, int64_t task, const void *ahead) {
  const real_ops *ops = p->kernels->ops;
  const product_part part = product_part_of(p, task);
  const tile_range at = part.rows;
  matrix rows = matrix_rows(p->m, at.first, at.count);
  activation_form form = product_form(p->kernels->path->kind, p->m->type);
  if (form != ACTIVATION_REAL && p->n == 1 && ops->vector_rounded && ops->vector_takes(p->m->type)) {
    float *out = (float *)p->out[0] + at.first;
    ops->vector_rounded(out, &rows, p->q8k[0], ahead);
    add_parts(b, p, &rows, &out, 0, 1);
    return;
  }
  const int64_t end = part.tokens.first + part.tokens.count;
  for (int64_t t = part.tokens.first; t < end; t += TOKEN_TILE) {
    int64_t n = end - t < TOKEN_TILE ? end - t : TOKEN_TILE;
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

// What is not divided beforehand: a share of what is left. Its tasks are neighbours in memory, so that a
// thread reads long streams, or with many tokens tiles of one expert, whose tokens then stay in its cache;
// and it seldom executes the atomic, which no load overtakes. Shares shrink, so that threads finish together.
static team_range take_tasks(const cpu_backend *b, task_queue *q) {
  int64_t left = q->count - q->fixed, start = __atomic_load_n(&q->next, __ATOMIC_RELAXED);
  if (start >= left) return (team_range){0, 0}; // read only: the line stays with all threads
  int64_t share = (left - start) / ((q->ahead ? SHARES_FEW : SHARES_MANY) * team_size(b->team));
  if (share < 1) share = 1;
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
    if (!q->ahead && at.first == at.end) at = take_tasks(b, q);
  }
}

void product_list_add(product_list *l, product p) {
  l->part[l->count] = p;
  l->tasks = task_queue_of(l->tasks.count + product_tasks(&p), p.n <= FEW_TOKENS);
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
