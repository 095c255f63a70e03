// nccl: in place of dist/nccl.c for ranks with emulated GPUs: rows go from process to process through memory
// that they share, as work of the stream. It checks what the exchange asks of the transport, and when;
// nothing of NCCL itself.
//
// Each transport of a rank has a mailbox. An exchange puts the rank's parts there, one after another, once
// all ranks have taken those of the exchange before, and takes the others' once they are there.
extern "C" {
#define _Noreturn [[noreturn]]
#include "base/clock.h"
#include "base/memory.h"
#include "dist/transport_ops.h"
#undef _Noreturn
}
#include "machine.h"
#include <atomic>
#include <fcntl.h>
#include <memory>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

static constexpr size_t MAILBOX_BYTES = (size_t)256 << 20; // as much as it holds is touched

struct mailbox {
  std::atomic<uint64_t> put, taken; // exchanges
  uint8_t data[];
};

struct box_name {
  int process, file;
};

struct emulated_nccl {
  comm *ranks;
  std::vector<mailbox *> box; // of each rank
  uint64_t number;            // of the exchange under way, or the last
  bool is_under_way, has_put, abandoned;
};

typedef std::vector<comm_part> part_table;

static size_t bytes_before(const part_table &part, int size, int from, int to) {
  size_t bytes = 0;
  for (int r = 0; r < to; r++) bytes += r == from ? 0 : part[(size_t)(from * size + r)].bytes;
  return bytes;
}

static void put_parts(emulated_nccl *s, const char *rows, const part_table &part) {
  int size = comm_size(s->ranks), rank = comm_rank(s->ranks);
  if (bytes_before(part, size, rank, size) > MAILBOX_BYTES - sizeof(mailbox))
    emulation::stop("an exchange is larger than a mailbox");
  for (int to = 0; to < size; to++) {
    const comm_part &out = part[(size_t)(rank * size + to)];
    if (to != rank && out.bytes)
      memcpy(s->box[(size_t)rank]->data + bytes_before(part, size, rank, to), rows + out.offset, out.bytes);
  }
  s->box[(size_t)rank]->put = s->number;
}

static void take_parts(emulated_nccl *s, char *rows, const part_table &part) {
  int size = comm_size(s->ranks), rank = comm_rank(s->ranks);
  for (int from = 0; from < size; from++) {
    const comm_part &in = part[(size_t)(from * size + rank)];
    if (from != rank && in.bytes)
      memcpy(rows + in.offset, s->box[(size_t)from]->data + bytes_before(part, size, from, rank), in.bytes);
  }
  s->box[(size_t)rank]->taken = s->number;
}

// True: the exchange is done.
static bool go_on(emulated_nccl *s, char *rows, const part_table &part) {
  if (s->abandoned) return true;
  if (!s->is_under_way) {
    s->is_under_way = true;
    s->has_put = false;
    s->number++;
  }
  for (mailbox *box : s->box)
    if (!s->has_put && box->taken + 1 < s->number) return false;
  if (!s->has_put) put_parts(s, rows, part);
  s->has_put = true;
  for (mailbox *box : s->box)
    if (box->put < s->number) return false;
  take_parts(s, rows, part);
  s->is_under_way = false;
  return true;
}

// ---- the transport's row ----

static status map_box(mailbox **out, const box_name &name) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/fd/%d", name.process, name.file);
  int file = open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) return FAIL("%s: cannot be opened", path);
  void *at = mmap(nullptr, MAILBOX_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
  close(file);
  if (at == MAP_FAILED) return FAIL("%s: cannot be mapped", path);
  *out = (mailbox *)at;
  return 0;
}

static status start(void **out, comm *c, const device_id *, size_t) {
  emulation::work_with_others();
  auto s = std::make_unique<emulated_nccl>();
  size_t n = (size_t)comm_size(c);
  s->ranks = c;
  s->box.resize(n);
  box_name mine = {getpid(), memfd_create("mailbox", MFD_CLOEXEC)};
  std::vector<box_name> all(n);
  if (mine.file < 0 || ftruncate(mine.file, (off_t)MAILBOX_BYTES)) return FAIL("no memory for a mailbox");
  TRY(comm_allgather(c, all.data(), &mine, sizeof mine, "mailboxes"));
  for (size_t r = 0; r < n; r++) TRY(map_box(&s->box[r], all[r]));
  TRY(comm_allgather(c, all.data(), &mine, sizeof mine, "mailboxes")); // all are mapped
  close(mine.file);
  *out = s.release();
  return 0;
}

static void stop(void *state) {
  auto *s = (emulated_nccl *)state;
  if (!s) return;
  for (mailbox *box : s->box) munmap(box, MAILBOX_BYTES);
  delete s;
}

static status exchange_now(emulated_nccl *s, char *rows, const part_table &part, const char *what) {
  double start = clock_seconds();
  while (!go_on(s, rows, part)) {
    if (clock_seconds() - start > comm_deadline(s->ranks)) return comm_name_missing(s->ranks, what);
    usleep(50);
  }
  return 0;
}

static status transfer(void *state, char *rows, void *stream, const comm_part *part, const char *what) {
  auto *s = (emulated_nccl *)state;
  size_t n = (size_t)comm_size(s->ranks);
  part_table table(part, part + n * n);
  if (!stream) return exchange_now(s, rows, table, what); // of a rank that computes on cores
  emulation::add_to_stream((cudaStream_t)stream, [=] { return go_on(s, rows, table); });
  return 0;
}

static double seconds(void *) {
  return 0;
}

static const char *no_text(void *) {
  return nullptr;
}

static void abandon(void *state) {
  ((emulated_nccl *)state)->abandoned = true;
}

extern "C" const transport_ops nccl_transport_ops = {
    .kind = TRANSPORT_NCCL,
    .on_device = true,
    .start = start,
    .stop = stop,
    .transfer = transfer,
    .seconds = seconds,
    .measure = nullptr,
    .broken = no_text,
    .under_way = no_text,
    .abandon = abandon,
};
