#include "src/measure/account.h"
#include "base/memory.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *account_verdict_name(account_verdict v) {
  static const char *const NAMES[] = {[ACCOUNT_ADDS_UP] = "adds up",
                                      [ACCOUNT_NEGATIVE] = "parts cancel",
                                      [ACCOUNT_NOTHING] = "no difference",
                                      [ACCOUNT_NOT_FINITE] = "not finite"};
  return NAMES[v];
}

status account_samples_open(account_samples *out, int64_t n_layers, int64_t n_positions, int64_t max_batch,
                            int64_t width) {
  size_t n = (size_t)n_positions, steps = (size_t)n_layers + 1;
  *out = (account_samples){.n_layers = n_layers, .n_positions = n_positions, .width = width};
  TRY(TAKE(&out->truth, n, "an account"));
  for (int r = 0; r < 2; r++) TRY(TAKE(&out->run[r], n, "an account"));
  TRY(TAKE(&out->local, steps * n, "an account"));
  TRY(TAKE(&out->carried, steps * n, "an account"));
  TRY(TAKE(&out->flipped, n, "an account"));
  return TAKE(&out->sum, (size_t)(max_batch * width), "an account");
}

void account_samples_close(account_samples *s) {
  if (!s) return;
  free(s->truth);
  for (int r = 0; r < 2; r++) free(s->run[r]);
  free(s->local);
  free(s->carried);
  free(s->flipped);
  free(s->sum);
}

static double energy(const double *a, const double *b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

void account_samples_run(account_samples *s, account_run run, int64_t position, const double *a,
                         const double *b, const double *truth) {
  double norm = 0;
  for (int64_t i = 0; i < s->width; i++) norm += truth[i] * truth[i];
  s->truth[position] = norm;
  s->run[run][position] = energy(a, b, s->width);
}

void account_samples_local(account_samples *s, int64_t step, int64_t position, int64_t row, const double *a,
                           const double *b, bool flips) {
  double *sum = s->sum + row * s->width, local = energy(a, b, s->width), carried = 0;
  if (!step) memset(sum, 0, (size_t)s->width * sizeof *sum);
  for (int64_t i = 0; i < s->width; i++) {
    if (!flips) sum[i] += a[i] - b[i];
    carried += sum[i] * sum[i];
  }
  if (flips) s->flipped[position] += local;
  s->flipped_points += flips;
  s->local[step * s->n_positions + position] = flips ? 0 : local;
  s->carried[step * s->n_positions + position] = carried;
}

// ---- to the account ----

typedef enum {
  PART_TOTAL,
  PART_FORCED,
  PART_LOCAL,
  PART_INTERFERENCE,
  PART_COMPOUNDING,
  PART_FLIPS,
  PART_LOCAL_FLIPS
} part;

// One part at one position, over the energy of the truth's last stream there.
static double part_at(const account_samples *s, part p, int64_t position) {
  double total = s->run[ACCOUNT_FREE][position], forced = s->run[ACCOUNT_FORCED][position], local = 0;
  double carried = s->carried[s->n_layers * s->n_positions + position];
  double norm = fmax(s->truth[position], 1e-300);
  for (int64_t l = 0; l <= s->n_layers; l++) local += s->local[l * s->n_positions + position];
  switch (p) {
  case PART_TOTAL:
    return total / norm;
  case PART_FORCED:
    return forced / norm;
  case PART_LOCAL:
    return local / norm;
  case PART_INTERFERENCE:
    return (carried - local) / norm;
  case PART_COMPOUNDING:
    return (forced - carried) / norm;
  case PART_FLIPS:
    return (total - forced) / norm;
  case PART_LOCAL_FLIPS:
    return s->flipped[position] / norm;
  }
  __builtin_unreachable();
}

static estimate part_of(const account_samples *s, part p, double *values) {
  for (int64_t i = 0; i < s->n_positions; i++) values[i] = part_at(s, p, i);
  return estimate_of(values, (size_t)s->n_positions);
}

// Of the embedding (step 0) or a layer.
static estimate local_of(const account_samples *s, int64_t step, double *values) {
  for (int64_t i = 0; i < s->n_positions; i++)
    values[i] = s->local[step * s->n_positions + i] / fmax(s->truth[i], 1e-300);
  return estimate_of(values, (size_t)s->n_positions);
}

static double increment_of(const account_samples *s, int64_t step) {
  double sum = 0;
  const double *now = s->carried + step * s->n_positions;
  for (int64_t i = 0; i < s->n_positions; i++)
    sum += (now[i] - now[i - s->n_positions]) / fmax(s->truth[i], 1e-300);
  return sum / (double)s->n_positions;
}

static bool is_negative(const estimate *e) {
  return e->mean < 0 && !(-e->mean <= 2 * e->standard_error);
}

static account_verdict judge(const account *a) {
  const estimate *parts[] = {&a->local, &a->interference, &a->compounding, &a->flips};
  bool nothing = a->total.mean == 0, negative = false;
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    if (!isfinite(parts[i]->mean)) return ACCOUNT_NOT_FINITE;
    nothing = nothing && parts[i]->mean == 0;
    negative = negative || is_negative(parts[i]);
  }
  if (!isfinite(a->total.mean)) return ACCOUNT_NOT_FINITE;
  return nothing ? ACCOUNT_NOTHING : negative ? ACCOUNT_NEGATIVE : ACCOUNT_ADDS_UP;
}

status account_samples_reduce(const account_samples *s, account *out) {
  double *values;
  TRY(TAKE(&values, (size_t)s->n_positions, "an account"));
  out->total = part_of(s, PART_TOTAL, values);
  out->forced = part_of(s, PART_FORCED, values);
  out->local = part_of(s, PART_LOCAL, values);
  out->interference = part_of(s, PART_INTERFERENCE, values);
  out->compounding = part_of(s, PART_COMPOUNDING, values);
  out->flips = part_of(s, PART_FLIPS, values);
  out->local_flips = part_of(s, PART_LOCAL_FLIPS, values);
  out->flipped_points = s->flipped_points;
  out->embedding = local_of(s, 0, values);
  for (int64_t l = 0; l < s->n_layers; l++)
    out->layers[l] = (account_layer){local_of(s, l + 1, values), increment_of(s, l + 1)};
  out->verdict = judge(out);
  free(values);
  return 0;
}
