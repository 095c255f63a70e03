#!/usr/bin/env python3
"""The path q8k_split on models with planted outlier channels: same path, same bits; the faults that its digest must see;
and what it is for: near the truth where q8k is far from it."""
import functools
import json
import os
import unittest

import moe
import numpy as np

PLANTED = os.environ.get("MOE_RUN_PLANTED", os.path.join(os.path.dirname(moe.PROGRAM), "moe_run_planted"))
EMULATED = os.environ.get("MOE_RUN_EMULATED", os.path.join(os.path.dirname(moe.PROGRAM), "moe_run_emulated"))
SEED = moe.random_seed()
ARM = "q8k_split@cpu"
SHAPE = {"layers": 2, "hidden": 768, "heads": 6, "kv_heads": 2, "head_dim": 128, "experts": 9, "top_k": 4,
         "expert_width": 256, "vocab": 512}
OUTLIERS = 6  # in three blocks: some have several
TOKENS = np.random.default_rng(SEED).integers(0, 512, 140).tolist()
LONG = np.random.default_rng(SEED + 1).integers(0, 512, 330).tolist()  # 64 tokens and more for each of four ranks


@functools.cache
def synth(outliers=OUTLIERS):
    path = moe.fresh(".gguf")
    line = [moe.PROGRAM, "synth", "--shape", "tiny", "--out", path, "--seed", str(SEED), "--outliers", str(outliers)]
    for name, value in SHAPE.items():
        line += ["--" + name.replace("_", "-"), str(value)]
    outcome = moe.finish(moe.start(line))
    if outcome.code != 0:
        raise AssertionError(f"synth ended with {outcome.code}: {outcome.err}{outcome.out}")
    return path


def parity(ranks=1, rest={}, **sets):
    keys = {"model.path": synth(), "input.tokens": TOKENS, "run.arms": [ARM], "run.threads": 1}
    return moe.run(keys | {key.replace("__", "."): value for key, value in sets.items()}, ranks, **rest)


def digests(outcome, name=ARM):
    arm = outcome.arm(name)
    return arm["digest"], arm["layer_digests"]


@functools.cache
def base():
    """One rank, one thread, one batch, the row that is the definition in C."""
    return parity(run__rows="portable", run__arms=[ARM, "q8k@cpu"], output__logits=True)


def rows_that_run():
    text = moe.finish(moe.start([moe.PROGRAM, "--version"])).out
    return next(line for line in text.splitlines() if line.startswith("backend cpu")).split(": ")[1].split(", ")


class Law(unittest.TestCase):
    def test_base_is_worth_comparing(self):
        self.assertNotEqual(digests(base())[0], digests(base(), "q8k@cpu")[0])
        self.assertTrue(np.isfinite(base().logits(ARM)).all())

    def test_ranks_threads_cuts_and_rows(self):
        rows = [(1, {"run__rows": row}) for row in rows_that_run() if row != "portable"]
        cuts = ((2, {}), (3, {"run__chunk": 7}), (4, {"run__chunk": 65}), (1, {"run__chunk": 1}), (1, {"run__threads": 2}),
                (3, {"experts__placement": "strided"}), (2, {"run__chunk": 3, "run__rows": "avx2"}))
        for ranks, sets in (*rows, *(cut for cut in cuts if cut[1].get("run__rows", "avx2") in rows_that_run())):
            with self.subTest(ranks=ranks, **sets):
                self.assertEqual(digests(parity(ranks, **sets)), digests(base()))

    def test_sharded_batches(self):
        one = digests(parity(1, input__tokens=LONG))
        for ranks, chunk in ((2, 512), (3, 200), (4, 512)):
            with self.subTest(ranks=ranks, chunk=chunk):
                self.assertEqual(digests(parity(ranks, input__tokens=LONG, run__chunk=chunk)), one)

    def test_decode_gives_the_bits_of_prefill(self):
        written = parity(2, input__tokens=TOKENS[:57], run__generate=12).arm(ARM)["generated"][0]
        fed = TOKENS[:57] + written["tokens"][:-1]  # the last one was written but not read
        self.assertEqual(written["digest"], parity(1, input__tokens=fed, run__chunk=7).arm(ARM)["digest"])

    def trace(self, ranks, **sets):
        folder = moe.fresh()
        keys = {"model.path": synth(), "input.tokens": TOKENS[:40], "run.arms": [ARM], "run.threads": 1}
        outcome = moe.attempt(keys | {key.replace("__", "."): value for key, value in sets.items()}, ranks,
                              command="trace", out=folder)
        self.assertEqual(outcome.code, 0, outcome.err)
        with open(os.path.join(folder, "index.json"), encoding="utf-8") as file:
            (arm,) = json.load(file)["arms"]
        return {os.path.basename(f["file"]): np.fromfile(os.path.join(folder, f["file"]), np.uint8).tobytes()
                for f in arm["files"]}

    def test_traces(self):
        one = self.trace(1)
        self.assertGreater(len(one), 20)
        self.assertEqual(self.trace(3, run__chunk=7), one)

    def test_before_the_first_router(self):
        """Up to the router of layer 0 it is f32 with a cache of floats, whatever run.kv is, and its experts are not."""
        split, f32 = self.trace(1, run__kv="f16"), self.trace(1, run__kv="f32", run__arms=["f32@cpu"])
        for name in ("Qcur-0.npy", "Vcur-0.npy", "kqv_out-0.npy", "ffn_inp-0.npy", "ffn_moe_logits-0.npy"):
            self.assertEqual(split[name], f32[name], name)
        self.assertNotEqual(split["ffn_moe_out-0.npy"], f32["ffn_moe_out-0.npy"])
        self.assertNotEqual(split["kqv_out-0.npy"], self.trace(1, run__kv="f16", run__arms=["f32@cpu"])["kqv_out-0.npy"])

    def test_bench(self):
        def found(ranks, **sets):
            keys = {"model.path": synth(), "run.arms": [ARM], "bench.prompt": [70], "bench.generate": [3], "bench.batch": [1, 5],
                    "bench.repeats": 1, "bench.format": "json", "run.threads": 1}
            outcome = moe.attempt(keys | sets, ranks, command="bench")
            self.assertEqual(outcome.code, 0, outcome.err)
            return [(row["arm"], row["test"], row["digest"]) for row in json.loads(outcome.out)["rows"]]

        self.assertEqual(found(3), found(1, **{"run.rows": "portable"}))


class Mixed(unittest.TestCase):
    """Experts 0 to 4 of the nine on one path, the others on another, whatever the number of ranks."""
    PLACEMENTS = {2: [0, 0, 0, 0, 0, 1, 1, 1, 1], 4: [0, 2, 0, 2, 0, 3, 3, 1, 1]}

    def mixed(self, ranks, arms, shared, roles=(), **sets):
        keys = {"run__arms": ["ranks"], "ranks__arm": arms, "ranks__shared": shared, "ranks__shared_ranks": list(roles),
                "experts__placement": self.PLACEMENTS[ranks]}
        return digests(parity(ranks, **(keys | sets)), "ranks")

    def test_whoever_shares(self):
        seen = {digests(base())[0], digests(base(), "q8k@cpu")[0]}
        for arms, shared in (([ARM, "q8k@cpu"], "q8k@cpu"), ([ARM, "q8k@cpu"], ARM), (["f64@cpu", ARM], ARM),
                             ([ARM, "f32@cpu"], "f32@cpu")):
            one = self.mixed(2, arms, shared)
            self.assertNotIn(one[0], seen)
            seen.add(one[0])
            for ranks, roles, sets in ((2, [1], {}), (4, [0, 3], {"run__chunk": 50})):
                with self.subTest(arms=arms, shared=shared, ranks=ranks, roles=roles):
                    self.assertEqual(self.mixed(ranks, arms, shared, roles, **sets), one)

    def test_one_arm(self):
        found = parity(3, run__arms=["ranks"], ranks__arm=[ARM], ranks__shared_ranks=[0, 2])
        self.assertEqual(digests(found, "ranks"), digests(base()))

    @unittest.skipUnless(os.access(EMULATED, os.X_OK), "moe_run_emulated is not built")
    def test_on_an_emulated_gpu(self):
        """Shared steps and experts that round the same rows in two ways, on one device and on two."""
        words = {"input__tokens": TOKENS[:40]}
        for arms, shared in ((["q8k_split@", "q8k_split@"], "q8k_split@"), (["q8k_split@", "q8k@"], "q8k@"),
                             (["q8k@", "q8k_split@"], "q8k_split@")):
            def found(backend, chunk):
                outcome = parity(2, {"program": EMULATED}, run__arms=["ranks"], ranks__arm=[arm + backend for arm in arms],
                                 ranks__shared=shared + backend, experts__placement=self.PLACEMENTS[2], run__chunk=chunk, **words)
                return digests(outcome, "ranks")

            with self.subTest(arms=arms, shared=shared):
                self.assertEqual(found("cuda", 17), found("cpu", 40))


class Gain(unittest.TestCase):
    def errors(self, outliers):
        """1 - cos of the residual stream after layer 0 of q8k and q8k_split: no error comes before it. The middle of the
        positions, which no router flip moves; the worst is printed."""
        report = parity(1, model__path=synth(outliers), run__arms=["f64@cpu", "q8k@cpu", ARM]).report()
        pairs = {pair["a"]: pair["layers"][0]["spread"]["one_minus_cos"] for pair in report["pairs"] if pair["b"] == "f64@cpu"}
        print(f"1 - cos after layer 0, {outliers} outliers, median and worst of {len(TOKENS)} positions: " + ", ".join(
            f"{arm} {pairs[arm]['median']:.1e} {pairs[arm]['max']:.1e}" for arm in ("q8k@cpu", ARM)), flush=True)
        return [pairs[arm]["median"] for arm in ("q8k@cpu", ARM)]

    def test_near_the_truth_with_outliers(self):
        quiet, quiet_split = self.errors(0)
        loud, loud_split = self.errors(OUTLIERS)
        self.assertLessEqual(quiet_split, quiet)
        self.assertLess(loud_split, 1e-4)
        self.assertGreater(loud, 20 * loud_split)
        self.assertLess(loud_split, 10 * quiet)  # another model, whose layers add more to the stream; and a square


@unittest.skipUnless(os.access(PLANTED, os.X_OK), "moe_run_planted is not built")
class Planted(unittest.TestCase):
    def planted(self, row, caught):
        outcome = parity(rest={"program": PLANTED}, run__rows=row, run__arms=[ARM, "q8k@cpu"], output__logits=True)
        error = moe.rel_l2(outcome.logits(ARM), base().logits(ARM))
        print(f"{row}: median rel_l2 {np.median(error):.2e}, worst {error.max():.2e}", flush=True)
        self.assertEqual(digests(outcome, "q8k@cpu"), digests(base(), "q8k@cpu"))
        (self.assertNotEqual if caught else self.assertEqual)(digests(outcome), digests(base()))

    def test_order(self):
        self.planted("planted_outlier_order", True)

    def test_left_out(self):
        self.planted("planted_outlier_left_out", True)

    def test_the_limit_is_met_by_no_random_number(self):
        """An element just at the limit: only who compares blocks can tell (test_outliers)."""
        self.planted("planted_outlier_limit", False)


if __name__ == "__main__":
    moe.main()
