#!/usr/bin/env python3
"""Weight types of few bits in whole runs: the law over ISA rows, ranks and cuts for a model of each mix.

Independent of: how a type is computed (tests/unit/test_products.c) and what its bytes mean (test_golden.c).
"""
import os
import re
import unittest

import moe

EMULATED = os.path.join(os.path.dirname(moe.PROGRAM), "moe_run_emulated")
SHAPE = "--shape tiny --layers 2 --vocab 256 --seed 5 --outliers 2".split()
TOKENS = list(range(3, 20))
MIXES = ("q2_k", "q3_k_m", "iq4_xs", "q8_0", "iq4_nl", "q4_0", "q4_1", "q5_0", "q5_1", "mxfp4")
OF_256 = MIXES[:3]  # of which q8k keeps its version 2


def model(mix):
    path = moe.fresh(".gguf")
    done = moe.finish(moe.start([moe.PROGRAM, "synth", *SHAPE, "--mix", mix, "--out", path]))
    assert done.code == 0, done.err
    return path


def attempt(path, ranks=1, program=None, **sets):
    keys = {"model.path": path, "input.tokens": TOKENS, "run.threads": 1} | {k.replace("__", "."): v for k, v in sets.items()}
    return moe.attempt(keys, ranks, out=moe.fresh(), alone=ranks == 1, program=program)


def digests(*args, **sets):
    outcome = attempt(*args, **sets)
    assert outcome.code == 0, outcome.err
    return {arm["name"]: arm["digest"] for arm in outcome.report()["arms"]}


class Types(unittest.TestCase):
    def test_the_law(self):
        """Each mix on the best ISA row at once, and on another one by three ranks in cuts."""
        rows = re.search(r"^backend cpu, rows that run here: (.*)$", moe.attempt(command="--version", alone=True).out, re.M)[1]
        rows = rows.split(", ")
        for i, mix in enumerate(MIXES):
            path, arms = model(mix), ["q8k@cpu", "q8k_split@cpu", "f32@cpu"]
            outcome = attempt(path, run__arms=arms)
            self.assertEqual(outcome.code, 0, outcome.err)
            found = outcome.report()["arms"]
            first = {arm["name"]: arm["digest"] for arm in found}
            self.assertEqual(len(set(first.values())), 3)
            self.assertEqual([arm["path_version"] for arm in found], [2, 4, 1] if mix in OF_256 else [3, 4, 1], mix)
            row = rows[-1 - i % max(1, len(rows) - 1)]
            self.assertEqual(digests(path, 3, run__arms=arms, run__chunk=5, run__rows=row), first, (mix, row))

    def test_the_law_on_a_gpu(self):
        """Two kinds of blocks in one run: the mixes' other types are in tests/gpu/test_cuda_steps.c."""
        if not os.access(EMULATED, os.X_OK):
            self.skipTest("no emulated GPU")
        for mix in ("q3_k_m", "q4_1"):
            found = digests(model(mix), 2, EMULATED, run__arms=["q8k@cuda", "q8k_split@cuda", "q8k@cpu", "q8k_split@cpu"])
            self.assertEqual(found["q8k@cuda"], found["q8k@cpu"], mix)
            self.assertEqual(found["q8k_split@cuda"], found["q8k_split@cpu"], mix)


if __name__ == "__main__":
    moe.main()
