#!/usr/bin/env python3
"""Traces of llama.cpp and of transformers (launch/trace-llama-cpp, launch/trace-transformers) beside ours: every probe
is explained, what is rounded is found, and a planted fault is named against another program too.

Skipped where the packages are missing: pip install llama-cpp-python gguf torch transformers."""
import importlib.util
import os
import re
import subprocess
import sys
import unittest

import moe
import numpy as np

SEED = moe.random_seed()
SHIPPED = os.path.join(moe.SOURCE, "configs", "tiny", "tiny-qwen3moe-Q4_K_M.gguf")
PROMPTS = ["ROMEO\tWhat light is that which breaks upon the night?\n\n", "JULIET\tThe lark, and not the nightingale."]
LAUNCH = os.path.join(moe.SOURCE, "launch")
LIMIT = 300


def has(*names):
    return all(importlib.util.find_spec(name) for name in names)


HAS_LLAMA, HAS_TRANSFORMERS = has("llama_cpp"), has("torch", "transformers", "gguf")


def trace(model=SHIPPED, **sets):
    keys = {"model.path": model, "run.arms": ["f64@cpu", "f32@cpu", "q8k@cpu"], "run.threads": 1}
    if "input__tokens" not in sets:
        keys["input.prompts"] = PROMPTS
    keys |= {key.replace("__", "."): value for key, value in sets.items()}
    folder = moe.fresh()
    outcome = moe.attempt(keys, out=folder, command="trace")
    if outcome.code:
        raise AssertionError(outcome.err)
    return folder


def peer(script, model, like, *options):
    folder = moe.fresh()
    line = [sys.executable, os.path.join(LAUNCH, script), "--model", model, "--trace", like, "--out", folder, *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        raise AssertionError(done.stderr[-2000:])
    return folder


def compare(a, b):
    done = subprocess.run([moe.PROGRAM, "compare", a, b], capture_output=True, text=True, timeout=moe.LIMIT)
    return done.returncode, done.stdout + done.stderr


class Peer(unittest.TestCase):
    def explained(self, a, b, *words):
        code, printed = compare(a, b)
        self.assertEqual(code, 0, printed)
        self.assertIn(" 0 off.", printed)
        self.assertNotIn("not judged", printed)
        for word in words:
            self.assertIn(word, printed)

    def first(self, a, b):
        code, printed = compare(a, b)
        self.assertEqual(code, 3, printed)
        return re.search(r"FIRST OFF: (\S+)", printed)[1], printed


@unittest.skipUnless(HAS_LLAMA, "no llama_cpp")
class LlamaCpp(Peer):
    @classmethod
    def setUpClass(cls):
        cls.ours = trace()
        cls.theirs = peer("trace-llama-cpp", SHIPPED, cls.ours)

    def arm(self, name):
        return os.path.join(self.ours, name + "@cpu")

    def test_every_probe_is_explained(self):
        self.explained(self.arm("q8k"), self.theirs, "Qcur of B times 0.0883883476")
        for arm in ("f32", "f64"):
            self.explained(self.arm(arm), self.theirs, "B  ", "rounded to Q8_K (as its errors say)",
                           "attention of B is explained best by keys, values and queries in f16")
        self.explained(self.theirs, self.arm("q8k"), "Qcur of A times 0.0883883476")

    def test_only_the_outputs_rows(self):
        few = peer("trace-llama-cpp", SHIPPED, self.ours, "--outputs", "last")
        self.explained(self.arm("q8k"), few, "l_out of B has only the last token of each sequence")

    def test_a_cache_of_floats(self):
        self.explained(os.path.join(trace(run__kv="f32"), "q8k@cpu"), peer("trace-llama-cpp", SHIPPED, self.ours, "--kv", "f32"))

    def test_a_fault_against_another_program(self):
        path = moe.fresh(".gguf")
        with open(SHIPPED, "rb") as file:
            data = bytearray(file.read())
        key = b"qwen3moe.rope.freq_base"
        at = data.index(key) + len(key) + 4
        data[at:at + 4] = (np.frombuffer(data[at:at + 4], "<f4") * 2).astype("<f4").tobytes()
        with open(path, "wb") as file:
            file.write(data)
        for arm in ("q8k", "f32"):
            self.assertEqual(self.first(os.path.join(trace(path), arm + "@cpu"), self.theirs)[0], "Qcur-0")


@unittest.skipUnless(HAS_TRANSFORMERS, "no torch, transformers, gguf")
class Transformers(Peer):
    @classmethod
    def setUpClass(cls):
        cls.ours = trace(run__kv="f32")
        cls.theirs = peer("trace-transformers", SHIPPED, cls.ours)

    def arm(self, name):
        return os.path.join(self.ours, name + "@cpu")

    def test_every_probe_is_explained(self):
        for arm in ("f32", "f64"):
            self.explained(self.arm(arm), self.theirs, "rounded to none (as its errors say)", "explained best by no rounding")
        self.explained(self.arm("q8k"), self.theirs)

    def test_a_model_of_random_weights(self):
        model = moe.model(SEED, layers=3, experts=8, top_k=3, types="Q4_K_M", tied=True)
        ours = trace(model, input__tokens=np.random.default_rng(SEED).integers(0, 512, 30).tolist())
        theirs = peer("trace-transformers", model, ours)
        for arm in ("f32", "f64", "q8k"):
            self.explained(os.path.join(ours, arm + "@cpu"), theirs)

    def test_what_float64_still_computes_in_float32(self):
        first, printed = self.first(self.arm("f64"), peer("trace-transformers", SHIPPED, self.ours, "--dtype", "float64"))
        self.assertEqual(first, "attn_norm-0")
        self.assertIn("the norm of B is not what its own inputs give", printed)
        self.assertIn("float32 in place of float64 leaves as much", printed)


if __name__ == "__main__":
    if not HAS_LLAMA and not HAS_TRANSFORMERS:
        moe.skip("none of llama_cpp; torch, transformers and gguf")
    moe.main()
