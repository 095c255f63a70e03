#!/usr/bin/env python3
"""A weight type that is new: a line and its functions are all that every path, ISA row and backend needs; where one is
missing it does not compile.

Owns: types planted in a copy of kernels/formats/blocks.h, compiled as the build compiles (compile_commands.json).
Refuses to know: how a type is computed.
Invariant: the planted Q9_0 is Q8_0 under another number, so a model of it has the digests of the model of Q8_0.
"""
import concurrent.futures
import json
import os
import re
import shlex
import subprocess
import unittest

import moe
import gguf_random

BUILD = os.environ.get("MOE_BINARY_DIR", os.path.dirname(moe.PROGRAM))
PLANTED = os.path.join(BUILD, "moe_run_planted_type")
COMMANDS = os.path.join(BUILD, "compile_commands.json")
BLOCKS = "kernels/formats/blocks.h"
FUNCTIONS = """typedef block_q8_0 block_q9_0;
#define factors_q9_0 factors_q8_0
#define quant_q9_0 quant_q8_0
#define is_finite_q9_0 is_finite_q8_0
"""
KERNELS_OF_ITS_OWN = FUNCTIONS + "#define dequantize_q9_0 dequantize_q8_0\n"

# Every source with a switch over the types, and the files in which it must be told of one whose products read ...
EACH_ROW, OUTLIERS, VECTOR = "each_row/generic.h", "each_row/outliers.h", "each_row/vector_types.h"
AVX512 = {EACH_ROW, OUTLIERS, "avx512/avx512_f32.h", "avx512/avx512_outliers.h", "avx512/avx512_panel.h",
          "avx512/avx512_q8k.h", "avx512/avx512_vector.h", VECTOR}
TILES = {"amx_int8/amx_weights.h", "amx_int8/amx_q8k.h"}
CPU_Q8K = {
    "kernels/cpu/isa/portable/row_portable.c": {EACH_ROW, OUTLIERS},
    "kernels/cpu/isa/avx2/row_avx2.c": {EACH_ROW, OUTLIERS, "avx2/avx2_f32.h", "avx2/avx2_q8k.h", "avx2/avx2_vector.h", VECTOR},
    "kernels/cpu/isa/avx512_vnni/row_avx512_vnni.c": AVX512,
    "kernels/cpu/isa/amx_int8/row_amx_int8.c": {EACH_ROW, OUTLIERS, "avx512/avx512_panel.h", *TILES},
}
LAB_Q8K = {"src/lab/quants.c": {"lab/quants.c"}}  # a block's integers, one by one
DISPATCH = {"products/block_q8k.cuh"}  # FOR_Q8K_TYPE
CUDA_Q8K = {
    "kernels/cuda/weights.cu": {"cuda/weights.cu"},
    "kernels/cuda/products/product_f32.cu": {"cuda/weight_at.cuh"},
    "kernels/cuda/products/product_f32_one.cu": {"products/product_f32_one.cu"},
    "kernels/cuda/products/product_f32_tiles.cu": {"products/product_f32_tiles.cu"},
    "kernels/cuda/products/product_outliers.cu": {"cuda/weight_at.cuh"},
    "kernels/cuda/products/product_q8k.cu": DISPATCH,
    "kernels/cuda/products/product_q8k_blocks.cu": DISPATCH,
    "kernels/cuda/products/product_q8k_stream.cu": DISPATCH,
    "kernels/cuda/products/product_few_bits.cu": set(),
    "kernels/cuda/decode/decode.cu": DISPATCH,
    "kernels/cuda/decode/decode_experts.cu": DISPATCH,
}
IN_ALL = {"formats/blocks.h"}  # whether its blocks have minimums
REAL = {
    "kernels/cpu/isa/avx2/row_avx2.c": {"avx2/avx2_q8k.h", "avx2/avx2_vector.h", VECTOR}, # here and below: panels name the types that have none
    "kernels/cpu/isa/avx512_vnni/row_avx512_vnni.c": {"avx512/avx512_f32.h", "avx512/avx512_panel.h", "avx512/avx512_q8k.h",
                                                         "avx512/avx512_vector.h", VECTOR},
    "kernels/cpu/isa/amx_int8/row_amx_int8.c": {"avx512/avx512_panel.h", *TILES},
    "kernels/cuda/weights.cu": {"cuda/weights.cu"},
    "kernels/cuda/products/product_f32.cu": {"cuda/weight_at.cuh"},
    "kernels/cuda/products/product_f32_one.cu": {"products/product_f32_one.cu"},
    "kernels/cuda/products/product_f32_tiles.cu": {"products/product_f32_tiles.cu"},
    "kernels/cuda/products/product_outliers.cu": {"cuda/weight_at.cuh"},
}
ENCODERS = {"src/synth/synth_blocks.c", "src/synth/synth_few_bits.c", "kernels/formats/quantize.c"}  # of some types, by name; the others are refused
# Look for tensors of some types, and compute nothing by them: of others, token_plan.cu leaves a token to the launches of decode.cu.
SELECTS = {"src/lab/product_case.c", "src/lab/falsify_tensors.c", "kernels/cuda/decode/token_plan.cu"}
# Seen by the CUDA compiler alone, which this test does not run: FOR_Q8K_TYPE, and templates without a general case.
CUDA_COMPILER_ONLY = {"kernels/cuda/products/product_q8k_wgmma.cu"}

if not os.access(COMMANDS, os.R_OK):
    moe.skip(f"no {COMMANDS}")


def build_commands():
    """{source below the tree: the build's words for it}"""
    with open(COMMANDS, encoding="utf-8") as file:
        entries = json.load(file)
    found = {}
    for entry in entries:
        source = os.path.relpath(entry["file"], moe.SOURCE)
        if source.startswith(("kernels/", "src/")) and "planted_type" not in entry["command"]:
            found.setdefault(source, []).append(shlex.split(entry["command"]))
    # the CUDA compiler would need no less than its whole work; the emulation compiles the same text as C++
    return {source: next((c for c in commands if "nvcc" not in c[0]), None) for source, commands in found.items()}


COMPILE = build_commands()


def plant(form, functions=""):
    """A folder that stands before the tree: its blocks.h has one type more."""
    with open(os.path.join(moe.SOURCE, BLOCKS), encoding="utf-8") as file:
        text = file.read()
    head = "#define WEIGHT_TYPES(ROW)"
    assert text.count(head) == 1, f"{BLOCKS}: expected one line \"{head}\""
    folder = moe.fresh()
    os.makedirs(os.path.join(folder, os.path.dirname(BLOCKS)))
    with open(os.path.join(folder, BLOCKS), "w", encoding="utf-8") as file:
        file.write(text.replace(head, f"{head} ROW(Q9_0, 99, q9_0, QK8_0, {form})"))
        file.write(functions or "typedef block_q8_0 block_q9_0;\n")
    return folder


def errors(folder, source):
    """What the compiler says of the source with the planted type, by the build's own flags; "" where it is content."""
    words = COMPILE[source]
    out = words.index("-o")
    line = [words[0], "-I", folder] + words[1:out] + words[out + 2:]
    line = ["-fsyntax-only" if word == "-c" else word for word in line]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=BUILD)
    assert (done.returncode == 0) == ("error" not in done.stderr), done.stderr
    return done.stderr if done.returncode else ""


def errors_of_all(folder, sources):
    known = [source for source in sources if COMPILE.get(source)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip(known, pool.map(lambda source: errors(folder, source), known)))


def places(text):
    """The files, each with its folder, in which a switch lacks the type."""
    lacking = r"^(\S+?):\d+:\d+: error: enumeration value .TYPE_Q9_0. not handled in switch"
    return {"/".join(path.split("/")[-2:]) for path in re.findall(lacking, text, re.MULTILINE)}


def rows_that_run():
    version = moe.attempt(command="--version", program=PLANTED, alone=True).out
    return re.search(r"^backend cpu, rows that run here: (.*)$", version, re.MULTILINE)[1].split(", ")


class NewType(unittest.TestCase):
    def lacks(self, form, expected, in_all):
        for source, text in errors_of_all(plant(form, KERNELS_OF_ITS_OWN), expected).items():
            self.assertEqual(places(text), expected[source] | in_all, text)

    def test_a_line_without_functions_does_not_compile(self):
        sources = ["kernels/formats/types.c", "kernels/cpu/isa/portable/row_portable.c"]
        found = errors_of_all(plant("Q8_0"), sources)
        self.assertIn("is_finite_q9_0", found[sources[0]])
        for source in sources:
            self.assertIn("factors_q9_0", found[source])
            self.assertIn("quant_q9_0", found[source])

    def test_a_type_without_its_products_does_not_compile(self):
        self.lacks("Q8K", CPU_Q8K | LAB_Q8K | CUDA_Q8K, IN_ALL)
        self.lacks("REAL", REAL, set())

    def test_a_type_of_few_bits_compiles(self):
        for form in ("Q8_0", "Q8_1"):
            for source, text in errors_of_all(plant(form, FUNCTIONS), [*CPU_Q8K, *LAB_Q8K, *CUDA_Q8K, *ENCODERS]).items():
                self.assertEqual(text, "", source)

    def test_no_other_source_has_a_switch_over_types(self):
        """Else the lists above are not all."""
        listed = {*CPU_Q8K, *LAB_Q8K, *CUDA_Q8K, *CUDA_COMPILER_ONLY, *ENCODERS, *SELECTS, "kernels/formats/types.c"}
        for source in set(COMPILE) - listed:
            with open(os.path.join(moe.SOURCE, source), encoding="utf-8") as file:
                self.assertNotRegex(file.read(), r"case TYPE_|[!=]= TYPE_", source)

    def test_a_type_of_few_bits_runs(self):
        number, block = 99, gguf_random.BLOCK[gguf_random.Q8_0]
        gguf_random.TYPES["Q9_0"], gguf_random.BLOCK[number] = number, block
        gguf_random.QUANTISE[number] = gguf_random.quantise_q8_0
        seed, paths = moe.random_seed(), ("f64", "f32", "q8k", "q8k_split")
        old, new = (moe.model(seed, layers=2, vocab=64, types=types) for types in ("Q8_0", "Q9_0"))
        arms = [f"{path}@cpu" for path in paths]
        if "backend cuda" in moe.attempt(command="--version", program=PLANTED, alone=True).out:
            arms += [f"{path}@cuda" for path in paths[1:]]
        digests = [self.digests(old, "auto", arms)] + [self.digests(new, row, arms) for row in rows_that_run()]
        for found in digests[1:]:
            self.assertEqual(found, digests[0])

    def digests(self, *run):
        outcome = self.run_arms(*run)
        self.assertEqual(outcome.code, 0, outcome.err)
        return {arm["name"]: arm["digest"] for arm in outcome.report()["arms"]}

    def run_arms(self, model, row, arms):
        sets = {"model.path": model, "input.tokens": list(range(9)), "run.arms": arms, "run.rows": row}
        return moe.attempt(sets, program=PLANTED, out=moe.fresh(), alone=True)


if __name__ == "__main__":
    moe.main()
