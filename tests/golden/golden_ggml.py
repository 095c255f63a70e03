#!/usr/bin/env python3
"""Makes tests/golden/ggml from ggml itself, through ctypes: activations rounded to Q8_K, dequantised K-quants and
dot products. test_golden.c reads the files; this script runs only when they are to be made anew.

Owns: the inputs, among them those where two ways of rounding part.
Refuses to know: the program under test.

Use:  python3 golden_ggml.py [--library DIR] [--measure]      needs NumPy and llama-cpp-python's libraries
"""
import argparse
import ctypes
import importlib.util
import os

import numpy as np

SEED = 20251123
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ggml")
MAGIC = np.float32(12582912)
Q8K_BYTES = 292
K_QUANTS = {"q4_K": 144, "q5_K": 176, "q6_K": 210}  # bytes of a block
ROWS, BLOCKS = 8, 3  # of each type: rows of three blocks
# Types of few bits: bytes and elements of a block, where its f16 scales lie.
FEW_BITS = {"q2_K": (84, 256, (80, 82)), "q3_K": (110, 256, (108,)), "iq4_xs": (136, 256, (0,)),
            "iq4_nl": (18, 32, (0,)), "q4_0": (18, 32, (0,)), "q4_1": (20, 32, (0, 2)), "q5_0": (22, 32, (0,)),
            "q5_1": (24, 32, (0, 2)), "mxfp4": (17, 32, ()), "q8_0": (34, 32, (0,))}
WITH_DOTS = ("q2_K", "q3_K", "iq4_xs")
OF_32 = {"q8_0": "q8_0", "iq4_nl": "q8_0", "q4_0": "q8_0", "q4_1": "q8_1", "q5_0": "q8_0", "q5_1": "q8_1", "mxfp4": "q8_0"}


# ---- the two roundings ----

def inverse_of(block):
    extreme = block[np.abs(block).argmax()]
    return np.float32(-127) / extreme


def rounded_twice(inverse, x):
    """The product rounded to float32, then to an integer: ggml's source."""
    return np.rint((inverse * x).astype(np.float32)).astype(np.int64)


def rounded_once(inverse, x):
    """What a compiler makes of inverse * x + 12582912 with one fused operation. The product is exact in float64."""
    return ((np.float64(inverse) * np.float64(x) + np.float64(MAGIC)).astype(np.float32) - MAGIC).astype(np.int64)


def parting_block(rng):
    """Floats whose product with the block's inverse scale is so near to a tie that the two roundings part."""
    largest = np.float32(rng.uniform(0.5, 4))
    inverse = np.float32(-127) / largest
    near = ((np.arange(-126, 126) + 0.5) / np.float64(inverse)).astype(np.float32)
    found = [x for x in near if abs(x) < largest and rounded_once(inverse, x) != rounded_twice(inverse, x)]
    block = np.full(256, found[0] if found else 0, np.float32)
    block[:min(255, len(found))] = found[:255]
    block[rng.integers(256)] = largest
    return block


# ---- inputs ----

def q8k_inputs():
    rng = np.random.default_rng(SEED)
    normal = lambda n, scale=1.0: (rng.standard_normal((n, 256)) * scale).astype(np.float32)
    blocks = [normal(24)]  # the first 24 are 8 rows for the dot products
    blocks += [normal(2, scale) for scale in (1e-38, 1e-30, 1e-8, 1e8, 1e30, 1e37)]
    outlier = normal(4)
    outlier[np.arange(4), [0, 100, 255, 17]] = [-146.68, 146.68, 3e4, -3e4]  # one channel that crushes the others
    tie = normal(8)
    for i, row in enumerate(tie):  # two of largest magnitude: the first gives the sign
        a, b = sorted(rng.choice(256, 2, replace=False))
        row[a], row[b] = (9, -9) if i % 2 else (-9, 9)
    halves = (rng.integers(-126, 126, (8, 256)) + np.float32(0.5)).astype(np.float32)  # ties to the even integer
    halves[np.arange(8), rng.integers(0, 256, 8)] = [127, -127] * 4
    halves[4:] *= np.float32(0.25)
    parting = np.stack([parting_block(rng) for _ in range(24)])
    special = np.zeros((12, 256), np.float32)
    special[1] = -0.0
    special[2, 255], special[3, 0], special[4] = -1e-3, 1e-45, -2.5
    special[5] = normal(1, 1e-42)        # subnormal: 127 / largest is infinite
    special[6, ::2] = 1e-40              # infinite times zero
    special[7] = normal(1) * np.float32(1.1754944e-38)
    special[8] = rng.choice(np.float32([-3.4028235e38, 3.4028235e38, 1, 0]), 256)
    special[9] = np.float32(127) / np.float32(3.4028235e38) * rng.uniform(0.99, 1.01, 256)  # about where it overflows
    special[10] = np.repeat(np.float32([1, -1]), 128)
    special[11] = np.repeat(np.float32([-1, 1]), 128)
    blocks += [outlier, tie, halves, parting, special]
    return np.concatenate([np.asarray(part, np.float32) for part in blocks])


def weight_blocks(name):
    """Random bytes with scales that are finite: every pattern of quants, scales and minimums is a valid one."""
    rng = np.random.default_rng([SEED, K_QUANTS[name]])
    raw = rng.integers(0, 256, (ROWS * BLOCKS, K_QUANTS[name]), np.uint8)
    halves = np.stack([rng.uniform(1e-4, 1e-2, ROWS * BLOCKS), rng.uniform(1e-4, 1e-2, ROWS * BLOCKS)], 1).astype("<f2")
    if name == "q6_K":
        raw[:, 208:210] = halves[:, :1].copy().view(np.uint8)
        raw[1::7, 209] ^= 0x80  # a negative scale
    else:
        raw[:, :4] = halves.copy().view(np.uint8)
        raw[2, :2] = [1, 0]  # the smallest subnormal
    return raw


def quantiser_inputs():
    """Weights of many kinds, and those where the search for scales and minimums takes a side road."""
    rng = np.random.default_rng([SEED, 1])
    blocks = [rng.uniform(-1, 1, (16, 256)), rng.standard_normal((16, 256)) * 0.02]
    blocks += [rng.standard_normal((2, 256)) * scale for scale in (1e-20, 1e-6, 1e3)]
    one_sided = np.abs(rng.standard_normal((4, 256)))
    mixed = rng.standard_normal((6, 256)) * np.exp(rng.uniform(-6, 6, (6, 8)).repeat(32, 1))  # sub-blocks of unlike size
    loud = rng.standard_normal((4, 256))
    loud[np.arange(4), rng.integers(0, 256, 4)] = [40, -40, 400, -400]
    special = np.zeros((6, 256))
    special[1] = 0.5
    special[2] = -0.5
    special[3, 32:64] = rng.standard_normal(32)  # the other sub-blocks are zero
    special[4] = rng.integers(-8, 8, 256) * 0.25  # on a grid
    special[5] = rng.standard_normal(256)
    special[5, :128] *= 1e-7  # scales that round to 0
    return np.concatenate(blocks + [one_sided, -one_sided, mixed, loud, special]).astype(np.float32)


# ---- ggml ----

class Ggml:
    def __init__(self, folder):
        self.base = ctypes.CDLL(os.path.join(folder, "libggml-base.so"), ctypes.RTLD_GLOBAL)
        if not os.path.exists(os.path.join(folder, "libggml-cpu.so")):
            return  # enough for --quantisers
        self.cpu = ctypes.CDLL(os.path.join(folder, "libggml-cpu.so"))
        self.cpu.ggml_cpu_init()  # fills the table of f16 that the products read

    def quantise(self, x):
        out = np.zeros((len(x), Q8K_BYTES), np.uint8)
        x = np.ascontiguousarray(x, np.float32)
        self.base.quantize_row_q8_K_ref(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data),
                                        ctypes.c_int64(x.size))
        return out

    def quantise_weights(self, name, x):
        out = np.zeros((len(x), K_QUANTS[name]), np.uint8)
        getattr(self.base, f"quantize_row_{name}_ref")(ctypes.c_void_p(x.ctypes.data),
                                                       ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(x.size))
        return out

    def dequantise(self, name, raw):
        out = np.zeros((len(raw), 256), np.float32)
        getattr(self.base, "dequantize_row_" + name)(ctypes.c_void_p(raw.ctypes.data),
                                                     ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(out.size))
        return out

    def dot(self, name, weights, activations):
        out, zero = ctypes.c_float(), ctypes.c_size_t(0)
        getattr(self.cpu, f"ggml_vec_dot_{name}_q8_K_generic")(
            ctypes.c_int(256 * BLOCKS), ctypes.byref(out), zero, ctypes.c_void_p(weights.ctypes.data), zero,
            ctypes.c_void_p(activations.ctypes.data), zero, ctypes.c_int(1))
        return out.value


def refuse_contraction(ggml):
    """A build that fuses the multiplication with the addition of the magic number rounds once and is no reference."""
    rng = np.random.default_rng(SEED)
    for _ in range(8):
        block = parting_block(rng)
        found = ggml.quantise(block[None])[0, 4:260].view(np.int8).astype(np.int64)
        wanted = np.minimum(127, rounded_twice(inverse_of(block), block))
        if (found != wanted).any():
            raise SystemExit("this ggml was built with contraction: build it with -ffp-contract=off")


def make(ggml):
    refuse_contraction(ggml)
    x = q8k_inputs()
    blocks = ggml.quantise(x)
    files = {"q8_K.x.f32": x, "q8_K.blocks": blocks}
    rows = blocks[:ROWS * BLOCKS].reshape(ROWS, -1)
    for name in K_QUANTS:
        raw = weight_blocks(name)
        files |= {name + ".blocks": raw, name + ".f32": ggml.dequantise(name, raw)}
        weights = raw.reshape(ROWS, -1)
        files[name + ".dots.f32"] = np.array([[ggml.dot(name, w, a) for a in rows] for w in weights], np.float32)
    write(files | quantisers(ggml))
    write(few_bits(ggml))
    write(blocks_32(ggml))


def few_bits(ggml):
    """Dequantised by ggml's own Python (package gguf), which contracts nothing; held against the library where a weight
    is one product."""
    import gguf
    files, rows = {}, np.fromfile(os.path.join(FOLDER, "q8_K.blocks"), np.uint8).reshape(-1, Q8K_BYTES)
    rows = rows[:ROWS * BLOCKS].reshape(ROWS, -1)
    for name, (size, elements, scales) in FEW_BITS.items():
        rng = np.random.default_rng([SEED, 2, size, len(name)])
        raw = rng.integers(0, 256, (ROWS * BLOCKS, size), np.uint8)
        for at in scales:
            raw[:, at:at + 2] = rng.uniform(1e-4, 1e-2, (len(raw), 1)).astype("<f2").view(np.uint8)
        if scales:
            raw[1::7, scales[0] + 1] ^= 0x80  # a negative scale
            raw[2, scales[0]:scales[0] + 2] = [1, 0]  # the smallest subnormal
        else:
            raw[:, 0] = rng.integers(100, 140, len(raw))
            raw[:4, 0] = [0, 1, 2, 254]  # subnormal scales, and the largest
        kind = gguf.GGMLQuantizationType[name.upper()]
        found = gguf.quants.dequantize(raw, kind).astype(np.float32)
        if len(scales) < 2:
            out = np.zeros((len(raw), elements), np.float32)
            getattr(ggml.base, "dequantize_row_" + name)(ctypes.c_void_p(raw.ctypes.data), ctypes.c_void_p(out.ctypes.data),
                                                         ctypes.c_int64(out.size))
            if not np.array_equal(out.view(np.uint32), found.view(np.uint32)):
                raise SystemExit(f"{name}: ggml's Python and its library differ")
        files |= {name + ".blocks": raw, name + ".f32": found}
        if name in WITH_DOTS:
            files[name + ".dots.f32"] = np.array([[ggml.dot(name, w, a) for a in rows] for w in raw.reshape(ROWS, -1)],
                                                 np.float32)
    return files


def blocks_32(ggml):
    """Activations rounded to Q8_0 and Q8_1, and their products with 8 rows of 3 blocks of each type of 32."""
    x = np.fromfile(os.path.join(FOLDER, "q8_K.x.f32"), np.float32).reshape(-1, 32)
    largest = np.abs(x).max(1)
    x = x[(largest == 0) | ((largest > 1e-36) & (largest < 1e6))]  # beyond, ggml's casts and halves have no meaning
    files = {"q8_32.x.f32": x}
    for name, size in (("q8_0", 34), ("q8_1", 36)):
        out = np.zeros((len(x), size), np.uint8)
        getattr(ggml.base, f"quantize_row_{name}_ref")(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data),
                                                       ctypes.c_int64(x.size))
        files[f"{name}.rounded"] = out
    for name, form in OF_32.items():
        weights = np.fromfile(os.path.join(FOLDER, name + ".blocks"), np.uint8).reshape(ROWS, -1)
        rows = np.ascontiguousarray(files[form + ".rounded"][:ROWS * BLOCKS]).reshape(ROWS, -1)
        dots = np.zeros((ROWS, ROWS), np.float32)
        for r in range(ROWS):
            for t in range(ROWS):
                out, zero = ctypes.c_float(), ctypes.c_size_t(0)
                getattr(ggml.cpu, f"ggml_vec_dot_{name}_{form}")(  # README.md: why not _generic
                    ctypes.c_int(32 * BLOCKS), ctypes.byref(out), zero, ctypes.c_void_p(weights[r].ctypes.data), zero,
                    ctypes.c_void_p(rows[t].ctypes.data), zero, ctypes.c_int(1))
                dots[r, t] = out.value
        files[name + ".dots.f32"] = dots
    return files


def quantisers(ggml):
    weights = quantiser_inputs()
    return {"weights.f32": weights} | {f"{name}.quantised": ggml.quantise_weights(name, weights)
                                       for name in ("q4_K", "q6_K")}


def write(files):
    os.makedirs(FOLDER, exist_ok=True)
    for name, data in files.items():
        np.ascontiguousarray(data).tofile(os.path.join(FOLDER, name))
        print(f"{name}: {data.shape} {data.dtype}, {data.nbytes} bytes")


def measure():
    """How often a contracted build would give another integer, over activations like a model's."""
    rng, parted, blocks, n = np.random.default_rng(SEED), 0, 0, 40000
    for _ in range(10):
        x = rng.standard_normal((n, 256)).astype(np.float32)
        extreme = x[np.arange(n), np.abs(x).argmax(1)]
        inverse = (np.float32(-127) / extreme)[:, None]
        wrong = rounded_once(inverse, x) != rounded_twice(inverse, x)
        parted, blocks = parted + wrong.sum(), blocks + wrong.any(1).sum()
    print(f"contraction: {parted} of {10 * n * 256} elements, {blocks} of {10 * n} blocks differ")


def main():
    parser = argparse.ArgumentParser(description="golden data from ggml")
    parser.add_argument("--library", help="folder of libggml-base.so and libggml-cpu.so; default: llama_cpp/lib")
    parser.add_argument("--measure", action="store_true", help="only count what contraction would change")
    parser.add_argument("--quantisers", action="store_true", help="only the quantised weights; needs libggml-base.so alone")
    parser.add_argument("--few-bits", action="store_true", help="only the types of few bits; needs the package gguf as well")
    args = parser.parse_args()
    if args.measure:
        return measure()
    if not args.library:
        args.library = os.path.join(os.path.dirname(importlib.util.find_spec("llama_cpp").origin), "lib")
    ggml = Ggml(args.library)
    if args.few_bits:
        write(few_bits(ggml))
        return write(blocks_32(ggml))
    if not args.quantisers:
        return make(ggml)
    refuse_contraction(ggml)
    write(quantisers(ggml))


if __name__ == "__main__":
    main()
