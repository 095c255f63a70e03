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
TOKENS = list(range(3, 40))
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
        rows = re.search(r"^backend cpu, rows that run here: (.*)$", moe.attempt(command="--version", alone=True).out, re.M)[1]
        rows = rows.split(", ")[1:]
        for i, mix in enumerate(MIXES):
            path, arms = model(mix), ["q8k@cpu", "q8k_split@cpu", "f32@cpu"]
            outcome = attempt(path, run__arms=arms)
            self.assertEqual(outcome.code, 0, outcome.err)
            found = outcome.report()["arms"]
            first = {arm["name"]: arm["digest"] for arm in found}
            self.assertEqual(len(set(first.values())), 3)
            self.assertEqual([arm["path_version"] for arm in found], [2, 2, 1] if mix in OF_256 else [3, 3, 1], mix)
            self.assertEqual(digests(path, 3, run__arms=arms, run__chunk=5), first, mix)
            for row in rows if mix in OF_256[1:] + MIXES[3:4] else rows[i % len(rows):][:1]:
                self.assertEqual(digests(path, run__arms=arms, run__rows=row, run__chunk=1), first, (mix, row))


if __name__ == "__main__":
    moe.main()
