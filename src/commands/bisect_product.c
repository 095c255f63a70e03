#include "src/commands/bisect_product.h"
#include "base/memory.h"
#include "base/whole_file.h"
#include "src/lab/product_capture.h"
#include "src/report/bisect_report.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char UNIFORM[] = "uniform";

// Only the rows that are multiplied: the whole file need not be read for one product.
static status check_rows(const product_weights *w) {
  const matrix *m = &w->weights;
  size_t n = (size_t)(m->rows * m->cols);
  int64_t block = row_first_not_finite(m->type, m->data, n);
  return block < 0 ? 0
                   : FAIL("tensor \"%s\": block %" PRId64 " holds a scale or number that is not finite",
                          w->tensor->name, block);
}

static status find_weights(product_weights *out, const job *j) {
  const struct config_bisect *c = &j->cfg->bisect;
  TRY(product_weights_find(out, j->m, c->tensor, c->rows, c->cols));
  return check_rows(out);
}

static status draw(float **x, const job *j, int64_t cols) {
  const struct config_bisect *c = &j->cfg->bisect;
  if (!job_is_reporting(j)) return 0;
  TRY(TAKE(x, (size_t)(c->draws * cols), "activations"));
  product_draw_uniform(*x, (uint32_t)c->seed, c->draws, cols);
  return 0;
}

// Collective. What the weights meet: drawn, or captured.
static status open_activations(bisect_product *p, float **x, job *j) {
  probe_point point;
  const product_weights *w = p->weights;
  p->activations = j->cfg->bisect.activations;
  if (!strcmp(p->activations, UNIFORM)) {
    p->n = j->cfg->bisect.draws;
    p->seed = (uint32_t)j->cfg->bisect.seed;
    return job_agree(j, draw(x, j, w->weights.cols), "the activations");
  }
  const arm_choice *choice = &j->cfg->run.arms.arm[0];
  TRY(job_agree(j, probe_find(&point, p->activations) ? 0 : REFUSE("bisect.activations: no such probe"),
                "the activations"));
  p->arm = choice->name;
  TRY(job_read_input(j));
  TRY(product_capture(x, &p->n, j, choice, point, w->layer, w->weights.cols));
  p->shown = p->n - 1;
  return 0;
}

// The reporting rank's part: it computes, writes and prints.
static status bisect_here(bisect_product *p, const job *j, const float *x) {
  const product_input in = {p->weights->weights, x, p->n, j->cfg->run.rows, topology_threads(j->place)};
  product_bisection found;
  status result;
  p->found = &found;
  p->x = x;
  TRY_DONE(result, product_bisection_run(&found, &in, p->shown));
  if (j->cfg->output.dir[0]) TRY_DONE(result, bisect_write_product(j->cfg->output.dir, p));
  bisect_print_product(stdout, p);
  if (fflush(stdout)) result = FAIL("standard output: the report could not be written: %m");
done:
  product_bisection_close(&found);
  return result;
}

status bisect_product_run(job *j) {
  product_weights weights;
  bisect_product p = {.model = gguf_path(j->m->file), .warnings = &j->warnings, .weights = &weights};
  bool reports = job_is_reporting(j), writes = reports && j->cfg->output.dir[0];
  float *x = NULL;
  status result;
  TRY(job_agree(j, find_weights(&weights, j), "the weights of the product"));
  TRY(job_agree(j, writes ? output_dir_check(j->cfg->output.dir) : 0, "the output folder"));
  TRY_DONE(result, open_activations(&p, &x, j));
  result = job_agree(j, reports ? bisect_here(&p, j, x) : 0, "the operations on one product");
done:
  free(x);
  return result;
}
