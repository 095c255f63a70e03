#!/usr/bin/env python3
"""Weight types of few bits in whole runs: the law over ISA rows, ranks and cuts for a model of each mix, and what a
path or backend lacks is refused by name.

Independent of: how a type is computed (tests/unit/test_products.c) and what its bytes mean (test_golden.c).
"""
import os
import re
import unittest

import moe

EMULATED = os.path.join(os.path.dirname(moe.PROGRAM), "moe_run_emulated")
SHAPE = "--shape tiny --layers 2 --vocab 256 --seed 5 --outliers 2".split()
TOKENS = list(range(3, 40))
ROUNDED = ("q2_k", "q3_k_m", "iq4_xs")  # q8k has integer products of them
OTHERS = ("iq4_nl", "q4_0", "q4_1", "q5_0", "q5_1", "mxfp4")
NAMES = {"q2_k": "Q2_K", "q3_k_m": "Q3_K", "iq4_xs": "IQ4_XS", "iq4_nl": "IQ4_NL", "mxfp4": "MXFP4"}


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
        for mix in ROUNDED:
            path, arms = model(mix), ["q8k@cpu", "q8k_split@cpu", "f32@cpu"]
            first = digests(path, run__arms=arms)
            self.assertEqual(len(set(first.values())), 3)
            self.assertEqual(digests(path, 3, run__arms=arms, run__chunk=5), first, mix)
            for row in rows.split(", ")[1:]:
                self.assertEqual(digests(path, run__arms=arms, run__rows=row, run__chunk=1), first, (mix, row))

    def test_what_is_only_dequantised(self):
        for mix in OTHERS:
            path = model(mix)
            first = digests(path, run__arms=["f32@cpu"])
            self.assertEqual(digests(path, run__arms=["f32@cpu"], run__rows="portable", run__chunk=7), first, mix)
            refused = attempt(path, run__arms=["q8k@cpu"])
            self.assertNotEqual(refused.code, 0)
            self.assertRegex(refused.err, rf'tensor "[\w.]+": the backend cpu has no product of the type {NAMES.get(mix, mix.upper())} on')

    def test_a_backend_that_lacks_them(self):
        if not os.access(EMULATED, os.X_OK):
            self.skipTest("no emulated GPU")
        for path in ("q8k", "f32"):
            refused = attempt(model("q3_k_m"), program=EMULATED, run__arms=[f"{path}@cuda"])
            self.assertNotEqual(refused.code, 0)
            self.assertRegex(refused.err, r"the backend cuda has no product of the type Q[23]_K")


if __name__ == "__main__":
    moe.main()
