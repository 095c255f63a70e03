#!/usr/bin/env python3
"""Traces: every probe of f64 against the independent float64 reference; those of q8k are the same bits over rank
layouts, cuts and backends (an emulated GPU where it is built); a mixed job; what is asked for is what is written."""
import filecmp
import json
import os
import unittest

import moe
import numpy as np
import reference

SEED = moe.random_seed()
SHIPPED = os.path.join(moe.SOURCE, "configs", "tiny", "tiny-qwen3moe-Q4_K_M.gguf")
EMULATED = os.path.join(os.path.dirname(moe.PROGRAM), "moe_run_emulated")
TEXTS = ["ROMEO\tWhat light is that which breaks upon the night?\n\n", "JULIET\tThe lark, and not the nightingale."]
BOUND = 1e-9  # relative, of f64 to the reference
EVEN = 1e-12  # a difference of two probabilities at which f64 itself may choose the other expert


def tokens_of(n):
    return np.random.default_rng([SEED, n]).integers(0, 4096, n).tolist()


class Traced:
    """What a run has written. arm: of which; a second arm of the same folder shares its index."""

    def __init__(self, folder, arm):
        self.folder, self.name = folder, arm
        with open(os.path.join(folder, "index.json"), encoding="utf-8") as file:
            self.index = json.load(file)
        self.arm = next(a for a in self.index["arms"] if a["name"] == arm)
        self.files = {(f["probe"], f["layer"]): f for f in self.arm["files"]}

    def path(self, probe, layer):
        return os.path.join(self.folder, self.files[probe, layer]["file"])

    def load(self, probe, layer):
        """Also checks what the index says of the file."""
        said = self.files[probe, layer]
        numbers = np.load(self.path(probe, layer), allow_pickle=False)
        ending = ".npy" if layer is None else f"-{layer}.npy"
        assert said["file"] == f"{self.name}/{probe}{ending}", said
        assert [numbers.dtype.name, list(numbers.shape)] == [said["type"], said["shape"]], said
        return numbers


def trace(arms, ranks=1, program=None, folder=None, **sets):
    """One Traced of each arm."""
    keys = {"model.path": SHIPPED, "run.arms": arms, "run.threads": 1}
    keys |= {key.replace("__", "."): value for key, value in sets.items()}
    folder = folder or moe.fresh()
    outcome = moe.attempt(keys, ranks, out=folder, command="trace", program=program)
    if outcome.code != 0:
        raise AssertionError(f"moe_run trace ended with {outcome.code}: {sets} on {ranks} ranks\n{outcome.err}")
    return [Traced(folder, arm) for arm in arms]


def reference_probes(index):
    """{(probe, layer): [token, ...]} of all sequences, in the order of tokens."""
    model = reference.Model(SHIPPED)
    tokens, sequences = np.array(index["tokens"]), np.array(index["sequences"])
    each = [model.probes(tokens[sequences == s]) for s in np.unique(sequences)]
    layered = {name: len(arrays) > 1 for name, arrays in each[0].items()}
    return {(name, i if layered[name] else None): np.concatenate([shown[name][i] for shown in each])
            for name in layered for i in range(len(each[0][name]))}


def distance(found, true):
    """The largest relative error of a row; of ids 0 or infinity."""
    if found.shape != true.shape:
        return np.inf
    if found.dtype == np.int32:
        return 0 if np.array_equal(found, true) else np.inf
    return float(moe.rel_l2(found, true).max())


def same_bits(a, b):
    """The probes whose files differ, of two traces that must have the same ones."""
    if a.files.keys() != b.files.keys():
        raise AssertionError(sorted(a.files.keys() ^ b.files.keys(), key=str))
    return [key for key in a.files if not filecmp.cmp(a.path(*key), b.path(*key), shallow=False)]


class Trace(unittest.TestCase):
    def check_same(self, a, b):
        self.assertEqual(same_bits(a, b), [])
        for key in ("digest", "layer_digests", "expert_paths", "path_version"):
            self.assertEqual(a.arm[key], b.arm[key])
        for key in ("tokens", "sequences", "positions", "probes", "layers", "model", "input"):
            self.assertEqual(a.index[key], b.index[key])

    def test_f64_is_the_reference(self):
        wide, narrow = trace(["f64@cpu", "f32@cpu"], input__prompts=TEXTS, run__chunk=7, run__kv="f32")
        true = reference_probes(wide.index)
        self.assertEqual(wide.files.keys(), true.keys())
        self.assertEqual(len({probe for probe, _ in true}), 19)
        self.assertEqual(len(true), 16 * wide.index["model"]["n_layers"] + 3)
        worst = {}
        for key, array in true.items():
            if key[0] == "ffn_moe_logits":  # f64 may turn the order of two experts that are as good as even
                ordered = np.sort(np.exp(array - array.max(1, keepdims=True)), 1)
                self.assertGreater(np.diff(ordered[:, -5:]).min(), EVEN, "an even choice: change the texts")
            found = wide.load(*key)
            self.assertIn(found.dtype, (np.float64, np.int32))
            error = distance(found, array)
            self.assertLessEqual(error, BOUND, key)
            worst[key[0]] = max(error, worst.get(key[0], 0))
            self.assertIn(narrow.load(*key).dtype, (np.float32, np.int32))
            self.assertLessEqual(distance(narrow.load(*key), array), 1e-4, key)
            self.check_a_planted_error_shows(found, array, key)
        print("f64 against the reference:", {name: f"{error:.0e}" for name, error in worst.items()}, flush=True)
        self.assertEqual(wide.index["n_tokens"], len(wide.index["tokens"]))
        self.assertEqual(wide.index["sequences"], sorted(wide.index["sequences"]))
        factors = {p["name"]: p["factor"] for p in wide.index["probes"]}
        self.assertEqual({name: f for name, f in factors.items() if f != 1}, {"Qcur": 1 / np.sqrt(128.0)})
        (spread,) = trace(["f64@cpu"], 3, input__prompts=TEXTS)
        self.check_same(wide, spread)

    def check_a_planted_error_shows(self, found, true, key):
        """What this test would not see, it would not have checked."""
        wrong = found.copy()
        flat = wrong.reshape(-1)
        at = np.abs(flat).argmax()
        flat[at] = (flat[at] + 1) % 16 if wrong.dtype == np.int32 else flat[at] * (1 + 1e-6)
        self.assertGreater(distance(wrong, true), BOUND, key)
        self.assertGreater(distance(found[::-1], true), BOUND, key)  # tokens out of order

    def test_ranks_and_cuts(self):
        tokens = tokens_of(3 * 64 + 7)  # enough for three ranks to share the tokens of a batch of 512
        true = None
        for ranks, chunk in ((1, 512), (1, 7), (3, 512), (3, 7)):
            (found,) = trace(["q8k@cpu"], ranks, input__tokens=tokens, run__chunk=chunk)
            true = true or found
            with self.subTest(ranks=ranks, chunk=chunk):
                self.check_same(true, found)
        other = tokens[:-1] + [(tokens[-1] + 1) % 4096]
        (found,) = trace(["q8k@cpu"], input__tokens=other)
        differ = same_bits(true, found)  # a comparison that would see nothing sees nothing here
        self.assertEqual(len(differ), len(found.files))

    @unittest.skipUnless(os.access(EMULATED, os.X_OK), "no emulated GPU")
    def test_cuda(self):
        tokens = tokens_of(9)
        (true,) = trace(["q8k@cpu"], input__tokens=tokens)
        for ranks, chunk in ((1, 8), (3, 8), (1, 3)):  # eight tokens and one, which has kernels of its own
            (found,) = trace(["q8k@cuda"], ranks, EMULATED, input__tokens=tokens, run__chunk=chunk)
            with self.subTest(ranks=ranks, chunk=chunk):
                self.check_same(true, found)
        (found,) = trace(["q8k@cuda"], 1, EMULATED, input__tokens=tokens[:3], run__chunk=1, trace__probes=["l_out"],
                         trace__layers=[1])  # with layers before and after that nobody looks at
        self.assertTrue(np.array_equal(found.load("l_out", 1), true.load("l_out", 1)[:3]))

    def test_mixed_job(self):
        keys = {"ranks__arm": ["f64@cpu", "q8k@cpu"], "ranks__shared": "q8k@cpu", "input__tokens": tokens_of(2 * 64 + 9),
                "experts__placement": "strided"}
        (true,) = trace(["ranks"], 2, **keys)  # both ranks compute the shared steps, of their tokens
        (served,) = trace(["ranks"], 2, ranks__shared_ranks=[1], **keys)
        (more,) = trace(["ranks"], 4, run__chunk=50, **keys)  # the same arm for each expert
        self.check_same(true, served)
        self.check_same(true, more)
        for key, said in true.files.items():
            self.assertEqual(said["type"], "int32" if key[0] == "ffn_moe_topk" else "float64")
        narrow = true.load("l_out", 2)
        self.assertTrue(np.array_equal(narrow, narrow.astype(np.float32)))  # of q8k's reals, widened
        experts, gate = true.load("ffn_moe_topk", 0), true.load("ffn_moe_gate", 0)
        is_narrow = (gate == gate.astype(np.float32)).all(-1)
        self.assertTrue(np.array_equal(is_narrow, experts % 2 == 1))  # odd experts are those of q8k

    def test_what_is_asked_for_is_written(self):
        folder = moe.fresh()
        trace(["q8k@cpu", "f32@cpu"], folder=folder, input__tokens=[1, 2, 3])
        kept = os.path.join(folder, "q8k@cpu", "notes.npy")
        with open(kept, "w", encoding="utf-8"):
            pass
        (found,) = trace(["q8k@cpu"], folder=folder, input__tokens=[1, 2], trace__probes=["l_out", "result_output"],
                         trace__layers=[2, 0])
        there = sorted(os.path.relpath(os.path.join(at, name), folder) for at, _, names in os.walk(folder) for name in names)
        wanted = ["l_out-0.npy", "l_out-2.npy", "notes.npy", "result_output.npy"]
        self.assertEqual(there, ["index.json"] + [f"q8k@cpu/{name}" for name in wanted])
        self.assertEqual(found.index["layers"], [0, 2])
        self.assertEqual(found.load("result_output", None).shape, (2, 4096))

    @unittest.skipUnless(os.access(moe.FAULTY, os.X_OK), "no moe_run_faulty")
    def test_a_run_that_fails_leaves_no_trace(self):
        for kind, rank in (("fail", 1), ("fail", 0), ("kill", 1)):
            folder = moe.fresh()
            line = moe.words(command="trace", out=folder, sets={"model.path": SHIPPED, "input.tokens": tokens_of(20),
                                                                "run.arms": ["q8k@cpu"], "run.threads": 1})
            outcome = moe.finish(moe.start(moe.under_mpirun([(3, [moe.FAULTY, kind, "prefill", str(rank), "none", *line[1:]])])))
            with self.subTest(kind=kind, rank=rank):
                self.assertNotIn(outcome.code, (0, None))
                if kind == "fail":  # of a killed rank mpirun tells
                    self.assertEqual(len(outcome.faults()), 1, outcome.err)
                    self.assertIn(f"rank {rank} (", outcome.err)
                named = [name for _, _, names in os.walk(folder) for name in names if not name.startswith(".")]
                self.assertEqual(named, [])

    def test_refusals(self):
        for sets, says in (({"trace.probes": ["l_outs"]}, 'trace.probes: unknown probe "l_outs": did you mean "l_out"?'),
                           ({"trace.probes": ["l_out", 1]}, "trace.probes: expected string"),
                           ({"trace.probes": ["l_out", "l_out"]}, "trace.probes: expected each probe once"),
                           ({"trace.layers": [0, 3]}, "trace.layers: "),
                           ({"trace.layers": [-1]}, "trace.layers: expected an integer from 0"),
                           ({"trace.probes": ["inp_embd"], "trace.layers": [0]}, "trace.layers: none of trace.probes")):
            for ranks in (1, 2):
                folder = moe.fresh()
                keys = {"model.path": SHIPPED, "input.tokens": [1], "run.arms": ["q8k@cpu"], "run.threads": 1}
                outcome = moe.attempt(keys | sets, ranks, out=folder, command="trace")
                self.assertEqual(outcome.code, 2)
                self.assertIn(says, outcome.err)
                self.assertEqual(outcome.err.count("rank "), 1, outcome.err)
                self.assertFalse(os.path.exists(os.path.join(folder, "index.json")))
        outcome = moe.attempt({"model.path": SHIPPED, "input.tokens": [1]}, command="trace")
        self.assertIn("expected a folder", outcome.err)
        self.assertIn("did you mean 2?", moe.attempt({"model.path": SHIPPED, "input.tokens": [1], "trace.layers": [3]},
                                                     out=moe.fresh(), command="trace").err)


if __name__ == "__main__":
    if not os.path.exists(SHIPPED):
        moe.skip("no shipped model")
    moe.main()
