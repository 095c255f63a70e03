// instructions_hopper: as instructions.cuh, those that only sm_90a has.
//
// Owns: the inline assembly of the kernels for Hopper. The emulated GPU and older cards run none of them.
#pragma once
#include "kernels/cuda/instructions.cuh"

__device__ __forceinline__ uint32_t shared_address(const void *at) {
  return (uint32_t)__cvta_generic_to_shared(at);
}

// ---- barriers in shared memory: a phase ends with its last arrival; a wait names the phase's parity ----

__device__ __forceinline__ void mbarrier_init(uint64_t *b, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t *b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}

// The arrival of a warp that is done with what it read. One lane makes it: what the others did happened
// before, by __syncwarp. compute-sanitizer's racecheck follows each thread's own arrivals alone and reports
// the other lanes' reads; where it is to run, each lane arrives (cmake -DMOE_RACECHECK=ON).
#ifdef MOE_RACECHECK
static constexpr int ARRIVALS_OF_WARP = 32;
#else
static constexpr int ARRIVALS_OF_WARP = 1;
#endif

__device__ __forceinline__ void mbarrier_arrive_of_warp(uint64_t *b) {
  __syncwarp();
  if (ARRIVALS_OF_WARP > 1 || threadIdx.x % 32 == 0) mbarrier_arrive(b);
}

// An arrival once all copies that the thread has started have landed.
__device__ __forceinline__ void mbarrier_arrive_after_copies(uint64_t *b) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(b)) : "memory");
}

__device__ __forceinline__ void mbarrier_wait(uint64_t *b, uint32_t parity) {
  asm volatile("{\n.reg .pred done;\nagain:\n"
               "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(
                   shared_address(b)),
               "r"(parity)
               : "memory");
}

__device__ __forceinline__ bool mbarrier_try_wait(uint64_t *b, uint32_t parity) { // waits a while
  uint32_t done;
  asm volatile("{\n.reg .pred done;\n"
               "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\nselp.u32 %0, 1, 0, done;\n}"
               : "=r"(done)
               : "r"(shared_address(b)), "r"(parity)
               : "memory");
  return done;
}

// Barriers that were initialised are from here on there for bulk copies to arrive at.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// An arrival; the phase ends when so many bytes of bulk copies have landed, too.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t *b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes)
               : "memory");
}

// Starts a copy whose landing counts at the barrier. All aligned to 16 bytes.
__device__ __forceinline__ void copy_bulk(void *shared, const void *global, int bytes, uint64_t *b) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(b))
      : "memory");
}

// The same of what is read once: it leaves the L2 cache before all that others read again.
__device__ __forceinline__ void copy_bulk_once(void *shared, const void *global, int bytes, uint64_t *b) {
  asm volatile("{ .reg .b64 policy;\n"
               "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
               "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
               "[%0], [%1], %2, [%3], policy; }" ::"r"(shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(b))
               : "memory");
}

template <int BARRIER, int THREADS>
__device__ __forceinline__ void named_barrier_sync() { // of so many of the thread block's threads
  asm volatile("bar.sync %0, %1;" ::"n"(BARRIER), "n"(THREADS) : "memory");
}

// Two floats, here and not earlier: where the compiler would hold them in registers that are
// wanted.
__device__ __forceinline__ float2 load_shared_late(const float *at) {
  float2 out;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(out.x), "=f"(out.y) : "r"(shared_address(at)));
  return out;
}

// ---- registers of a warpgroup ----

template <int EACH> __device__ __forceinline__ void warpgroup_reg_dealloc() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(EACH));
}

template <int EACH> __device__ __forceinline__ void warpgroup_reg_alloc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(EACH));
}

// ---- a warpgroup's products of bytes: D of 64 x ITEMS, rows from registers, items from shared memory ----
//
// Asynchronous: neither `rows` nor `sums` may be touched before a wait; wgmma_fence stands between ordinary
// code that wrote either and the product.

// What ordinary stores and copies wrote to shared memory is from here on there for the tensor cores to read.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int LATEST>
__device__ __forceinline__ void wgmma_wait_group() { // leaves the latest so many groups in flight
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LATEST) : "memory");
}

// Keeps the compiler from reading the sums before the wait that stands above.
template <int N> __device__ __forceinline__ void wgmma_fence_operand(int (&sums)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(sums[i])::"memory");
}

// Items lie as rows of 128 bytes whose 16-byte pieces are permuted, piece p of row r at p ^ (r % 8), from an
// address aligned to 1,024. 32 bytes further along the row is 2 more.
__device__ __forceinline__ uint64_t wgmma_descriptor(const void *at) {
  return (uint64_t)((shared_address(at) & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 |
         (uint64_t)1 << 62;
}

#define HELD_8(i)                                                                                            \
  "+r"(sums[i]), "+r"(sums[i + 1]), "+r"(sums[i + 2]), "+r"(sums[i + 3]), "+r"(sums[i + 4]),                 \
      "+r"(sums[i + 5]), "+r"(sums[i + 6]), "+r"(sums[i + 7])
#define HELD_16(i) HELD_8(i), HELD_8(i + 8)
// clang-format off
#define NAMES_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define NAMES_32 NAMES_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NAMES_48 NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define NAMES_64 NAMES_48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define REST_16 "{%16,%17,%18,%19}, %20, p;"
#define ADDS_16 "%21"
#define REST_32 "{%32,%33,%34,%35}, %36, p;"
#define ADDS_32 "%37"
#define REST_48 "{%48,%49,%50,%51}, %52, p;"
#define ADDS_48 "%53"
#define REST_64 "{%64,%65,%66,%67}, %68, p;"
#define ADDS_64 "%69"
// clang-format on
#define WGMMA(items_wide, type, n, ...)                                                                      \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADDS_##n ", 0;\n"                                         \
                                                            "wgmma.mma_async.sync.aligned.m64n" #items_wide  \
                                                            "k32.s32." type ".s8 {" NAMES_##n "}, " REST_##n \
               "\n}"                                                                                         \
               : __VA_ARGS__                                                                                 \
               : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "l"(items), "r"((int)adds))
#define WGMMA_OF_TYPE(type)                                                                                  \
  if constexpr (ITEMS == 32)                                                                                 \
    WGMMA(32, type, 16, HELD_16(0));                                                                         \
  else if constexpr (ITEMS == 64)                                                                            \
    WGMMA(64, type, 32, HELD_16(0), HELD_16(16));                                                            \
  else if constexpr (ITEMS == 96)                                                                            \
    WGMMA(96, type, 48, HELD_16(0), HELD_16(16), HELD_16(32));                                               \
  else                                                                                                       \
    WGMMA(128, type, 64, HELD_16(0), HELD_16(16), HELD_16(32), HELD_16(48))

// sums = rows * items, or plus it where `adds`. A lane holds of its warp's 16 rows what it holds of mma_k32's
// A and C.
template <int ITEMS, bool SIGNED_ROWS>
__device__ __forceinline__ void wgmma_k32(int (&sums)[ITEMS / 2], const uint32_t (&rows)[4], uint64_t items,
                                          bool adds) {
  static_assert(ITEMS == 32 || ITEMS == 64 || ITEMS == 96 || ITEMS == 128);
  if constexpr (SIGNED_ROWS) {
    WGMMA_OF_TYPE("s8");
  } else {
    WGMMA_OF_TYPE("u8");
  }
}

// ---- a warp's product of f16: C of 16 x 8, c = c + a * b ----

__device__ __forceinline__ void mma_k16_f16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
               "{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
