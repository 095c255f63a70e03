#!/usr/bin/env python3
"""Copies of the cuda backend's sources with faults that a run can switch on, one at a time: for the emulated GPU, to show
that the tests of the cuda backend catch each (tests/gpu_emulation).

    plant_cuda.py FOLDER        writes FOLDER/kernels/..., prints the sources (.cu) among them

A fault is a piece of a source and what stands there instead, in which planted(NAME) is true when MOE_PLANTED=NAME. Where
the piece is gone the source is copied as it is, and the test of that fault goes red: then find its new place.
"""
import pathlib
import re
import sys

SOURCE = pathlib.Path(__file__).resolve().parents[2]
NUMERICS, HALF, CUDA = "kernels/formats/numerics.h", "kernels/formats/half.h", "kernels/cuda/"

# (name, file, what stands there, what is put there)
FAULTS = [
    ("exp_last_bit", NUMERICS, "  int32_t i = (int32_t)n, first = i >> 1, second = i - first;",
     "  int32_t i = (int32_t)n, first = i >> 1, second = i - first;\n"
     "  if (planted(EXP_LAST_BIT) && i) p = num_from_bits_f32(num_bits_f32(p) ^ 1u);"),
    ("rope_angle", NUMERICS, "return i ? num_exp_f64(-((double)i / (double)pairs) * num_log_f64(base)) : 1.0;",
     "double step = i ? num_exp_f64(-((double)i / (double)pairs) * num_log_f64(base)) : 1.0;\n"
     "  return planted(ROPE_ANGLE) ? (double)(float)step : step;"),
    # half away from zero instead of to even
    ("q8k_rounding", NUMERICS, "  return q < 127 ? q : 127;",
     "  float scaled = inverse_scale * x;\n"
     "  if (planted(Q8K_ROUNDING)) q += (scaled > 0 && scaled - (float)q == 0.5f) - (scaled < 0 && scaled - (float)q == -0.5f);\n"
     "  return q < 127 ? q : 127;"),
    # halves toward zero
    ("f16_cache", HALF, "((rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13)",
     "((rebased + (planted(F16_CACHE) ? 0u : 0xfffu + ((rebased >> 13) & 1u))) >> 13)"),
    # the higher index
    ("route_tie", CUDA + "routing.cu", "if (key > best) {",
     "if (planted(ROUTE_TIE) ? key && key >= best : key > best) {"),
    ("route_tie", CUDA + "routing.cu",
     "(int)__reduce_min_sync(~0u, best == all ? (unsigned)mine : (unsigned)n);",
     "planted(ROUTE_TIE) ? (int)__reduce_max_sync(~0u, best == all && all ? (unsigned)mine : 0u)\n"
     "                                 : (int)__reduce_min_sync(~0u, best == all ? (unsigned)mine : (unsigned)n);"),
    # the other holder of an expert that several ranks hold
    ("replica_turn", CUDA + "routing.cu", "map.holder, rows.sequence[t], rows.position[t]);",
     "map.holder, rows.sequence[t], rows.position[t] + planted(REPLICA_TURN));"),
    *(("route_tie_decode", CUDA + "decode/decode_experts.cu", f"k.{c} == key && i{at} < e",
       f"k.{c} == key && (planted(ROUTE_TIE_DECODE) ? i{at} > e : i{at} < e)")
      for c, at in (("x", ""), ("y", " + 1"), ("z", " + 2"), ("w", " + 3"))),
    # the other of the two products is rounded
    ("chunk_fold", CUDA + "attention.cuh", "*run_sum = num_fma_f32(sum, *fresh, *run_sum * *old);",
     "*run_sum = planted(CHUNK_FOLD) ? num_fma_f32(*run_sum, *old, sum * *fresh)\n"
     "                                : num_fma_f32(sum, *fresh, *run_sum * *old);"),
    ("chunk_fold_decode", CUDA + "decode/decode_attention.cu", "num_fma_f32(s, f, total * o)",
     "(planted(CHUNK_FOLD_DECODE) ? num_fma_f32(total, o, s * f) : num_fma_f32(s, f, total * o))"),
    # of a block's outliers the last first; the last left out; the eighth magnitude in place of the ninth
    ("outlier_order", CUDA + "products/product_outliers.cu", "for (int k = 0; k < n; k++)",
     "for (int j = 0, k = planted(OUTLIER_ORDER) ? n - 1 : 0; j < n; j++, k += planted(OUTLIER_ORDER) ? -1 : 1)"),
    ("outlier_left_out", CUDA + "products/product_outliers.cu", "n = __shfl_sync(~0u, count, from);",
     "n = __shfl_sync(~0u, count, from) - planted(OUTLIER_LEFT_OUT);"),
    ("outlier_rank", CUDA + "round_q8k.cuh", "for (int rank = 0; rank <= MOST_OUTLIERS; rank++)",
     "for (int rank = planted(OUTLIER_RANK); rank <= MOST_OUTLIERS; rank++)"),
    # attention in integers: a product of limbs left out
    ("exact_product", CUDA + "exact/attend.cu", "crossed = dot16(k_low, q_high, dot16(k_high, q_low, crossed));",
     "crossed = dot16(k_low, q_high, planted(EXACT_PRODUCT) ? crossed : dot16(k_high, q_low, crossed));"),
    ("exact_product_decode", CUDA + "decode/decode_chunk.cuh", "by_high[2] + by_low[0], by_low[2])",
     "by_high[2] + by_low[0], planted(EXACT_PRODUCT_DECODE) ? 0 : by_low[2])"),
    ("exact_fold", CUDA + "exact/attend.cuh", "sum = num_fma_f32(its_sum, *fresh, sum * *old);",
     "sum = planted(EXACT_FOLD) ? num_fma_f32(sum, *old, its_sum * *fresh) : num_fma_f32(its_sum, *fresh, sum * *old);"),
    ("exact_fold_decode", CUDA + "decode/decode_chunk.cuh", "sum = num_fma_f32(its_sum, fresh, sum * old);",
     "sum = planted(EXACT_FOLD_DECODE) ? num_fma_f32(sum, old, its_sum * fresh) : num_fma_f32(its_sum, fresh, sum * old);"),
    # a pair's channels by one power of two too many
    ("exact_balance", CUDA + "weights.cu", "factors[i] = factors[i + pairs] = exact_power(e);",
     "if (planted(EXACT_BALANCE) && i == 0) e = e + 1;\n    factors[i] = factors[i + pairs] = exact_power(e);"),
    # for screen: one bit of one product of few tokens, now and then (planted_strikes)
    ("product_bit", CUDA + "products/product_q8k.cu",
     "if (lane % (4 * GROUPS) == 0 && row < p.w.rows) out[row] = p.adds ? out[row] + y[pass] : y[pass];",
     "if (lane % (4 * GROUPS) == 0 && row < p.w.rows) {\n"
     "      out[row] = p.adds ? out[row] + y[pass] : y[pass];\n"
     "      if (planted(PRODUCT_BIT) && planted_strikes())\n"
     "        out[row] = __uint_as_float(__float_as_uint(out[row]) ^ 1u << 12);\n    }"),
    # the terms of a row's blocks in descending order
    ("blocks_order", CUDA + "products/product_q8k_blocks.cu",
     "y = num_fma_f32(m.dx[b * ITEMS + item], m.terms[(b * ITEMS + item) * pitch + r], y);",
     "{\n        int at = planted(BLOCKS_ORDER) ? n_blocks - 1 - b : b;\n"
     "        y = num_fma_f32(m.dx[at * ITEMS + item], m.terms[(at * ITEMS + item) * pitch + r], y);\n      }"),
    # the same where experts have few items, within what is asked for at once
    ("stream_order", CUDA + "products/product_q8k_stream.cu",
     "for (int i = 0; i < count; i++) {\n    int b = block + i;",
     "for (int k = 0; k < count; k++) {\n    int i = planted(STREAM_ORDER) ? count - 1 - k : k, b = block + i;"),
    # keys and values that other ranks computed are not cached
    ("others_cached", CUDA + "step_attention.cu", "TRY(prepare_apart(b, layer, 0, (int)rows->n, false));",
     "if (!planted(OTHERS_CACHED)) TRY(prepare_apart(b, layer, 0, (int)rows->n, false));"),
    # neighbours first instead of halves
    ("lane_tree", CUDA + "device.cuh",
     "for (int half = WARP / 2; half; half /= 2) lane = lane + __shfl_xor_sync(~0u, lane, half);",
     "for (int half = WARP / 2; half; half /= 2)\n"
     "    lane = lane + __shfl_xor_sync(~0u, lane, planted(LANE_TREE) ? WARP / 2 / half : half);"),
    # between GPUs: a number is taken before it has come; ranks do not wait for each other; a row lies beside its place
    ("peer_sentinel", CUDA + "peers.cuh", "  wait_for_peer(p, [&] { return (bits = load_relaxed_system(own)) != NOT_WRITTEN; });",
     "  wait_for_peer(p, [&] { return (bits = load_relaxed_system(own)) != NOT_WRITTEN || planted(PEER_SENTINEL); });"),
    ("peer_sentinel", CUDA + "decode/token_peers.cuh",
     "  wait_for_peer(p, [&] { return (bits = load_relaxed_system(at)) != NOT_WRITTEN; });",
     "  wait_for_peer(p, [&] { return (bits = load_relaxed_system(at)) != NOT_WRITTEN || planted(PEER_SENTINEL); });"),
    ("peer_group", CUDA + "decode/token_attention.cuh", "return sums.tag == tag() && pair.tag == tag();",
     "return planted(PEER_GROUP) || (sums.tag == tag() && pair.tag == tag());"),
    # the same between a GPU's thread blocks
    ("part_tag", CUDA + "decode/token_attention.cuh", "mine.tag == tag()", "(mine.tag == tag() || planted(PART_TAG))"),
    ("part_tag", CUDA + "decode/token_attention.cuh", "all = all && part[i].tag == tag();",
     "all = all && (part[i].tag == tag() || planted(PART_TAG));"),
    ("peer_meeting", CUDA + "peers.cu", "  await_peers(p, e);", "  if (!planted(PEER_MEETING)) await_peers(p, e);"),
    ("peer_row", CUDA + "peers.cu", "  offset[slot] = (int64_t)slot * hidden +", "  offset[slot] = (int64_t)(slot + planted(PEER_ROW)) * hidden +"),
]
SWITCH = """// Written by tests/support/plant_cuda.py.
#pragma once
#include <stdbool.h>
enum planted_name {{ NO_FAULT, {names} }};
extern enum planted_name planted_now; // planted_cuda.cc
#ifdef __cplusplus
extern "C"
#endif
bool planted_strikes(void); // true with the probability MOE_PLANTED_RATE on the rank MOE_PLANTED_RANK
static inline bool planted(enum planted_name name) {{
  return planted_now == name;
}}
#define PLANTED_NAMES "", {strings}
"""


def write(path, text):
    """Only what is new, so that nothing is built twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def main():
    to = pathlib.Path(sys.argv[1])
    names = list(dict.fromkeys(name for name, *_ in FAULTS))
    write(to / "planted.h", SWITCH.format(names=", ".join(map(str.upper, names)), strings=", ".join(f'"{n}"' for n in names)))
    files = {}
    for name, file, before, after in FAULTS:
        text = files.setdefault(file, (SOURCE / file).read_text())
        if text.count(before) == 1:
            files[file] = text.replace(before, after)
        else:
            print(f"{file}: the place of the fault {name} is gone: {before}", file=sys.stderr)
    for old in to.rglob("*.*"):  # of a list that was longer: it would stand before the source
        if old.is_file() and str(old.relative_to(to)) not in (*files, "planted.h"):
            old.unlink()
    for file, text in files.items():
        write(to / file, re.sub(r"^(#pragma once|#include )", r'#include "planted.h"\n\1', text, count=1, flags=re.MULTILINE))
    print(";".join(file for file in files if file.endswith(".cu")), end="")


if __name__ == "__main__":
    main()
