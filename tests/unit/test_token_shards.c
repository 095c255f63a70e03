// Tests of src/run/token_shards.c: every token has one row, of a rank that shares the steps; a rank's rows
// are neighbours and even in number over any stretch of the batch; small batches stay as they are, or are cut
// token by token.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "src/run/token_shards.h"
#include <stdlib.h>

enum { MOST = 1000, RANKS = 5 };

static int32_t token[MOST], sequence[MOST], position[MOST];

// Sequences of 1, 2, 3, ... times 37 tokens, one after the other.
static token_batch make_batch(int64_t n) {
  for (int32_t t = 0, s = 0, p = 0; t < n; t++, p++) {
    if (p == 37 * (s + 1)) {
      s++;
      p = 0;
    }
    token[t] = 7 * t + 1;
    sequence[t] = s;
    position[t] = p;
  }
  return (token_batch){n, token, sequence, position};
}

static void check_rows(const token_shards *d, const token_batch *batch) {
  const token_batch *rows = token_shards_rows(d, batch);
  bool taken[MOST] = {false};
  assert_int_equal(rows->n, batch->n);
  for (int64_t t = 0; t < batch->n; t++) {
    int64_t row = token_shards_row(d, t);
    assert_in_range(row, 0, batch->n - 1);
    assert_false(taken[row]);
    taken[row] = true;
    assert_int_equal(rows->token[row], batch->token[t]);
    assert_int_equal(rows->sequence[row], batch->sequence[t]);
    assert_int_equal(rows->position[row], batch->position[t]);
  }
}

static void check_own(const token_shards *d, const token_batch *batch, int n_shared) {
  row_range own = token_shards_owned(d, batch->n);
  const token_batch *rows = token_shards_rows(d, batch);
  int64_t seen = 0, first = 0;
  bool shares = !d->shared || d->shared[d->rank];
  for (int r = 0; r < d->rank; r++) first += d->tokens_of_rank[r];
  assert_int_equal(own.first, first);
  assert_int_equal(own.count, d->tokens_of_rank[d->rank]);
  for (int64_t t = 0; t < batch->n; t++) { // of the first t + 1 tokens it has its share, but for a block
    int64_t row = token_shards_row(d, t);
    seen += row >= own.first && row < own.first + own.count;
    if (shares) assert_true(llabs(seen * n_shared - (t + 1)) <= SHARD_BLOCK_TOKENS * n_shared);
  }
  assert_int_equal(seen, shares ? own.count : 0);
  for (int64_t i = own.first + 1; i < own.first + own.count; i++)
    assert_true(rows->sequence[i] > rows->sequence[i - 1] ||
                (rows->sequence[i] == rows->sequence[i - 1] && rows->position[i] > rows->position[i - 1]));
}

// As where small batches are worth it: every rank has a token, none more than one above another.
static void check_small(token_shards *d, const token_batch *batch, int n_shared) {
  token_shards_cut(d, batch, true);
  check_rows(d, batch);
  check_own(d, batch, n_shared);
  for (int r = 0; r < RANKS; r++)
    if (!d->shared || d->shared[r])
      assert_in_range(d->tokens_of_rank[r], batch->n / n_shared, (batch->n + n_shared - 1) / n_shared);
  assert_int_equal(d->is_apart, batch->n == 1); // the first two tokens are of one sequence
}

static void check_apart(token_shards *d, int n_shared) {
  static int32_t own[MOST];
  for (int32_t t = 0; t < MOST; t++) own[t] = MOST - t;
  token_batch batch = make_batch(3 * n_shared);
  batch.sequence = own;
  token_shards_cut(d, &batch, true);
  check_rows(d, &batch);
  assert_true(d->is_apart);
  own[3 * n_shared - 1] = own[0];
  token_shards_cut(d, &batch, true);
  assert_false(d->is_apart);
  token_shards_cut(d, &batch, false);
  assert_false(d->is_apart);
  batch = make_batch(MOST);
  own[3 * n_shared - 1] = MOST - (3 * n_shared - 1);
  batch.sequence = own;
  token_shards_cut(d, &batch, true);
  assert_true(d->is_apart);
}

static void check_set(const bool *shared, int n_shared) {
  for (int rank = 0; rank < RANKS; rank++) {
    token_shards d;
    assert_int_equal(token_shards_open(&d, shared, RANKS, rank, MOST), 0);
    for (int64_t n = 1; n <= MOST; n += n < 2 * SHARD_LEAST_TOKENS * n_shared ? 1 : 71) {
      token_batch batch = make_batch(n);
      if (n_shared > 1 && n >= n_shared && !token_shards_apply(&d, n)) check_small(&d, &batch, n_shared);
      token_shards_cut(&d, &batch, token_shards_apply(&d, n));
      assert_int_equal(token_shards_apply(&d, n), n_shared > 1 && n >= n_shared * SHARD_LEAST_TOKENS);
      check_rows(&d, &batch);
      if (token_shards_apply(&d, n)) {
        check_own(&d, &batch, n_shared);
        continue;
      }
      assert_ptr_equal(token_shards_rows(&d, &batch), &batch);
      assert_int_equal(token_shards_owned(&d, n).first, 0);
      assert_int_equal(token_shards_owned(&d, n).count, n);
    }
    if (n_shared > 1) check_apart(&d, n_shared);
    token_shards_close(&d);
  }
}

static void tokens_are_dealt_to_shared_ranks(void **state) {
  (void)state;
  for (int set = 1; set < 1 << RANKS; set++) {
    bool shared[RANKS];
    int n_shared = 0;
    for (int r = 0; r < RANKS; r++) n_shared += shared[r] = set >> r & 1;
    check_set(shared, n_shared);
  }
  check_set(NULL, RANKS);
  token_shards_close(NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(tokens_are_dealt_to_shared_ranks)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
