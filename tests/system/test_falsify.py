#!/usr/bin/env python3
"""moe_run falsify: ten verdicts and what they rest on, beside the known case's figures; one slab and one experiment's
inputs computed again in NumPy; the same over ranks; a verdict turns with what its claim predicts; bad input."""
import json
import math
import os
import shutil
import unittest

import check_schema
import moe
import numpy as np
import reference

moe.random_seed()
SHIPPED = os.path.join(moe.SOURCE, "configs", "tiny", "tiny-qwen3moe-Q4_K_M.gguf")
EMULATED = os.path.join(os.path.dirname(moe.PROGRAM), "moe_run_emulated")
EXPERIMENTS = os.path.join(moe.SOURCE, "configs", "falsify")
VERDICTS = {1: "refuted", 2: "refuted", 3: "refuted", 4: "refuted", 5: "refuted", 6: "refuted", 7: "supported",
            8: "supported", 9: "refuted", 10: "supported"}
with open(os.path.join(moe.SOURCE, "docs", "falsify.schema.json"), encoding="utf-8") as file:
    SCHEMA = json.load(file)


def falsify(only=None, ranks=1, program=None, **sets):
    """{id: experiment} of a run that succeeds; the report fits its schema."""
    keys = {"model.path": SHIPPED} | {key.replace("__", "."): value for key, value in sets.items()}
    if only:
        keys["falsify.only"] = only
    outcome = moe.run(keys, ranks, command="falsify", program=program)
    with open(os.path.join(outcome.folder, "falsify.json"), encoding="utf-8") as opened:
        report = json.load(opened)
    found = list(check_schema.faults(report, SCHEMA, SCHEMA))
    assert not found, found
    for experiment in report["experiments"]:
        figures = experiment["figures"]
        assert all(isinstance(x, (int, float)) and math.isfinite(x) for x in figures.values()), figures
        assert f"{experiment['id']:03d} {experiment['name']}: {experiment['verdict']}" in outcome.out
        for bound in experiment["predicts"]:
            assert bound["holds"] == ((bound["min"] is None or bound["found"] >= bound["min"]) and
                                      (bound["max"] is None or bound["found"] <= bound["max"])), bound
        assert (experiment["verdict"] == "supported") == all(bound["holds"] for bound in experiment["predicts"])
    return {experiment["id"]: experiment for experiment in report["experiments"]}


# ---- the same in NumPy ----

def xorshift(seed, n):
    out, x = np.empty(n), seed
    for i in range(n):
        x ^= x << 13 & 0xffffffff
        x ^= x >> 17
        x ^= x << 5 & 0xffffffff
        out[i] = x / ((2**32 - 1) / 2) - 1
    return out.astype(np.float32)


def round_q8k(x):
    blocks = x.reshape(-1, 256)
    extreme = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(1)][:, None]
    inverse = (np.float32(-127) / extreme).astype(np.float32)
    q = np.minimum(127, np.rint((inverse * blocks).astype(np.float32)))
    return (q.astype(np.float64) / inverse).reshape(x.shape)


def round_known(x):
    blocks = x.astype(np.float64).reshape(-1, 256)
    d = np.abs(blocks).max(1, keepdims=True) / 127
    return (np.sign(blocks) * np.floor(np.abs(blocks) / d + 0.5) * d).reshape(x.shape)


def slab(name, size, rows):
    """The first bytes of a Q4_K tensor as rows of weights."""
    file = reference.Gguf(SHIPPED)
    weights = np.asarray(file.rows(name), np.float64).reshape(-1)
    return weights[:size // 144 * 256].reshape(rows, -1)


class Verdicts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.all = falsify(falsify__draws=40)

    def figures(self, number):
        return self.all[number]["figures"]

    def test_ten_verdicts(self):
        self.assertEqual({n: e["verdict"] for n, e in self.all.items()}, VERDICTS)

    def test_the_reduction_order_is_of_the_known_size(self):
        found, known = self.figures(1)["rel"], self.all[1]["known"]["rel"]
        self.assertTrue(1 / 3 <= found / known <= 3, found)
        self.assertAlmostEqual(self.figures(1)["l2"], self.all[1]["known"]["l2"], delta=0.1)  # so the inputs are the known ones

    def test_swiglu_is_of_the_known_size(self):
        for name, known in self.all[5]["known"].items():
            found = self.figures(5)[name]
            with self.subTest(name):
                self.assertTrue(1 / 3 <= found / known <= 3 if known else found < 2e-7, found)

    def test_known_seeds_lie_in_the_band_of_draws(self):
        """Of 1 to 4: figures at the known seeds, and the known ones. The draws are the same everywhere, so the band is, too."""
        for number in (1, 2, 3, 4):
            for name in self.all[number]["known"]:
                if number == 4 and name == "l2":  # of another model's tensor, and not drawn
                    continue
                figures = self.figures(number)
                with self.subTest(number=number, figure=name):
                    low, high = figures[name + "_p01"], figures[name + "_p99"]
                    self.assertLess(low, high)
                    self.assertTrue(low <= figures[name + "_median"] <= high)
                    for x in (figures[name], self.all[number]["known"][name]):
                        self.assertTrue(low <= x <= high, (low, x, high))
                    self.assertTrue(0 < figures[name + "_known_quantile"] < 1)

    def test_rounding_activations_is_what_a_chain_feels(self):
        figures = self.figures(3)
        for weights in ("q6k", "q4k"):
            for steps in (1, 48):
                self.assertGreater(figures[f"{weights}_{steps}_q8k_one_minus_cos"],
                                   1e5 * figures[f"{weights}_{steps}_one_minus_cos"])
            growth = figures[f"{weights}_48_q8k_rel_l2_median"] / figures[f"{weights}_1_q8k_rel_l2_median"]
            self.assertTrue(48**0.5 / 2 <= growth <= 48**0.5 * 4, growth)  # errors of steps add up as squares, or faster

    def test_two_arms_mislead(self):
        figures = self.figures(6)
        self.assertTrue(2e-3 <= figures["a_c_rel_l2"] <= 1e-2)
        self.assertGreater(figures["blame_over_error_of_c"], 1000)
        self.assertLess(figures["c_truth_rel_l2"], 1e-6)

    def test_three_arms_tell(self):
        for number, pair in ((7, "a"), (7, "a1")):
            figures = self.figures(number)
            self.assertTrue(2e-3 <= figures[f"{pair}_b_rel_l2"] <= 1e-2)
            self.assertTrue(0.99 <= figures[f"{pair}_b_rel_l2"] / figures[f"{pair}_c_rel_l2"] <= 1.01)
            self.assertLess(figures["b_c_rel_l2"], 1e-6)
            self.assertGreater(figures[f"{pair}_b_rel_l2"], 1000 * figures["b_c_rel_l2"])
            for end in ("rel_l2", "max_rel", "one_minus_cos"):
                self.assertTrue({f"{pair}_b_{end}", f"{pair}_c_{end}", f"b_c_{end}"} <= figures.keys())
        self.assertTrue(any("C is f32@cpu in place of f32@cuda" in note or note == "C is f32@cuda"
                            for note in self.all[7]["notes"]))

    def test_the_slab_again_in_numpy(self):
        weights, x = slab("blk.0.attn_k.weight", 4608, 16), xorshift(0x1583000a, 512)
        truth = weights @ x.astype(np.float64)
        for name, rounded in (("a", round_q8k(x)), ("a1", round_known(x))):
            y, figures = weights @ rounded, self.figures(7)
            rel_l2 = moe.rel_l2(y, truth)
            self.assertAlmostEqual(figures[f"{name}_truth_rel_l2"] / rel_l2, 1, delta=1e-3)
            max_rel = (np.abs(y - truth) / np.maximum(np.abs(y), np.abs(truth))).max()
            self.assertAlmostEqual(figures[f"{name}_truth_max_rel"] / max_rel, 1, delta=1e-2)

    def test_planted_outliers_are_repaired(self):
        figures = self.figures(8)
        self.assertGreater(figures["planted_q8k_rel_l2"], 20 * figures["plain_q8k_rel_l2"])
        self.assertLess(figures["repaired_rel_l2"], 2 * figures["plain_q8k_rel_l2"])
        self.assertEqual(figures["planted_blocks_repaired"], 1)
        self.assertGreater(figures["attn_norm_blocks"], 0)

    def test_every_layer_and_expert(self):
        figures, found = self.figures(9), self.all[9]["map"]
        self.assertEqual(figures["experts"], 48)
        self.assertEqual([len(found["rel_l2"])] + [len(row) for row in found["rel_l2"]], [3, 16, 16, 16])
        hits = np.array(found["hits"])
        self.assertEqual(hits.sum(1).tolist(), [4 * (figures["tokens_of_input"] + figures["tokens_drawn"])] * 3)
        errors = np.array([[math.nan if x is None else x for x in row] for row in found["rel_l2"]])
        self.assertTrue((np.isnan(errors) == (hits == 0)).all())
        self.assertEqual(figures["experts_hit"], (hits > 0).sum())
        self.assertEqual(figures["q8k_expert_max"], np.nanmax(errors))
        self.assertTrue(1e-3 < np.nanmin(errors) and np.nanmax(errors) < 5e-2, errors)
        self.assertLess(figures["f32_expert_max"], np.nanmin(errors))

    def test_flips_follow_the_margin(self):
        figures = self.figures(10)
        edges = ["0.5", "1", "2", "3", "4", "6"]
        names = [f"q8k_below_{edge}" for edge in edges]
        self.assertEqual(sum(figures[name + "_flips"] for name in names) + figures["q8k_beyond_6_flips"],
                         figures["q8k_flips"])
        tokens = figures["tokens_of_input"] + figures["tokens_drawn"]
        self.assertEqual(figures["q8k_decisions"], 3 * tokens)
        rates = [figures[name + "_flips"] / figures[name + "_decisions"] for name in names]
        self.assertGreater(rates[0], rates[2])
        self.assertGreater(figures["q8k_flips"], 10)  # enough to tell: else the verdict is empty


class Runs(unittest.TestCase):
    def test_the_same_over_ranks(self):
        one, three = (falsify([1, 7, 8, 9, 10], ranks, falsify__draws=3, falsify__tokens=100,
                                      input__tokens=list(range(100, 160)))
                      for ranks in (1, 3))
        for number in one:
            self.assertEqual(one[number]["figures"], three[number]["figures"])
            self.assertEqual(one[number].get("map"), three[number].get("map"))

    @unittest.skipUnless(os.access(EMULATED, os.X_OK), "no emulated GPU in this build")
    def test_with_a_gpu_c_is_the_gpus(self):
        """Same path, same bits: only the notes change, and what is the device's own instruction is added."""
        here, there = (falsify([5, 7], program=program, falsify__draws=3) for program in (None, EMULATED))
        self.assertIn("C is f32@cuda", there[7]["notes"])
        self.assertEqual(there[7]["figures"], here[7]["figures"])
        added = there[5]["figures"].keys() - here[5]["figures"].keys()
        if not any(name.startswith("device_") for name in here[5]["figures"]):
            self.assertEqual(len(added), 6, added)  # five ranges, and how far the model is off
        for name in here[5]["known"]:
            self.assertIn("device_" + name, there[5]["figures"])
        self.assertEqual(there[5]["figures"]["device_model_max_ulp"], 0)  # the emulation is the model

    def test_a_model_of_random_weights(self):
        """Another shape and mix of types, without a tokenizer, and no input."""
        path = moe.model(moe.random_seed(), layers=2)
        found = falsify([9, 10], model__path=path, run__threads=1, falsify__tokens=200)
        self.assertEqual(found[9]["figures"]["tokens_of_input"], 0)
        self.assertEqual(found[9]["figures"]["tokens_drawn"], 200)
        self.assertEqual(len(found[9]["map"]["hits"]), 2)

    def test_a_verdict_turns_with_the_prediction(self):
        folder = moe.fresh()
        shutil.copytree(EXPERIMENTS, folder)
        path = os.path.join(folder, "001-reduction-order.toml")
        with open(path, encoding="utf-8") as opened:
            text = opened.read()
        with open(path, "w", encoding="utf-8") as opened:
            opened.write(text.replace("one_minus_cos.min = 1e-3", "one_minus_cos.max = 1e-3"))
        found = falsify([1], falsify__experiments=folder, falsify__draws=1)
        self.assertEqual(found[1]["verdict"], "supported")

    def test_bad_input_is_refused(self):
        folder = moe.fresh()
        os.mkdir(folder)
        with open(os.path.join(EXPERIMENTS, "001-reduction-order.toml"), encoding="utf-8") as opened:
            text = opened.read()
        cases = [("falsify.only", [11], "falsify.only"), ("falsify.only", [0], "falsify.only"),
                 ("falsify.experiments", os.path.join(folder, "nowhere"), "cannot be opened"),
                 ("falsify.experiments", folder, "NNN.*toml"), ("run.arms", ["q8k@cpu"], "the truth, f64")]
        for wrong, complaint in ((text.replace("rows = 16", "lines = 16"), "input.rows"),
                                 (text.replace("cols = 256", "cols = 100"), "multiple of 256"),
                                 (text.replace("one_minus_cos.min", "one_minus_sin.min"), "one_minus_sin"),
                                 (text.replace("id = 1", "id = 11"), "1 to 10"),
                                 (text + "\nmore = 1\n", "known.more")):
            one = moe.fresh()
            os.mkdir(one)
            with open(os.path.join(one, "001.toml"), "w", encoding="utf-8") as opened:
                opened.write(wrong)
            cases.append(("falsify.experiments", one, complaint))
        for key, value, complaint in cases:
            sets = {"model.path": SHIPPED, "falsify.draws": 1, "falsify.only": [9] if key == "run.arms" else []}
            with self.subTest(key=key, complaint=complaint):
                outcome = moe.attempt(sets | {key: value}, 2, command="falsify")
                self.assertEqual(outcome.code, 2, outcome.err)
                self.assertEqual(len(outcome.faults()), 1, outcome.err)
                self.assertRegex(outcome.faults()[0], complaint)


if __name__ == "__main__":
    moe.main()
