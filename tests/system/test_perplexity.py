#!/usr/bin/env python3
"""moe_run perplexity: each sequence's digest is its own, and a fault stands on a line of its own."""
import os
import pty
import re
import subprocess
import unittest

import moe

SEED = moe.random_seed()
MODEL = moe.model(SEED, tokenizer=True, context=64, layers=2)
PROMPTS = ["The first text, which is long enough for two windows.", "Another one: 12 + 30 = 42, as all of us know.",
           "And a third."]


class Perplexity(unittest.TestCase):
    def sequences(self, prompts, **sets):
        keys = {"model.path": MODEL, "input.prompts": prompts, "run.context": 8, "run.threads": 1, "run.arms": ["q8k@cpu"]}
        arm = moe.run(keys | sets, command="perplexity").arm("q8k@cpu")
        self.assertEqual(arm["digest"], moe.digest_sum(s["digest"] for s in arm["sequences"]))
        context = sets.get("run.context", 8)
        windows = [(n // min(n, context), min(n, context)) for n in (s["tokens"] for s in arm["sequences"])]
        self.assertEqual(arm["scored"], sum(n * (width - 1 - width // 2) for n, width in windows))
        return arm["sequences"]

    def test_each_sequence_has_its_own_digest(self):
        together = self.sequences(PROMPTS)
        self.assertEqual(len({s["digest"] for s in together}), len(PROMPTS))
        for prompt, found in zip(PROMPTS, together):
            self.assertEqual(self.sequences([prompt]), [found])
        self.assertEqual(self.sequences(PROMPTS, **{"run.chunk": 3}), together)

    def test_a_sequence_shorter_than_the_context_is_one_window(self):
        short, long = PROMPTS[2], PROMPTS[0]
        together = self.sequences([long, short], **{"run.context": 48})
        self.assertEqual(self.sequences([short], **{"run.context": 48}), [together[1]])
        self.assertEqual(self.sequences([short], **{"run.context": 20}), [together[1]])

    def test_a_sequence_of_which_nothing_is_scored_is_refused(self):
        keys = {"model.path": MODEL, "run.context": 8, "run.threads": 1, "run.arms": ["q8k@cpu"]}
        for sets, sequence in (({"input.prompts": PROMPTS, "perplexity.skip": 7}, 0), ({"input.tokens": [5]}, 0),
                               ({"input.prompts": [PROMPTS[0], "A"]}, 1)):
            outcome = moe.attempt(keys | sets, 2, command="perplexity")
            self.assertEqual(len(outcome.faults()), 1, outcome.err)
            self.assertRegex(outcome.faults()[0], rf"of sequence {sequence} no token is scored.*perplexity\.skip")

    def test_a_fault_does_not_stand_on_the_line_of_progress(self):
        path = moe.fresh(".gguf")
        with open(MODEL, "rb") as source, open(path, "wb") as file:
            data = source.read()
            file.write(data)
        keys = {"model.path": path, "input.tokens": [1, 2, 3, 4] * 8000, "run.context": 64, "run.threads": 1,
                "run.arms": ["f64@cpu"]}
        master, terminal = pty.openpty()
        process = subprocess.Popen(moe.words(command="perplexity", sets=keys), stderr=terminal,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        os.close(terminal)
        shown = b""
        try:
            while b" tokens, " not in shown:
                shown += os.read(master, 4096)
            with open(path, "r+b") as file:  # all weights become NaN
                file.seek(len(data) // 2)
                file.write(b"\xff" * (len(data) - len(data) // 2))
            while True:
                shown += os.read(master, 4096)
        except OSError:  # the terminal's other end is closed
            pass
        os.close(master)
        self.assertEqual(process.wait(moe.LIMIT), 1, shown)
        self.assertTrue(re.search(rb"[\n\r\x1b]\[?K?rank 0 \([^\n]*the file changed", shown), shown)
        self.assertFalse(re.search(rb" left[^\r]*rank 0", shown), shown)


if __name__ == "__main__":
    moe.main()
