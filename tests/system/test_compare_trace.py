#!/usr/bin/env python3
"""compare of traces: figures against NumPy's, folders of another program in other shapes, orders and types, what is
matched is said, what cannot be matched is refused. Which probe is named: test_planted_trace.py."""
import json
import os
import shutil
import subprocess
import unittest

import moe
import numpy as np

SEED = moe.random_seed()
SHAPE = dict(layers=3, experts=6, top_k=2, hidden=512, tokenizer=True)
MODEL = moe.model(SEED, **SHAPE)
TEXTS = [np.random.default_rng([SEED, n]).integers(0, 512, n).tolist() for n in (9, 14)]


def trace(**sets):
    keys = {"model.path": MODEL, "run.arms": ["f32@cpu", "q8k@cpu"], "run.threads": 1}
    if "input__prompts" not in sets:
        keys["input.tokens"] = TEXTS[0]
    keys |= {key.replace("__", "."): value for key, value in sets.items()}
    folder = moe.fresh()
    outcome = moe.attempt(keys, out=folder, command="trace")
    if outcome.code:
        raise AssertionError(outcome.err)
    return folder


def run(*args):
    done = subprocess.run([moe.PROGRAM, "compare", *args], capture_output=True, text=True, timeout=moe.LIMIT)
    return done.returncode, done.stdout, done.stderr


def compare(a, b):
    """Exit code, the one pair of compare.json, what was printed."""
    out = moe.fresh()
    code, printed, err = run(a, b, "--out", out)
    if code not in (0, 3):
        raise AssertionError(err)
    with open(os.path.join(out, "compare.json"), encoding="utf-8") as file:
        said = json.load(file)
    return code, said["pairs"][0], printed


def arm(folder, name):
    return os.path.join(folder, name + "@cpu")


def copied(source, change=None):
    """An arm's files as another program would leave them: no index, Qcur by llama.cpp's meaning."""
    folder = moe.fresh()
    os.mkdir(folder)
    for name in sorted(os.listdir(source)):
        numbers = np.load(os.path.join(source, name))
        if name.startswith("Qcur"):
            numbers = numbers * np.float32(np.sqrt(numbers.shape[-1]))
        np.save(os.path.join(folder, name), change(name, numbers) if change else numbers)
    return folder


class Figures(unittest.TestCase):
    def test_of_every_probe(self):
        """rel_l2, 1 - cos, max_abs, max_rel, amax, rms and max / second of blocks of 256."""
        whole = trace()
        a, b = arm(whole, "q8k"), arm(whole, "f32")
        _, pair, printed = compare(a, b)
        self.assertEqual(len(pair["probes"]), 3 + 16 * SHAPE["layers"], printed)
        chosen = {l: [np.load(os.path.join(x, f"ffn_moe_topk-{l}.npy")) for x in (a, b)] for l in range(SHAPE["layers"])}
        for probe in pair["probes"]:
            if probe["probe"] == "ffn_moe_topk":
                x, y = chosen[probe["layer"]]
                self.assertEqual(probe["flips"], sum(len(set(p) - set(q)) for p, q in zip(x, y)))
                continue
            x, y = (np.load(os.path.join(side, probe["name"] + ".npy")).astype(np.float64) for side in (a, b))
            if probe["probe"].startswith("ffn_moe_") and probe["probe"] not in ("ffn_moe_logits", "ffn_moe_out"):
                of = chosen[probe["layer"]]  # the same expert's slots
                places = [(t, i, j) for t in range(len(x)) for i, e in enumerate(of[0][t]) for j, f in enumerate(of[1][t]) if e == f]
                x, y = np.array([x[t, i] for t, i, _ in places]), np.array([y[t, j] for t, _, j in places])
            d = x - y
            unit = x / np.linalg.norm(x) - y / np.linalg.norm(y)
            expected = {"rel_l2": np.linalg.norm(d) / np.linalg.norm(y), "one_minus_cos": (unit**2).sum() / 2,
                        "max_abs": np.abs(d).max(), "max_rel": (np.abs(d) / np.maximum(np.maximum(abs(x), abs(y)), 1e-30)).max()}
            for key, value in expected.items():
                np.testing.assert_allclose(probe[key], value, rtol=1e-9, atol=1e-20, err_msg=f"{probe['name']} {key}")
            self.assertEqual(probe["differing"], np.count_nonzero(d), probe["name"])
            for side, numbers in (("a", x), ("b", y)):
                np.testing.assert_allclose(probe[side]["amax"], np.abs(numbers).max())
                np.testing.assert_allclose(probe[side]["rms"], np.sqrt((numbers**2).mean()))
                row = numbers.reshape(len(numbers), -1)
                if row.shape[1] % 256 == 0:
                    blocks = np.sort(np.abs(row.reshape(-1, 256)), 1)
                    np.testing.assert_allclose(probe[side]["max_over_second"], (blocks[:, -1] / blocks[:, -2]).max())


class Folders(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.trace = trace()

    def folder(self, change=None):
        return copied(arm(self.trace, "f32"), change)

    def explained(self, folder, words, a="f32"):
        code, pair, printed = compare(arm(self.trace, a), folder)
        self.assertEqual((code, pair["first"]), (0, None), printed)
        for word in words:
            self.assertIn(word, printed)
        return pair

    def test_a_factor_and_tokens(self):
        folder = self.folder()
        pair = self.explained(folder, ["Qcur of B times 0.125", "was not checked"])
        self.assertFalse(pair["b"]["is_trace"])
        np.save(os.path.join(folder, "tokens.npy"), np.array(TEXTS[0], np.int32))
        self.assertNotIn("was not checked", " ".join(self.explained(folder, [])["transformations"]))
        self.explained(folder, ["Qcur of B times 0.125"], a="q8k")
        np.save(os.path.join(folder, "tokens.npy"), np.array(TEXTS[0][::-1], np.int32))
        code, _, err = run(self.trace + "/f32@cpu", folder)
        self.assertEqual(code, 2)
        self.assertIn("token 0 is", err)

    def test_shapes_orders_and_types(self):
        def flat(name, x):
            return x.reshape(len(x), -1)
        self.explained(self.folder(flat), ["Qcur of B has 2 sizes instead of 3", "ffn_moe_down of B has 2 sizes"])
        self.explained(self.folder(lambda name, x: np.asfortranarray(x)), ["l_out of B is in Fortran order"])
        self.explained(self.folder(lambda name, x: x.astype(np.int64 if x.dtype == np.int32 else np.float64)), [])
        half = self.explained(self.folder(lambda name, x: x if x.dtype == np.int32 else x.astype(np.float16)), [])
        self.assertGreater(max(p["rel_l2"] or 0 for p in half["probes"]), 1e-4)

    def test_slots_in_another_order(self):
        """Experts by their number: the order of slots says so itself, and nothing else is off."""
        order = {l: np.argsort(np.load(os.path.join(arm(self.trace, "f32"), f"ffn_moe_topk-{l}.npy")), 1) for l in range(3)}
        def sort(name, x):
            probe, _, layer = name[:-4].partition("-")
            slots = probe in ("ffn_moe_topk", "ffn_moe_weights_norm", "ffn_moe_gate", "ffn_moe_up", "ffn_moe_swiglu", "ffn_moe_down")
            return np.stack([x[t][order[int(layer)][t]] for t in range(len(x))]) if slots else x
        code, pair, printed = compare(arm(self.trace, "f32"), self.folder(sort))
        self.assertIn("slots of B are put in the order of A's experts", printed)
        self.assertEqual({p["probe"] for p in pair["probes"] if p["verdict"] == "off"}, {"ffn_moe_topk"}, printed)
        self.assertEqual((code, pair["first"]), (3, "ffn_moe_topk-0"))

    def test_only_the_last_tokens(self):
        """As llama.cpp leaves the end of the last layer: of two sequences two rows."""
        whole = trace(input__prompts=["the quick brown fox", "jumps over the lazy dog, and then"])
        with open(os.path.join(whole, "index.json"), encoding="utf-8") as file:
            sequences = json.load(file)["sequences"]
        ends = [sequences.index(1) - 1, len(sequences) - 1]
        def last(name, x):
            late = name.startswith(("ffn_", "l_out")) and name.endswith("-2.npy") or name.startswith("result_")
            return x[ends] if late else x
        folder = copied(arm(whole, "f32"), last)
        code, pair, printed = compare(arm(whole, "f32"), folder)
        self.assertEqual((code, pair["first"]), (0, None), printed)
        self.assertIn("l_out of B has only the last token of each sequence", printed)
        rows = {p["name"]: p["rows"] for p in pair["probes"]}
        self.assertEqual((rows["l_out-1"], rows["l_out-2"], rows["ffn_moe_down-2"]), (len(sequences), 2, 2 * SHAPE["top_k"]))
        self.assertEqual(compare(arm(whole, "q8k"), folder)[0], 0)

    def test_few_probes(self):
        folder = self.folder()
        for name in os.listdir(folder):
            if not name.startswith(("l_out", "result_output")):
                os.remove(os.path.join(folder, name))
        pair = self.explained(folder, ["47 only in A"])
        self.assertEqual([p["name"] for p in pair["probes"]], ["l_out-0", "l_out-1", "l_out-2", "result_output"])
        self.explained(folder, ["from further back", "1 not judged"], a="q8k")
        x = np.load(os.path.join(folder, "l_out-1.npy"))
        x[3] = x[3][::-1]
        np.save(os.path.join(folder, "l_out-1.npy"), x)
        code, pair, printed = compare(arm(self.trace, "f32"), folder)
        self.assertEqual((code, pair["first"]), (3, "l_out-1"), printed)

    def test_a_probe_of_another_prompt(self):
        """A folder has more rows of a probe that the trace lacks: the trace says how many tokens there are."""
        few, folder = trace(trace__probes=["l_out", "result_output"]), self.folder()
        np.save(os.path.join(folder, "inp_embd.npy"), np.zeros((1 << 12, 512), np.float32))
        code, pair, printed = compare(arm(few, "f32"), folder)
        self.assertEqual(code, 0, printed)
        self.assertEqual([p["name"] for p in pair["probes"]], ["l_out-0", "l_out-1", "l_out-2", "result_output"])

    def test_which_arms(self):
        """Those of one path bit by bit; of another cache by name; what is left is said."""
        def arms(*given, **sets):
            return trace(run__arms=[name + "@cpu" for name in given], **sets)
        def pairs(a, b):
            out = moe.fresh()
            code, printed, err = run(a, b, "--out", out)
            with open(os.path.join(out, "compare.json"), encoding="utf-8") as file:
                found = [(p["a"]["arm"][:3], p["b"]["arm"][:3], p["by_bits"]) for p in json.load(file)["pairs"]]
            self.assertEqual(code, 0, printed + err)
            return found, printed
        found, printed = pairs(self.trace, arms("q8k", "f64"))
        self.assertEqual(found, [("q8k", "q8k", True)])
        self.assertIn("f32@cpu is only in A", printed)
        self.assertIn("f64@cpu is only in B", printed)
        other = arms("f32", "q8k", run__kv="f32")
        self.assertEqual(pairs(self.trace, other)[0], [("f32", "f32", False), ("q8k", "q8k", False)])
        self.assertEqual(pairs(arm(self.trace, "q8k"), arm(other, "f32"))[0], [("q8k", "f32", False)])

    def test_a_mixed_job(self):
        """What its experts round to is found, not known."""
        keys = {"model.path": MODEL, "input.tokens": TEXTS[0], "run.arms": ["ranks"], "ranks.arm": ["q8k@cpu", "f32@cpu"]}
        folder = moe.fresh()
        outcome = moe.attempt(keys | {"run.threads": 1}, 2, out=folder, command="trace")
        self.assertEqual(outcome.code, 0, outcome.err)
        code, pair, printed = compare(os.path.join(folder, "ranks"), arm(self.trace, "f32"))
        self.assertEqual((code, pair["first"]), (0, None), printed)
        self.assertIn("(as its errors say)", printed)

    def test_a_nan_is_off(self):
        def spoil(name, x):
            if name == "ffn_norm-1.npy":
                x = x.copy()
                x[2, 5] = np.nan
            return x
        code, pair, printed = compare(arm(self.trace, "f32"), self.folder(spoil))
        self.assertEqual((code, pair["first"]), (3, "ffn_norm-1"), printed)
        self.assertIn("a NaN or infinity", printed)

    def test_embedding(self):
        code, pair, _ = compare(arm(self.trace, "f32"), self.folder(lambda n, x: x * 1.01 if n == "inp_embd.npy" else x))
        self.assertEqual((code, pair["first"]), (3, "inp_embd"))

    def refused(self, a, b, words, code=2):
        found, out, err = run(a, b)
        self.assertEqual((found, out), (code, ""), err)
        self.assertEqual(err.count("\n"), 1, err)
        for word in words:
            self.assertIn(word, err)

    def test_what_cannot_be_compared(self):
        empty, cut, wide, other = moe.fresh(), self.folder(), self.folder(), moe.fresh()
        os.mkdir(empty)
        os.mkdir(other)
        np.save(os.path.join(other, "something.npy"), np.zeros(3))
        with open(os.path.join(cut, "Kcur-1.npy"), "r+b") as file:
            file.truncate(200)
        np.save(os.path.join(wide, "l_out-0.npy"), np.zeros((9, 5), np.float32))
        for folder, words in ((empty, [empty, "expected a trace"]), (other, [other, "expected a trace"]), (cut, ["Kcur-1.npy", "expected"]),
                              (wide, ["l_out-0.npy", "expected 9 tokens"])):
            self.refused(arm(self.trace, "f32"), folder, words)
        def narrower(which):
            return lambda name, numbers: numbers[..., :numbers.shape[-1] // 2] if name.startswith(which) else numbers

        source = arm(self.trace, "f32")
        for which, words in (("ffn_inp-", ["ffn_inp has 256 numbers", "l_out", "found 512"]),
                             ("inp_embd", ["inp_embd has 256 numbers", "l_out 512"]),
                             ("ffn_moe_up", ["so ffn_moe_up", "ffn_moe_swiglu has"]),
                             ("ffn_moe_down", ["so ffn_moe_down", "ffn_moe_out has"]),
                             ("ffn_moe_weights_norm", ["ffn_moe_weights_norm has 1 ", "so ffn_moe_topk", "found 2"]),
                             ("ffn_norm", ["ffn_norm has 256", "so ffn_inp", "found 512"])):
            self.refused(copied(source, narrower(which)), copied(source, narrower(which)), words)
        padded = self.folder()
        os.rename(os.path.join(padded, "l_out-1.npy"), os.path.join(padded, "l_out-01.npy"))  # of no layer: not compared
        self.assertIn("names that are no probe's", compare(source, padded)[2])
        self.refused(self.trace, trace(input__tokens=TEXTS[1]), ["9 and 14 tokens"])
        self.refused(self.trace, self.folder(), ["name one as FOLDER/ARM"])
        report = moe.run({"model.path": MODEL, "input.tokens": TEXTS[0], "run.arms": ["f32@cpu"]}).folder
        self.refused(self.trace, report, ["is a trace", "expected two of a kind"])
        both = moe.fresh()
        shutil.copytree(self.trace, both)
        shutil.copy(os.path.join(report, "report.json"), both)
        self.refused(both, self.trace, ["a report and a trace"])
        self.assertEqual(run(arm(both, "f32"), arm(self.trace, "f32"))[0], 0)
        index = os.path.join(both, "index.json")
        with open(index, encoding="utf-8") as file:
            tree = json.load(file)
        os.remove(os.path.join(both, "report.json"))
        for key, value in (("complete", False), ("n_tokens", 10), ("kv", None), ("kv", "\x1b]0;x"), ("schema", 9), ("arms", [])):
            with open(index, "w", encoding="utf-8") as file:
                json.dump(tree | {key: value}, file)
            self.refused(both, self.trace, ["index.json"])


if __name__ == "__main__":
    moe.main()
