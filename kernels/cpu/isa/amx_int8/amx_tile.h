// amx_tile: the tile instructions that the ISA row amx_int8 uses, a macro each, because a tile register is
// part of the instruction. tests/support/amx_model.h has the same names in portable C.
//
// Invariant: an instruction names the memory that it reads or writes, a dense 16 x 64 bytes, so that the
// compiler keeps its order among ordinary loads and stores. (GCC 12's intrinsics do not say what a load
// reads.)
#pragma once

#define tile_configure(config) __asm__ volatile("ldtilecfg %0" ::"m"(*(config)))
#define tile_release()         __asm__ volatile("tilerelease" ::)
#define tile_zero(tile)        __asm__ volatile("tilezero %%tmm" #tile ::)
#define tile_load(tile, from)                                                                                \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"(64L), "m"(*(from)))
#define tile_store(to, tile)                                                                                 \
  __asm__ volatile("tilestored %%tmm" #tile ", (%1,%2,1)" : "=m"(*(to)) : "r"(to), "r"(64L))
// sum[m][n] += the products of a[m][4k .. 4k + 3] and b[k][n][0 .. 3], over all k: both signed, b unsigned, a
// unsigned
#define tile_dot_signed(sum, a, b)        __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::)
#define tile_dot_unsigned(sum, a, b)      __asm__ volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::)
#define tile_dot_unsigned_left(sum, a, b) __asm__ volatile("tdpbusd %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::)
