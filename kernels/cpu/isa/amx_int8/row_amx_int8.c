// row_amx_int8: AMX tiles (Sapphire Rapids and later Xeons) for products with many tokens and for attention
// in integers; all else is that of the ISA row avx512_vnni.
#include "kernels/cpu/isa/amx_int8/amx_tile.h"
#include "kernels/cpu/isa/amx_int8/amx_blocks_32.h"
#include "kernels/cpu/isa/amx_int8/amx_exact.h"
#include "kernels/cpu/isa/amx_int8/amx_q8k.h"
#include "kernels/cpu/isa/avx512/avx512_row.h"
#include "kernels/cpu/isa/each_row/generic.h"
#include <cpuid.h>
#include <sys/syscall.h>

long syscall(long number, ...); // of <unistd.h>: kernels do not include the headers of files

// Linux lets a process use tiles after a request: ARCH_REQ_XCOMP_PERM of asm/prctl.h, for the XSAVE state 18,
// XTILEDATA. It holds for all threads.
static bool tiles_granted(void) {
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

static bool usable_amx_int8(void) {
  enum { AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25, BOTH = AMX_TILE | AMX_INT8 }; // of EDX
  unsigned a, b, c, d;
  return usable_avx512_vnni() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BOTH) == BOTH &&
         tiles_granted();
}

static double int8_peak_amx(int64_t rounds) {
  enum { SUM_TILES = 4 };
  configure_tiles();
  tile_zero(0);
  tile_zero(1);
  tile_zero(2);
  tile_zero(3);
  tile_zero(4);
  tile_zero(5);
  for (int64_t i = 0; i < rounds; i++) {
    tile_dot_signed(0, 4, 5);
    tile_dot_signed(1, 4, 5);
    tile_dot_signed(2, 4, 5);
    tile_dot_signed(3, 4, 5);
  }
  tile_release();
  return 2.0 * SUM_TILES * 16 * 16 * TILE_COLS * (double)rounds;
}

const cpu_row cpu_row_amx_int8 = {
    .name = "amx_int8",
    .usable = usable_amx_int8,
    .f32 = &ops_avx512,
    .f64 = &ops_f64,
    .exact = &exact_ops_amx,
    .quantize_q8k = quantize_q8k_avx512,
    .product_q8k = product_q8k_avx512,
    .packed = &packed_ops_amx,
    .split_q8k = split_q8k_avx512,
    .add_outliers = add_outliers_avx512,
    .product_unpacked = product_q8k_avx512,
    .round_q8_0 = round_q8_0_generic,
    .product_q8_0 = product_q8_0_avx512,
    .packed_32 = &packed_ops_32_amx,
    .add_outliers_few_bits = add_outliers_few_bits,
    .int8_peak = int8_peak_amx,
};
