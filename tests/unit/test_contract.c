// Tests of contracts: what is read, what is refused and in which words, and bounds from figures.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "src/contract/bound_fit.h"
#include "src/contract/contract.h"
#include "tests/support/seed.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEAD    "name = \"n\"\nversion = 2\nstatus = \"draft\"\nrun = \"moe_run\"\n"
#define GATE    "[gates.g]\nmetric = \"cos\"\npair = [\"q8k@cpu\", \"f32@cpu\"]\nat = \"l_out\"\n"
#define GATE_AT "[gates.g]\nmetric = \"rel_l2\"\npair = [\"q8k@cpu\", \"f32@cpu\"]\nat_most = 1\nat = "

static status read_text(contract *c, const char *text) {
  status_reset();
  return contract_read_text(c, "c.toml", text, strlen(text));
}

static void test_a_contract(void **state) {
  static const char TEXT[] =
      "name = \"n\"\nversion = 3\nstatus = \"active_with_documented_divergence\"\nrun = \"moe_run\"\n"
      "equations = [\"a = b\", \"c\"]\n"
      "[scope]\ncommand = \"parity\"\narms = [\"q8k@cpu\", \"f32@cpu\"]\nranks = [1, 4]\n"
      "modes = [\"free\", \"teacher\"]\nmodel = \"0123456789abcdef\"\nn_layers = 48\n"
      "[invariants]\nfinite = true\nweights_sum_to_1 = 1e-6\n"
      "[structure]\nfiles = true\n"
      "[gates.one]\nmetric = \"cos\"\npair = [\"q8k@cpu\", \"f32@cpu\"]\nat = \"l_out\"\nat_least = 0.99\n"
      "falsifiers = [6, 7]\n"
      "[gates.two]\nmetric = \"rel_l2\"\npair = [\"q8k@cpu\", \"f32@cpu\"]\nat = \"ffn_inp-7\"\n"
      "mode = \"teacher\"\nat_most = 1e-5\n"
      "[gates.three]\nmetric = \"perplexity\"\narm = \"q8k@cpu\"\nat_most = 50\nat_least = 40\n"
      "[divergences.d]\nreason = \"r\"\ndate = \"2026-11-26\"\nfalsifiers = [7]\n";
  contract c;
  (void)state;
  if (read_text(&c, TEXT)) fail_msg("%s", status_text());
  assert_int_equal(c.version, 3);
  assert_int_equal(c.state, CONTRACT_DIVERGES);
  assert_int_equal(c.equations.n, 2);
  assert_int_equal(c.scope.arms.n, 2);
  assert_int_equal(c.scope.most_ranks, 4);
  assert_int_equal(c.scope.n_layers, 48);
  assert_true(c.invariants.finite && !c.invariants.ids_in_range && c.files && !c.same_path);
  assert_true(c.invariants.weights_sum_to_1 == 1e-6);
  assert_int_equal(c.n_gates, 3);
  assert_string_equal(c.gates[0].name, "one");
  assert_int_equal(c.gates[0].place, METRIC_OF_LAYER);
  assert_int_equal(c.gates[0].layer, -1);
  assert_true(c.gates[0].metric->from_one && c.gates[0].at_least == 0.99 && isnan(c.gates[0].at_most));
  assert_int_equal(c.gates[0].falsifiers.n, 2);
  assert_int_equal(c.gates[0].falsifiers.id[1], 7);
  assert_int_equal(c.gates[1].place, METRIC_OF_PROBE);
  assert_int_equal(c.gates[1].layer, 7);
  assert_int_equal(c.gates[2].place, METRIC_OF_ARM);
  assert_int_equal(c.n_divergences, 1);
  contract_close(&c);
}

static void refuses(const char *text, const char *said) {
  contract c;
  status result = read_text(&c, text);
  if (!result) fail_msg("accepted: %s", text);
  assert_int_equal(result, STATUS_REFUSED);
  if (!strstr(status_text(), said)) fail_msg("no \"%s\" in: %s", said, status_text());
  assert_null(c.file); // a refused contract owns nothing
}

static void test_refusals(void **state) {
  (void)state;
  refuses("", "name: expected a contract's name");
  refuses("x = ", "c.toml:1: expected TOML");
  refuses(HEAD "nmae = 1\n", "c.toml:5: unknown key \"nmae\": did you mean \"name\"?");
  refuses(HEAD "[scope]\nkw = 1\n", "c.toml:6: unknown key \"scope.kw\": did you mean \"scope.kv\"?");
  refuses(HEAD GATE "atleast = 1\n",
          "c.toml:9: unknown key \"gates.g.atleast\": did you mean \"gates.g.at_least\"?");
  refuses(HEAD "[gates.g]\n", "gates.g: expected a table with keys, found none");
  refuses(HEAD "[[gates]]\nmetric = \"cos\"\n", "unknown key \"gates\"");
  refuses(HEAD GATE "at_least = \"a\"\n", "c.toml:9: gates.g.at_least: expected number, found the string");
  refuses(HEAD GATE "at_least = nan\n", "gates.g.at_least: expected number, found the number");
  refuses(HEAD GATE "at_least = 0.9\nfalsifiers = [0]\n",
          "gates.g.falsifiers: expected list of falsifiers (1 to 10)");
  refuses(HEAD GATE "at_least = 0.9\nfalsifiers = [11]\n", "falsifiers (1 to 10)");
  refuses("version = 1\n" GATE, "name: expected");
  refuses("name = \"n\"\nversion = 0\n", "version: expected integer from 1");
  refuses(HEAD, "gates nothing");
  refuses(HEAD "[gates]\n[scope]\n", "gates nothing");
  refuses(HEAD "[invariants]\nfinite = false\n", "gates nothing");
  refuses(HEAD GATE, "gates.g.at_most: gates nothing");
  refuses(HEAD GATE "at_least = -1\n", "gates nothing: every cos meets the bound");
  refuses(HEAD GATE "at_least = 1.5\n", "no cos can meet the bound");
  refuses(HEAD GATE "at_least = 0.9\nat_most = 0.8\n",
          "contradicts itself: gates.g: at_least = 0.9 is above");
  refuses(HEAD GATE_AT "\"l_aut\"\n", "expected \"logits\", a layer's probe");
  refuses(HEAD GATE_AT "\"inp_embd\"\n", "a layer's probe");
  refuses(HEAD GATE_AT "\"l_out-x\"\n", "expected PROBE-LAYER with a layer from 0");
  refuses(HEAD GATE_AT "\"l_out--1\"\n", "gates.g.at");
  refuses(HEAD "[gates.g]\nmetric = \"kl\"\npair = [\"q8k@cpu\", \"f32@cpu\"]\nat_most = 1\nat = \"l_out\"\n",
          "kl is no metric of a layer");
  refuses(HEAD
          "[gates.g]\nmetric = \"max_rel\"\npair = [\"q8k@cpu\", \"f32@cpu\"]\nat_most = 1\nat = \"l_out\"\n",
          "max_rel is an extreme value");
  refuses(HEAD
          "[gates.g]\nmetric = \"kl\"\npair = [\"q8k@cpu\", \"q8k@cpu\"]\nat_most = 1\nat = \"logits\"\n",
          "expected two arms");
  refuses(HEAD
          "[gates.g]\nmetric = \"kl\"\npair = [\"q9k@cpu\", \"q8k@cpu\"]\nat_most = 1\nat = \"logits\"\n",
          "expected path@backend");
  refuses(HEAD "[gates.g]\nmetric = \"kl\"\nat_most = 1\nat = \"logits\"\n",
          "expected a pair of arms, or an arm");
  refuses(HEAD "[scope]\nmodes = [\"freely\"]\n" GATE "at_least = 0.9\n",
          "expected free, forced, teacher or local");
  refuses(HEAD "[scope]\nmodes = [\"free\"]\n" GATE "at_least = 0.9\nmode = \"forced\"\n",
          "contradicts itself");
  refuses(HEAD "[scope]\narms = [\"q8k@cpu\"]\n" GATE "at_least = 0.9\n",
          "gates.g.pair has f32@cpu, which scope.arms");
  refuses(HEAD "[scope]\nranks = [4, 1]\n" GATE "at_least = 0.9\n", "no number of ranks is in it");
  refuses(HEAD "[scope]\nmodel = \"xyz\"\n" GATE "at_least = 0.9\n",
          "scope.model: expected 16 hexadecimal digits");
  refuses(HEAD GATE "at_least = 0.9\n[divergences.d]\nreason = \"r\"\ndate = \"today\"\n",
          "expected YYYY-MM-DD");
  refuses(HEAD GATE "at_least = 0.9\n[divergences.d]\nreason = \"r\"\ndate = \"2026-13-01\"\n",
          "expected YYYY-MM-DD");
  refuses(HEAD GATE "at_least = 0.9\n[divergences.d]\ndate = \"2026-01-01\"\n", "expected a reason");
  refuses(HEAD "[exact.q8k]\nversion = 1\ndigest = \"0123456789abcdef\"\n",
          "a digest is of one model, input and cache");
  refuses(HEAD "[exact.q9k]\nversion = 1\n", "expected exact.PATH.KEY");
  refuses(HEAD "refuted_by = [1]\n" GATE "at_least = 0.9\n", "refuted_by is set, but status = \"draft\"");
}

static void test_states(void **state) {
  contract c;
  (void)state;
  refuses("name = \"n\"\nversion = 1\nrun = \"r\"\nstatus = \"retired\"\n" GATE "at_least = 0.9\n",
          "expected refuted_by");
  refuses("name = \"n\"\nversion = 1\nrun = \"r\"\nstatus = \"active\"\n" GATE
          "at_least = 0.9\n[divergences.d]\nreason = \"r\"\ndate = \"2026-01-01\"\n",
          "documents a divergence");
  assert_int_equal(
      read_text(&c, "name = \"n\"\nversion = 1\nrun = \"r\"\nstatus = \"retired\"\nrefuted_by = [1, 4]\n" GATE
                    "at_least = 0.9\n"),
      0);
  assert_int_equal(c.state, CONTRACT_RETIRED);
  contract_close(&c);
}

static void test_two_gates(void **state) {
  contract c;
  (void)state;
  refuses(HEAD GATE
          "at_least = 0.99\n[gates.h]\nmetric = \"one_minus_cos\"\npair = [\"q8k@cpu\", \"f32@cpu\"]\n"
          "at = \"l_out-3\"\nat_least = 0.02\n",
          "no figure meets both gates.g and gates.h");
  static const char *const APART[] = {
      HEAD GATE "at_least = 0.99\n[gates.h]\nmetric = \"cos\"\npair = [\"q8k@cpu\", \"f32@cpu\"]\nat = "
                "\"logits\"\nat_most = 0.5\n",
      HEAD GATE "at_least = 0.99\n[gates.h]\nmetric = \"cos\"\npair = [\"f32@cpu\", \"q8k@cpu\"]\nat = "
                "\"l_out\"\nat_most = 0.5\n",
      HEAD GATE "at_least = 0.99\n[gates.h]\nmetric = \"cos\"\npair = [\"q8k@cpu\", \"f32@cpu\"]\nat = "
                "\"l_out\"\nat_most = 0.5\n"
                "mode = \"teacher\"\n",
  };
  for (size_t i = 0; i < sizeof APART / sizeof *APART; i++) {
    if (read_text(&c, APART[i])) fail_msg("%s", status_text());
    contract_close(&c);
  }
}

static void test_used(void **state) {
  (void)state;
  const metric_info *cos_ = metric_find("cos"), *rel = metric_find("rel_l2"),
                    *margin = metric_find("min_margin");
  assert_true(fabs(metric_used(cos_, 0.995, 0.99, false) - 0.5) < 1e-12);
  assert_true(metric_used(rel, 1e-6, 4e-6, true) == 0.25);
  assert_true(metric_used(rel, 0, 0, true) == 0);
  assert_true(isinf(metric_used(rel, 1, 0, true)));
  assert_true(metric_used(margin, 0.5, 0.25, false) == 0.5 / 0.75);
  assert_null(metric_find("max_rel"));
  assert_string_equal(metric_nearest("rel_l"), "rel_l2");
}

// At most 1 where the bound holds, more where it does not.
static void test_used_says_whether_it_holds(void **state) {
  static const char *const names[] = {"cos", "rel_l2", "min_margin", "top1_agreement", "perplexity_delta"};
  static const double values[] = {-2, -0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 1, 2};
  enum { N = sizeof values / sizeof *values };
  (void)state;
  for (size_t i = 0; i < 5 * N * N * 2; i++) {
    const metric_info *m = metric_find(names[i / (N * N * 2)]);
    double figure = values[i / (N * 2) % N], bound = values[i / 2 % N];
    bool at_most = i % 2, holds = at_most ? figure <= bound : figure >= bound;
    assert_non_null(m);
    if (figure < m->low || figure > m->high) continue;
    double used = metric_used(m, figure, bound, at_most);
    if (!(used >= 0) || (used <= 1) != holds)
      fail_msg("%s: %g %s %g: used %g", m->name, figure, at_most ? "<=" : ">=", bound, used);
  }
  assert_true(metric_used(metric_find("perplexity_delta"), -0.05, -0.1, false) == 0.5);
  assert_true(isnan(metric_used(metric_find("rel_l2"), (double)NAN, 1, true)));
}

static double uniform(uint64_t *seed) {
  *seed = *seed * 6364136223846793005u + 1442695040888963407u;
  return ((double)(*seed >> 11) + 0.5) * 0x1p-53;
}

// Shipped contracts with some bytes changed: read or refused, never a crash; what is refused owns nothing.
static void test_random_edits(void **state) {
  static const char *const SHIPPED[] = {"forward-parity", "exact",     "invariants",
                                        "f32-truth",      "f32-local", "kernel-order"};
  static char text[1 << 16], changed[1 << 16];
  uint64_t seed = test_seed_bits();
  size_t refused = 0, read = 0;
  (void)state;
  for (size_t s = 0; s < sizeof SHIPPED / sizeof *SHIPPED; s++) {
    char path[512];
    snprintf(path, sizeof path, "%s/configs/contracts/%s.toml", MOE_SOURCE_DIR, SHIPPED[s]);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    size_t n = fread(text, 1, sizeof text, f);
    fclose(f);
    for (int i = 0; i < 500; i++) {
      contract c;
      memcpy(changed, text, n);
      for (int k = 0; k < i % 5; k++) // the first of five is as it was
        changed[(size_t)(uniform(&seed) * (double)n)] = "\0\n=[]\".-19ax#"[(size_t)(uniform(&seed) * 14)];
      status_reset();
      status result = contract_read_text(&c, "c.toml", changed, n);
      assert_true(i % 5 || !result);
      assert_true(result == 0 || result == STATUS_REFUSED);
      refused += result != 0;
      read += result == 0;
      if (!result) contract_close(&c);
    }
  }
  assert_true(refused > 100 && read > 100);
}

// ---- bounds ----

// Figures whose logarithm is Gumbel: the bound at a rate is known, and the fit of many finds it.
static void test_bound_of_a_known_tail(void **state) {
  enum { N = 20000 };
  static double x[N];
  uint64_t seed = 7;
  bound_fit fit;
  (void)state;
  for (int i = 0; i < N; i++) x[i] = exp(-13 - 0.3 * log(-log(uniform(&seed))));
  assert_int_equal(bound_fit_of(&fit, x, N, 1e-6), 0); // beyond what 20,000 draws reach
  double exact = exp(-13 - 0.3 * log(-log1p(-1e-6)));
  assert_true(fit.bound > 0.9 * exact && fit.bound < 1.1 * exact);
  assert_true(fit.fitted_rate <= 1e-6 && fit.fitted_rate > 0.9e-6);
  assert_true(fabs(fit.sure_rate - 3.0 / N) < 0.01 / N);
  size_t above = 0;
  assert_int_equal(bound_fit_of(&fit, x, 100, 0.05), 0);
  for (int i = 100; i < N; i++) above += x[i] > fit.bound;
  assert_true(above < (N - 100) * 0.1);
}

static void test_bound_is_never_below_what_was_seen(void **state) {
  const double outlier[] = {1, 1.01, 0.99, 1.02, 0.98, 1, 50.04}, same[] = {0.25, 0.25, 0.25},
               zero[] = {0, 0, 0, 0}, some[] = {0, 0, 1e-9, 2e-9}, nan[] = {1, (double)NAN};
  bound_fit fit;
  (void)state;
  assert_int_equal(bound_fit_of(&fit, outlier, 7, 0.3), 0);
  assert_true(fit.largest == 50.04 && fit.bound >= 50.04 && fit.bound <= 50.2 && fit.median == 1);
  assert_int_equal(bound_fit_of(&fit, same, 3, 0.01), 0);
  assert_true(fabs(fit.bound - 0.25) < 1e-12 && fit.fitted_rate == 0);
  assert_int_equal(bound_fit_of(&fit, zero, 4, 0.01), 0);
  assert_true(fit.bound == 0 && fit.fitted_rate == 0);
  assert_int_equal(bound_fit_of(&fit, some, 4, 0.01), 0);
  assert_true(fit.bound >= 2e-9 && fit.bound < 1e-7);
  status_reset();
  assert_int_equal(bound_fit_of(&fit, nan, 2, 0.01), STATUS_FAILED);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_a_contract),
      cmocka_unit_test(test_refusals),
      cmocka_unit_test(test_states),
      cmocka_unit_test(test_two_gates),
      cmocka_unit_test(test_used),
      cmocka_unit_test(test_used_says_whether_it_holds),
      cmocka_unit_test(test_random_edits),
      cmocka_unit_test(test_bound_of_a_known_tail),
      cmocka_unit_test(test_bound_is_never_below_what_was_seen),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
