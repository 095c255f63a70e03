#!/usr/bin/env python3
"""Known answers: bench, parity and screen hold their digests against configs/known-answers.toml by themselves; one that is
planted wrong ends them with 3 and is named, and one of another version is said not to be compared."""
import os
import re
import unittest

import moe

TABLE = os.path.join(moe.SOURCE, "configs", "known-answers.toml")
with open(TABLE, encoding="utf-8") as file:
    TEXT = file.read()
SMALL = moe.fresh(".gguf")


def altered(before, after):
    path = moe.fresh(".toml")
    assert TEXT.count(before) >= 1, before
    with open(path, "w", encoding="utf-8") as f:
        f.write(TEXT.replace(before, after))
    return path


def bench(table="", **sets):
    return moe.attempt({"model.path": SMALL, "run.arms": ["q8k@cpu"], "bench.prompt": [], "bench.generate": [32],
                        "bench.repeats": 1, "known.path": table, **sets}, command="bench", alone=True)


def screen(table=""):
    return moe.attempt({"model.path": SMALL, "screen.arms": ["q8k@cpu"], "screen.tokens": 32, "screen.seconds": 0.1,
                        "known.path": table}, command="screen", alone=True)


def parity(table=""):
    line = moe.words(config="configs/tiny.toml", sets={"known.path": table, "run.arms": ["q8k@cpu"], "run.generate": 16})
    return moe.finish(moe.start(line, cwd=moe.SOURCE))


class Known(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        options = re.search(r'\[small\]\nsynth = "([^"]+)"', TEXT).group(1).split()
        made = moe.finish(moe.start([moe.PROGRAM, "synth", *options, "--out", SMALL]))
        assert made.code == 0, made.err

    def expect(self, outcome, code, text):
        self.assertEqual(outcome.code, code, outcome.out + outcome.err)
        self.assertIn(text, outcome.out)

    def test_all_hold(self):
        self.expect(bench(), 0, "known answers: 1 of 1 hold")
        self.expect(screen(), 0, "known answers: 1 of 1 hold")
        self.expect(parity(), 0, "known answers: 2 of 2 hold")

    def test_a_wrong_answer(self):
        small = altered("add5b944d5716274", "add5b944d5716275")
        named = "known answer DIFFERS: q8k@cpu, tg32: expected add5b944d5716275 of q8k version 2, found add5b944d5716274"
        self.expect(bench(small), 3, named)
        self.expect(screen(small), 3, named.replace("q8k@cpu", "q8k"))
        self.assertIn(named, bench(small, **{"bench.format": "csv"}).err)  # standard output stays CSV
        self.expect(parity(altered("b01fc54fdceedba3", "0" * 16)), 3, "input fac9579c4660b752: expected 0000000000000000")

    def test_another_version(self):
        text = re.sub(r"(\[small\.q8k\]\nversion = )2", r"\g<1>1", TEXT)
        path = moe.fresh(".toml")
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        self.expect(bench(path), 0, "known answer not compared: q8k@cpu, tg32: it is of q8k version 1")

    def test_another_seed_has_no_answer(self):
        outcome = bench(**{"run.seed": 1})
        self.assertEqual(outcome.code, 0, outcome.err)
        self.assertNotIn("known", outcome.out)

    def test_versions_are_those_of_the_build(self):
        """So that a path's next version needs a new table."""
        out = moe.finish(moe.start([moe.PROGRAM, "--version"])).out
        versions = dict(re.findall(r"^path (\w+), version (\d+)$", out, re.MULTILINE))
        for path, version in re.findall(r"^\[\w+\.(\w+)\]\nversion = (\d+)$", TEXT, re.MULTILINE):
            self.assertEqual(versions[path], version, path)

    def test_bad_tables_are_refused(self):
        for before, after, line in (('"add5b944d5716274"', '"add5"', "expected 16 hexadecimal digits"),
                                    ("version = 2", "version = 0", "expected a version"),
                                    ("[small.q8k]\nversion = 2", "[small.q8k]", "expected the path's version before it"),
                                    ("[small.q8k]", "[small.q9k]", "expected MODEL.PATH.TEST"),
                                    ("[small]", "[small", "expected TOML")):
            outcome = bench(altered(before, after))
            self.assertEqual(outcome.code, 2, before)
            self.assertIn(line, outcome.err)


if __name__ == "__main__":
    moe.main()
