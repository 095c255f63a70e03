#!/usr/bin/env python3
"""moe_run synth: the same bytes whoever writes them, a valid file, statistics as stated in docs/synth.md, sane
activations through 48 layers, outliers where they are asked for, and nothing left behind after a fault."""
import functools
import os
import signal
import time
import unittest

import moe
import numpy as np
import reference

SEED = moe.random_seed()
F32, F16, Q8_0, Q4_K, Q5_K, Q6_K = 0, 1, 8, 12, 13, 14
SMALL = {"layers": 3, "hidden": 512, "experts": 8, "top_k": 2, "vocab": 600}


def attempt(out, ranks=1, shape="tiny", flags=(), most_bytes=None, **options):
    limit = ["sh", "-c", f'ulimit -f {most_bytes >> 9} && exec "$@"', "sh"] if most_bytes else []
    line = limit + [moe.PROGRAM, "synth"] + (["--shape", shape] if shape else []) + (["--out", out] if out else [])
    for name, value in {"seed": SEED, **options}.items():
        line += ["--" + name.replace("_", "-"), str(value)]
    return moe.finish(moe.start(moe.under_mpirun([(ranks, line + list(flags))])))


def synth(ranks=1, **options):
    path = moe.fresh(".gguf")
    outcome = attempt(path, ranks, **options)
    if outcome.code != 0 or os.path.exists(path + ".partial"):
        raise AssertionError(f"synth ended with {outcome.code}: {outcome.err}{outcome.out}")
    return path


def contents(path):
    with open(path, "rb") as file:
        return file.read()


def tokens(n, vocabulary):
    return [int(t) for t in np.random.default_rng(SEED).integers(0, vocabulary, n)]


@functools.cache
def deep():
    return synth(layers=48, hidden=256, experts=32, top_k=4, vocab=512)


@functools.cache
def trace(path, n=24):
    model = reference.Model(path)
    return model, model.forward(tokens(n, model.gguf.tensors["token_embd.weight"][1][0]))


class Bytes(unittest.TestCase):
    def test_ranks_and_threads(self):
        for options in ({}, {"types": "q5_k_m", "outliers": 5}, {"types": "q8_0"},
                        {"hidden": 320, "expert_width": 80, "flags": ["--tied"]}):
            first = contents(synth(1, threads=1, **{**SMALL, **options}))
            for ranks, threads in ((1, 2), (2, 1), (3, 2)):
                with self.subTest(ranks=ranks, threads=threads, **options):
                    self.assertEqual(first, contents(synth(ranks, threads=threads, **{**SMALL, **options})))

    def test_the_seed(self):
        a, b = (reference.Gguf(synth(**SMALL, seed=seed)) for seed in (SEED, SEED + 1))
        for name in a.tensors:
            self.assertTrue((a.rows(name) != b.rows(name)).mean() > 0.5, name)

    def test_a_slice_has_the_tensors_of_the_whole(self):
        """Fewer layers or experts: the same head of the same tensors, where the mix gives them the same type."""
        whole = reference.Gguf(synth(**SMALL))
        part = reference.Gguf(synth(**{**SMALL, "layers": 2, "experts": 5}))
        same = 0
        for name, (type_, shape, raw) in part.tensors.items():
            if whole.tensors[name][0] == type_:
                same += 1
                self.assertTrue((raw == whole.tensors[name][2][:len(raw)]).all(), name)
        self.assertGreater(same, 20)


class File(unittest.TestCase):
    def test_the_q4_k_m_mix_of_48_layers(self):
        gguf = reference.Gguf(deep())
        self.assertEqual(len(gguf.tensors), 579)
        better = {*range(6), *range(8, 42, 3), *range(42, 48)}
        for name, (type_, _, _) in gguf.tensors.items():
            kind = name.split(".")[-2]
            expected = Q4_K
            if kind == "output" or (kind in ("attn_v", "ffn_down_exps") and int(name.split(".")[1]) in better):
                expected = Q6_K
            if "norm" in kind or kind == "ffn_gate_inp":
                expected = F32
            self.assertEqual(type_, expected, name)

    def test_other_mixes(self):
        for mix, types in (("q5_k_m", {F32, Q5_K, Q6_K}), ("q6_k", {F32, Q6_K}), ("q8_0", {F32, Q8_0}),
                           ("f16", {F32, F16}), ("f32", {F32})):
            gguf = reference.Gguf(synth(**SMALL, types=mix))
            self.assertEqual({type_ for type_, _, _ in gguf.tensors.values()}, types)
        tied = reference.Gguf(synth(**SMALL, flags=["--tied"]))
        self.assertEqual(tied.tensors["token_embd.weight"][0], Q6_K)
        self.assertNotIn("output.weight", tied.tensors)
        odd = reference.Gguf(synth(hidden=320, expert_width=80, layers=1))
        self.assertEqual(odd.tensors["blk.0.attn_q.weight"][0], Q8_0)
        self.assertEqual(odd.tensors["blk.0.ffn_down_exps.weight"][0], F16)

    def test_statistics(self):
        """Of each type: the stated standard deviation, a mean near 0, rows whose scale spreads."""
        for mix in ("q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16", "f32"):
            gguf = reference.Gguf(synth(**SMALL, types=mix))
            for kind, std, spread in (("ffn_gate_exps", 1, 0.25), ("ffn_down_exps", 0.35, 0.25), ("attn_q", 1, 0.25),
                                      ("ffn_gate_inp", 1.5, 0.2)):
                x = gguf.rows(f"blk.1.{kind}.weight").astype(np.float64)
                x = x.reshape(-1, x.shape[-1])
                n = len(x)
                with self.subTest(types=mix, tensor=kind):
                    measured = np.sqrt((x ** 2).mean() * x.shape[1])
                    self.assertLess(abs(measured / std - 1), 0.02 + 5 * spread / np.sqrt(n))
                    self.assertLess(abs(x.mean() / x.std()), 6 * (1 + spread) / np.sqrt(x.size / 32))
                    of_rows = np.log(x.std(1)).std()
                    self.assertLess(abs(of_rows / spread - 1), 0.15 + 5 / np.sqrt(2 * n))
                    kurtosis = ((x / x.std(1, keepdims=True)) ** 4).mean()
                    self.assertTrue(2.3 < kurtosis < 3.1, kurtosis)  # a normal number has 3, a uniform one 1.8


class Activations(unittest.TestCase):
    def test_sane_through_48_layers(self):
        _, found = trace(deep())
        rms = np.sqrt((found["layers"] ** 2).mean(-1))
        self.assertTrue(np.isfinite(found["logits"]).all())
        self.assertTrue(0.5 < rms.min() and rms.max() < 10, (rms.min(), rms.max()))
        self.assertTrue(1 < found["logits"].std() < 6, found["logits"].std())

    def test_the_router_uses_all_experts_unevenly(self):
        model, found = trace(deep(), 96)
        n = found["probability"].shape[-1]
        entropy = []
        for chosen in found["chosen"]:
            share = np.bincount(chosen.ravel(), minlength=n) / chosen.size
            entropy.append(-(share[share > 0] * np.log(share[share > 0])).sum() / np.log(n))
        print(f"usage entropy over log {n}: mean {np.mean(entropy):.3f}, least {min(entropy):.3f}")
        self.assertTrue(0.8 < np.mean(entropy) < 0.99, np.mean(entropy))
        self.assertGreater(min(entropy), 0.6)
        self.assertEqual(len(np.unique(found["chosen"])), n)

    def test_the_program_agrees_with_the_reference(self):
        for options in ({}, {"outliers": 2, "types": "q6_k"}, {"flags": ["--tied"], "outliers": 1}):
            path = synth(**SMALL, **options)
            model, expected = trace(path)
            run = moe.run({"model.path": path, "input.tokens": tokens(24, SMALL["vocab"]), "run.kv": "f32",
                           "run.arms": ["f64@cpu", "q8k@cpu"], "output.logits": True}, ranks=2)
            with self.subTest(**options):
                self.assertLess(moe.rel_l2(run.logits("f64@cpu"), expected["logits"]).max(), 1e-9)
                self.assertTrue(np.isfinite(run.logits("q8k@cpu")).all())


class Outliers(unittest.TestCase):
    def test_they_stand_far_above_their_block(self):
        for n in (0, 2):
            model, found = trace(synth(**{**SMALL, "hidden": 1024}, outliers=n))
            for layer in range(3):
                y = np.abs(model.norm(found["layers"][layer], "output_norm" if layer == 2 else f"blk.{layer + 1}.attn_norm"))
                loud = y.mean(0) > 20 * np.median(y)
                with self.subTest(outliers=n, layer=layer):
                    self.assertEqual(loud.sum(), n)

    def test_q8k_pays_for_them(self):
        error = {}
        for n in (0, 1):
            path = synth(**{**SMALL, "layers": 1}, outliers=n)
            report = moe.run({"model.path": path, "input.tokens": tokens(12, SMALL["vocab"]),
                              "run.arms": ["f64@cpu", "q8k@cpu"]}).report()
            error[n] = report["pairs"][0]["logits"]["spread"]["rel_l2"]["median"]
        self.assertGreater(error[1], 3 * error[0])


class Refusals(unittest.TestCase):
    def refused(self, words, out=None, **rest):
        outcome = attempt(out, **rest)
        self.assertNotIn(outcome.code, (0, None))
        self.assertTrue(outcome.faults(), outcome.err)
        for fault in outcome.faults():
            self.assertIn(words, fault)
        if out:
            self.assertFalse(os.path.exists(out + ".partial"))
            self.assertFalse(os.path.isfile(out))

    def test_arguments(self):
        out = moe.fresh(".gguf")
        self.refused("--shape", out, shape=None)
        self.refused("qwen3-30b-a3b", out, shape="qwen")
        self.refused("--out", None)
        self.refused("--top-k 17 of --experts 16", out, top_k=17)
        self.refused("cannot share", out, kv_heads=3)
        self.refused("--layers", out, layers=0)
        self.refused("--layers", out, layers="2x")
        self.refused("--types", out, types="q3_k")
        self.refused("--nonsense", out, nonsense=1)
        self.refused("expected a value", out, flags=["--layers"])
        self.refused("larger than any file", out, layers=4096, hidden=1 << 20, experts=65536, expert_width=1 << 20,
                     types="f32", ranks=2)

    def test_a_path_that_cannot_be_written(self):
        for ranks in (1, 2):
            self.refused("no-such-folder", os.path.join(moe.FOLDER, "no-such-folder", "x.gguf"), ranks=ranks)
        folder = moe.fresh()
        os.mkdir(folder)
        self.refused("found a folder", folder, ranks=2)

    def test_no_room(self):
        """A limit on the size of files stands for a full disk: the error comes from the same calls."""
        for ranks in (1, 3):  # MPI's own files are smaller than the limit
            self.refused("no room", moe.fresh(".gguf"), ranks=ranks, layers=48, most_bytes=64 << 20)

    def test_a_signal_leaves_nothing_behind(self):
        """A model that takes long to write, and the signals of Ctrl-C and of launchers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(signal=number):
                out = moe.fresh(".gguf")
                line = [moe.PROGRAM, "synth", "--shape", "qwen3-30b-a3b", "--layers", "2", "--threads", "1", "--out", out]
                process = moe.start(line)
                while not os.path.exists(out + ".partial") and process.poll() is None:
                    time.sleep(0.01)
                process.send_signal(number)
                self.assertEqual(moe.finish(process).code, -number)
                self.assertFalse(os.path.exists(out + ".partial"))
                self.assertFalse(os.path.exists(out))

    def test_an_old_file_stays_until_the_new_one_is_whole(self):
        path = synth(**SMALL)
        before = contents(path)
        self.assertNotEqual(attempt(path, top_k=17).code, 0)
        self.assertEqual(before, contents(path))
        self.assertEqual(attempt(path, **SMALL, ranks=2, outliers=1).code, 0)
        self.assertNotEqual(before, contents(path))


if __name__ == "__main__":
    moe.main()
