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

struct bulk_copy { // that arrives at a barrier
  uint64_t *barrier;
  void *to;
  const void *from;
  size_t bytes;
  bool made;
};

struct block { // of threads
  std::unique_ptr<fiber[]> fibers;
  uint8_t *stacks;
  warp warps[MOST_THREADS / WARP];
  uint32_t ready_warps;
  int running; // warp
  int living, at_barrier;
  std::vector<int> paused; // threads
  std::vector<bulk_copy> bulk;
  uint3 index;
  std::vector<uint8_t> shared; // of a resident grid, while another block runs
};

static struct {
  std::vector<std::unique_ptr<block>> pool;
  block *b; // that runs
  fiber *now;
  void *scheduler; // its stack pointer
  const grid *g;
  int threads;         // of a block
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
  if (m.b->ready_warps) {
    if (!m.b->warps[m.b->running].ready || draw(128) == 0) m.b->running = draw_bit(m.b->ready_warps);
    warp *w = &m.b->warps[m.b->running];
    int own = draw_bit(w->ready);
    if (!(w->ready &= ~(1u << own))) m.b->ready_warps &= ~(1u << m.b->running);
    f = &m.b->fibers[m.b->running * WARP + own];
    threadIdx = f->index;
    current_lane = own;
  }
  m.from_scheduler = !m.now;
  m.now = f;
  void *to = f ? f->stack_pointer : m.scheduler, *fake = nullptr;
  if (f && from == &f->stack_pointer) return; // itself
#if defined __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &fake,
                                 f ? m.b->stacks + (size_t)f->number * STACK_BYTES : main_stack,
                                 f ? STACK_BYTES : main_stack_bytes);
#endif
  emulation_switch(from, to);
  arrived(fake);
}

static void make_ready(int of_warp, uint32_t lanes) {
  m.b->warps[of_warp].ready |= lanes;
  m.b->ready_warps |= 1u << of_warp;
}

static void pass_barrier_if_all() {
  if (!m.b->at_barrier || m.b->at_barrier < m.b->living) return;
  m.b->at_barrier = 0;
  for (int w = 0; w * WARP < m.threads; w++) {
    uint32_t lanes = m.b->warps[w].there & ~m.b->warps[w].ended;
    if (lanes) make_ready(w, lanes);
  }
}

static void fiber_main() {
  arrived(nullptr);
  m.g->thread();
  end_copy_group();
  copy_now(0);
  fiber *f = m.now;
  warp *w = &m.b->warps[f->number / WARP];
  w->ended |= 1u << f->number % WARP;
  if (w->here && w->mask & w->ended) stop("it returns while lanes of its warp wait for it");
  m.b->living--;
  pass_barrier_if_all();
  pass_on(&f->stack_pointer, true);
  abort();
}

static void begin_fiber(int i) {
  fiber *f = &m.b->fibers[i];
  uint8_t *top = m.b->stacks + (size_t)(i + 1) * STACK_BYTES;
  uintptr_t *frame =
      (uintptr_t *)((uintptr_t)top / 16 * 16) - 8; // six registers, where to go, and from nowhere
  memset(frame, 0, 8 * sizeof *frame);
  frame[6] = (uintptr_t)fiber_main;
  f->stack_pointer = frame;
  f->group = 0;
  memcpy(m.b->stacks + (size_t)i * STACK_BYTES, &GARBAGE, 4); // the last word of the stack
}

// ---- meeting ----

void meet_block() {
  m.b->at_barrier++;
  pass_barrier_if_all();
  pass_on(&m.now->stack_pointer, false);
}

void meet_warp(action act, void *mine, uint32_t mask) {
  int own = current_lane;
  warp *w = &m.b->warps[m.b->running];
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
    make_ready(m.b->running, mask);
    w->here = 0;
  }
  pass_on(&m.now->stack_pointer, false);
}

void pause() {
  if (works_with_others() && draw(64) == 0) syscall(SYS_sched_yield); // it may wait for another process
  m.b->paused.push_back(m.now->number);
  pass_on(&m.now->stack_pointer, false);
}

// ---- barriers in shared memory: of one arrival that expects bytes, or of several and no bytes ----

struct barrier_state {
  uint16_t phases; // that have ended
  uint8_t arrivals, arrived;
  uint32_t expected; // bytes of this phase; 0: nobody has arrived
};

static barrier_state *state_of(uint64_t *b) {
  static_assert(sizeof(barrier_state) == sizeof *b);
  return (barrier_state *)b;
}

void barrier_init(uint64_t *b, int arrivals) {
  if (arrivals < 1 || arrivals > UINT8_MAX) stop("a barrier of so many arrivals is not emulated");
  *state_of(b) = {0, (uint8_t)arrivals, 0, 0};
}

void barrier_arrive(uint64_t *b) {
  barrier_state *s = state_of(b);
  if (s->arrivals == 1) stop("a barrier of one arrival that expects nothing is not emulated");
  if (++s->arrived < s->arrivals) return;
  s->phases++;
  s->arrived = 0;
}

void barrier_arrive_expect(uint64_t *b, size_t bytes) {
  if (state_of(b)->arrivals > 1 || state_of(b)->expected || !bytes)
    stop("a second arrival at a barrier of one, or one that expects nothing");
  state_of(b)->expected = (uint32_t)bytes;
}

void barrier_copy(uint64_t *b, void *to, const void *from, size_t bytes) {
  if ((uintptr_t)to % 16 || (uintptr_t)from % 16 || bytes % 16)
    stop("a bulk copy is not aligned to 16 bytes");
  bool at_once = draw(2);
  if (at_once) memcpy(to, from, bytes);
  m.b->bulk.push_back({b, to, from, bytes, at_once});
}

bool barrier_done(uint64_t *b, uint32_t parity) {
  barrier_state *s = state_of(b);
  if ((s->phases & 1) != parity) return true;
  if (s->arrivals > 1) return false;
  size_t bytes = 0;
  for (const bulk_copy &c : m.b->bulk) bytes += c.barrier == b ? c.bytes : 0;
  if (bytes > s->expected) stop("more bytes arrive at a barrier than it expects");
  if (!s->expected || bytes < s->expected || draw(4) == 0) return false;
  for (const bulk_copy &c : m.b->bulk)
    if (c.barrier == b && !c.made) memcpy(c.to, c.from, c.bytes);
  std::erase_if(m.b->bulk, [&](const bulk_copy &c) { return c.barrier == b; });
  s->phases++;
  s->expected = 0;
  return true;
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
  m.b->index = blockIdx = {(unsigned)(number % g.blocks.x), (unsigned)(number / g.blocks.x % g.blocks.y),
                           (unsigned)(number / g.blocks.x / g.blocks.y)};
  fill_with_garbage(emulation_shared, g.shared_bytes + MARGIN);
  m.b->living = m.threads;
  m.b->paused.clear();
  m.b->bulk.clear();
  m.b->at_barrier = 0;
  m.b->ready_warps = 0;
  for (int i = 0; i < m.threads; i++) begin_fiber(i);
  for (int w = 0; w * WARP < m.threads; w++) {
    int left = m.threads - w * WARP;
    uint32_t lanes = left >= WARP ? ~0u : (1u << left) - 1;
    m.b->warps[w] = {nullptr, {}, 0, 0, 0, lanes, 0};
    make_ready(w, lanes);
  }
  m.b->running = draw_bit(m.b->ready_warps);
}

static void end_block() {
  m.now = nullptr;
  if (m.b->living) stop("threads wait for others that never come: a barrier that not all reach");
  for (size_t i = 0; i + 4 <= MARGIN; i += 4)
    if (memcmp(emulation_shared + m.g->shared_bytes + i, &GARBAGE, 4))
      stop("it wrote behind its shared memory");
  for (int i = 0; i < m.threads; i++)
    if (memcmp(m.b->stacks + (size_t)i * STACK_BYTES, &GARBAGE, 4)) stop("a thread's stack is too small");
}

// Until no thread can go on but by what threads of other blocks do.
static void run_on() {
  m.now = nullptr;
  for (int i : m.b->paused) make_ready(i / WARP, 1u << i % WARP);
  m.b->paused.clear();
  pass_on(&m.scheduler, false);
  m.now = nullptr;
}

static void run_block(uint64_t number) {
  begin_block(number);
  do run_on();
  while (!m.b->paused.empty());
  end_block();
}

static void take_block(size_t i) {
  while (m.pool.size() <= i) m.pool.push_back(nullptr);
  m.b = m.pool[i].get();
  if (m.b) return;
  m.pool[i].reset(m.b = new block{});
  m.b->fibers.reset(new fiber[MOST_THREADS]{});
  void *at = mmap(nullptr, MOST_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) stop("no memory for stacks");
  m.b->stacks = (uint8_t *)at;
}

static void number_threads() {
  const dim3 &t = m.g->threads;
  for (int i = 0; i < m.threads; i++) {
    unsigned n = (unsigned)i;
    m.b->fibers[i].number = i;
    m.b->fibers[i].index = {n % t.x, n / t.x % t.y, n / t.x / t.y};
  }
}

// All blocks run at once: each in turn as far as it comes, with its shared memory in the one place that it
// has.
static void run_resident(const std::vector<uint32_t> &order) {
  size_t bytes = m.g->shared_bytes + MARGIN, living = order.size();
  for (size_t i = 0; i < order.size(); i++) {
    take_block(i);
    number_threads();
    begin_block(order[i]);
    m.b->shared.assign(emulation_shared, emulation_shared + bytes);
  }
  while (living) {
    bool moves = false;
    for (size_t i = 0; i < order.size(); i++) {
      m.b = m.pool[i].get();
      if (!m.b->living) continue;
      moves = moves || m.b->ready_warps || !m.b->paused.empty();
      blockIdx = m.b->index;
      memcpy(emulation_shared, m.b->shared.data(), bytes);
      run_on();
      memcpy(m.b->shared.data(), emulation_shared, bytes);
      if (m.b->living) continue;
      end_block();
      living--;
    }
    if (!moves) stop("the blocks of a resident grid wait for others that never come");
  }
}

void run(const grid &g) {
  m.g = &g;
  gridDim = g.blocks;
  blockDim = g.threads;
  m.threads = (int)(g.threads.x * g.threads.y * g.threads.z);
  uint64_t kept = m.random;
  if (works_with_others()) m.random = g.blocks.x * 31 + g.blocks.y * 17 + g.blocks.z;
  std::vector<uint32_t> order((size_t)g.blocks.x * g.blocks.y * g.blocks.z);
  for (uint32_t i = 0; i < order.size(); i++) {
    size_t other = draw(i + 1);
    order[i] = order[other];
    order[other] = i;
  }
  if (works_with_others()) m.random = kept;
  if (g.resident) {
    run_resident(order);
    return;
  }
  take_block(0);
  number_threads();
  for (uint32_t number : order) run_block(number);
}

} // namespace emulation
