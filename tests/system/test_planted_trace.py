#!/usr/bin/env python3
"""Planted faults, each named by layer and probe: a step of one layer that computes something else
(support/planted_trace.c), and models with one thing altered. Each against the honest trace of the same arm and, where
the fault is more than a last bit, of another arm. Honest traces of any two arms hold nothing that is off."""
import json
import os
import random
import shutil
import struct
import subprocess
import unittest

import gguf_random
import moe
import numpy as np
import reference

SEED = moe.random_seed()
SHAPE = dict(layers=4, experts=8, top_k=3, types="Q4_K_M")
MODEL = moe.model(SEED, **SHAPE)
TOKENS = np.random.default_rng([SEED, 1]).integers(0, 512, 40).tolist()
PROGRAM = os.path.join(os.path.dirname(moe.PROGRAM), "moe_run_planted_trace")
ARMS = ["f64@cpu", "f32@cpu", "q8k@cpu"]
FILLING = 12  # elements of a row of the model with ties


def trace(model=MODEL, fault=None, layer=0, ranks=1, arms=ARMS, tokens=TOKENS, **sets):
    """The folder of a trace. fault: of moe_run_planted_trace, in this layer."""
    keys = {"model.path": model, "input.tokens": tokens, "run.arms": arms, "run.threads": 1}
    keys |= {key.replace("__", "."): value for key, value in sets.items()}
    folder = moe.fresh()
    line = moe.words(command="trace", sets=keys, out=folder)
    if fault:
        line = [PROGRAM, fault, str(layer), *line[1:]]
    outcome = moe.finish(moe.start(moe.under_mpirun([(ranks, line)])))
    if outcome.code:
        raise AssertionError(f"a trace with {fault} ended with {outcome.code}: {outcome.err}")
    return folder


def compare(a, b):
    """Exit code, compare.json, what was printed."""
    out = moe.fresh()
    done = subprocess.run([moe.PROGRAM, "compare", a, b, "--out", out], capture_output=True, text=True, timeout=moe.LIMIT)
    if done.returncode not in (0, 3):
        raise AssertionError(f"compare {a} {b} ended with {done.returncode}: {done.stderr}")
    with open(os.path.join(out, "compare.json"), encoding="utf-8") as file:
        return done.returncode, json.load(file), done.stdout


def altered(name, change, model=MODEL):
    """A copy of the model in which `change` has been at a tensor's bytes, [blocks, bytes] in place."""
    path = moe.fresh(".gguf")
    shutil.copyfile(model, path)
    type_, _, raw = reference.Gguf(path).tensors[name]
    at = raw.__array_interface__["data"][0] - raw.base.__array_interface__["data"][0]
    whole = np.memmap(path, np.uint8, "r+")
    change(whole[at:at + raw.size].reshape(-1, reference.TYPES[type_][2]), type_)
    whole.flush()
    return path


def scales_times(factor):
    """All scales of the blocks: f16 at the start, dmin too, or at the end of Q6_K."""
    def change(blocks, type_):
        for at in {gguf_random.Q4_K: (0, 2), gguf_random.Q5_K: (0, 2), gguf_random.Q6_K: (208,)}[type_]:
            scale = blocks[:, at:at + 2].copy().view("<f2")
            blocks[:, at:at + 2] = (scale.astype(np.float64) * factor).astype("<f2").view(np.uint8)
    return change


def transposed_expert(expert, n_experts):
    """The quants of each block of one expert, seen as 16 by 16, transposed; scales and minimums stay."""
    def change(blocks, type_):
        own = blocks.reshape(n_experts, -1, blocks.shape[1])[expert]
        if type_ == gguf_random.Q4_K:
            quants = reference._nibbles(own[:, 16:].copy()).reshape(-1, 16, 16).transpose(0, 2, 1)
            own[:, 16:] = gguf_random._pack_nibbles(np.ascontiguousarray(quants).reshape(-1, 8, 32))
        else:  # Q6_K: the low and high bits' bytes, each transposed as they lie
            own[:, :128] = own[:, :128].reshape(-1, 8, 16).transpose(0, 2, 1).reshape(-1, 128).copy()
    return change


def experts_rolled(n_experts):
    """Expert e has the weights of e - 1."""
    def change(blocks, type_):
        experts = blocks.reshape(n_experts, -1)
        experts[:] = np.roll(experts, 1, axis=0).copy()
    return change


def rope_base_times(factor):
    path = moe.fresh(".gguf")
    with open(MODEL, "rb") as file:
        data = bytearray(file.read())
    key = b"qwen3moe.rope.freq_base" + struct.pack("<I", gguf_random.FLOAT32)
    at = data.index(key) + len(key)
    data[at:at + 4] = struct.pack("<f", struct.unpack("<f", data[at:at + 4])[0] * factor)
    with open(path, "wb") as file:
        file.write(data)
    return path


def model_with_ties():
    """Layer 0's attn_norm gives n + 1/2 steps of Q8_K: an embedding whose mean square is 4 less epsilon, so that the
    norm halves it exactly, of an element of 127 steps, halves of odd numbers, and a few that fill up."""
    own_type, own_rows, own_norm = gguf_random._type_of, gguf_random._rows, gguf_random._norm_values

    def type_of(p, kind, layer, columns):
        return gguf_random.F32 if kind == "token_embd" else own_type(p, kind, layer, columns)

    def rows(p, seed, kind, layer, n, columns, rng):
        if kind != "token_embd":
            return own_rows(p, seed, kind, layer, n, columns, rng)
        step = 1 / 16  # of Q8_K, before the norm's half
        x = (rng.integers(-48, 48, (n, columns)) + 0.5) * step
        x[:, 0] = 127 * step
        for i in range(1, FILLING + 1):
            rest = columns * (4 - p["eps"]) - (x[:, :i] ** 2).sum(1) - (x[:, FILLING + 1:] ** 2).sum(1)
            x[:, i] = np.sqrt(rest / (FILLING + 1 - i)).astype(np.float32)
        assert (x[:, 1:FILLING + 1] < 126 * step).all()
        return x.astype(np.float32)

    def norm_values(p, seed, kind, layer, n, rng):
        values = own_norm(p, seed, kind, layer, n, rng)
        return np.ones_like(values) if kind == "attn_norm" and layer == 0 else values

    gguf_random._type_of, gguf_random._rows, gguf_random._norm_values = type_of, rows, norm_values
    try:
        return moe.model(SEED, **SHAPE, eps=2.0**-20)
    finally:
        gguf_random._type_of, gguf_random._rows, gguf_random._norm_values = own_type, own_rows, own_norm


def share_of_ties(folder):
    """Of layer 0's attn_norm, how many numbers are n + 1/2 steps of Q8_K."""
    x = np.load(os.path.join(folder, "q8k@cpu", "attn_norm-0.npy")).reshape(-1, 256)
    steps = x * (127 / np.abs(x).max(1, keepdims=True))
    return np.mean(np.abs(steps) % 1 == 0.5)


class Planted(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.honest = {kv: trace(run__kv=kv) for kv in ("f16", "f32")}

    def named(self, first, a, b, words=()):
        """Both ways: the fault in A, the fault in B."""
        for one, other in ((a, b), (b, a)):
            code, said, printed = compare(one, other)
            self.assertEqual((code, said["first"]), (3, first), printed)
            self.assertIn(f"FIRST OFF: {first} ", printed)
            for word in words:
                self.assertIn(word, printed)

    def arm(self, name, kv="f16"):
        return os.path.join(self.honest[kv], name)

    def test_honest_arms(self):
        for kv, folder in self.honest.items():
            again = trace(run__kv=kv, ranks=3, run__chunk=7)
            code, said, printed = compare(folder, again)
            self.assertEqual((code, said["first"], len(said["pairs"])), (0, None, 3), printed)
            self.assertEqual({p["verdict"] for pair in said["pairs"] for p in pair["probes"]}, {"equal"})
            for a, b in (("f32", "f64"), ("q8k", "f64"), ("f32", "q8k")):
                code, said, printed = compare(self.arm(a + "@cpu", kv), os.path.join(again, b + "@cpu"))
                self.assertEqual((code, said["first"]), (0, None), printed)
                self.assertFalse(said["pairs"][0]["by_bits"])
        code, said, printed = compare(self.arm("f32@cpu", "f16"), self.arm("f32@cpu", "f32"))
        self.assertEqual((code, said["pairs"][0]["by_bits"]), (0, False), printed)

    @unittest.skipUnless(os.access(PROGRAM, os.X_OK), "moe_run_planted_trace is not built")
    def test_arithmetic_of_one_layer(self):
        self.assertEqual(compare(self.honest["f16"], trace(fault="none"))[0], 0)
        for fault, probe in (("next_expert", "ffn_moe_topk"), ("no_best_expert", "ffn_moe_topk"),
                             ("even_weights", "ffn_moe_weights_norm"), ("no_first_slot", "ffn_moe_out"),
                             ("stale_key", "kqv_out")):
            layer = random.randrange(SHAPE["layers"])
            with self.subTest(fault=fault, layer=layer):
                faulty = trace(fault=fault, layer=layer)
                for arm in ARMS if fault != "stale_key" else ARMS[:2]:
                    self.named(f"{probe}-{layer}", os.path.join(faulty, arm), self.arm(arm))
                for arm, other in ((ARMS[0], ARMS[1]), (ARMS[1], ARMS[2])):
                    self.named(f"{probe}-{layer}", os.path.join(faulty, arm), self.arm(other),
                               ["is not what its own inputs give"])

    @unittest.skipUnless(os.access(PROGRAM, os.X_OK), "moe_run_planted_trace is not built")
    def test_the_order_of_a_sum(self):
        """Last bits, which two paths explain and one does not."""
        for layer in (0, 2):
            faulty = trace(fault="slot_order", layer=layer)
            for arm in ARMS:
                self.named(f"ffn_moe_out-{layer}", os.path.join(faulty, arm), self.arm(arm), ["other bits"])
            self.assertEqual(compare(os.path.join(faulty, ARMS[1]), self.arm(ARMS[0]))[0], 0)

    @unittest.skipUnless(os.access(PROGRAM, os.X_OK), "moe_run_planted_trace is not built")
    def test_halves_away_from_zero(self):
        model = model_with_ties()
        honest = trace(model, arms=["q8k@cpu"])
        self.assertGreater(share_of_ties(honest), 0.5)
        self.named("Qcur-0", trace(model, fault="half_away", layer=0, arms=["q8k@cpu"]), honest, ["other bits"])

    def test_scales_of_one_matrix(self):
        layer = random.randrange(SHAPE["layers"])
        for matrix, probe in (("attn_v", "Vcur"), ("attn_output", "ffn_inp"), ("ffn_gate_exps", "ffn_moe_gate"),
                              ("ffn_up_exps", "ffn_moe_up"), ("ffn_down_exps", "ffn_moe_down")):
            with self.subTest(matrix=matrix, layer=layer):
                faulty = trace(altered(f"blk.{layer}.{matrix}.weight", scales_times(1.001)), arms=ARMS[:2], run__kv="f32")
                for arm, other in ((ARMS[1], ARMS[1]), (ARMS[1], ARMS[0])):
                    self.named(f"{probe}-{layer}", os.path.join(faulty, arm), self.arm(other, "f32"))

    def test_other_weights(self):
        layer, n = random.randrange(SHAPE["layers"]), SHAPE["experts"]
        chosen = np.load(os.path.join(self.arm("f64@cpu"), f"ffn_moe_topk-{layer}.npy"))
        expert = int(chosen[random.randrange(len(chosen)), 0])
        for what, model, first in (
                ("base", rope_base_times(0.5), "Qcur-0"),
                ("transposed", altered(f"blk.{layer}.ffn_down_exps.weight", transposed_expert(expert, n)), f"ffn_moe_down-{layer}"),
                ("rolled", altered(f"blk.{layer}.ffn_gate_exps.weight", experts_rolled(n)), f"ffn_moe_gate-{layer}")):
            with self.subTest(what=what, first=first):
                faulty = trace(model)
                for arm, other in ((0, 0), (1, 0), (2, 1), (2, 2)):
                    self.named(first, os.path.join(faulty, ARMS[arm]), self.arm(ARMS[other]), ["the models' files differ"])
        code, said, _ = compare(os.path.join(faulty, ARMS[1]), self.arm(ARMS[0]))
        self.assertEqual(code, 3)


if __name__ == "__main__":
    moe.main()
