#!/usr/bin/env python3
"""The law at 5,000 positions, where q8k's attention folds groups of chunks: cuts, ranks, rows, and decode against
prefill give the same bits."""
import functools
import unittest

import moe
import numpy as np

SEED = moe.random_seed()
MODEL = moe.model(SEED, layers=1, hidden=256, heads=3, kv_heads=1, head_dim=32, experts=4, top_k=1, expert_width=256,
                  vocab=64, context=6000)
TOKENS = np.random.default_rng(SEED).integers(0, 64, 5000).tolist()


def generate(ranks=1, tokens=TOKENS, **sets):
    keys = {"model.path": MODEL, "input.tokens": tokens, "run.arms": ["q8k@cpu"], "run.threads": 1, "run.generate": 1}
    outcome = moe.run(keys | {key.replace("__", "."): value for key, value in sets.items()}, ranks, command="generate")
    return outcome.arm("q8k@cpu")


def bits(arm):
    return arm["layer_digests"], arm["digest"]


@functools.cache
def base():
    return bits(generate())


@functools.cache
def rows():
    text = moe.finish(moe.start([moe.PROGRAM, "--version"])).out
    line = next(line for line in text.splitlines() if line.startswith("backend cpu"))
    return [row for row in line.split(": ")[1].split(", ")]


class LongContext(unittest.TestCase):
    def test_cuts(self):
        for chunk in (1, 7, 5000):
            with self.subTest(chunk=chunk):
                self.assertEqual(bits(generate(run__chunk=chunk)), base())

    def test_ranks(self):
        for ranks, threads in ((2, 1), (3, 1), (4, 1), (1, 3)):
            with self.subTest(ranks=ranks, threads=threads):
                self.assertEqual(bits(generate(ranks, run__threads=threads)), base())

    def test_keys_split_over_threads(self):
        """Batches of few tokens: threads share the keys of a token."""
        for chunk, threads, row in ((1, 3, "auto"), (3, 8, "auto"), (4, 2, "avx2"), (2, 5, "portable")):
            with self.subTest(chunk=chunk, threads=threads, row=row):
                if row != "auto" and row not in rows():
                    continue
                few = bits(generate(1, TOKENS[:700])) if row == "portable" else base()
                tokens = TOKENS[:700] if row == "portable" else TOKENS
                self.assertEqual(bits(generate(1, tokens, run__chunk=chunk, run__threads=threads, run__rows=row)), few)

    def test_rows(self):
        for row in rows():
            with self.subTest(row=row):
                self.assertEqual(bits(generate(run__rows=row)), base())

    def test_decode(self):
        """Over the end of a group, 4,096, and as far behind it as one rank has to itself."""
        written = generate(2, TOKENS[:4090], run__generate=20)["generated"][0]
        read = generate(1, TOKENS[:4090] + written["tokens"][:-1])
        self.assertEqual(written["digest"], read["digest"])


if __name__ == "__main__":
    moe.main()
