#!/usr/bin/env python3
"""experts.placement = "counted" with a map for each layer, and replicas of hot experts: no digest changes, whatever
holds an expert, over ranks, cuts, decoding and mixed jobs; what is said of it follows from the map; a rank that takes
the wrong replica is found."""
import json
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import moe

np = moe.np
SHAPE = {"layers": 3, "hidden": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "experts": 8, "top_k": 3,
         "expert_width": 256, "vocab": 500}
ARMS = ["f64@cpu", "f32@cpu", "q8k@cpu"]
TOKENS = [(37 * t) % 500 for t in range(150)]  # two ranks: token-sharded

INVARIANTS = os.path.join(moe.SOURCE, "configs", "contracts", "invariants.toml")


def found(report):
    return [(a["name"], a["digest"], a["layer_digests"]) for a in report["arms"]]


def ranks_of(experts, holds, sequence, position):
    """The rule, again: of one token's slots in one layer. holds: [expert][rank]."""
    of = [list(np.flatnonzero(holds[e])) for e in experts]
    rank = [h[0] if len(h) == 1 else None for h in of]
    for k, h in enumerate(of):
        if rank[k] is None:
            turn = (sequence + position) % len(h)
            rank[k] = min(h[turn:] + h[:turn], key=rank.count)
    return rank


def mix(x):
    """num_mix64 of kernels/formats/numerics.h"""
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9 % 2**64
    x = (x ^ x >> 27) * 0x94d049bb133111eb % 2**64
    return x ^ x >> 31


class Replicas(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = moe.model(moe.random_seed(), **SHAPE)
        cls.keys = {"model.path": cls.model, "run.arms": ARMS, "input.tokens": TOKENS, "run.threads": 1}
        cls.one = moe.run(cls.keys | {"output.routes": True}, 1)
        cls.routes = os.path.join(cls.one.folder, "routes.npy")
        cls.counts = np.stack([np.bincount(layer.ravel(), minlength=8) for layer in np.load(cls.routes)])
        cls.placed = {"experts.placement": "counted", "experts.counts": cls.routes}

    def placement(self, outcome, ranks):
        """The map that was written, and that the report says the same of it."""
        report, holds = outcome.report(), np.load(os.path.join(outcome.folder, "placement.npy"))
        self.assertEqual(holds.shape, (SHAPE["layers"], SHAPE["experts"], ranks))
        self.assertTrue((holds.sum(2) >= 1).all())
        self.assertEqual(report["run"]["replicas"], holds.sum() - SHAPE["layers"] * SHAPE["experts"])
        self.assertEqual([r["experts"] for r in report["ranks"]], list(holds.sum(1).max(0)))
        load = (self.counts[:, :, None] * holds / holds.sum(2, keepdims=True)).sum(1)
        self.assertAlmostEqual(report["run"]["counted_load"], load.max(1).sum() * ranks / self.counts.sum(), 9)
        self.assertLessEqual(report["run"]["counted_load"], report["run"]["contiguous_load"] + 1e-9)
        return report, holds

    def test_one_digest(self):
        """Token-sharded, cut and one token at a time; replicas by number, by bytes, and so many that every rank has all."""
        one = found(self.one.report())
        for ranks, replicas, chunk in ((1, 2, 0), (2, 0, 9), (2, 2, 0), (3, 8, 25), (4, "900 KiB", 5)):
            with self.subTest(ranks=ranks, replicas=replicas, chunk=chunk):
                outcome = moe.run(self.keys | self.placed | {"experts.replicas": replicas, "run.chunk": chunk, "output.routes": True},
                                  ranks)
                report, holds = self.placement(outcome, ranks)
                self.assertEqual(found(report), one)
                extra = holds.sum(1) - np.array([8 // ranks + (r < 8 % ranks) for r in range(ranks)])
                if ranks > 1 and replicas != 0:
                    self.assertGreater(extra.sum(), 0)
                if isinstance(replicas, int):
                    self.assertLessEqual(extra.max(), replicas)
                self.assertEqual(moe.finish(moe.start([moe.PROGRAM, "verify", INVARIANTS, outcome.folder])).code, 0)

    def test_what_auto_takes(self):
        for sets, taken, why in (({}, "contiguous", "experts.counts names no file"),
                                 ({"experts.counts": self.routes, "experts.replicas": 1}, "counted", "times the mean's counted")):
            report = moe.run(self.keys | {"experts.placement": "auto"} | sets, 2).report()
            self.assertEqual(report["run"]["placement"], taken)
            self.assertIn(why, report["run"]["placement_reason"])
            self.assertEqual(found(report), found(self.one.report()))

    def test_what_is_written(self):
        """One token at a time, against the prompt's digest; on ranks that divide attention, and with ranks that compute only experts."""
        keys = {"model.path": self.model, "run.arms": ["q8k@cpu"], "input.tokens": TOKENS[:20], "run.generate": 6,
                "run.temperature": 0.8, "run.ignore_eos": True, "run.threads": 1}
        one = moe.run(keys, 1, command="generate").report()["arms"][0]
        for ranks, sets in ((3, {"attention.placement": "sharded"}),
                            (3, {"run.arms": ["ranks"], "ranks.arm": ["q8k@cpu"], "ranks.shared_ranks": [1]})):
            arm = moe.run(keys | self.placed | {"experts.replicas": 3} | sets, ranks, command="generate").report()["arms"][0]
            self.assertEqual((arm["digest"], arm["generated"]), (one["digest"], one["generated"]))

    def test_a_mixed_job(self):
        """Replicas stay on ranks of the expert's path: the result is that without them."""
        mixed = {"run.arms": ["ranks"], "ranks.arm": ["q8k@cpu", "f32@cpu"]}
        plain = moe.run(self.keys | self.placed | mixed, 4).report()
        outcome = moe.run(self.keys | self.placed | mixed | {"experts.replicas": 2, "output.routes": True}, 4)
        report, holds = self.placement(outcome, 4)
        self.assertEqual(found(report), found(plain))
        self.assertGreater(report["run"]["replicas"], 0)
        self.assertFalse(((holds[:, :, 0::2].sum(2) > 0) & (holds[:, :, 1::2].sum(2) > 0)).any())
        auto = moe.run(self.keys | self.placed | mixed | {"experts.placement": "auto"}, 4).report()
        self.assertEqual(auto["run"]["placement"], "contiguous")
        self.assertIn("different paths", auto["run"]["placement_reason"])

    def test_the_audit(self):
        """Every slot of another rank is recomputed once, whichever holder computed it."""
        report = moe.run(self.keys | self.placed | {"experts.replicas": 2, "ranks.audit": 1, "run.arms": ["q8k@cpu"]}, 3).report()
        audit = report["arms"][0]["audit"]
        self.assertEqual((audit["ranks"], audit["slots"]), (3, audit["slots_of_others"]))
        self.assertEqual(report["arms"][0]["digest"], self.one.report()["arms"][2]["digest"])

    def test_the_load_of_ranks(self):
        """Slots and bytes of each rank in bench follow from the map, the routing and the rule."""
        folder, steps, top_k, ranks = moe.fresh(), 20, SHAPE["top_k"], 2
        keys = {"model.path": self.model, "run.arms": ["q8k@cpu"], "run.threads": 1} | self.placed | {"experts.replicas": 2}
        sets = {"bench.prompt": [], "bench.generate": [steps], "bench.repeats": 1, "bench.warmup": 0, "bench.phases": True}
        outcome = moe.attempt(keys | sets, ranks, out=folder, command="bench")
        self.assertEqual(outcome.code, 0, outcome.err)
        with open(os.path.join(folder, "bench.json"), encoding="utf-8") as file:
            said = json.load(file)["rows"][0]["ranks"]
        tokens = [mix(mix(0x9e3779b97f4a7c15) + t) % SHAPE["vocab"] for t in range(steps)]  # docs/bench.md
        same = moe.run(keys | {"input.tokens": tokens, "output.routes": True}, ranks)
        routes, holds = (np.load(os.path.join(same.folder, f"{name}.npy")) for name in ("routes", "placement"))
        slots = np.zeros((SHAPE["layers"], steps, ranks), int)
        for layer, t in np.ndindex(SHAPE["layers"], steps):
            for rank in ranks_of(routes[layer, t], holds[layer], 0, t):
                slots[layer, t, rank] += 1
        self.assertEqual([r["slots"] for r in said["of"]], list(slots.sum((0, 1))))
        self.assertEqual(said["busiest_slots"], slots.max(2).sum())
        self.assertEqual(slots.sum(), steps * SHAPE["layers"] * top_k)

    def test_inspect(self):
        outcome = moe.attempt({"model.path": self.model, "output.format": "json"} | self.placed | {"experts.replicas": 1}, 2,
                              command="inspect")
        self.assertEqual(outcome.code, 0, outcome.err)
        held = json.loads(outcome.out)["ranks"]
        self.assertEqual([r["experts"] for r in held], [5, 5])

    def test_bad_settings(self):
        for sets, said in (({"experts.replicas": -1}, "experts.replicas"), ({"experts.replicas": "2 apples"}, "2 apples"),
                           ({"experts.replicas": "0 B"}, "experts.replicas"), ({"experts.replicas": 1.5}, "experts.replicas"),
                           ({"experts.replicas": 2, "experts.placement": "strided"}, "found \"strided\"")):
            refused = moe.attempt(self.keys | self.placed | sets, 2)
            self.assertNotEqual(refused.code, 0)
            self.assertIn(said, refused.err)
            self.assertEqual(len(refused.faults()), 1, refused.err)


@unittest.skipUnless(os.access(moe.FAULTY, os.X_OK), "moe_run_faulty is not built")
class Faults(unittest.TestCase):
    def test_a_rank_that_takes_the_wrong_replica(self):
        model = moe.model(moe.random_seed(), **SHAPE)
        keys = {"model.path": model, "run.arms": ["q8k@cpu"], "input.tokens": TOKENS[:40], "run.threads": 1}
        routes = os.path.join(moe.run(keys | {"output.routes": True}, 1).folder, "routes.npy")
        keys |= {"experts.placement": "counted", "experts.counts": routes, "experts.replicas": 2}
        for phase, said in (("turn", "a fault of the map of experts"), ("map", "the map of experts to ranks")):
            line = [moe.FAULTY, "replica", phase, "1", "none", *moe.words(sets=keys, out=moe.fresh())[1:]]
            outcome = moe.finish(moe.start(moe.under_mpirun([(3, line)])))
            self.assertNotIn(outcome.code, (0, None), outcome.err)
            self.assertIn(said, outcome.err)


if __name__ == "__main__":
    moe.main()
