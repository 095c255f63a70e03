#!/usr/bin/env python3
"""How far attention's output is from float64 over each arm's own queries, keys and values: q8k in integers beside f32
with an f16 cache, on the shipped model's text and on a synthetic model with outlier channels. (Outliers in keys and
values: test_attention_exact.)"""
import os
import shutil
import unittest

import moe
import numpy as np

SHIPPED = os.path.join(moe.SOURCE, "configs", "tiny", "tiny-qwen3moe-Q4_K_M.gguf")
ARMS = ["q8k@cpu", "f32@cpu"]
POSITIONS = 700  # six chunks; every seventh position is compared


def traced(model, **sets):
    folder = moe.fresh()
    keys = {"model.path": model, "run.arms": ARMS, "run.kv": "f16", "trace.probes": ["Qcur", "Kcur", "Vcur", "kqv_out"]}
    outcome = moe.attempt(keys | {key.replace("__", "."): value for key, value in sets.items()}, out=folder,
                          command="trace")
    if outcome.code != 0:
        raise AssertionError(outcome.err)
    return folder


def errors(folder, arm):
    """rel_l2 of each layer, position and head."""
    found, layer = [], 0
    while os.path.exists(os.path.join(folder, arm, f"kqv_out-{layer}.npy")):
        q, k, v, out = (np.load(os.path.join(folder, arm, f"{probe}-{layer}.npy"))
                        for probe in ("Qcur", "Kcur", "Vcur", "kqv_out"))
        q, k, v, out = (x.astype(np.float64).reshape(len(x), -1, k.shape[-1]) for x in (q, k, v, out))
        group = q.shape[1] // k.shape[1]
        for p in range(0, len(q), 7):
            score = np.einsum("hgd,khd->hgk", q[p].reshape(k.shape[1], group, -1), k[:p + 1])
            weight = np.exp(score - score.max(-1, keepdims=True))
            true = np.einsum("hgk,khd->hgd", weight / weight.sum(-1, keepdims=True), v[:p + 1]).reshape(q.shape[1], -1)
            found.append(np.linalg.norm(out[p] - true, axis=-1) / np.linalg.norm(true, axis=-1))
        layer += 1
    return np.concatenate(found)


class Accuracy(unittest.TestCase):
    def check(self, what, model, **sets):
        folder = traced(model, **sets)
        exact, half = (errors(folder, arm) for arm in ARMS)
        shutil.rmtree(folder)
        print(f"{what}: rel_l2 of {len(exact)} outputs, median and largest: in integers {np.median(exact):.2e} "
              f"{exact.max():.2e}, with an f16 cache {np.median(half):.2e} {half.max():.2e}", flush=True)
        self.assertGreater(len(exact), 1000)
        self.assertLessEqual(np.median(exact), np.median(half))
        self.assertLessEqual(exact.max(), 1.5 * half.max())

    @unittest.skipUnless(os.path.exists(SHIPPED), "no shipped model")
    def test_shipped_model(self):
        with open(os.path.join(moe.SOURCE, "configs", "tiny", "heldout.txt"), encoding="utf-8") as file:
            text = file.read(2200)
        self.check("the shipped model", SHIPPED, input__prompt=text)

    def test_synthetic_with_outliers(self):
        path = moe.fresh(".gguf")
        line = [moe.PROGRAM, "synth", "--shape", "qwen3-30b-a3b", "--out", path]
        for name, value in dict(layers=3, hidden=1024, heads=8, kv_heads=2, experts=4, top_k=2, expert_width=256,
                                vocab=2048, outliers=4).items():
            line += [f"--{name.replace('_', '-')}", str(value)]
        outcome = moe.finish(moe.start(line))
        self.assertEqual(outcome.code, 0, outcome.err)
        tokens = np.random.default_rng(1).integers(0, 2048, POSITIONS).tolist()
        self.check("synthetic, four outlier channels", path, input__tokens=tokens)


if __name__ == "__main__":
    moe.main()
