#!/usr/bin/env python3
"""The forward pass against an independent one in float64 NumPy (reference.py), on random models of several shapes
and on the shipped one; and q8k and mixed jobs against the same NumPy with activations rounded to Q8_K."""
import csv
import os
import unittest

import moe
import numpy as np
import reference

SEED = moe.random_seed()
SHIPPED = os.path.join(moe.SOURCE, "configs", "tiny", "tiny-qwen3moe-Q4_K_M.gguf")
# a float32 router may choose another expert than a float64 one where two are as good as even; what follows is
# then another computation, so such a model is drawn again
EVEN = 1e-5


# ---- q8k in NumPy ----

def round_q8k(x):
    """The activations that the path q8k computes with, from docs/paths.md: rounded in float32, widened."""
    block = x.astype(np.float32).reshape(-1, 256)
    first = np.abs(block).argmax(1)  # of equal ones argmax takes the first
    extreme = block[np.arange(len(block)), first][:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.float32(-127) / extreme
        q = np.minimum(127, np.rint(inverse * block))
        rounded = q.astype(np.float64) * (np.float32(1) / inverse).astype(np.float64)
    return np.where(extreme == 0, 0, rounded).reshape(x.shape)


def round_q8_0(x):
    """The same for weights in blocks of 32."""
    block = x.astype(np.float32).reshape(-1, 32)
    d = np.abs(block).max(1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.where(d > 0, np.float32(1) / d, np.float32(0)) * block
    q = np.copysign(np.minimum(127, np.floor(np.abs(y.astype(np.float64)) + 0.5)), y)
    return (q * d.astype(np.float16).astype(np.float64)).reshape(x.shape)


FORMS = {8: round_q8_0, 12: round_q8k, 13: round_q8k, 14: round_q8k}  # by GGUF's number of the weights' type


def once(x, form):
    return form(x)


def split(x, form):
    """The same of q8k_split: what is above four times the ninth magnitude of its block of 256 stays as it is."""
    if x.shape[-1] % 256:
        return form(x)
    block = x.astype(np.float32).reshape(-1, 256)
    ninth = np.sort(np.abs(block), 1)[:, -9][:, None]
    is_out = (np.abs(block) > np.float32(4) * ninth).reshape(x.shape)
    return np.where(is_out, x.astype(np.float32), form(np.where(is_out, np.float32(0), x)))


ROUNDED = {"q8k": once, "q8k_split": split}
BEFORE_ROUTER = ("attn_q", "attn_k", "attn_v", "attn_output")  # which q8k alone rounds for


class Rounding:
    """A matrix on a path that rounds whatever is multiplied by it first: rounded(x, form)."""
    __array_ufunc__ = None  # NumPy leaves x @ self to __rmatmul__

    def __init__(self, matrix, rounded, form):
        self.matrix, self.rounded, self.form = matrix, rounded, form

    @property
    def T(self):
        return Rounding(self.matrix.T, self.rounded, self.form)

    def __rmatmul__(self, x):
        return self.rounded(x, self.form) @ self.matrix


def integers(x, channels=1.0):
    """Vectors [n, head_dim] as q8k's attention rounds them, from docs/paths.md: integers and the power of two of each."""
    x = (x * channels).astype(np.float32).astype(np.float64)
    most = np.abs(x).max(1)
    unit = np.exp2(np.where(most > 0, np.maximum(np.frexp(most)[1] - 15.0, -54), -54))
    unit = np.where(most > 32639 * unit, 2 * unit, unit)[:, None]
    return np.rint(x / unit), unit


def low_limb(x):
    return x - 256 * np.floor((x + 128) / 256)


POLYNOMIAL = [*map(float.fromhex, ("0x1.3a02ccp-7", "0x1.c9fc46p-5", "0x1.ec0378p-3", "0x1.62e12cp-1")), 1.0]


def exact_exp(z):
    n = np.rint(32 * z)
    return np.exp2(n - 32) * np.polyval(POLYNOMIAL, 32 * z - n)


def cut(z):
    return np.clip(z.astype(np.float32).astype(np.float64), 0, 1)


def fold(run, more):
    """Results (maximum, sum, output) of rows of queries, folded; a row that saw no key has maximum -inf."""
    both = np.maximum(run[0], more[0])
    old, fresh = (np.where(r[0] > -np.inf, exact_exp(cut(1 + (np.maximum(r[0], -1e30) - both) * np.log2(np.e) / 32)), 0)
                  for r in (run, more))
    return both, run[1] * old + more[1] * fresh, run[2] * old + more[2] * fresh


def attend_chunk(q, k, v, seen):
    """Integers and units of all queries, and of a chunk's keys and values; seen[query, key]."""
    score = (q[0] @ k[0].T - low_limb(q[0]) @ low_limb(k[0]).T) / 256
    score = np.where(seen, score.astype(np.float32) * (256 * q[1] * k[1].T), -np.inf)
    most = score.max(1, keepdims=True)
    step = np.float64(np.float32(np.log2(np.e) / 32))
    bias = (1 - np.maximum(most, -1e30) * step).astype(np.float32).astype(np.float64)
    e = np.where(seen, exact_exp(cut(np.where(seen, score, 0) * step + bias)), 0)
    weight = e * v[1].T
    unit = np.exp2(np.frexp(np.maximum(weight.max(1), 1e-300))[1] - 15.0)
    unit = np.where(weight.max(1) > 32639 * unit, 2 * unit, unit)[:, None]
    out = np.floor((np.rint(weight / unit) @ v[0] + 128) / 256).astype(np.float32) * 256 * unit
    return most, (np.rint(e * 2**21) / 2**21).sum(1, keepdims=True), out


class PathModel(reference.Model):
    """The reference with a path for the shared parts and one for each expert: one of ROUNDED, or another that rounds nothing."""

    def __init__(self, path, shared="q8k", experts=None):
        super().__init__(path)
        self.shared, self.path_of_expert = shared, experts

    def weight(self, name, index=None):
        own = self.shared if index is None or not self.path_of_expert else self.path_of_expert[index]
        matrix = super().weight(name, index)
        form = FORMS.get(self.gguf.tensors[name + ".weight"][0])
        if own not in ROUNDED or own == "q8k_split" and name.split(".")[-1] in BEFORE_ROUTER:
            return matrix
        return Rounding(matrix, ROUNDED[own], form) if form else matrix

    def balance(self, blk):
        """What the queries' channels are multiplied by, and the keys' divided."""
        k, q = (np.abs(self.weight(blk + name)).reshape(2, -1).max(0).astype(np.float32)
                for name in ("attn_k_norm", "attn_q_norm"))
        ratio = np.frexp(k / q)[1] - 1
        return np.exp2(np.tile((ratio + 1) // 2, 2).clip(-16, 16))

    def attend(self, q, k, v, blk):
        if self.shared != "q8k":
            return super().attend(q, k, v, blk)
        factor, n = self.balance(blk), len(q)
        q, k, v = integers(q, factor), integers(k, 1 / factor), integers(v)
        seen = np.tril(np.ones((n, n), bool))
        nothing = np.full((n, 1), -np.inf), np.zeros((n, 1)), np.zeros(q[0].shape)
        total = nothing
        for group in range(0, n, 4096):
            run = nothing
            for first in range(group, min(n, group + 4096), 128):
                keys = slice(first, first + 128)
                run = fold(run, attend_chunk(q, [x[keys] for x in k], [x[keys] for x in v], seen[:, keys]))
            total = fold(total, run)
        return total[2] / total[1]


# ---- runs ----

def tokens_of(seed, n, vocab=512):
    return np.random.default_rng([seed, 7]).integers(0, vocab, n).tolist()


def run(path, tokens, arms, ranks=1, **sets):
    keys = {"model.path": path, "input.tokens": tokens, "run.arms": arms, "run.kv": "f32", "output.logits": True,
            "run.threads": 1}
    return moe.run(keys | {key.replace("__", "."): value for key, value in sets.items()}, ranks)


def even_flip(outcome):
    """Whether an arm chose other experts than f64 where the choice was as good as even; elsewhere that is a fault."""
    layers = [layer for pair in outcome.report()["pairs"] for layer in pair["layers"] if layer["router_flips"]]
    for layer in layers:
        if layer["flip_margin"] > EVEN:
            raise AssertionError(f"the router flipped at a margin of {layer['flip_margin']}")
    return bool(layers)


SHAPES = {
    "F32, tied, each head its own keys": dict(types="F32", hidden=256, heads=4, kv_heads=4, tied=True),
    "F16, four heads to a key, head_dim 128, version 2": dict(types="F16", heads=4, kv_heads=1, head_dim=128, version=2),
    "Q8_0, rows of no whole 256, three files": dict(types="Q8_0", hidden=320, expert_width=96, heads=5, kv_heads=1,
                                                    split=3, experts=7, top_k=3),
    "BF16, alignment 64, RoPE base 1e4": dict(types="BF16", alignment=64, rope_base=1e4, eps=1e-5, experts=5, top_k=1),
    "Q4_K, three heads to a key": dict(types="Q4_K", hidden=512, heads=6, kv_heads=2, expert_width=512),
    "Q5_K, all experts chosen": dict(types="Q5_K", experts=3, top_k=3, heads=2, kv_heads=1, head_dim=128),
    "Q6_K, tied, one expert": dict(types="Q6_K", tied=True, experts=1, top_k=1),
    "a mix, two outlier channels, 70 tokens": dict(types="mix", hidden=768, layers=3, outliers=2, heads=6, kv_heads=2),
}


class Reference(unittest.TestCase):
    def test_shapes(self):
        for name, shape in SHAPES.items():
            with self.subTest(name):
                self.check_shape(name, shape)

    def check_shape(self, name, shape):
        for attempt in range(3):
            seed = SEED + 1000 * attempt
            path, tokens = moe.model(seed, **shape), tokens_of(seed, 70 if "70" in name else 9)
            outcome = run(path, tokens, ["f64@cpu", "f32@cpu"], ranks=1 + (shape.get("experts", 8) > 4))
            if not even_flip(outcome):
                break
        else:
            self.fail("three models in a row with an even choice of experts")
        true = reference.Model(path).forward(tokens)["logits"]
        errors = [moe.rel_l2(outcome.logits(arm), true).max() for arm in ("f64@cpu", "f32@cpu")]
        print(f"{name}: f64 {errors[0]:.1e}, f32 {errors[1]:.1e}", flush=True)
        self.assertEqual(outcome.logits("f64@cpu").dtype, np.float64)
        self.assertEqual(outcome.logits("f32@cpu").shape, true.shape)
        self.assertLessEqual(errors[0], 1e-9)
        self.assertLessEqual(errors[1], 1e-5)

    @unittest.skipUnless(os.path.exists(SHIPPED), "no shipped model")
    def test_shipped_model(self):
        text = "The old house stood at the end of the lane, and nobody had lived in it for many years."
        keys = {"model.path": SHIPPED, "input.prompt": text, "run.arms": ["f64@cpu", "f32@cpu", "q8k@cpu"],
                "run.kv": "f32", "output.logits": True}
        outcome = moe.run(keys, 2)
        with open(os.path.join(outcome.folder, "tokens.csv"), encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["a"] == "f32@cpu"]
        tokens = [int(row["token"]) for row in rows]
        self.assertGreater(len(tokens), 10)
        true = reference.Model(SHIPPED).forward(tokens)["logits"]
        rounded = PathModel(SHIPPED).forward(tokens)["logits"]
        errors = {arm: moe.rel_l2(outcome.logits(arm), true) for arm in ("f64@cpu", "f32@cpu")}
        errors["q8k@cpu"] = moe.rel_l2(outcome.logits("q8k@cpu"), rounded)
        print("the shipped model:", {arm: f"{error.max():.1e}" for arm, error in errors.items()},
              f"q8k median {np.median(errors['q8k@cpu']):.1e}", flush=True)
        self.assertLessEqual(errors["f64@cpu"].max(), 1e-9)
        self.assertLessEqual(errors["f32@cpu"].max(), 1e-5)
        self.assertLessEqual(errors["q8k@cpu"].max(), 5e-2)

    def test_f16_cache(self):
        """Keys and values rounded to f16: of a rounding here and there f32 and f64 disagree."""
        class Half(reference.Model):
            def rotate(self, x):
                rotated = super().rotate(x)
                return rotated.astype(np.float16).astype(np.float64) if x.shape[1] == self.kv_heads else rotated

            def weight(self, name, index=None):
                matrix = super().weight(name, index)
                return HalfOut(matrix) if name.endswith("attn_v") else matrix

        path, tokens = moe.model(SEED, types="F32", heads=4, kv_heads=2), tokens_of(SEED, 70)
        outcome = run(path, tokens, ["f32@cpu", "f64@cpu"], run__kv="f16")
        error = moe.rel_l2(outcome.logits("f32@cpu"), Half(path).forward(tokens)["logits"])
        exact = moe.rel_l2(outcome.logits("f64@cpu"), reference.Model(path).forward(tokens)["logits"])
        print(f"f16 cache: f32 median {np.median(error):.1e}, worst {error.max():.1e}; f64 {exact.max():.1e}")
        # about one cache element in 5,000 lies so near a tie that f32 and f64 round it apart, by 2^-11 of itself: a few
        # in every run, each worth about 1e-5 of the logits; a cache that is not rounded at all is worth over 1e-4
        self.assertLessEqual(np.median(error), 1e-4)
        self.assertGreater(np.median(moe.rel_l2(outcome.logits("f32@cpu"), outcome.logits("f64@cpu"))),
                           2 * np.median(error), "the rounding of the cache is seen")
        self.assertLessEqual(exact.max(), 1e-9)


class HalfOut:
    """A matrix whose products are rounded to f16."""
    __array_ufunc__ = None

    def __init__(self, matrix):
        self.matrix = matrix

    @property
    def T(self):
        return HalfOut(self.matrix.T)

    def __rmatmul__(self, x):
        return (x @ self.matrix).astype(np.float16).astype(np.float64)


class Q8K(unittest.TestCase):
    def test_twenty_models(self):
        """One layer and three tokens, so that few of the flipped roundings, each of which moves much, can occur."""
        errors = []
        for i in range(20):
            seed = SEED + i
            path = moe.model(seed, layers=1, types=("Q4_K_M", "Q5_K", "Q6_K", "mix")[i % 4], hidden=(256, 512, 768)[i % 3],
                             heads=4, kv_heads=2, expert_width=(256, 512)[i % 2], outliers=i % 3)
            tokens = tokens_of(seed, 3)
            outcome = run(path, tokens, ["q8k@cpu"])
            found, true = outcome.logits("q8k@cpu"), PathModel(path).forward(tokens)["logits"]
            errors.append(np.linalg.norm(found - true) / np.linalg.norm(true))
            plain = reference.Model(path).forward(tokens)["logits"]
            self.assertGreater(np.linalg.norm(found - plain) / np.linalg.norm(plain), 1e-4, "q8k rounds its activations")
        print("q8k, 20 models:", " ".join(f"{error:.0e}" for error in sorted(errors)), flush=True)
        self.assertLessEqual(np.median(errors), 1e-5)
        self.assertLessEqual(max(errors), 5e-2)


class Split(unittest.TestCase):
    def test_models_with_outliers(self):
        """By positions: in some model a rounding flips somewhere."""
        errors = []
        for i in range(8):
            seed = SEED + i
            path = moe.model(seed, layers=1, types=("Q4_K_M", "Q5_K", "Q6_K", "mix")[i % 4], hidden=(256, 512, 768)[i % 3],
                             heads=4, kv_heads=2, expert_width=(256, 512)[i % 2], outliers=1 + i % 3)
            tokens = tokens_of(seed, 3)
            found = run(path, tokens, ["q8k_split@cpu"]).logits("q8k_split@cpu")
            true, q8k = (PathModel(path, shared).forward(tokens)["logits"] for shared in ("q8k_split", "q8k"))
            errors += moe.rel_l2(found, true).tolist()
            self.assertGreater(np.linalg.norm(found - q8k) / np.linalg.norm(q8k), 1e-4, "outliers are taken out")
        print("q8k_split, 8 models:", " ".join(f"{error:.0e}" for error in sorted(errors)), flush=True)
        self.assertLessEqual(np.median(errors), 1e-5)
        self.assertLessEqual(max(errors), 5e-2)


class Mixed(unittest.TestCase):
    """ranks.arm: what an expert computes follows the arm of its rank, and nothing else follows from the ranks."""

    @classmethod
    def setUpClass(cls):
        cls.path = moe.model(SEED, layers=1, types="Q4_K_M", hidden=512, experts=8, top_k=4, heads=4, kv_heads=2)
        cls.tokens = tokens_of(SEED, 5)

    def mixed(self, ranks, arms, placement="contiguous", tokens=None, path=None, extra=(), **sets):
        return run(path or self.path, tokens or self.tokens, ["ranks", *extra], ranks, ranks__arm=arms,
                   experts__placement=placement, **sets)

    def close(self, outcome, shared, experts):
        true = PathModel(self.path, shared, experts).forward(self.tokens)["logits"]
        return np.median(moe.rel_l2(outcome.logits("ranks"), true))

    def test_against_numpy(self):
        for arms, shared in ((["q8k", "f32"], "q8k"), (["f32", "q8k"], "f32"), (["f64", "q8k"], "f64"),
                             (["q8k", "f64"], "f32")):
            with self.subTest(arms=arms, shared=shared):
                sets = {} if shared == arms[0] else {"ranks__shared": shared + "@cpu"}
                outcome = self.mixed(2, [arm + "@cpu" for arm in arms], **sets)
                error = self.close(outcome, shared, [arms[expert // 4] for expert in range(8)])
                others = [self.close(outcome, shared, [arm] * 8) for arm in arms]
                print(f"mixed {arms}, shared {shared}: {error:.1e}; as if all one arm: {others[0]:.1e}, {others[1]:.1e}")
                self.assertLessEqual(error, 1e-5)
                self.assertGreater(min(others), 10 * error, "each arm's part is seen")
                self.assertEqual(outcome.arm("ranks")["rank_arms"], [arm + "@cpu" for arm in arms])

    def test_a_function_of_the_map_alone(self):
        arms = ["q8k@cpu", "f32@cpu"]
        two = self.mixed(2, arms).arm("ranks")
        four = self.mixed(4, arms, [0, 0, 2, 2, 1, 1, 3, 3], run__chunk=2).arm("ranks")
        three = self.mixed(3, ["q8k@cpu", "f32@cpu", "f32@cpu"], [0, 0, 0, 0, 1, 1, 2, 2]).arm("ranks")
        for other in (four, three):
            self.assertEqual((other["digest"], other["layer_digests"]), (two["digest"], two["layer_digests"]))

    def test_one_expert_swapped(self):
        """Over many tokens, so that expert 3 is chosen: moved from the q8k rank to the f32 rank it changes the digest."""
        tokens, arms = tokens_of(SEED, 40), ["q8k@cpu", "f32@cpu"]
        digests = {self.mixed(2, arms, [0, 0, 0, owner, 1, 1, 1, 1], tokens=tokens).arm("ranks")["digest"]
                   for owner in (0, 1)}
        self.assertEqual(len(digests), 2)

    def test_all_ranks_the_same_arm(self):
        for arm in ("q8k@cpu", "f32@cpu", "f64@cpu"):
            with self.subTest(arm=arm):
                outcome = self.mixed(3, [arm], extra=[arm])
                self.assertEqual(outcome.arm("ranks")["digest"], outcome.arm(arm)["digest"])
                self.assertEqual(outcome.arm("ranks")["layer_digests"], outcome.arm(arm)["layer_digests"])


if __name__ == "__main__":
    moe.main()
