#include "src/lab/draws.h"
#include "base/memory.h"
#include <stdlib.h>

status draws_run(double *out, int64_t n_figures, int64_t n, int threads, draw_function draw,
                 const void *context) {
  status result = 0;
#pragma omp parallel num_threads(threads)
  {
    double *figures;
    status mine = TAKE(&figures, (size_t)n_figures, "figures of a draw");
#pragma omp for schedule(dynamic)
    for (int64_t d = 0; d < n; d++) {
      if (!mine) mine = draw(figures, context, d);
      for (int64_t i = 0; i < n_figures && !mine; i++) out[i * n + d] = figures[i];
    }
    free(figures);
#pragma omp critical
    if (mine) result = mine;
  }
  return result;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

double draws_at(double *x, size_t n, double q) {
  qsort(x, n, sizeof *x, ascending);
  double place = q * (double)(n - 1);
  size_t low = (size_t)place;
  if (low + 1 >= n) return x[n - 1];
  double part = place - (double)low;
  return x[low] + part * (x[low + 1] - x[low]);
}

double draws_quantile(const double *x, size_t n, double value) {
  double below = 0;
  for (size_t i = 0; i < n; i++) below += x[i] < value ? 1 : x[i] == value ? 0.5 : 0;
  return below / (double)n;
}
