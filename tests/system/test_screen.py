#!/usr/bin/env python3
"""moe_run screen: a machine that is at fault now and then is found and named, an honest one never; on CPU ranks and on the
emulated GPU (moe_run_planted_screen and its emulated form plant the faults: tests/support/planted_screen.c).

test_screen_long.py has ten clean runs on the emulated GPU."""
import json
import os
import unittest

import check_schema
import moe

SEED = moe.random_seed()
BUILD = os.path.dirname(moe.PROGRAM)
PLANTED = os.path.join(BUILD, "moe_run_planted_screen")
EMULATED = os.path.join(BUILD, "moe_run_emulated_planted_screen")
with open(os.path.join(moe.SOURCE, "docs", "screen.schema.json"), encoding="utf-8") as file:
    SCHEMA = json.load(file)
SHAPE = dict(layers=2, hidden=256, heads=2, kv_heads=1, head_dim=64, experts=4, top_k=2, expert_width=256, vocab=64,
             types="Q4_K_M", context=64)
MODEL = moe.model(SEED, **SHAPE)


def screen(fault, ranks, program=PLANTED, **sets):
    """Exit code and screen.json. fault: (kind, rank, rate)"""
    folder = moe.fresh()
    keys = {"model.path": MODEL, "screen.seconds": 0.3, "screen.tokens": 6, "screen.sequences": 2, "run.threads": 1,
            "run.bind": False, "screen.arms": ["q8k@auto"], **{k.replace("__", "."): v for k, v in sets.items()}}
    line = moe.words(program=program, command="screen", sets=keys, out=folder)
    line[1:1] = [str(word) for word in fault]
    outcome = moe.finish(moe.start(moe.under_mpirun([(ranks, line)])), folder=folder)
    path = os.path.join(folder, "screen.json")
    if not os.path.exists(path):
        raise AssertionError(f"{fault}: screen ended with {outcome.code}: {outcome.err}{outcome.out}")
    with open(path, encoding="utf-8") as f:
        report = json.load(f)
    wrong = list(check_schema.faults(report, SCHEMA, SCHEMA))
    if wrong:
        raise AssertionError(wrong)
    return outcome, report


HONEST = ("none", 0, 0)


class Clean(unittest.TestCase):
    def test_ten_runs(self):
        for run in range(10):
            outcome, report = screen(HONEST, 1 + run % 2, screen__arms=["q8k@cpu", "f32@cpu"])
            self.assertEqual((outcome.code, report["findings"], report["clean"]), (0, [], True), outcome.out)
        self.assertIn("No faults found", outcome.out)
        ranks = report["ranks"]
        self.assertTrue(all(r["link_bytes"] > 0 for r in ranks))
        self.assertTrue(all(w["runs"] > 0 for r in ranks for u in r["units"] for w in u["work"].values()))
        self.assertEqual([a["path"] for a in report["answers"]], ["f32", "q8k"])

    def test_the_answer_is_that_of_bench(self):
        _, report = screen(HONEST, 1)
        bench = moe.attempt({"model.path": MODEL, "run.arms": ["q8k@cpu"], "bench.prompt": [], "bench.generate": [6],
                             "bench.repeats": 1, "bench.format": "json"}, command="bench", alone=True)
        self.assertEqual(json.loads(bench.out)["rows"][0]["digest"], report["answers"][0]["digest"])


class Faults(unittest.TestCase):
    def found(self, fault, ranks=3, program=PLANTED, **sets):
        """The findings, all of which must name the rank of the fault."""
        outcome, report = screen(fault, ranks, program, **sets)
        self.assertIn("planted:", outcome.err)
        self.assertEqual(outcome.code, 3, outcome.out + outcome.err)
        self.assertFalse(report["clean"])
        self.assertTrue(report["findings"])
        self.assertEqual({f["rank"] for f in report["findings"]}, {fault[1]})
        self.assertIn(f"rank {fault[1]}", outcome.out[outcome.out.index("Faults"):])
        return report["findings"]

    def test_a_bit_of_a_product(self):
        found = self.found(("product", 1, 0.02), screen__seconds=1)
        self.assertEqual({f["place"] for f in found}, {"cores"})
        probes = [f for f in found if f["work"] in ("start", "probes") and f["step"].startswith(("ffn_moe_gate", "ffn_moe_up", "ffn_moe_down"))]
        self.assertTrue(probes, found)  # the tensor itself is named
        self.assertTrue(all(f["bits"] == f["numbers"] or f["rows"] > 1 for f in probes), probes)

    def test_a_weight_in_memory(self):
        found = self.found(("weight", 1, 1), ranks=2)
        self.assertTrue(all(f["seconds"] > 0 and f["bits"] for f in found if f["work"] != "decode"), found)
        self.assertEqual({f["step"] for f in found} - {"l_out-1", "Qcur-1"}, set())  # the query matrix of layer 1

    def test_a_weight_before_the_start(self):
        found = self.found(("start", 2, 1), screen__arms=["q8k@cpu"])  # no vote of its rank is right
        self.assertIn("Qcur-1", {f["step"] for f in found if f["work"] == "start"})
        self.assertTrue(all(f["bits"] and not f["undecided"] for f in found if f["work"] == "start"))

    def test_two_that_disagree(self):
        outcome, report = screen(("start", 1, 1), 2)  # nobody can say which is right
        self.assertEqual(outcome.code, 3)
        self.assertTrue(all(f["undecided"] for f in report["findings"] if f["work"] == "start"))

    def test_a_row_in_the_exchange(self):
        found = self.found(("link", 2, 0.5), screen__seconds=1)
        self.assertEqual({f["place"] for f in found}, {"link"})
        self.assertTrue(all((f["rows"], f["numbers"], f["bits"]) == (1, 1, 1) for f in found), found)
        self.assertTrue({f["from"] for f in found} <= {0, 1})


@unittest.skipUnless(os.access(EMULATED, os.X_OK), "no emulated GPU")
class EmulatedGpu(Faults):
    """Rank 0 has the GPU, rank 1 its cores."""
    SETS = dict(screen__tokens=3, screen__seconds=0.1)
    CLEAN_RUNS = 1

    def test_clean(self):
        for _ in range(self.CLEAN_RUNS):
            outcome, report = screen(HONEST, 2, EMULATED, **self.SETS)
            self.assertEqual((outcome.code, report["findings"]), (0, []), outcome.out)
            self.assertEqual(report["ranks"][0]["units"][0]["arm"], "q8k@cuda")

    def test_a_bit_of_a_product(self):
        os.environ.update(MOE_PLANTED="product_bit", MOE_PLANTED_RANK="0", MOE_PLANTED_RATE="1e-4")
        try:
            outcome, report = screen(HONEST, 2, EMULATED, **self.SETS)
        finally:
            del os.environ["MOE_PLANTED"]
        found = report["findings"]
        self.assertEqual((outcome.code, {f["rank"] for f in found}, {f["place"] for f in found}), (3, {0}, {"gpu"}))
        self.assertTrue(found[0]["gpu"]["uuid"].startswith("GPU-656d756c"))
        self.assertTrue(all(f["bits"] for f in found if f["work"] == "probes"), found)

    def test_a_weight_in_memory(self):
        found = self.found(("weight", 0, 1), 2, EMULATED, **self.SETS)
        self.assertEqual({f["place"] for f in found}, {"gpu"})

    def test_a_weight_before_the_start(self):
        self.skipTest("as on CPU ranks")

    def test_two_that_disagree(self):
        self.skipTest("as on CPU ranks")

    def test_a_row_in_the_exchange(self):
        found = self.found(("link", 1, 0.5), 2, EMULATED, **self.SETS)
        self.assertEqual({(f["place"], f["from"]) for f in found}, {("link", 0)})


if __name__ == "__main__":
    moe.main()
