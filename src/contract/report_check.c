#include "src/contract/checking.h"
#include <inttypes.h>
#include <string.h>

// ---- values ----

double check_number(checking *c, const json_t *object, const char *key, const char *where) {
  const json_t *x = json_object_get(object, key);
  bool good = x && (json_is_number(x) || json_is_null(x));
  EXPECT(c, good, where, "%s: expected a number or null, found %s", key, x ? "another type" : "no such key");
  return good && json_is_number(x) ? json_number_value(x) : (double)NAN;
}

int64_t check_integer(checking *c, const json_t *object, const char *key, const char *where) {
  const json_t *x = json_object_get(object, key);
  EXPECT(c, json_is_integer(x), where, "%s: expected an integer, found %s", key,
         x ? "another type" : "no such key");
  return json_is_integer(x) ? json_integer_value(x) : -1;
}

const char *check_text(checking *c, const json_t *object, const char *key, const char *where) {
  const char *text = json_string_value(json_object_get(object, key));
  EXPECT(c, text, where, "%s: expected a string", key);
  return text ? text : "";
}

int64_t check_positions(const recorded_report *r) {
  int64_t n = 0;
  for (size_t i = 0; i < r->arms[0].n_sequences; i++) n += r->arms[0].sequences[i].tokens;
  return n;
}

// ---- arms, ranks and the run ----

static void check_arm(checking *c, const json_t *arm, const recorded_arm *read, const char *where) {
  int64_t positions = 0, tokens = check_integer(c, arm, "tokens", where),
          scored = check_integer(c, arm, "scored", where);
  size_t n_ranks = c->r->n_ranks;
  for (size_t i = 0; i < read->n_sequences; i++) {
    positions += read->sequences[i].tokens;
    EXPECT(c, read->sequences[i].tokens == c->r->arms[0].sequences[i].tokens, where,
           "sequences[%zu].tokens is another than that of arms[0]", i);
  }
  if (c->r->command == COMMAND_PARITY)
    EXPECT(c, tokens == positions && scored == positions - (int64_t)read->n_sequences, where,
           "tokens = %" PRId64 " and scored = %" PRId64 ", but its %zu sequences have %" PRId64 " positions",
           tokens, scored, read->n_sequences, positions);
  EXPECT(c, scored >= 0 && scored <= tokens, where, "scored = %" PRId64 " of %" PRId64 " tokens", scored,
         tokens);
  double perplexity = check_number(c, arm, "perplexity", where);
  EXPECT(c, isnan(perplexity) || perplexity >= 1, where, "perplexity = %.9g is below 1", perplexity);
  EXPECT(c, json_array_size(json_object_get(arm, "bytes_per_rank")) == n_ranks, where,
         "bytes_per_rank: expected one for each of %zu ranks", n_ranks);
  EXPECT(c, json_array_size(json_object_get(arm, "rank_arms")) == n_ranks, where,
         "rank_arms: expected one for each of %zu ranks", n_ranks);
}

static void check_arms(checking *c) {
  const json_t *arms = json_object_get(root_of(c->r), "arms"), *run = json_object_get(root_of(c->r), "run");
  char where[CHECK_WHERE_BYTES];
  for (size_t i = 0; i < c->r->n_arms; i++) {
    snprintf(where, sizeof where, "arms[%zu]", i);
    check_arm(c, json_array_get(arms, i), &c->r->arms[i], where);
  }
  int64_t sequences = check_integer(c, run, "sequences", "run");
  EXPECT(c, sequences == (int64_t)c->r->arms[0].n_sequences, "run",
         "sequences = %" PRId64 ", but the arms have %zu", sequences, c->r->arms[0].n_sequences);
}

static void check_ranks(checking *c) {
  const json_t *ranks = json_object_get(root_of(c->r), "ranks");
  int64_t experts = 0, all = check_integer(c, json_object_get(root_of(c->r), "model"), "n_experts", "model");
  char where[CHECK_WHERE_BYTES];
  for (size_t i = 0; i < c->r->n_ranks; i++) {
    const json_t *rank = json_array_get(ranks, i);
    snprintf(where, sizeof where, "ranks[%zu]", i);
    int64_t number = check_integer(c, rank, "rank", where);
    EXPECT(c, number == (int64_t)i, where, "rank = %" PRId64, number);
    int64_t held = check_integer(c, rank, "experts", where);
    EXPECT(c, held <= all, where, "experts = %" PRId64 " of a layer's %" PRId64, held, all);
    experts += held;
  }
  int64_t replicas = check_integer(c, json_object_get(root_of(c->r), "run"), "replicas", "run");
  EXPECT(c, replicas > 0 ? experts > all : experts == all, "ranks",
         "hold %" PRId64 " experts of a layer's %" PRId64, experts, all);
}

void report_check(verdict *v, const recorded_report *r) {
  checking c = {.v = v, .r = r};
  check_ranks(&c);
  check_arms(&c);
  check_all_pairs(&c);
  if (!c.failed)
    verdict_add(v, VERDICT_STRUCTURE, "structure", "report.json", true, "%zu relations of its numbers", c.n);
}
