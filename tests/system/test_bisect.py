#!/usr/bin/env python3
"""bisect: each operation on one product against a literal reading in NumPy, to the bit; which axis separates them; and of
the whole model, differences planted in weights, settings and kernels, each named by step, layer and expert."""
import json
import os
import shutil
import unittest

import check_schema
import moe
import numpy as np
import reference

SEED = moe.random_seed()
SHIPPED = os.path.join(moe.SOURCE, "configs", "tiny", "tiny-qwen3moe-Q4_K_M.gguf")
PLANTED = os.path.join(os.path.dirname(moe.PROGRAM), "moe_run_planted")
EMULATED = os.path.join(os.path.dirname(moe.PROGRAM), "moe_run_emulated")
SHAPE = dict(layers=3, hidden=256, experts=8, top_k=2, expert_width=256, vocab=512)
F32 = np.float32
with open(os.path.join(moe.SOURCE, "docs", "bisect.schema.json"), encoding="utf-8") as file:
    SCHEMA = json.load(file)


class Found:
    def __init__(self, outcome):
        self.folder, self.out = outcome.folder, outcome.out
        with open(os.path.join(outcome.folder, "bisect.json"), encoding="utf-8") as text:
            self.json = json.load(text)
        wrong = list(check_schema.faults(self.json, SCHEMA, SCHEMA))
        assert not wrong, wrong
        assert ("product" in self.json) != ("whole" in self.json)
        self.product, self.whole = self.json.get("product"), self.json.get("whole")

    def load(self, name):
        return np.load(os.path.join(self.folder, f"{name}.npy"), allow_pickle=False)

    def pair(self, a, b):
        return next(p for p in self.product["pairs"] if {p["a"], p["b"]} == {a, b})

    def operation(self, name):
        return next(o for o in self.product["operations"] if o["name"] == name)

    def walk(self, a):
        return next(w for w in self.product["walks"] if w["a"] == a)

    def separating(self, a):
        return {s["axis"] for s in self.walk(a)["steps"] if s["separates"]}

    def part(self, name):
        return next(p for p in self.whole["parts"] if p["name"] == name)


def bisect(ranks=1, program=None, **sets):
    keys = {"model.path": SHIPPED, "run.threads": 1} | {k.replace("__", "."): v for k, v in sets.items()}
    outcome = moe.attempt(keys, ranks, out=moe.fresh(), command="bisect", program=program, alone=ranks == 1)
    if outcome.code != 0:
        raise AssertionError(f"moe_run bisect ended with {outcome.code}: {sets} on {ranks} ranks\n{outcome.err}")
    return Found(outcome)


# ---- the operations, read literally ----

def fma(a, b, c):
    """In float32, rounded once: a product of float32 is exact in a long double, and the sum is off by 2^-64 of itself."""
    return (a.astype(np.longdouble) * b.astype(np.longdouble) + c.astype(np.longdouble)).astype(F32)


def xorshift32(x, n):
    out = np.empty(n, F32)
    for i in range(n):
        x ^= x << 13 & 0xFFFFFFFF
        x ^= x >> 17
        x ^= x << 5 & 0xFFFFFFFF
        out[i] = F32(x) / F32(2147483648) - F32(1)
    return out


def f16(x):
    return x.astype(np.float16).astype(F32)


def round_q8k(x):
    """x [256]: quants and scale, as docs/paths.md has it."""
    extreme = x[np.argmax(np.abs(x))]
    if extreme == 0:
        return np.zeros(256, np.int64), F32(0)
    inverse = F32(-127) / extreme
    return np.minimum(np.rint(inverse * x), 127).astype(np.int64), F32(1) / inverse


def half_away(x):
    """As C's roundf, without a rounding of its own."""
    wide = x.astype(np.float64)
    return (np.sign(wide) * np.floor(np.abs(wide) + 0.5)).astype(np.int64)


def round_absmax(x):
    d = np.abs(x).max() / F32(127)
    return (half_away(x / d) if d else np.zeros(len(x), np.int64)), d


class Quants:
    """A K-quant's rows taken apart: q [rows, blocks, 256], scale and minimum of each sub-block, d, dmin [rows, blocks]."""

    def __init__(self, type_, raw, rows):
        self.width = 16 if type_ == "Q6_K" else 32
        if type_ == "Q6_K":
            low = raw[:, :128].reshape(-1, 2, 2, 32)
            low = np.concatenate([low % 16, low // 16], 2)
            high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3
            q, d = (low + 16 * high).astype(np.int64) - 32, reference._halves(raw, 208)
            scale, dmin, minimum = raw[:, 192:208].view(np.int8), np.zeros_like(d), np.zeros((len(raw), 8))
        else:
            q, d, dmin = reference._nibbles(raw[:, -128:]).astype(np.int64), reference._halves(raw, 0), reference._halves(raw, 2)
            if type_ == "Q5_K":
                q += 16 * np.stack([raw[:, 16:48] >> j & 1 for j in range(8)], 1)
            ones = raw.copy()
            ones[:, :4] = np.array([1, 1], np.float16).view(np.uint8)  # of steps and bases: scales and minimums alone
            scale, minimum = reference._steps_and_bases(ones)
        self.q = q.reshape(rows, -1, 256)
        self.scale, self.min = [a.reshape(rows, -1, a.shape[1]).astype(np.int64) for a in (scale, minimum)]
        self.d, self.dmin = d.reshape(rows, -1), dmin.reshape(rows, -1)
        self.has_minimums = type_ != "Q6_K"

    def scaled(self, b, x):
        """[rows, 8]: in groups of 32, the sum of scale * q * x, of block b."""
        each = (self.q[:, b] * x).reshape(len(self.q), -1, self.width).sum(2) * self.scale[:, b]
        return each.reshape(len(self.q), 8, -1).sum(2)

    def minimums(self, b, x):
        return (self.min[:, b] * x.reshape(8, 32).sum(1)).sum(1)


def dot_q8k(w, x, rounding):
    total = np.zeros(len(w.q), F32)
    for b in range(w.q.shape[1]):
        q, d = rounding(x[256 * b:256 * b + 256])
        isum = w.scaled(b, q).sum(1).astype(F32)
        if w.has_minimums:
            term = fma(w.d[:, b], isum, -(w.dmin[:, b] * w.minimums(b, q).astype(F32)))
        else:
            term = w.d[:, b] * isum
        total = fma(np.full_like(term, d), term, total)
    return total


def dot_split(w, weights, x):
    """q8k_split's: outliers as they are, the rest as q8k."""
    blocks = x.reshape(-1, 256)
    is_out = (np.abs(blocks) > F32(4) * np.sort(np.abs(blocks), 1)[:, -9][:, None]).reshape(-1)
    y, z = dot_q8k(w, np.where(is_out, F32(0), x), round_q8k), np.zeros(len(weights), F32)
    for i in np.flatnonzero(is_out):
        z = fma(weights[:, i], np.broadcast_to(x[i], z.shape), z)
    return y + z if is_out.any() else y


def dot_q8_1(w, x):
    total = np.zeros(len(w.q), F32)
    for b in range(w.q.shape[1]):
        scaled, minimums = np.zeros(len(w.q), F32), np.zeros(len(w.q), F32)
        for j in range(8):
            part = x[256 * b + 32 * j:256 * b + 32 * j + 32]
            q, d = round_absmax(part)
            at = np.zeros(256, np.int64)
            at[32 * j:32 * j + 32] = q
            scaled = scaled + f16(d) * w.scaled(b, at)[:, j].astype(F32)
            s = F32(0)
            for value in part:
                s = s + value
            minimums = minimums + f16(s) * w.min[:, b, j].astype(F32)
        total = total + F32(1) * (w.d[:, b] * scaled - w.dmin[:, b] * minimums)
    return total


def dot_ascending(w, x):
    total = np.zeros(len(w), F32)
    for i in range(len(x)):
        total = total + w[:, i] * x[i]
    return total


def dot_lanes(w, x):
    lane = np.zeros((len(w), 32), F32)
    for i in range(0, len(x), 32):
        lane = fma(w[:, i:i + 32], np.broadcast_to(x[i:i + 32], lane.shape), lane)
    for half in (16, 8, 4, 2, 1):
        lane = lane[:, :half] + lane[:, half:2 * half]
    return lane[:, 0]


def read_operations(type_, raw, rows, activations):
    dequantise = next(t[3] for t in reference.TYPES.values() if t[0] == type_)
    weights, w = dequantise(raw).reshape(rows, -1), Quants(type_, raw, rows)
    each = {"f64": lambda x: weights.astype(float) @ x.astype(float), "q8k@cpu": lambda x: dot_q8k(w, x, round_q8k),
            "q8k_split@cpu": lambda x: dot_split(w, weights, x), "q8k_absmax": lambda x: dot_q8k(w, x, round_absmax), "q8_1": lambda x: dot_q8_1(w, x),
            "f16": lambda x: dot_ascending(f16(weights), f16(x)), "dequantise": lambda x: dot_ascending(weights, x),
            "f32@cpu": lambda x: dot_lanes(weights, x)}
    return {name: np.stack([dot(x) for x in activations]) for name, dot in each.items()}


class Product(unittest.TestCase):
    def test_operations_are_their_definitions(self):
        path, draws, rows = moe.model(SEED, **SHAPE | {"types": "mix"}), 3, 24
        tensors, seen = reference.Gguf(path).tensors, set()
        for name, (number, shape, raw) in tensors.items():
            type_ = reference.TYPES[number][0]
            if type_ in seen or type_ not in ("Q4_K", "Q5_K", "Q6_K"):
                continue
            seen.add(type_)
            found = bisect(model__path=path, bisect__tensor=name, bisect__rows=rows, bisect__draws=draws, bisect__seed=SEED + 1)
            x = found.load("activations")
            np.testing.assert_array_equal(x[0], xorshift32(SEED + 1, x.shape[1]))
            size = reference.TYPES[number][2]
            blocks = np.array(raw[:rows * x.shape[1] // 256 * size]).reshape(-1, size)
            for operation, expected in read_operations(type_, blocks, rows, x).items():
                with self.subTest(type=type_, operation=operation):
                    given = found.load(operation)
                    if operation == "f64":
                        np.testing.assert_allclose(given, expected, rtol=1e-11, atol=1e-12)
                    else:
                        np.testing.assert_array_equal(given, expected.astype(float))
        self.assertEqual(seen, {"Q4_K", "Q5_K", "Q6_K"})

    def test_outliers(self):
        """What is drawn has none: activations of a model that has."""
        path, name = moe.model(SEED, **SHAPE | {"types": "Q4_K", "outliers": 2}), "blk.0.attn_q.weight"
        found = bisect(model__path=path, bisect__tensor=name, bisect__rows=24, bisect__activations="attn_norm",
                       input__tokens=TOKENS[:6])
        number, _, raw = reference.Gguf(path).tensors[name]
        x, size = found.load("activations"), reference.TYPES[number][2]
        blocks = np.array(raw[:24 * x.shape[1] // 256 * size]).reshape(-1, size)
        expected = read_operations("Q4_K", blocks, 24, x)
        np.testing.assert_array_equal(found.load("q8k_split@cpu"), expected["q8k_split@cpu"].astype(float))
        off = {n: found.pair(n, "f64")["rel_l2"]["shown"] for n in ("q8k@cpu", "q8k_split@cpu")}
        self.assertGreater(off["q8k@cpu"], 5 * off["q8k_split@cpu"], off)
        self.assertEqual(found.separating("q8k_split@cpu"), {"activation rounding"})

    def test_known_case(self):
        """006 and 007: the first 4608 bytes cut as 16 x 512."""
        found = bisect(bisect__tensor="blk.0.attn_k.weight", bisect__rows=16, bisect__cols=512, bisect__seed=0x1583000A,
                       bisect__draws=200)
        a_b, a_c = (found.pair("q8k@cpu", b)["rel_l2"]["shown"] for b in ("dequantise", "f32@cpu"))
        b_c = found.pair("dequantise", "f32@cpu")["rel_l2"]["shown"]
        self.assertTrue(2e-3 < a_b < 1e-2 and abs(a_b / a_c - 1) < 0.01, (a_b, a_c))
        self.assertTrue(b_c < 1e-6 and a_b > 1000 * b_c, b_c)
        for name in ("q8k@cpu", "q8_1"):
            self.assertEqual(found.separating(name), {"activation rounding"})
        self.assertEqual(found.separating("f16"), {"activation rounding", "weight type"})
        classes = {o["name"]: o["class"] for o in found.product["operations"]}
        self.assertEqual(classes["f64"], classes["dequantise"])
        self.assertEqual(classes["f64"], classes["f32@cpu"])
        self.assertEqual(len({classes[n] for n in ("f64", "q8k@cpu", "q8_1", "f16")}), 4)
        for pair in found.product["pairs"]:
            for d in ("max_rel", "rel_l2", "one_minus_cos"):
                self.assertEqual(pair[d]["quantiles"], sorted(pair[d]["quantiles"]))
                self.assertLessEqual(pair[d]["quantiles"][0], pair[d]["shown"])
        self.assertIn("rel_l2", found.out)

    def test_distances_are_those_of_the_outputs(self):
        found = bisect(bisect__draws=5, bisect__rows=7)
        for pair in found.product["pairs"]:
            a, b = found.load(pair["a"]), found.load(pair["b"])
            rel_l2 = np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)
            self.assertAlmostEqual(pair["rel_l2"]["shown"], rel_l2[0], delta=1e-9 * rel_l2[0])
            self.assertAlmostEqual(pair["rel_l2"]["quantiles"][4], np.sort(rel_l2)[2], delta=1e-9 * rel_l2.max())
            self.assertAlmostEqual(pair["max_rel"]["shown"], np.max(np.abs(a - b)[0] / np.maximum(np.abs(a), np.abs(b))[0]))

    def test_captured_activations_are_those_of_a_trace(self):
        sets = {"model.path": SHIPPED, "run.arms": ["f64@cpu"], "input.tokens": [5, 77, 1234], "run.threads": 1}
        folder = moe.fresh()
        self.assertEqual(moe.attempt(sets, out=folder, command="trace").code, 0)
        for ranks in (1, 3):
            found = bisect(ranks, run__arms=["f64@cpu"], input__tokens=[5, 77, 1234], bisect__tensor="blk.1.attn_output.weight",
                           bisect__activations="kqv_out")
            traced = np.load(os.path.join(folder, "f64@cpu", "kqv_out-1.npy")).reshape(3, -1)
            np.testing.assert_array_equal(found.load("activations"), traced.astype(F32))

    @unittest.skipUnless(os.access(PLANTED, os.X_OK), "moe_run_planted is not built")
    def test_a_backend_that_rounds_otherwise_is_named(self):
        """Its own product, and not the definition, is what is compared: so the backend is an axis of its own."""
        good = bisect(program=PLANTED, run__rows="portable")
        self.assertEqual(good.separating("q8k@cpu"), {"activation rounding"})
        found = bisect(program=PLANTED, run__rows="planted_q8k_truncates")
        self.assertEqual(found.separating("q8k@cpu"), {"activation rounding", "backend"})

    @unittest.skipUnless(os.access(EMULATED, os.X_OK), "moe_run_emulated is not built")
    def test_a_gpus_products(self):
        found = bisect(program=EMULATED, bisect__rows=8, bisect__draws=3)
        for path in ("q8k", "f32"):
            np.testing.assert_array_equal(found.load(path + "@cuda"), found.load(path + "@cpu"))
        self.assertEqual(found.separating("q8k@cpu"), {"activation rounding"})

    def test_what_is_wrong_is_refused(self):
        for sets, said in (({"bisect.tensor": "blk.9.nothing"}, 'no tensor "blk.9.nothing"'),
                           ({"bisect.tensor": "output_norm.weight"}, "is no matrix"),
                           ({"bisect.cols": 100}, "expected a multiple of the 256 weights"),
                           ({"bisect.rows": 10**9}, "of bisect.rows"),
                           ({"bisect.activations": "Qcurr"}, 'did you mean "Qcur"'),
                           ({"bisect.activations": "Kcur", "input.tokens": [1]}, "has 256 numbers, expected"),
                           ({"bisect.activations": "ffn_norm"}, "no input"),
                           ({"bisect.a": "f32@cpu"}, "bisect.a is set: expected bisect.b as well")):
            with self.subTest(said=said):
                outcome = moe.attempt({"model.path": SHIPPED} | sets, command="bisect", alone=True)
                self.assertEqual(outcome.code, 2, outcome.err)
                self.assertIn(said, outcome.err)


# ---- the whole model ----

TOKENS = [3, 141, 59, 265, 358, 97, 93, 238]


def louder(type_, blocks, by):
    """All weights larger by a factor: the blocks' scales are; of floats, they themselves."""
    ranges = {"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "Q8_0": [0], "F16": [0]}
    if type_ == "F32":
        blocks[:] = (blocks.copy().view("<f4") * F32(by)).view(np.uint8)
    if type_ == "BF16":
        wide = (blocks.copy().view("<u2").astype(np.uint32) << 16).view(F32) * F32(by)
        blocks[:] = (wide.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    for at in ranges.get(type_, []):
        half = blocks[:, at:at + 2].copy().view("<f2")
        blocks[:, at:at + 2] = (half * np.float16(by)).view(np.uint8)
    assert type_ in ranges or type_ in ("F32", "BF16"), type_


def altered(path, name, expert=None, by=1.25):
    """A copy of the model with a tensor, or one expert of a stack, made louder."""
    gguf, copy = reference.Gguf(path), moe.fresh(".gguf")
    type_, shape, raw = gguf.tensors[name]
    at, count, size = raw.ctypes.data - gguf._map.ctypes.data, len(raw), reference.TYPES[type_][2]
    if expert is not None:
        count //= shape[0]
        at += count * expert
    shutil.copyfile(path, copy)
    whole = np.memmap(copy, np.uint8, "r+")
    louder(reference.TYPES[type_][0], whole[at:at + count].reshape(-1, size), by)
    whole.flush()
    return copy


def hit_expert(path, layer):
    """One that some token of TOKENS reaches in the layer, on f32."""
    folder = moe.fresh()
    sets = {"model.path": path, "run.arms": ["f32@cpu"], "input.tokens": TOKENS, "trace.probes": ["ffn_moe_topk"]}
    assert moe.attempt(sets, out=folder, command="trace").code == 0
    return int(np.load(os.path.join(folder, "f32@cpu", f"ffn_moe_topk-{layer}.npy"))[-1, 0])


class Whole(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.path = moe.model(SEED, **SHAPE)

    def named(self, part, said=(), program=None, **sets):
        """The sentence names the part, and with it as in b the logits are b's."""
        sets = {"model__path": self.path, "input__tokens": TOKENS, "bisect__a": "f32@cpu", "bisect__b": "f32@cpu",
                "bisect__budget": 40} | sets
        found = bisect(program=program, **sets)
        sentence = found.whole["sentence"]
        self.assertTrue(sentence.startswith(f"a and b differ by {part}:"), (part, sentence))
        self.assertIn(sentence, found.out)
        for text in said:
            self.assertIn(text, sentence)
        self.assertEqual(found.part(part)["to_b"], {"kl": 0, "rel_l2": 0, "top1_agreement": 1, "flips": 0, "same_bits": True})
        return found

    def test_same_bits(self):
        found = bisect(model__path=self.path, input__tokens=TOKENS, bisect__a="q8k@cpu", bisect__b="q8k@cpu")
        self.assertIn("there is nothing to bisect", found.out)
        self.assertEqual((found.whole["passes"], found.whole["parts"]), (2, []))

    def test_weights_of_one_step_of_one_layer(self):
        steps = {"attn_q": "q, k, v", "attn_v": "q, k, v", "attn_output": "o", "ffn_gate_inp": "router"}
        for tensor, step in steps.items():
            layer = int(np.random.default_rng([SEED, len(tensor)]).integers(SHAPE["layers"]))
            with self.subTest(tensor=tensor, layer=layer):
                other = altered(self.path, f"blk.{layer}.{tensor}.weight")
                self.named(f"{step} of layer {layer}", ["they differ in one setting, the model file"], bisect__model_b=other)
        self.named("head", bisect__model_b=altered(self.path, "output.weight"))

    def test_weights_of_one_expert(self):
        for tensor, step, layer in (("ffn_down_exps", "down", 1), ("ffn_up_exps", "gate and up", 2)):
            expert = hit_expert(self.path, layer)
            with self.subTest(tensor=tensor, layer=layer, expert=expert):
                other = altered(self.path, f"blk.{layer}.{tensor}.weight", expert)
                self.named(f"{step} of expert {expert} of layer {layer}", bisect__model_b=other)

    def test_an_infinity(self):
        """There is no KL then, but bits still tell where it comes from."""
        part = "q, k, v of layer 1"
        found = bisect(model__path=self.path, input__tokens=TOKENS, bisect__a="f32@cpu", bisect__b="f32@cpu",
                       bisect__model_b=altered(self.path, "blk.1.attn_norm.weight", by=1e38))
        self.assertIsNone(found.whole["a_to_b"]["kl"])
        self.assertTrue(found.whole["sentence"].startswith(f"a and b differ by {part}:"), found.whole["sentence"])
        self.assertTrue(found.part(part)["to_b"]["same_bits"])

    def test_cache_type_of_integers(self):
        outcome = moe.attempt({"model.path": self.path, "input.tokens": TOKENS, "bisect.a": "f32@cpu", "bisect.b": "q8k@cpu",
                               "bisect.kv_b": "f32"}, command="bisect", alone=True)
        self.assertEqual(outcome.code, 2, outcome.err)
        self.assertIn("expected an arm whose cache is of the type that run.kv says", outcome.err)

    def test_cache_type(self):
        found = self.named("attention of all layers", ["one setting, the cache type"], bisect__kv_b="f32")
        self.assertEqual((found.whole["a"]["kv"], found.whole["b"]["kv"]), ("f16", "f32"))

    @unittest.skipUnless(os.access(PLANTED, os.X_OK), "moe_run_planted is not built")
    def test_kernels(self):
        for row, part in (("slot_order", "down of all layers"), ("swiglu_exp", "SwiGLU of all layers"),
                          ("rope_pairs", "q, k, v of all layers"), ("f16_cache", "attention of all layers"),
                          ("exp_last_bit", "attention, router, SwiGLU of all layers")):
            with self.subTest(row=row):
                self.named(part, ["one setting, the ISA row"], program=PLANTED, run__rows="portable",
                           bisect__rows_b="planted_" + row, bisect__budget=16)

    def test_two_settings_are_switched_one_at_a_time(self):
        other = altered(self.path, "blk.0.attn_output.weight")
        said = ["o of layer 0 alone takes", "of the settings the model file takes"]
        found = self.named("attention, o of all layers", said, bisect__kv_b="f32", bisect__model_b=other)
        gone = {s["name"]: s["gone"] for s in found.whole["settings"]}
        self.assertEqual(set(gone), {"model file", "cache type"})
        self.assertTrue(gone["model file"] > 0.9 > gone["cache type"], gone)

    def test_paths_ranks_and_cuts(self):
        """The digests are the arms'; the table is the same on any number of ranks and however the input is cut."""
        sets = {"input__tokens": TOKENS, "bisect__a": "q8k@cpu", "bisect__b": "f32@cpu", "bisect__budget": 16}
        one, three, cut = bisect(**sets), bisect(3, **sets), bisect(run__chunk=3, **sets)
        self.assertEqual(one.json, three.json)
        self.assertEqual(one.json, cut.json)
        parity = moe.run({"model.path": SHIPPED, "run.arms": ["q8k@cpu", "f32@cpu"], "input.tokens": TOKENS})
        for side, name in (("a", "q8k@cpu"), ("b", "f32@cpu")):
            self.assertEqual(one.whole[side]["digest"], parity.arm(name)["digest"])
        pair = next(p for p in parity.report()["pairs"] if {p["a"], p["b"]} == {"q8k@cpu", "f32@cpu"})
        self.assertEqual(one.whole["a_to_b"]["flips"], sum(layer["router_flips"] for layer in pair["layers"]))
        self.assertTrue(one.whole["budget_spent"])
        for name in ("embedding", "router of all layers"):  # f32 on both
            self.assertTrue(one.part(name)["to_a"]["same_bits"], name)
        product = bisect(input__tokens=TOKENS, run__arms=["f32@cpu"], bisect__tensor=one.whole["tensor"],
                         bisect__activations=one.whole["activations"])
        self.assertEqual(product.separating("q8k@cpu"), {"activation rounding"})  # so that is why the two arms differ
        whole = one.part("all layers")
        self.assertTrue(whole["gone"] > 0.5 and not whole["to_b"]["same_bits"], whole)  # the head is no layer's

    def test_token_shards(self):
        """Each rank computes a share of a large batch; what is handed over still reaches every rank."""
        tokens = np.random.default_rng(SEED).integers(0, SHAPE["vocab"], 200).tolist()
        sets = {"model__path": self.path, "input__tokens": tokens, "bisect__a": "q8k@cpu", "bisect__b": "f32@cpu",
                "bisect__budget": 14}
        self.assertEqual(bisect(**sets).json, bisect(3, **sets).json)

    def test_mixed_ranks(self):
        """Experts of rank 1 on another path: the part is those experts, whichever rank computes the rest."""
        found = bisect(2, model__path=self.path, input__tokens=TOKENS, ranks__arm=["q8k@cpu", "f32@cpu"],
                       ranks__shared="q8k@cpu", ranks__shared_ranks=[0], bisect__a="q8k@cpu", bisect__b="ranks",
                       bisect__budget=24)
        half = SHAPE["experts"] // 2
        self.assertTrue(found.part(f"experts {half} to {2 * half - 1} of all layers")["to_b"]["same_bits"], found.out)

    def test_mixed_ranks_with_replicas(self):
        """A replica never lies on a rank of the other path, though run.arms has no mixed arm."""
        routes = os.path.join(moe.run({"model.path": self.path, "input.tokens": TOKENS, "run.arms": ["q8k@cpu"], "run.threads": 1,
                                       "output.routes": True}, 1).folder, "routes.npy")
        keys = dict(model__path=self.path, input__tokens=TOKENS, ranks__arm=["q8k@cpu", "f32@cpu"], run__threads=1,
                    bisect__a="q8k@cpu", bisect__b="ranks", bisect__budget=4, experts__placement="counted", experts__counts=routes)
        plain, replicas = (bisect(4, **keys, experts__replicas=n) for n in (0, 2))
        self.assertEqual(*[found.whole["b"]["digest"] for found in (plain, replicas)])

    @unittest.skipUnless(os.access(EMULATED, os.X_OK), "moe_run_emulated is not built")
    def test_on_a_gpu(self):
        """Probes are given to a device as to the host: the same table, but for the names of the arms."""
        path = moe.model(SEED, **SHAPE | {"layers": 1})
        of_cuda, of_cpu = (bisect(program=EMULATED, model__path=path, input__tokens=TOKENS[:3], bisect__a=f"q8k@{where}",
                                  bisect__b=f"f32@{where}", bisect__budget=13).whole for where in ("cuda", "cpu"))
        for side in ("a", "b"):
            self.assertEqual(of_cuda.pop(side)["digest"], of_cpu.pop(side)["digest"])
        self.assertEqual(of_cuda, of_cpu)

    def test_another_shape_is_refused(self):
        other = moe.model(SEED, **SHAPE | {"experts": 4})
        outcome = moe.attempt({"model.path": self.path, "input.tokens": TOKENS, "bisect.a": "f32@cpu", "bisect.b": "f32@cpu",
                               "bisect.model_b": other}, command="bisect", alone=True)
        self.assertEqual(outcome.code, 2)
        self.assertIn("expected a number of experts of 8", outcome.err)


if __name__ == "__main__":
    unittest.main()
