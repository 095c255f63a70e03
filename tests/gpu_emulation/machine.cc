#include "machine.h"
#include <memory>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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
  bool ended;
  int group; // of copies, so far
  std::vector<pending_copy> copies;
};

struct warp {
  action act;
  void *brought[WARP];
  uint32_t mask, here, there, ended; // waiting; in the block at all; returned
};

static struct {
  std::unique_ptr<fiber[]> fibers;
  uint8_t *stacks;
  warp warps[MOST_THREADS / WARP];
  fiber *now;
  void *scheduler; // its stack pointer
  const grid *g;
  std::vector<int> ready, at_barrier;
  int threads, living;
  uint64_t random;
} m;

[[noreturn]] void stop(const char *fault) {
  fprintf(stderr, "GPU emulation: block (%u, %u, %u), thread %d: %s\n", blockIdx.x, blockIdx.y, blockIdx.z,
          m.now ? m.now->number : -1, fault);
  abort();
}

uint64_t draw(uint64_t below) {
  uint64_t z = m.random += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return (uint64_t)((unsigned __int128)(z ^ z >> 31) * below >> 64);
}

void fill_with_garbage(void *memory, size_t bytes) {
  uint8_t *to = (uint8_t *)memory;
  for (; bytes >= 4; to += 4, bytes -= 4) memcpy(to, &GARBAGE, 4);
  memcpy(to, &GARBAGE, bytes);
}

// ---- fibers ----

// Keeps the registers that a function must keep, and goes on on another stack.
extern "C" void emulation_switch(void **from, void *to);
#if defined __x86_64__
asm(".text\n.globl emulation_switch\n.type emulation_switch, @function\nemulation_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
    ".size emulation_switch, .-emulation_switch\n");
#else
#error "the switch of stacks is written for x86-64 only"
#endif

#if defined __SANITIZE_ADDRESS__
static const void *main_stack;
static size_t main_stack_bytes;
#endif

static void enter(fiber *f) {
  m.now = f;
  threadIdx = f->index;
#if defined __SANITIZE_ADDRESS__
  void *fake;
  __sanitizer_start_switch_fiber(&fake, m.stacks + (size_t)f->number * STACK_BYTES, STACK_BYTES);
#endif
  emulation_switch(&m.scheduler, f->stack_pointer);
#if defined __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

static void leave() {
#if defined __SANITIZE_ADDRESS__
  void *fake;
  __sanitizer_start_switch_fiber(m.now->ended ? nullptr : &fake, main_stack, main_stack_bytes);
#endif
  emulation_switch(&m.now->stack_pointer, m.scheduler);
#if defined __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, &main_stack, &main_stack_bytes);
#endif
}

static void pass_barrier_if_all() {
  if (m.at_barrier.empty() || (int)m.at_barrier.size() < m.living) return;
  m.ready.insert(m.ready.end(), m.at_barrier.begin(), m.at_barrier.end());
  m.at_barrier.clear();
}

static void fiber_main() {
#if defined __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_stack_bytes);
#endif
  m.g->thread();
  end_copy_group();
  copy_now(0);
  fiber *f = m.now;
  warp *w = &m.warps[f->number / WARP];
  w->ended |= 1u << f->number % WARP;
  if (w->here && w->mask & w->ended) stop("it returns while lanes of its warp wait for it");
  f->ended = true;
  m.living--;
  pass_barrier_if_all();
  leave();
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
  f->ended = false;
  f->group = 0;
  memcpy(m.stacks + (size_t)i * STACK_BYTES, &GARBAGE, 4); // the last word of the stack
}

// ---- meeting ----

int lane() {
  return m.now->number % WARP;
}

void meet_block() {
  m.at_barrier.push_back(m.now->number);
  pass_barrier_if_all();
  leave();
}

void meet_warp(action act, void *mine, uint32_t mask) {
  int first = m.now->number / WARP * WARP, own = m.now->number % WARP;
  warp *w = &m.warps[first / WARP];
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
    for (int l = 0; l < WARP; l++)
      if (mask >> l & 1) m.ready.push_back(first + l);
    w->here = 0;
  }
  leave();
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
  m.ready.clear();
  m.at_barrier.clear();
  for (int i = 0; i < m.threads; i++) {
    begin_fiber(i);
    m.ready.push_back(i);
  }
  for (int w = 0; w * WARP < m.threads; w++) {
    int lanes = m.threads - w * WARP;
    m.warps[w] = {nullptr, {}, 0, 0, lanes >= WARP ? ~0u : (1u << lanes) - 1, 0};
  }
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
  while (!m.ready.empty()) {
    size_t i = draw(m.ready.size());
    int next = m.ready[i];
    m.ready[i] = m.ready.back();
    m.ready.pop_back();
    enter(&m.fibers[next]);
  }
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
  std::vector<uint32_t> order((size_t)g.blocks.x * g.blocks.y * g.blocks.z);
  for (uint32_t i = 0; i < order.size(); i++) {
    size_t other = draw(i + 1);
    order[i] = order[other];
    order[other] = i;
  }
  for (uint32_t number : order) run_block(number);
}

} // namespace emulation
