// layers.csv and tokens.csv beside a report: every row is there once, and their numbers are the report's.
#include "base/memory.h"
#include "base/read_file.h"
#include "src/contract/checking.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BYTES = 1 << 30, MOST_COLUMNS = 128 };

typedef struct { // its cells are texts in `text`
  const char *name;
  char *text;
  char *column[MOST_COLUMNS]; // [n_columns]
  size_t n_columns;
  char ***row; // [n_rows][n_columns]
  size_t n_rows, room;
} table;

static void table_close(table *t) {
  for (size_t i = 0; i < t->n_rows; i++) free(t->row[i]);
  free(t->row);
  free(t->text);
}

// Cuts a line at its commas; the number of cells.
static size_t cut(char **cell, size_t most, char *line) {
  size_t n = 0;
  for (char *at = line; at && n < most; n++) {
    cell[n] = at;
    at = strchr(at, ',');
    if (at) *at++ = 0;
  }
  return n;
}

static status table_cut(checking *c, table *t) {
  char *rest = t->text, *line = strsep(&rest, "\n");
  t->n_columns = line ? cut(t->column, MOST_COLUMNS, line) : 0;
  while ((line = strsep(&rest, "\n"))) {
    char *cell[MOST_COLUMNS];
    if (!*line) continue;
    size_t n = cut(cell, MOST_COLUMNS, line);
    EXPECT(c, n == t->n_columns, t->name, "row %zu has %zu cells, the head %zu", t->n_rows + 1, n,
           t->n_columns);
    if (n != t->n_columns) continue;
    TRY(memory_grow((void **)&t->row, &t->room, t->n_rows, sizeof *t->row, t->name));
    TRY(TAKE(&t->row[t->n_rows], n, t->name));
    memcpy(t->row[t->n_rows++], cell, n * sizeof *cell);
  }
  return 0;
}

static bool table_open(checking *c, table *t, const char *dir, const char *name) {
  char path[4096];
  size_t length;
  *t = (table){.name = name};
  snprintf(path, sizeof path, "%s/%s", dir, name);
  bool is_read = !read_file(&t->text, &length, path, "table", MOST_BYTES, READ_REGULAR);
  if (!is_read) status_reset(); // a missing file is a finding, not an error of this run
  EXPECT(c, is_read, name, "cannot be read");
  if (!is_read || table_cut(c, t)) return false;
  return true;
}

static const char *cell(const table *t, size_t row, const char *column) {
  for (size_t i = 0; i < t->n_columns; i++)
    if (!strcmp(t->column[i], column)) return t->row[row][i];
  return "";
}

// NaN for what is no number.
static double number(const table *t, size_t row, const char *column) {
  const char *text = cell(t, row, column);
  char *end;
  double x = strtod(text, &end);
  return *text && !*end ? x : (double)NAN;
}

// ---- layers.csv: a row for each pair and layer ----

static void check_layer_row(checking *c, const table *t, size_t at, const json_t *pair, const json_t *layer) {
  static const char *const METRICS[] = {"rel_l2", "one_minus_cos", "max_abs", "max_rel", "max_ulp"};
  static const char *const PARTS[] = {"min", "median", "max", "worst"};
  char where[CHECK_WHERE_BYTES], column[64];
  snprintf(where, sizeof where, "layers.csv row %zu", at + 1);
  bool same = !strcmp(cell(t, at, "a"), json_string_value(json_object_get(pair, "a"))) &&
              !strcmp(cell(t, at, "b"), json_string_value(json_object_get(pair, "b"))) &&
              number(t, at, "layer") == json_number_value(json_object_get(layer, "layer"));
  EXPECT(c, same, where, "is of %.24s, %.24s, layer %.12s: not the row that report.json has there",
         cell(t, at, "a"), cell(t, at, "b"), cell(t, at, "layer"));
  for (size_t m = 0; m < sizeof METRICS / sizeof *METRICS && same; m++)
    for (size_t k = 0; k < sizeof PARTS / sizeof *PARTS; k++) {
      const json_t *s = json_object_get(json_object_get(layer, "spread"), METRICS[m]),
                   *x = json_object_get(s, PARTS[k]);
      snprintf(column, sizeof column, "%s_%s", METRICS[m], PARTS[k]);
      double a = number(t, at, column), b = json_is_number(x) ? json_number_value(x) : (double)NAN;
      EXPECT(c, same_number(a, b), where, "%s = %.17g, but report.json has %.17g", column, a, b);
    }
  double flips = number(t, at, "router_flips"),
         own = json_number_value(json_object_get(layer, "router_flips"));
  EXPECT(c, flips == own, where, "router_flips = %.0f, but report.json has %.0f", flips, own);
}

static void check_layers_csv(checking *c, const char *dir) {
  table t;
  const json_t *pairs = json_object_get(root_of(c->r), "pairs");
  size_t n = json_array_size(pairs) * (size_t)c->r->n_layers, at = 0;
  if (table_open(c, &t, dir, "layers.csv")) {
    EXPECT(c, t.n_rows == n, t.name, "expected a row for each pair and layer, %zu, found %zu", n, t.n_rows);
    for (size_t p = 0; p < json_array_size(pairs) && t.n_rows == n; p++)
      for (int64_t l = 0; l < c->r->n_layers; l++, at++) {
        const json_t *pair = json_array_get(pairs, p);
        check_layer_row(c, &t, at, pair, json_array_get(json_object_get(pair, "layers"), (size_t)l));
      }
  }
  table_close(&t);
}

// ---- tokens.csv: a row for each position and pair ----

// The rows are those of the positions of each sequence from 0 on, each with every pair in order.
static bool check_token_rows(checking *c, const table *t) {
  const json_t *pairs = json_object_get(root_of(c->r), "pairs"),
               *model = json_object_get(root_of(c->r), "model");
  size_t n_pairs = json_array_size(pairs), n = (size_t)check_positions(c->r) * n_pairs, at = 0;
  int64_t vocabulary = json_integer_value(json_object_get(model, "vocabulary"));
  EXPECT(c, t->n_rows == n, t->name, "expected a row for each position and pair, %zu, found %zu", n,
         t->n_rows);
  if (t->n_rows != n) return false;
  for (size_t s = 0; s < c->r->arms[0].n_sequences; s++)
    for (int64_t i = 0; i < c->r->arms[0].sequences[s].tokens; i++)
      for (size_t p = 0; p < n_pairs; p++, at++) {
        double id = number(t, at, "token");
        bool same = number(t, at, "sequence") == (double)s && number(t, at, "position") == (double)i;
        EXPECT(c, same, t->name,
               "row %zu: expected position %" PRId64
               " of sequence %zu, found %.12s of %.12s: a position is missing",
               at + 1, i, s, cell(t, at, "position"), cell(t, at, "sequence"));
        if (!same) return false;
        EXPECT(c, id >= 0 && id < (double)vocabulary && id == floor(id), t->name,
               "row %zu: token %.12s is no id of a vocabulary of %" PRId64, at + 1, cell(t, at, "token"),
               vocabulary);
      }
  return true;
}

// What report.json says of the pair's logits, from the rows: the largest of each metric and its position,
// top-1 and flips.
static void check_token_pair(checking *c, const table *t, size_t p, size_t n_pairs, const json_t *pair) {
  static const char *const METRICS[] = {"rel_l2", "one_minus_cos", "max_abs", "max_rel", "kl"};
  const json_t *logits = json_object_get(pair, "logits"), *layers = json_object_get(pair, "layers");
  double agrees = 0, flips = 0, own_flips = 0, n = (double)check_positions(c->r);
  char where[CHECK_WHERE_BYTES];
  snprintf(where, sizeof where, "tokens.csv, pairs[%zu]", p);
  for (size_t m = 0; m < sizeof METRICS / sizeof *METRICS; m++) {
    const json_t *s = json_object_get(json_object_get(logits, "spread"), METRICS[m]),
                 *x = json_object_get(s, "max");
    double worst = -1, own = json_is_number(x) ? json_number_value(x) : (double)NAN;
    bool null = false;
    for (size_t at = p; at < t->n_rows; at += n_pairs) {
      null = null || isnan(number(t, at, METRICS[m]));
      worst = fmax(worst, number(t, at, METRICS[m]));
    }
    if (null) worst = (double)NAN;
    EXPECT(c, same_number(worst, own), where, "the largest %s is %.17g, but report.json has %.17g",
           METRICS[m], worst, own);
  }
  for (size_t at = p; at < t->n_rows; at += n_pairs) {
    agrees += number(t, at, "top1_agrees");
    flips += number(t, at, "router_flips");
  }
  for (size_t l = 0; l < json_array_size(layers); l++)
    own_flips += json_number_value(json_object_get(json_array_get(layers, l), "router_flips"));
  double share = json_number_value(json_object_get(logits, "top1_agreement"));
  EXPECT(c, fabs(agrees / n - share) < 1e-12, where,
         "top-1 agrees at %.0f of %.0f positions, but report.json has %.9g", agrees, n, share);
  EXPECT(c, flips == own_flips, where, "%.0f router flips, but report.json has %.0f", flips, own_flips);
}

static void check_tokens_csv(checking *c, const char *dir) {
  table t;
  const json_t *pairs = json_object_get(root_of(c->r), "pairs");
  size_t n = json_array_size(pairs);
  if (table_open(c, &t, dir, "tokens.csv") && check_token_rows(c, &t))
    for (size_t p = 0; p < n; p++) check_token_pair(c, &t, p, n, json_array_get(pairs, p));
  table_close(&t);
}

void report_check_files(verdict *v, const recorded_report *r, const char *dir) {
  checking c = {.v = v, .r = r};
  check_layers_csv(&c, dir);
  check_tokens_csv(&c, dir);
  if (!c.failed)
    verdict_add(v, VERDICT_STRUCTURE, "files", "layers.csv, tokens.csv", true,
                "%zu relations of their numbers", c.n);
}
