#!/usr/bin/env python3
"""The modes of parity: teacher-forced and forced runs against an independent NumPy, the same numbers over ranks, token
shards, cuts and backends; routes written and imposed; the account and the map of experts recomputed from the files."""
import csv
import os
import unittest

import moe
import numpy as np
import reference
from test_reference import PathModel

SEED = moe.random_seed()
SHAPE = dict(layers=4, experts=8, top_k=3, outliers=2)
MODEL = moe.model(SEED, **SHAPE)
EMULATED = os.path.join(os.path.dirname(moe.PROGRAM), "moe_run_emulated")
MODES = ["free", "teacher", "forced", "local"]
PROBES = ["kqv_out", "ffn_inp", "ffn_moe_swiglu", "ffn_moe_down", "ffn_moe_out"]
MEASURED = ("pairs", "modes", "accounts")


def tokens_of(n):
    return np.random.default_rng([SEED, n]).integers(0, 512, n).tolist()


def run(arms, tokens, ranks=1, program=None, **sets):
    keys = {"model.path": MODEL, "run.arms": arms, "input.tokens": tokens, "run.threads": 1, "parity.mode": MODES}
    keys |= {key.replace("__", "."): value for key, value in sets.items()}
    return moe.run(keys, ranks, program=program)


def routes(outcome, arm=None, head="routes"):
    return np.load(os.path.join(outcome.folder, f"{head}{'.' + arm if arm else ''}.npy"))


def pair_of(pairs, a, b):
    return next(pair for pair in pairs if (pair["a"], pair["b"]) == (a, b))


def merged(own, imposed):
    """What arm_impose_choice says, of one token."""
    lacking = [e for e in imposed if e not in own]
    return [e if e in imposed else lacking.pop(0) for e in own]


def layer_of(model, layer, x, imposed=None):
    """One layer of the reference: the stream after it, its own choice."""
    blk = f"blk.{layer}."
    x = x + model.attention(model.norm(x, blk + "attn_norm"), blk)
    y = model.norm(x, blk + "ffn_norm")
    chosen, share, _ = model.route(y, blk)
    taken = chosen if imposed is None else np.array([merged(o.tolist(), i.tolist()) for o, i in zip(chosen, imposed)])
    return x + model.experts(y, blk, taken, share), chosen


class Numpy:
    """Truth and q8k in NumPy: the streams of each layer, free, forced, from the truth's input, and with its experts too."""

    def __init__(self, tokens):
        true, rounded = reference.Model(MODEL), PathModel(MODEL)
        x = [true.gguf.rows("token_embd.weight", np.asarray(tokens)).astype(np.float64)] * 3
        self.true, self.forced, self.teacher, self.local, self.chosen, self.flips = [], [], [], [], [], []
        self.models = true, rounded
        for layer in range(true.layers):
            teacher, own = layer_of(rounded, layer, x[0])
            before = x[0]
            stream, chosen = layer_of(true, layer, x[0])
            x = [stream, layer_of(rounded, layer, x[1], chosen)[0], x[2]]
            local = layer_of(rounded, layer, before, chosen)[0]
            for name, value in zip(("true", "forced", "teacher", "local", "chosen"), (x[0], x[1], teacher, local, chosen)):
                getattr(self, name).append(value)
            self.flips.append([len(set(o) - set(c)) for o, c in zip(own.tolist(), chosen.tolist())])


    def logits(self, model, stream):
        head = "output" if "output.weight" in model.gguf.tensors else "token_embd"
        return model.norm(stream, "output_norm") @ model.weight(head).T


class Against(unittest.TestCase):
    """q8k in NumPy has other float sums before each rounding, so single numbers may round differently: seen up to 2e-3. From
    layer to layer such errors grow, where no layer starts from the truth's stream: seen up to 2.3e-2."""
    TOLERANCE = {"teacher": 0.02, "local": 0.02, "forced": 0.05}

    @classmethod
    def setUpClass(cls):
        cls.tokens, cls.worst = tokens_of(48), {}
        cls.numpy = Numpy(cls.tokens)
        cls.outcome = run(["q8k@cpu", "f64@cpu"], cls.tokens, run__kv="f32", output__routes=True, parity__probes=PROBES)
        cls.report = cls.outcome.report()

    def near(self, found, expected, mode, what):
        self.worst[mode] = max(self.worst.get(mode, 0), abs(found / expected - 1))
        self.assertLess(self.worst[mode], self.TOLERANCE[mode], f"{mode}, {what}: {found}, expected {expected}")

    @classmethod
    def tearDownClass(cls):
        print("q8k against NumPy:", {mode: f"{error:.0e}" for mode, error in cls.worst.items()}, flush=True)

    def test_each_layer(self):
        for mode, streams in (("teacher", self.numpy.teacher), ("forced", self.numpy.forced), ("local", self.numpy.local)):
            pair = self.report["modes"][mode]["pairs"][0]
            for layer, stream in enumerate(streams):
                expected = float(np.median(moe.rel_l2(stream, self.numpy.true[layer])))
                self.near(pair["layers"][layer]["spread"]["rel_l2"]["median"], expected, mode, f"layer {layer}")
            expected = [self.numpy.logits(self.numpy.models[0], self.numpy.true[-1])]
            expected.append(self.numpy.logits(self.numpy.models[1], streams[-1] if mode == "forced" else self.numpy.true[-1]))
            expected = float(np.median(moe.rel_l2(expected[1], expected[0])))
            self.near(pair["logits"]["spread"]["rel_l2"]["median"], expected, mode, "logits")
        free, teacher = self.report["pairs"][0]["layers"], self.report["modes"]["teacher"]["pairs"][0]["layers"]
        self.assertEqual(free[0], teacher[0])  # the same input
        self.assertGreater(free[-1]["rel_l2"], 1.2 * teacher[-1]["spread"]["rel_l2"]["median"])  # NumPy's errors grow

    def test_local_energies(self):
        account = self.report["accounts"][0]
        norm = (self.numpy.true[-1] ** 2).sum(1)
        for layer, stream in enumerate(self.numpy.teacher):
            energy = ((stream - self.numpy.true[layer]) ** 2).sum(1) / norm
            energy[np.array(self.numpy.flips[layer]) > 0] = 0
            self.near(account["layers"][layer]["local"], float(energy.mean()), "teacher", f"energy of layer {layer}")

    def test_routes_are_the_reference(self):
        found, weights = routes(self.outcome), routes(self.outcome, head="route_weights")
        self.assertEqual((found.dtype.name, weights.dtype.name), ("int32", "float64"))
        np.testing.assert_array_equal(found, np.stack(self.numpy.chosen))
        np.testing.assert_array_equal(found, routes(self.outcome, "f64@cpu"))
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-14)
        self.assertEqual(routes(self.outcome, "q8k@cpu", "route_weights").dtype.name, "float32")

    def test_experts(self):
        """Hits and matches of the map, from the routes."""
        own, true = routes(self.outcome, "q8k@cpu"), routes(self.outcome)
        with open(os.path.join(self.outcome.folder, "experts.csv"), encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["mode"] == "free"]
        self.assertEqual(len(rows), SHAPE["layers"] * SHAPE["experts"])
        for row in rows:
            layer, expert = int(row["layer"]), int(row["expert"])
            a, b = (own[layer] == expert).any(1), (true[layer] == expert).any(1)
            self.assertEqual([int(row[k]) for k in ("hits_a", "hits_b", "matched")], [a.sum(), b.sum(), (a & b).sum()])
            if not (a & b).any():
                self.assertEqual([row["rel_l2"], row["rel_l2_worst"]], ["", ""], "nothing was measured")
                continue
            error = float(row["rel_l2"])
            self.assertTrue(1e-4 < error < 1, row)
            self.assertGreaterEqual(float(row["rel_l2_worst"]), error * (1 - 1e-12))
        for pair in [self.report["pairs"][0]] + [m["pairs"][0] for m in self.report["modes"].values()]:
            self.assertEqual(sum(e["hits"] for e in pair["experts"]), true.size)
        for mode in ("forced", "local"):
            pair = self.report["modes"][mode]["pairs"][0]
            self.assertEqual(sum(e["matched"] for e in pair["experts"]), true.size)

    def test_flips_are_those_of_the_routes(self):
        own, true = routes(self.outcome, "q8k@cpu"), routes(self.outcome)
        for layer in range(SHAPE["layers"]):
            flips = sum(len(set(a) - set(b)) for a, b in zip(own[layer].tolist(), true[layer].tolist()))
            self.assertEqual(self.report["pairs"][0]["layers"][layer]["router_flips"], flips)

    def test_the_account(self):
        for account, free, forced in zip(self.report["accounts"], self.report["pairs"],
                                         self.report["modes"]["forced"]["pairs"]):
            parts = [account[part]["mean"] for part in ("local", "interference", "compounding", "flips")]
            self.assertAlmostEqual(sum(parts) / account["total"]["mean"], 1, 12)
            median = free["layers"][-1]["spread"]["rel_l2"]["median"]
            self.assertGreater(account["total"]["mean"], 0.3 * median ** 2)
            self.assertAlmostEqual(sum(layer["share"] for layer in account["layers"]), 1, 12)
            grown = sum(layer["increment"] for layer in account["layers"])
            self.assertAlmostEqual(grown / (account["local"]["mean"] + account["interference"]["mean"]), 1, 9)
            self.assertEqual(account["embedding"]["mean"], 0)
            if not sum(layer["router_flips"] for layer in free["layers"]):
                self.assertEqual(account["flips"]["mean"], 0)
                self.assertEqual(free["layers"], forced["layers"])


class Same(unittest.TestCase):
    def test_ranks_and_cuts(self):
        tokens = tokens_of(3 * 64 + 5)  # enough for three ranks to share the tokens of a batch
        sets = dict(parity__probes=PROBES, parity__bound=1e-3, output__routes=True)
        arms = ["f64@cpu", "f32@cpu", "q8k@cpu"]
        one = run(arms, tokens, **sets)
        for ranks, chunk in ((1, 7), (3, 512), (3, 7)):
            with self.subTest(ranks=ranks, chunk=chunk):
                other = run(arms, tokens, ranks, run__chunk=chunk, **sets)
                for part in MEASURED:
                    self.assertEqual(one.report()[part], other.report()[part])
                for arm in (None, *arms):
                    for head in ("routes", "route_weights"):
                        np.testing.assert_array_equal(routes(one, arm, head), routes(other, arm, head))
        first = pair_of(one.report()["modes"]["teacher"]["pairs"], "q8k@cpu", "f64@cpu")["first"]
        self.assertEqual((first["layer"], first["probe"]), (0, "kqv_out"))
        plain = moe.run({"model.path": MODEL, "run.arms": arms, "input.tokens": tokens, "run.threads": 1}).report()
        self.assertEqual([a["digest"] for a in plain["arms"]], [a["digest"] for a in one.report()["arms"]])
        self.assertEqual([p["layers"] for p in plain["pairs"]], [p["layers"] for p in one.report()["pairs"]])

    def test_a_mixed_job_is_the_reference(self):
        """The truth's stream and routing reach a rank that computes only experts."""
        sets = {"ranks.arm": ["q8k@cpu", "f32@cpu"], "ranks.shared": "f32@cpu"}
        reports = []
        for shared in ([0], [0, 1]):
            keys = {"model.path": MODEL, "run.arms": ["ranks", "q8k@cpu"], "input.tokens": tokens_of(20),
                    "run.threads": 1, "parity.mode": MODES, "ranks.shared_ranks": shared} | sets
            reports.append(moe.run(keys, 2).report())
        for part in MEASURED:
            self.assertEqual(reports[0][part], reports[1][part])
        self.assertGreater(reports[0]["modes"]["teacher"]["pairs"][0]["layers"][0]["rel_l2"], 0)

    @unittest.skipUnless(os.access(EMULATED, os.X_OK), "no emulated GPU")
    def test_backends(self):
        outcome = run(["f64@cpu", "q8k@cpu", "q8k@cuda", "f32@cuda", "f32@cpu"], tokens_of(9), program=EMULATED,
                      parity__probes=["ffn_moe_down"]).report()
        for mode in outcome["modes"].values():
            digests = {arm["name"]: (arm["digest"], arm["layer_digests"]) for arm in mode["arms"]}
            for path in ("q8k", "f32"):
                self.assertEqual(digests[path + "@cpu"], digests[path + "@cuda"])
        same = next(a for a in outcome["accounts"] if {a["a"], a["b"]} == {"q8k@cpu", "q8k@cuda"})
        self.assertEqual((same["verdict"], same["total"]["mean"]), ("no difference", 0))


class Routes(unittest.TestCase):
    ARMS = ["f64@cpu", "q8k@cpu"]
    TOKENS = tokens_of(70)

    @classmethod
    def setUpClass(cls):
        cls.free = run(cls.ARMS, cls.TOKENS, output__routes=True, parity__mode="free")

    def imposed(self, array, ranks=1, **sets):
        path = moe.fresh(".npy")
        np.save(path, array)
        return run(self.ARMS, self.TOKENS, ranks, parity__routes=path, **sets), path

    def digests(self, outcome):
        return {arm["name"]: arm["digest"] for arm in outcome.report()["arms"]}

    def test_an_arms_own_routing_changes_nothing(self):
        was = self.digests(self.free)
        for arm in self.ARMS:
            own = routes(self.free, arm)
            shuffled = np.random.default_rng(SEED).permuted(own, axis=-1)
            for array, ranks in ((own, 1), (np.asfortranarray(shuffled.astype(np.int64)), 3)):
                outcome, _ = self.imposed(array, ranks, parity__mode="forced", run__chunk=33)
                self.assertEqual(self.digests(outcome)[arm], was[arm])
                forced = {a["name"]: a["digest"] for a in outcome.report()["modes"]["forced"]["arms"]}
                self.assertEqual(forced, self.digests(outcome))  # the file's goes before the truth's
        self.assertFalse(np.array_equal(*(routes(self.free, arm) for arm in self.ARMS)), "the arms never differ")

    def test_one_other_expert_shows(self):
        changed = routes(self.free).copy()
        taken = changed[2, 40].tolist()
        changed[2, 40, 1] = next(e for e in range(SHAPE["experts"]) if e not in taken)
        outcome, _ = self.imposed(changed, output__routes=True, parity__mode="free")
        was, now = (o.arm("f64@cpu")["layer_digests"] for o in (self.free, outcome))
        self.assertEqual([a == b for a, b in zip(was, now)], [True, True, False, False])
        self.assertEqual(set(routes(outcome)[2, 40].tolist()), set(changed[2, 40].tolist()))
        both = moe.finish(moe.start([moe.PROGRAM, "compare", self.free.folder, outcome.folder]))
        self.assertEqual(both.code, 2, both.out)
        self.assertIn("every arm took the experts of", both.err)

    def test_bad_files(self):
        good = routes(self.free)
        bad = {"[1, 69, 2]: expected an expert from 0 to 7, found 8": lambda a: a.__setitem__((1, 69, 2), 8),
               "[3, 0, 0]: expected an expert from 0 to 7, found -1": lambda a: a.__setitem__((3, 0, 0), -1),
               "[0, 5, 2]: expected each expert once in a token": lambda a: a.__setitem__((0, 5, 2), a[0, 5, 0])}
        cases = [(good[:, :-1], "found 69 tokens"), (good[:-1], "found 3 layers"), (good[..., :2], "found 2 experts"),
                 (good[0], "expected the shape"), (good.astype(np.float32), "expected int32 or int64")]
        for said, change in bad.items():
            array = good.copy()
            change(array)
            cases.append((array, said))
        for array, said in cases:
            path = moe.fresh(".npy")
            np.save(path, array)
            self.refused(path, said)
        path = moe.fresh(".npy")
        np.save(path, good)
        with open(path, "r+b") as file:
            file.truncate(os.path.getsize(path) - 1)
        self.refused(path, "numbers of 4 bytes after the header")
        with open(path, "wb") as file:
            file.write(b"no array")
        self.refused(path, "not a .npy file")
        self.refused(os.path.join(moe.FOLDER, "none.npy"), "none.npy")

    def refused(self, path, said):
        keys = {"model.path": MODEL, "run.arms": ["f32@cpu"], "input.tokens": self.TOKENS, "run.threads": 1,
                "parity.routes": path}
        outcome = moe.attempt(keys, 2)
        self.assertNotEqual(outcome.code, 0)
        self.assertEqual(len(outcome.faults()), 1, outcome.err)
        self.assertIn(said, outcome.faults()[0])
        self.assertIn(os.path.basename(path), outcome.faults()[0])


if __name__ == "__main__":
    moe.main()
