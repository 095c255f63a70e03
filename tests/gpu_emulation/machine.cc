#include "machine.h"
#include <immintrin.h>
#include <memory>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vector>
#if defined __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// ---- shared memory: one array with every name that a kernel gives it ----

static constexpr size_t MARGIN = 256; // behind it, which nobody may write
#define SHARED_NAME(name) extern "C" __thread uint8_t name[] __attribute__((alias("emulation_shared")));
extern "C" {
__thread __attribute__((aligned(1024))) uint8_t emulation_shared[emulation::MOST_SHARED + MARGIN];
}
SHARED_NAME(memory)
SHARED_NAME(shared)
SHARED_NAME(row)
SHARED_NAME(run)
SHARED_NAME(p)

namespace emulation {

static constexpr int WARP = 32, MOST_THREADS = 1024;
static constexpr size_t STACK_BYTES = (128 << 10) + 192; // no multiple of a page, which would crowd the cache

struct pending_copy {
  void *to;
  const void *from;
  size_t bytes;
  int group;
};

struct fiber {
  void *stack_pointer;
  uint3 index;
  int number;
  int group; // of copies, so far
  std::vector<pending_copy> copies;
};

struct warp {
  action act;
  void *brought[WARP];
  uint32_t ready, mask, here, there, ended; // may go on; waited for; waiting; in the block at all; returned
};

static struct {
  std::unique_ptr<fiber[]> fibers;
  uint8_t *stacks;
  warp warps[MOST_THREADS / WARP];
  fiber *now;
  void *scheduler; // its stack pointer
  const grid *g;
  uint32_t ready_warps;
  int running; // warp
  int threads, living, at_barrier;
  bool from_scheduler; // the switch that is being made
  uint64_t random;
} m;

[[noreturn]] void stop(const char *fault) {
  fprintf(stderr, "GPU emulation: block (%u, %u, %u), thread %d: %s\n", blockIdx.x, blockIdx.y, blockIdx.z,
          m.now ? m.now->number : -1, fault);
  abort();
}

uint64_t draw(uint64_t below) {
  m.random = m.random * 6364136223846793005u + 1442695040888963407u;
  return (uint64_t)((unsigned __int128)m.random * below >> 64);
}

static int draw_bit(uint32_t of) {
  return __builtin_ctz(_pdep_u32(1u << draw((uint64_t)__builtin_popcount(of)), of));
}

void fill_with_garbage(void *memory, size_t bytes) {
  uint8_t *to = (uint8_t *)memory;
  for (; bytes >= 4; to += 4, bytes -= 4) memcpy(to, &GARBAGE, 4);
  memcpy(to, &GARBAGE, bytes);
}

// ---- fibers ----

int current_lane;

// Keeps the registers that a function must keep, and goes on on another stack. x86-64.
extern "C" void emulation_switch(void **from, void *to);
asm(".text\n.globl emulation_switch\n.type emulation_switch, @function\nemulation_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
    ".size emulation_switch, .-emulation_switch\n");

#if defined __SANITIZE_ADDRESS__
static const void *main_stack;
static size_t main_stack_bytes;
#endif

// What the other side of each switch does first.
static void arrived([[maybe_unused]] void *fake) {
#if defined __SANITIZE_ADDRESS__
  const void *stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(fake, &stack, &bytes);
  if (!m.from_scheduler) return;
  main_stack = stack;
  main_stack_bytes = bytes;
#endif
}

// Lets another fiber run, or the scheduler where none can: mostly one of the same warp, so that warps get far
// apart, and that the processor's cache holds what runs.
static void pass_on(void **from, [[maybe_unused]] bool for_ever) {
  fiber *f = nullptr;
  if (m.ready_warps) {
    if (!m.warps[m.running].ready || draw(128) == 0) m.running = draw_bit(m.ready_warps);
    warp *w = &m.warps[m.running];
    int own = draw_bit(w->ready);
    if (!(w->ready &= ~(1u << own))) m.ready_warps &= ~(1u << m.running);
    f = &m.fibers[m.running * WARP + own];
    threadIdx = f->index;
    current_lane = own;
  }
  m.from_scheduler = !m.now;
  m.now = f;
  void *to = f ? f->stack_pointer : m.scheduler, *fake = nullptr;
  if (f && from == &f->stack_pointer) return; // itself
#if defined __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &fake,
                                 f ? m.stacks + (size_t)f->number * STACK_BYTES : main_stack,
                                 f ? STACK_BYTES : main_stack_bytes);
#endif
  emulation_switch(from, to);
  arrived(fake);
}

static void make_ready(int of_warp, uint32_t lanes) {
  m.warps[of_warp].ready |= lanes;
  m.ready_warps |= 1u << of_warp;
}

static void pass_barrier_if_all() {
  if (!m.at_barrier || m.at_barrier < m.living) return;
  m.at_barrier = 0;
  for (int w = 0; w * WARP < m.threads; w++) {
    uint32_t lanes = m.warps[w].there & ~m.warps[w].ended;
    if (lanes) make_ready(w, lanes);
  }
}

static void fiber_main() {
  arrived(nullptr);
  m.g->thread();
  end_copy_group();
  copy_now(0);
  fiber *f = m.now;
  warp *w = &m.warps[f->number / WARP];
  w->ended |= 1u << f->number % WARP;
  if (w->here && w->mask & w->ended) stop("it returns while lanes of its warp wait for it");
  m.living--;
  pass_barrier_if_all();
  pass_on(&f->stack_pointer, true);
  abort();
}

static void begin_fiber(int i) {
  fiber *f = &m.fibers[i];
  uint8_t *top = m.stacks + (size_t)(i + 1) * STACK_BYTES;
  uintptr_t *frame =
      (uintptr_t *)((uintptr_t)top / 16 * 16) - 8; // six registers, where to go, and from nowhere
  memset(frame, 0, 8 * sizeof *frame);
  frame[6] = (uintptr_t)fiber_main;
  f->stack_pointer = frame;
  f->group = 0;
  memcpy(m.stacks + (size_t)i * STACK_BYTES, &GARBAGE, 4); // the last word of the stack
}

// A warp that polls alone would not let the others come to what its peers wait for.
void let_others_run() {
  int from = m.running;
  make_ready(from, 1u << current_lane);
  m.running = draw_bit(m.ready_warps);
  if (draw(64) == 0) syscall(SYS_sched_yield);
  pass_on(&m.now->stack_pointer, false);
}

// ---- meeting ----

void meet_block() {
  m.at_barrier++;
  pass_barrier_if_all();
  pass_on(&m.now->stack_pointer, false);
}

void meet_warp(action act, void *mine, uint32_t mask) {
  int own = current_lane;
  warp *w = &m.warps[m.running];
  mask &= w->there;
  if (mask & w->ended) stop("it waits for a lane of its warp that has returned");
  if (!(mask >> own & 1)) stop("its mask is without itself");
  if (w->here && (w->act != act || w->mask != mask))
    stop("the lanes of its warp are at different operations");
  w->act = act;
  w->mask = mask;
  w->brought[own] = mine;
  w->here |= 1u << own;
  if (w->here == mask) {
    act(w->brought, mask);
    make_ready(m.running, mask);
    w->here = 0;
  }
  pass_on(&m.now->stack_pointer, false);
}

void copy_later(void *to, const void *from, size_t bytes) {
  if ((uintptr_t)to % bytes || (uintptr_t)from % bytes) stop("a copy is not aligned to its length");
  m.now->copies.push_back({to, from, bytes, m.now->group});
}

void end_copy_group() {
  m.now->group++;
}

void copy_now(int latest) {
  std::vector<pending_copy> &copies = m.now->copies;
  size_t n = 0;
  for (; n < copies.size() && copies[n].group < m.now->group - latest; n++)
    memcpy(copies[n].to, copies[n].from, copies[n].bytes);
  copies.erase(copies.begin(), copies.begin() + (ptrdiff_t)n);
}

// ---- a grid ----

static void begin_block(uint64_t number) {
  const grid &g = *m.g;
  blockIdx = {(unsigned)(number % g.blocks.x), (unsigned)(number / g.blocks.x % g.blocks.y),
              (unsigned)(number / g.blocks.x / g.blocks.y)};
  fill_with_garbage(emulation_shared, g.shared_bytes + MARGIN);
  m.living = m.threads;
  m.at_barrier = 0;
  m.ready_warps = 0;
  for (int i = 0; i < m.threads; i++) begin_fiber(i);
  for (int w = 0; w * WARP < m.threads; w++) {
    int left = m.threads - w * WARP;
    uint32_t lanes = left >= WARP ? ~0u : (1u << left) - 1;
    m.warps[w] = {nullptr, {}, 0, 0, 0, lanes, 0};
    make_ready(w, lanes);
  }
  m.running = draw_bit(m.ready_warps);
}

static void end_block() {
  m.now = nullptr;
  if (m.living) stop("threads wait for others that never come: a barrier that not all reach");
  for (size_t i = 0; i + 4 <= MARGIN; i += 4)
    if (memcmp(emulation_shared + m.g->shared_bytes + i, &GARBAGE, 4))
      stop("it wrote behind its shared memory");
  for (int i = 0; i < m.threads; i++)
    if (memcmp(m.stacks + (size_t)i * STACK_BYTES, &GARBAGE, 4)) stop("a thread's stack is too small");
}

static void run_block(uint64_t number) {
  begin_block(number);
  pass_on(&m.scheduler, false); // comes back when no fiber can go on
  end_block();
}

static void take_fibers() {
  m.fibers.reset(new fiber[MOST_THREADS]{});
  void *at = mmap(nullptr, MOST_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) stop("no memory for stacks");
  m.stacks = (uint8_t *)at;
}

void run(const grid &g) {
  if (!m.fibers) take_fibers();
  m.g = &g;
  gridDim = g.blocks;
  blockDim = g.threads;
  m.threads = (int)(g.threads.x * g.threads.y * g.threads.z);
  for (int i = 0; i < m.threads; i++) {
    unsigned n = (unsigned)i;
    m.fibers[i].number = i;
    m.fibers[i].index = {n % g.threads.x, n / g.threads.x % g.threads.y, n / g.threads.x / g.threads.y};
  }
  uint64_t kept = m.random;
  if (works_with_others()) m.random = g.blocks.x * 31 + g.blocks.y * 17 + g.blocks.z;
  std::vector<uint32_t> order((size_t)g.blocks.x * g.blocks.y * g.blocks.z);
  for (uint32_t i = 0; i < order.size(); i++) {
    size_t other = draw(i + 1);
    order[i] = order[other];
    order[other] = i;
  }
  if (works_with_others()) m.random = kept;
  for (uint32_t number : order) run_block(number);
}

} // namespace emulation
