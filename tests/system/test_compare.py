#!/usr/bin/env python3
"""moe_run compare on reports of real runs: the same bits over ranks, the layer in which a planted fault begins, and what
cannot be compared."""
import json
import os
import subprocess
import unittest

import moe

SEED = moe.random_seed()
SHAPE = dict(layers=4, experts=6, top_k=3)
MODEL = moe.model(SEED, **SHAPE)
ARMS = ["f64@cpu", "f32@cpu", "q8k@cpu"]
FAULTY = os.path.join(os.path.dirname(moe.PROGRAM), "moe_run_faulty")


def report(ranks=1, before=(), **sets):
    """The folder of a run's report."""
    command = sets.pop("command", None)
    keys = {"model.path": MODEL, "input.tokens": list(range(40)), "run.arms": ARMS, "run.threads": 1, "run.generate": 3}
    keys |= {key.replace("__", "."): value for key, value in sets.items()}
    folder = moe.fresh()
    line = [*before, *moe.words(command=command, sets=keys, out=folder)[bool(before):]]
    outcome = moe.finish(moe.start(moe.under_mpirun([(ranks, line)])))
    if outcome.code:
        raise AssertionError(outcome.err)
    return folder


def compare(a, b):
    done = subprocess.run([moe.PROGRAM, "compare", a, b], capture_output=True, text=True, timeout=moe.LIMIT)
    return done.returncode, done.stdout, done.stderr


class Compare(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.base = report()

    def test_ranks_and_cuts(self):
        for ranks, sets in ((3, {}), (2, {"run__chunk": 7, "run__rows": "portable", "run__arms": ARMS[1:]})):
            with self.subTest(ranks=ranks, **sets):
                code, out, err = compare(self.base, os.path.join(report(ranks, **sets), "report.json"))
                self.assertEqual((code, err), (0, ""), out)
                arms = sets.get("run__arms", ARMS)
                self.assertEqual(out.count("same bits\n"), len(arms), out)
                self.assertIn(f"same bits: {len(arms)} of {len(arms)}", out)
                self.assertEqual(out.count("only in A"), len(ARMS) - len(arms))

    def test_a_mixed_job_is_compared_by_its_experts_paths(self):
        mixed = {"run__arms": ["ranks"], "ranks__arm": ["q8k@cpu", "f32@cpu"]}
        one, again = report(2, **mixed), report(2, **mixed, run__chunk=5)
        self.assertEqual(compare(one, again)[0], 0)
        self.assertEqual(compare(one, report(2, **mixed, experts__placement="strided"))[0], 2)
        # all experts on one path: what it is called is no matter
        self.assertEqual(compare(report(2, run__arms=["ranks"], ranks__arm=["q8k@cpu"]), self.base)[0], 0)

    @unittest.skipUnless(os.access(FAULTY, os.X_OK), "moe_run_faulty is not built")
    def test_the_layer_in_which_a_fault_begins(self):
        for layer in (0, 2, 3):
            with self.subTest(layer=layer):
                other = report(2, before=[FAULTY, "twice", "none", str(layer), "none"])
                code, out, err = compare(self.base, other)
                self.assertEqual((code, err), (3, ""), out)
                self.assertEqual(out.count(f"differ from layer {layer} on\n"), len(ARMS), out)
                self.assertIn("OTHER BITS: 3 of 3", out)
        code, out, err = compare(self.base, report(before=[FAULTY, "none", "none", "0", "none"]))
        self.assertEqual(code, 0, out + err)

    def refused(self, a, b, words):
        code, out, err = compare(a, b)
        self.assertEqual(code, 2, out)
        self.assertEqual(out, "")
        self.assertEqual(err.count("\n"), 1, err)
        for word in words:
            self.assertIn(word, err)

    def test_what_cannot_be_compared(self):
        self.refused(self.base, report(input__tokens=list(range(39))), ["hash of the input's tokens"])
        self.refused(self.base, report(model__path=moe.model(SEED + 1, **SHAPE)), ["model's fingerprint"])
        self.refused(self.base, report(run__arms=["f32@cpu"], run__kv="f32"), ["no arm of one path", "f32@cpu v1"])

    def test_perplexity_by_the_positions_that_it_scores(self):
        def windows(**sets):
            return report(command="perplexity", run__context=16, run__generate=0, run__arms=ARMS[1:], **sets)
        half = windows()
        self.assertEqual(compare(half, windows(run__chunk=5))[0], 0)
        # -1 is the half of each window, and a short sequence's is shorter
        self.refused(half, windows(perplexity__skip=8), ["scored positions", "perplexity.skip is -1 and 8"])
        self.refused(half, self.base, ["perplexity computes windows"])

    def test_a_report_stands_beside_logits_of_its_own_run_alone(self):
        folder = moe.fresh()
        def logits(command=None, **sets):
            keys = {"model.path": MODEL, "input.tokens": [1, 2, 3], "run.threads": 1} | sets
            outcome = moe.attempt(keys, alone=True, out=folder, command=command)
            self.assertEqual(outcome.code, 0, outcome.err)
            return sorted(name for name in os.listdir(folder) if name.endswith(".npy"))
        own = {"run.arms": ARMS[:2], "output.logits": True}
        self.assertEqual(logits(**own), ["logits.f32@cpu.npy", "logits.f64@cpu.npy"])
        self.assertEqual(logits(**own | {"run.arms": ARMS[1:]}), ["logits.f32@cpu.npy", "logits.q8k@cpu.npy"])
        self.assertEqual(logits("perplexity", **own), [])
        self.assertEqual(logits(**own | {"run.arms": ARMS[2:]}), ["logits.q8k@cpu.npy"])
        self.assertEqual(logits(**{"run.arms": ARMS[:1]}), [])

    def test_what_is_no_report(self):
        path = os.path.join(self.base, "report.json")
        with open(path, encoding="utf-8") as file:
            text = file.read()
        cut, lie, pipe = moe.fresh(), moe.fresh(), moe.fresh()
        with open(cut, "w", encoding="utf-8") as file:
            file.write(text[:len(text) * 2 // 3])
        tree = json.loads(text)
        tree["arms"][2]["digest"] = f"{int(tree['arms'][2]['digest'], 16) ^ 1:016x}"
        with open(lie, "w", encoding="utf-8") as file:
            json.dump(tree, file)
        os.mkfifo(pipe)
        empty = moe.fresh()
        os.mkdir(empty)
        for other, words in ((cut, [cut, "not JSON"]), (lie, [lie, "arms[2].digest", "sum of its sequences"]),
                             (pipe, [pipe, "regular file"]), (empty, ["report.json", "No such file"]),
                             (MODEL, [MODEL, "not JSON"]), ("/dev/null", ["/dev/null", "regular file"])):
            self.refused(self.base, other, words)
            self.refused(other, self.base, words)
        for line in (["compare"], ["compare", path], ["compare", path, path, path], ["--set", "run.seed=1", "compare"]):
            done = subprocess.run([moe.PROGRAM, *line], capture_output=True, text=True, timeout=moe.LIMIT)
            self.assertEqual(done.returncode, 2, line)

    def test_a_full_standard_output(self):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([moe.PROGRAM, "compare", self.base, self.base], stdout=full, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"standard output", done.stderr)


if __name__ == "__main__":
    moe.main()
