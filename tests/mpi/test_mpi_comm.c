// Tests of dist/comm.c and dist/exchange.c over the ranks that they are started with (1 to 4 by ctest):
// contents that are known beforehand, so that each test asks for equal; outcomes that all ranks share; a rank
// that comes late.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "base/clock.h"
#include "base/memory.h"
#include "dist/exchange.h"
#include "kernels/formats/numerics.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static comm *ranks; // opened once: MPI starts and ends once
static int rank, size;

static unsigned char content(int owner, size_t i, int round) { // of byte i of a rank's part
  return (unsigned char)num_mix64((uint64_t)owner << 40 ^ (uint64_t)round << 32 ^ i);
}

static void a_rank_knows_itself(void **state) {
  (void)state;
  assert_in_range(rank, 0, size - 1);
  assert_true(comm_host(ranks)[0] && comm_library(ranks)[0]);
  int32_t *all;
  const int32_t mine = 1000 + rank;
  assert_int_equal(TAKE(&all, (size_t)size, "ranks"), 0);
  assert_int_equal(comm_allgather(ranks, all, &mine, sizeof mine, "a test"), 0);
  for (int r = 0; r < size; r++) assert_int_equal(all[r], 1000 + r);
  free(all);
}

// All-gather of parts of any size: part[r] of every rank's buffer is rank r's.
static status gather_parts(char *buffer, const comm_part *part, const char *what) {
  static comm_part table[64 * 64];
  for (int i = 0; i < size * size; i++) table[i] = part[i / size];
  return comm_exchange(ranks, buffer, table, what);
}

// Sizes of parts: 0, 1, odd, one large and the others none, beyond what MPI sends at once.
static size_t part_bytes(int r, int round) {
  switch (round) {
  case 0:
    return 0;
  case 1:
    return 1;
  case 2:
    return r % 2 ? 0 : 4099;
  case 3:
    return r == size - 1 ? 1 << 20 : 0;
  case 4:
    return (size_t)(r + 1) * 70001;
  case 5:
    return r == 0 ? 0 : 1u << (4 * r + 4);
  default:
    return num_mix64((uint64_t)(r + 31 * round)) % 3000;
  }
}

static void gather_round(int round) {
  enum { GUARD = 64 };
  comm_part part[64];
  size_t at = GUARD;
  assert_in_range(size, 1, 64);
  for (int r = size - 1; r >= 0; r--) { // parts need not lie in the order of ranks, nor side by side
    part[r] = (comm_part){at, part_bytes(r, round)};
    at += part[r].bytes + GUARD;
  }
  unsigned char *buffer;
  assert_int_equal(TAKE(&buffer, at, "a buffer"), 0);
  memset(buffer, 0xa5, at);
  for (size_t i = 0; i < part[rank].bytes; i++) buffer[part[rank].offset + i] = content(rank, i, round);
  assert_int_equal(gather_parts((char *)buffer, part, "a test"), 0);
  for (int r = 0; r < size; r++) {
    for (size_t i = 0; i < part[r].bytes; i++)
      if (buffer[part[r].offset + i] != content(r, i, round))
        fail_msg("round %d: byte %zu of rank %d", round, i, r);
    for (int i = 0; i < GUARD; i++)
      assert_int_equal(buffer[part[r].offset + part[r].bytes + (size_t)i], 0xa5);
  }
  free(buffer);
}

static void gathered_parts_are_equal(void **state) {
  (void)state;
  for (int round = 0; round < 300; round++) gather_round(round);
}

// Every rank has something else for each of the others, or nothing; what is not for a rank stays as it was.
static void exchange_round(int round) {
  comm_part part[64 * 64];
  size_t end = 0;
  for (int i = 0; i < size * size; i++) {
    part[i] = (comm_part){end, part_bytes((i + round) % size, round / 3 + i / size)};
    end += part[i].bytes + 3;
  }
  unsigned char *buffer;
  assert_int_equal(TAKE(&buffer, end, "a buffer"), 0);
  memset(buffer, 0xa5, end);
  for (int to = 0; to < size; to++)
    for (size_t i = 0, at = part[rank * size + to].offset; i < part[rank * size + to].bytes; i++)
      buffer[at + i] = content(rank * size + to, i, round);
  assert_int_equal(comm_exchange(ranks, (char *)buffer, part, "a test"), 0);
  for (int n = 0; n < size * size; n++) {
    bool here = n / size == rank || n % size == rank;
    for (size_t i = 0; i < part[n].bytes; i++)
      if (buffer[part[n].offset + i] != (here ? content(n, i, round) : 0xa5))
        fail_msg("round %d: byte %zu from %d to %d", round, i, n / size, n % size);
  }
  free(buffer);
}

static void exchanged_parts_are_equal(void **state) {
  (void)state;
  for (int round = 0; round < 60; round++) exchange_round(round);
}

// ---- the exchange of slots ----

enum { EXPERTS = 9, SLOTS = 50, ROW = 24 };
static const device_id no_device = {.index = -1};

static transport *open_transport(void) {
  transport *t;
  assert_int_equal(transport_choose(&t, ranks, TRANSPORT_AUTO, &no_device, false), 0);
  assert_int_equal(transport_start(t, 0), 0);
  return t;
}

static void fill_row(unsigned char *row, int64_t slot, int layer) {
  for (size_t i = 0; i < ROW; i++) row[i] = content((int)slot, i, layer);
}

// Each transfer of rows in host memory is logged, by whichever call; an all-gather alone is timed.
static void exchange_is_timed(exchange *x, unsigned char *rows) {
  double seconds[2] = {-1, -1}, alone = 0, before = exchange_seconds(x);
  seconds_log log = {.seconds = seconds, .room = 1};
  uint64_t sent = exchange_bytes_sent(x);
  exchange_log(x, &log);
  assert_int_equal(exchange_transfer(x, rows, NULL, ROW, exchange_slots(x), 0), 0);
  assert_int_equal(exchange_transfer_host(x, rows, ROW, exchange_slots(x), 0), 0);
  exchange_log(x, NULL);
  assert_int_equal(exchange_transfer(x, rows, NULL, ROW, exchange_slots(x), 0), 0);
  assert_int_equal(log.n, 2);
  assert_true(seconds[0] >= 0 && seconds[1] < 0 && log.sum >= seconds[0]);
  assert_true(size > 1 ? exchange_seconds(x) > before : exchange_seconds(x) >= before);
  assert_int_equal((exchange_bytes_sent(x) - sent) % 3, 0); // the three sent the same
  assert_int_equal(exchange_measure(x, &alone, 1000), 0);
  assert_true(size > 1 ? alone > 0 : isnan(alone));
}

static void slots_arrive_where_the_plan_says(void **state) {
  (void)state;
  int32_t owner[EXPERTS], of_slot[SLOTS]; // ranks
  unsigned char rows[SLOTS * ROW], wanted[ROW];
  for (int e = 0; e < EXPERTS; e++) owner[e] = (int32_t)(num_mix64((uint64_t)e + 5) % (uint64_t)size);
  exchange *x;
  transport *t = open_transport();
  assert_string_equal(transport_name(t), size == 1 ? "self" : "mpi");
  assert_string_equal(transport_reason(t), "");
  assert_false(transport_takes_device(t));
  assert_int_equal(exchange_open(&x, ranks, t, NULL, SLOTS), 0);
  uint64_t sent = 0;
  for (int layer = 0; layer < 100; layer++) {
    int64_t n = layer % (SLOTS + 1), own = 0;
    for (int64_t i = 0; i < n; i++) // in some layers one expert, and so one rank, has all slots
      of_slot[i] =
          owner[layer % 5 ? num_mix64((uint64_t)(layer * 100 + i)) % EXPERTS : (uint64_t)layer % EXPERTS];
    const int64_t *row_of_slot = exchange_place_slots(x, of_slot, n, NULL);
    row_range owned = exchange_own_slots(x);
    bool taken[SLOTS] = {false};
    memset(rows, 0xa5, sizeof rows);
    for (int64_t i = 0; i < n; i++) {
      assert_in_range(row_of_slot[i], 0, n - 1);
      assert_false(taken[row_of_slot[i]]);
      taken[row_of_slot[i]] = true;
      bool in_own = row_of_slot[i] >= owned.first && row_of_slot[i] < owned.first + owned.count;
      assert_true(in_own == (of_slot[i] == rank));
      if (!in_own) continue;
      fill_row(rows + row_of_slot[i] * ROW, i, layer);
      own++;
    }
    assert_int_equal(exchange_sent_rows(x, exchange_slots(x)).count, size > 1 ? own : 0);
    assert_int_equal(exchange_transfer(x, rows, NULL, ROW, exchange_slots(x), layer), 0);
    for (int64_t i = 0; i < n; i++) {
      fill_row(wanted, i, layer);
      assert_memory_equal(rows + row_of_slot[i] * ROW, wanted, ROW);
    }
    for (size_t i = (size_t)n * ROW; i < sizeof rows; i++) assert_int_equal(rows[i], 0xa5);
    sent += (uint64_t)own * ROW * (uint64_t)(size - 1);
  }
  assert_true(exchange_bytes_sent(x) == sent);
  assert_true(exchange_seconds(x) >= 0);
  exchange_is_timed(x, rows);
  exchange_close(x);
  exchange_close(NULL);
  transport_close(t);
  transport_close(NULL);
}

// ---- slots of token shards ----

enum { TOP_K = 3 };

// How the 16 tokens are sharded: evenly, all to the last shared rank, some to none.
static void deal_tokens(int64_t *tokens_of_rank, const bool *shared, int layer) {
  int64_t left = SLOTS / TOP_K, n_shared = 0, part = 0;
  for (int r = 0; r < size; r++) n_shared += shared[r];
  for (int r = 0; r < size; r++) {
    tokens_of_rank[r] = 0;
    if (!shared[r]) continue;
    int64_t each = layer % 3 == 0   ? (left + n_shared - part - 1) / (n_shared - part)
                   : layer % 3 == 1 ? 0
                                    : (int64_t)num_mix64((uint64_t)(layer + r)) & 7;
    if (++part == n_shared || each > left) each = left;
    tokens_of_rank[r] = each;
    left -= each;
  }
}

// Own slots are filled; of the others' this rank gets those of its own tokens, and no more.
static void dealt_layer(exchange *x, const int32_t *owner, const bool *shared, int layer) {
  int32_t of_slot[SLOTS]; // ranks
  unsigned char rows[SLOTS * ROW], wanted[ROW];
  int64_t tokens_of_rank[64], slots_of_rank[64], n = SLOTS / TOP_K * TOP_K, first = 0;
  deal_tokens(tokens_of_rank, shared, layer);
  for (int r = 0; r < size; r++) {
    slots_of_rank[r] = TOP_K * tokens_of_rank[r];
    if (r < rank) first += slots_of_rank[r];
  }
  for (int64_t i = 0; i < n; i++)
    of_slot[i] =
        owner[layer % 5 ? num_mix64((uint64_t)(layer * 100 + i)) % EXPERTS : (uint64_t)layer % EXPERTS];
  int64_t plain[SLOTS];
  memcpy(plain, exchange_place_slots(x, of_slot, n, NULL), (size_t)n * sizeof *plain);
  const int64_t *row_of_slot = exchange_place_slots(x, of_slot, n, slots_of_rank);
  assert_memory_equal(row_of_slot, plain, (size_t)n * sizeof *plain);
  memset(rows, 0xa5, sizeof rows);
  uint64_t before = exchange_bytes_sent(x), given = 0;
  for (int64_t i = 0; i < n; i++) {
    bool own = of_slot[i] == rank, mine = i >= first && i < first + slots_of_rank[rank];
    if (own) fill_row(rows + row_of_slot[i] * ROW, i, layer);
    given += own && !mine;
  }
  assert_int_equal(exchange_transfer(x, rows, NULL, ROW, exchange_slots(x), layer), 0);
  for (int64_t i = 0; i < n; i++) {
    bool own = of_slot[i] == rank, mine = i >= first && i < first + slots_of_rank[rank];
    memset(wanted, 0xa5, ROW);
    if (own || mine) fill_row(wanted, i, layer);
    assert_memory_equal(rows + row_of_slot[i] * ROW, wanted, ROW);
  }
  assert_true(exchange_bytes_sent(x) - before == given * ROW);
  row_range gives = exchange_sent_rows(x, exchange_slots(x));
  assert_true((gives.count > 0) == (given > 0) && gives.count >= (int64_t)given);
}

static void slots_come_to_the_rank_of_their_token(void **state) {
  (void)state;
  int32_t owner[EXPERTS];
  transport *t = open_transport();
  for (int set = 1; set < 1 << size; set++) {
    bool shared[64];
    exchange *x;
    for (int r = 0; r < size; r++) shared[r] = set >> r & 1;
    for (int e = 0; e < EXPERTS; e++) owner[e] = (int32_t)(num_mix64((uint64_t)(e + set)) % (uint64_t)size);
    assert_int_equal(exchange_open(&x, ranks, t, shared, SLOTS), 0);
    for (int layer = 0; layer < 30; layer++) dealt_layer(x, owner, shared, layer);
    exchange_close(x);
  }
  transport_close(t);
}

static void refused(transport_kind kind, const device_id *device, const char *why) {
  transport *t;
  assert_int_not_equal(transport_choose(&t, ranks, kind, device, true), 0);
  assert_null(t);
  assert_true(comm_error_is_agreed(ranks));
  if (rank == 0 && !strstr(status_text(), why)) fail_msg("\"%s\" does not say \"%s\"", status_text(), why);
  status_reset();
}

static void transports_that_cannot_serve_are_refused(void **state) {
  (void)state;
  refused(TRANSPORT_NCCL, &no_device, "nccl"); // not built, or a rank has no GPU
  if (size > 1) refused(TRANSPORT_SELF, &no_device, "cannot serve");
}

// Whatever this build can do, ranks without a GPU of their own stay with mpi and say why.
static void devices_decide_what_auto_is(void **state) {
  (void)state;
  if (size == 1) skip();
  for (int lacking = 0; lacking < 2; lacking++) {
    device_id device = {.index = lacking && rank == size - 1 ? -1 : 0, .uuid = {7}}; // one, of all ranks
    transport *t;
    char why[64];
    if (lacking)
      snprintf(why, sizeof why, "rank %d has no GPU", size - 1);
    else
      snprintf(why, sizeof why, "ranks 0, 1%s", size == 2 ? " share a GPU" : ", 2");
    assert_int_equal(transport_choose(&t, ranks, TRANSPORT_AUTO, &device, rank == 0), 0);
    assert_string_equal(transport_name(t), "mpi");
    if (!strstr(transport_reason(t), why) && !strstr(transport_reason(t), "no NCCL"))
      fail_msg("\"%s\" does not say \"%s\"", transport_reason(t), why);
    bool built = !strstr(transport_reason(t), "no NCCL");
    transport_close(t);
    refused(TRANSPORT_NCCL, &device, built ? why : "this build has");
  }
}

// The watch over a device that does not answer ends at the deadline, and names nobody where nothing travels.
static void a_device_that_does_not_answer_is_a_fault(void **state) {
  (void)state;
  transport *t = open_transport();
  assert_int_equal(transport_watch(t, 0.5 * comm_deadline(ranks)), 0);
  assert_int_not_equal(transport_watch(t, 1.5 * comm_deadline(ranks)), 0);
  assert_non_null(strstr(status_text(), "GPU"));
  status_reset();
  transport_close(t);
}

// ---- parts of a batch ----

static exchange *open_with(transport *t, const bool *shared) {
  exchange *x;
  assert_int_equal(exchange_open(&x, ranks, t, shared, 1), 0);
  return x;
}

static void splits_are_even_and_complete(void **state) {
  (void)state;
  int64_t part[64];
  transport *t = open_transport();
  exchange *x = open_with(t, NULL);
  assert_int_equal(exchange_count(x, SHARED_RANKS), size);
  assert_int_equal(exchange_count(x, EXPERT_RANKS), 0);
  assert_int_equal(exchange_count(x, ALL_RANKS), size);
  for (int n = 0; n < 300; n += 7) {
    int64_t all = 0;
    exchange_split(x, part, n);
    for (int r = 0; r < size; r++) {
      assert_true(part[r] >= n / size && part[r] <= (n + size - 1) / size);
      all += part[r];
    }
    assert_int_equal(all, n);
  }
  exchange_close(x);
  transport_close(t);
}

// Every set of shared ranks: they compute parts, and the ranks of either set take them.
static void rows_reach_the_ranks_that_take_them(void **state) {
  (void)state;
  transport *t = open_transport();
  for (int set = 1; set < 1 << size; set++) {
    bool shared[64];
    for (int r = 0; r < size; r++) shared[r] = set >> r & 1;
    exchange *x = open_with(t, shared);
    for (int to = SHARED_RANKS; to <= ALL_RANKS; to++) {
      unsigned char rows[SLOTS * ROW], wanted[ROW];
      int64_t part[64], first = 0, count;
      exchange_split(x, part, SLOTS);
      for (int r = 0; r < rank; r++) first += part[r];
      count = part[rank];
      assert_int_equal(count > 0, shared[rank]);
      memset(rows, 0xa5, sizeof rows);
      for (int64_t i = first; i < first + count; i++) fill_row(rows + i * ROW, i, set);
      bool host = set % 2, takes = to == ALL_RANKS || (to == SHARED_RANKS) == shared[rank];
      const row_range *range = exchange_gather(x, part, (rank_set)to);
      assert_int_equal(host ? exchange_transfer_host(x, rows, ROW, range, 0)
                            : exchange_transfer(x, rows, NULL, ROW, range, 0),
                       0);
      for (int64_t i = 0; i < SLOTS; i++) {
        fill_row(wanted, i, set);
        if (!takes && (i < first || i >= first + count)) memset(wanted, 0xa5, sizeof wanted);
        assert_memory_equal(rows + i * ROW, wanted, ROW);
      }
    }
    int told = shared[rank] ? rank : -1, teller = 0;
    while (!shared[teller]) teller++;
    assert_int_equal(exchange_broadcast(x, &told, sizeof told, "a test"), 0);
    assert_int_equal(told, shared[rank] ? rank : teller);
    exchange_close(x);
  }
  const bool none[64] = {false};
  exchange *x;
  assert_int_not_equal(exchange_open(&x, ranks, t, none, 1), 0);
  status_reset();
  transport_close(t);
}

// ---- outcomes that all share ----

static void a_fault_of_one_is_a_fault_of_all(void **state) {
  (void)state;
  assert_int_equal(comm_agree(ranks, 0, "a test"), 0);
  assert_false(comm_error_is_agreed(ranks));
  for (int bad = 0; bad < size; bad++) {
    status mine = rank == bad ? FAIL("the fault of rank %d", bad) : 0;
    assert_int_not_equal(comm_agree(ranks, mine, "the test's phase"), 0);
    char named[32];
    snprintf(named, sizeof named, "rank %d", bad);
    assert_non_null(strstr(status_text(), named));
    if (rank != bad) assert_non_null(strstr(status_text(), "the test's phase"));
    assert_true(comm_error_is_agreed(ranks));
    assert_int_equal(comm_error_is_reported_elsewhere(ranks), rank != bad);
    status_reset();
  }
  comm_take_turns(ranks); // an error that this rank has found by itself is none of the agreed ones
  assert_false(comm_error_is_agreed(ranks));
  assert_false(comm_error_is_reported_elsewhere(ranks));
}

static void what_differs_is_named(void **state) {
  (void)state;
  char text[] = "the same on every rank";
  assert_int_equal(comm_equal(ranks, text, sizeof text, "a text"), 0);
  assert_int_equal(comm_equal(ranks, text, 0, "nothing"), 0);
  if (size == 1) return;
  for (int odd = 1; odd < size; odd++) {
    text[5] = rank == odd ? 'x' : 'y'; // one byte
    assert_int_not_equal(comm_equal(ranks, text, sizeof text, "a text"), 0);
    char named[32];
    snprintf(named, sizeof named, "rank %d (", odd);
    assert_non_null(strstr(status_text(), named));
    assert_non_null(strstr(status_text(), "a text"));
    status_reset();
  }
  assert_int_not_equal(comm_equal(ranks, text, sizeof text - (rank == size - 1), "a length"),
                       0); // one byte less
  status_reset();
  text[5] = (char)rank; // all differ: all but rank 0 are named
  assert_int_not_equal(comm_equal(ranks, text, sizeof text, "a text"), 0);
  for (int r = 1; r < size; r++) {
    char named[32];
    snprintf(named, sizeof named, "%d (", r);
    assert_non_null(strstr(status_text(), named));
  }
  status_reset();
}

// ---- a rank that comes late ----

enum { LATE_BYTES = 4 << 20, LATE_RANKS = 8 }; // a part that MPI does not send before the other side has come

// The last rank sleeps through the others' deadline. What they sent and what they wait for stays where it is,
// so that it still finds its part when it comes. Its own part may be empty: then the others wait only for it
// to take theirs.
static void come_late(char *buffer, size_t bytes_of_others, size_t bytes_of_last) {
  const double deadline = 2.0;
  comm_part part[LATE_RANKS];
  for (int r = 0; r < size; r++)
    part[r] = (comm_part){(size_t)r * LATE_BYTES, r == size - 1 ? bytes_of_last : bytes_of_others};
  memset(buffer + part[rank].offset, 7 + rank, part[rank].bytes);
  assert_int_equal(comm_agree(ranks, 0, "a start together"), 0);
  if (rank == size - 1) {
    const struct timespec late = {6, 0};
    nanosleep(&late, NULL);
    assert_int_equal(gather_parts(buffer, part, "a late gathering"), 0);
    for (int r = 0; r < size; r++)
      for (size_t i = 0; i < part[r].bytes; i++) assert_int_equal(buffer[part[r].offset + i], 7 + r);
    return;
  }
  comm_set_deadline(ranks, deadline);
  double start = clock_seconds();
  assert_int_not_equal(gather_parts(buffer, part, "the test's gathering"), 0);
  double waited = clock_seconds() - start;
  assert_true(waited > 0.9 * deadline);
  char named[192];
  snprintf(named, sizeof named, "waiting for rank %d (%s)", size - 1, comm_host(ranks));
  assert_non_null(strstr(status_text(), "the test's gathering"));
  assert_non_null(strstr(status_text(), "comm.deadline = 2 s"));
  if (!strstr(status_text(), named)) fail_msg("\"%s\" does not say \"%s\"", status_text(), named);
  status_reset();
  comm_set_deadline(ranks, 20);
}

// The same of a wait that another library does: ranks that ask as well answer, and so does one that waits in
// a collective; the late one does not.
static void a_rank_that_does_not_wait_is_named(void **state) {
  (void)state;
  if (size == 1) skip();
  assert_int_equal(comm_name_missing(ranks, "all wait"), 0);
  assert_int_equal(comm_agree(ranks, 0, "a start together"), 0);
  if (rank == size - 1) {
    const struct timespec late = {6, 0};
    nanosleep(&late, NULL);
    if (size > 2)
      assert_int_equal(comm_name_missing(ranks, "too late"), 0); // takes what the others left for it
  } else if (rank != 1 || size == 2) {
    char named[192];
    comm_set_deadline(ranks, 2);
    assert_int_not_equal(comm_name_missing(ranks, "the test's wait"), 0);
    comm_set_deadline(ranks, 20);
    snprintf(named, sizeof named,
             "the test's wait: after comm.deadline = 2 s, still waiting for rank %d (%s)", size - 1,
             comm_host(ranks));
    if (!strstr(status_text(), named)) fail_msg("\"%s\" does not say \"%s\"", status_text(), named);
    status_reset();
  }
  assert_int_equal(comm_agree(ranks, 0, "an end together"), 0);
}

static status exchange_pair(int a, int b, const char *what) {
  static comm_part table[64 * 64];
  static char buffer[2];
  memset(table, 0, sizeof table);
  table[a * size + b] = (comm_part){0, 1};
  table[b * size + a] = (comm_part){1, 1};
  return comm_exchange(ranks, buffer, table, what);
}

// Rank 0 waits for rank 1, which waits for rank 2, which is late: both name rank 2 alone.
static void whom_the_missing_wait_for_is_named(void **state) {
  (void)state;
  if (size < 3) skip();
  assert_int_equal(comm_agree(ranks, 0, "a start together"), 0);
  if (rank < 2) comm_set_deadline(ranks, 2);
  if (rank == 2) {
    const struct timespec late = {6, 0};
    nanosleep(&late, NULL);
  }
  for (int first = 1; first >= 0; first--) {
    bool fails = rank == first;
    assert_int_equal(exchange_pair(first, first + 1, "a chain of waits") != 0, fails);
    if (!fails) continue;
    char named[192];
    snprintf(named, sizeof named,
             "a chain of waits: after comm.deadline = 2 s, still waiting for rank 2 (%s)", comm_host(ranks));
    if (!strstr(status_text(), named)) fail_msg("\"%s\" does not say \"%s\"", status_text(), named);
    status_reset();
  }
  comm_set_deadline(ranks, 20);
  assert_int_equal(comm_agree(ranks, 0, "an end together"), 0);
}

// Ranks that are not at the same place of their work: whoever gets a message of another length says so.
static void a_message_of_another_length_is_an_error(void **state) {
  (void)state;
  enum { USUAL = 8, OTHER = 4096 };
  static char all[64 * OTHER], mine[OTHER];
  if (size == 1) skip();
  for (int odd = 0; odd < size; odd += size - 1)
    for (int longer = 0; longer < 2; longer++) {
      size_t bytes = (rank == odd) == longer ? OTHER : USUAL;
      assert_int_not_equal(comm_allgather(ranks, all, mine, bytes, "a gathering"), 0);
      if (!strstr(status_text(), "a gathering: rank") ||
          !strstr(status_text(), "it is in another collective"))
        fail_msg("%s", status_text());
      status_reset();
      assert_int_equal(comm_agree(ranks, 0, "an end together"), 0); // and in step again
    }
}

static void a_rank_that_does_not_come_is_named(void **state) {
  (void)state;
  static char small[LATE_RANKS * (size_t)LATE_BYTES], empty[LATE_RANKS * (size_t)LATE_BYTES];
  if (size == 1) skip();
  assert_in_range(size, 2, LATE_RANKS);
  come_late(small, 100, 100);
  come_late(empty, LATE_BYTES, 0);
  assert_int_equal(comm_agree(ranks, 0, "an end together"), 0); // and in step again
}

int main(int argc, char **argv) {
  if (comm_open(&ranks, &argc, &argv, COMM_DEADLINE)) {
    fprintf(stderr, "%s\n", status_text());
    return 1;
  }
  rank = comm_rank(ranks);
  size = comm_size(ranks);
  comm_set_deadline(ranks, 20);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_rank_knows_itself),
      cmocka_unit_test(gathered_parts_are_equal),
      cmocka_unit_test(exchanged_parts_are_equal),
      cmocka_unit_test(slots_arrive_where_the_plan_says),
      cmocka_unit_test(slots_come_to_the_rank_of_their_token),
      cmocka_unit_test(a_device_that_does_not_answer_is_a_fault),
      cmocka_unit_test(splits_are_even_and_complete),
      cmocka_unit_test(rows_reach_the_ranks_that_take_them),
      cmocka_unit_test(a_fault_of_one_is_a_fault_of_all),
      cmocka_unit_test(transports_that_cannot_serve_are_refused),
      cmocka_unit_test(devices_decide_what_auto_is),
      cmocka_unit_test(what_differs_is_named),
      cmocka_unit_test(a_message_of_another_length_is_an_error),
      cmocka_unit_test(a_rank_that_does_not_come_is_named),
      cmocka_unit_test(a_rank_that_does_not_wait_is_named),
      cmocka_unit_test(whom_the_missing_wait_for_is_named),
  };
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  fflush(stdout);
  if (failed) comm_abort(ranks, 1); // the others may wait for this rank
  comm_close(ranks);
  return 0;
}
