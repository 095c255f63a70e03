#!/usr/bin/env python3
"""moe_run route: counts of what an arm chooses, whatever computes it; what is printed follows from them; and
experts.counts takes them as it takes the choices themselves, or says what is wrong with a file."""
import os
import re
import unittest

import moe

np = moe.np
SHAPE = {"layers": 3, "hidden": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "experts": 8, "top_k": 3,
         "expert_width": 256, "vocab": 500}
TOKENS = [(37 * t) % 500 for t in range(150)]
ASKED_WRONG = 2  # exit code, docs/running.md


class Route(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.keys = {"model.path": moe.model(moe.random_seed(), **SHAPE), "run.arms": ["q8k@cpu"], "input.tokens": TOKENS,
                    "run.threads": 1, "run.context": 150}
        cls.folder = moe.run(cls.keys | {"output.routes": True}, 1).folder
        cls.routes = np.load(os.path.join(cls.folder, "routes.npy"))
        cls.counts = np.stack([np.bincount(layer.ravel(), minlength=8) for layer in cls.routes])

    def route(self, ranks=1, **sets):
        sets = {key.replace("__", "."): value for key, value in sets.items()}
        outcome = moe.attempt(self.keys | sets, ranks, out=moe.fresh(), command="route")
        self.assertEqual((outcome.code, outcome.faults()), (0, []), outcome.err)
        return outcome, np.load(os.path.join(outcome.folder, "counts.npy"))

    def test_counts(self):
        for ranks, chunk in ((1, 0), (2, 7), (3, 64)):
            with self.subTest(ranks=ranks, chunk=chunk):
                _, counts = self.route(ranks, run__chunk=chunk)
                self.assertEqual((counts.dtype, counts.shape), (np.int32, (3, 8)))
                np.testing.assert_array_equal(counts, self.counts)

    def test_windows(self):
        """The last one is shorter: the counts of windows as texts of their own."""
        pieces = [TOKENS[:40], TOKENS[40:80], TOKENS[80:120], TOKENS[120:]]
        _, counts = self.route(2, run__context=40)
        of_pieces = [self.route(run__context=0, input__tokens=piece)[1] for piece in pieces]
        np.testing.assert_array_equal(counts, sum(of_pieces))

    def test_what_is_printed(self):
        outcome, _ = self.route()
        rows = [[float(x) for x in row.strip("|").split("|")] for row in re.findall(r"(?m)^\| \d.*\|$", outcome.out)]
        mean = 150 * 3 / 8
        for layer, row in enumerate(rows[:3]):
            of = self.counts[layer]
            wanted = [layer, of.argmax(), of.max() / mean, of.argmin(), of.min() / mean, (of == 0).sum()]
            np.testing.assert_allclose(row, wanted, atol=0.0051)
        self.assertEqual([row[0] for row in rows[3:]], [2, 4, 8])
        for ranks, contiguous, counted in rows[3:]:
            load = self.counts.reshape(3, int(ranks), -1).sum(2)
            self.assertAlmostEqual(contiguous, load.max(1).sum() * ranks / self.counts.sum(), delta=0.00051)
            self.assertLessEqual(counted, contiguous + 0.00051)
            self.assertGreaterEqual(counted, 1 - 0.00051)

    def test_the_placement(self):
        """That of the counts is that of the choices."""
        found = set()
        outcome, _ = self.route()
        for file in (os.path.join(self.folder, "routes.npy"), os.path.join(outcome.folder, "counts.npy")):
            for ranks in (2, 3):
                run = moe.run(self.keys | {"experts.placement": "counted", "experts.counts": file, "experts.replicas": 1}, ranks)
                report = run.report()["run"]
                found.add((ranks, report["expert_map"], report["counted_load"], report["contiguous_load"]))
        self.assertEqual(len(found), 2)

    def refused(self, pattern, command="route", **sets):
        sets = {key.replace("__", "."): value for key, value in sets.items()}
        for ranks in (1, 2):
            outcome = moe.attempt(self.keys | sets, ranks, out=moe.fresh(), command=command)
            self.assertEqual(outcome.code, ASKED_WRONG, outcome.err)
            self.assertEqual(len(outcome.faults()), 1, outcome.err)
            self.assertRegex(outcome.faults()[0], pattern)
            self.assertFalse(os.path.exists(os.path.join(outcome.folder, "counts.npy")))

    def test_two_arms(self):
        self.refused(r"run\.arms: route counts the choices of one arm, found 2", run__arms=["q8k@cpu", "f32@cpu"])

    def test_files_of_counts(self):
        def changed(edit):
            path = moe.fresh(".npy")
            np.save(path, edit(self.counts.astype(np.int64)))
            return path

        def other(layer, expert, value):
            def edit(counts):
                counts[layer, expert] = value
                return counts
            return edit

        for said, edit in ((r"expected \[3, 8\] \(layers, experts\), found \[2, 8\]", lambda counts: counts[:2]),
                           (r"\[3, 7\]", lambda counts: counts[:, :7]),
                           (r"\[1, 2\]: expected a count from 0 to 2147483647, found -1", other(1, 2, -1)),
                           (r"\[0\]: expected counts that sum to 3 for each token", lambda counts: counts * 0),
                           (r"\[2\]: .* and another before", other(2, 0, 10**6)),
                           (r"expected int32 or int64, found float64", lambda counts: counts.astype(float)),
                           (r"expected the shape \[n_layers, n_token, top_k\], found 1 dimensions", lambda counts: counts.ravel())):
            path = changed(edit)
            with self.subTest(said):
                self.refused(rf"{re.escape(path)}.*{said}|{re.escape(path)}{said}", "parity", experts__placement="counted",
                             experts__counts=path)


if __name__ == "__main__":
    moe.main()
