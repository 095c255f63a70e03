#!/usr/bin/env python3
"""The program's commands from outside: ranks of one job that do different things end soon with one error, and --help says of
each command what it reads."""
import concurrent.futures
import itertools
import random
import re
import subprocess
import unittest

import moe

SEED = moe.random_seed()
MODEL = moe.model(SEED, layers=1, hidden=256, heads=2, kv_heads=1, expert_width=256, vocab=384, experts=3, top_k=2)
SETS = {"model.path": MODEL, "input.tokens": list(range(40)), "run.arms": ["q8k@cpu"], "run.threads": 1, "run.generate": 2,
        "bench.prompt": [8], "bench.generate": [2], "comm.deadline": 20, "bisect.a": "f32@cpu", "bisect.b": "q8k@cpu", "bisect.budget": 3,
        "falsify.only": [1], "falsify.draws": 2}
TRACES = moe.fresh()  # one folder: where it goes is a part of the configuration
LIMIT = 150.0  # more than the deadline and MPI's start: a rank that waits so long says so
COMMANDS = ["parity", "generate", "perplexity", "trace", "bench", "inspect", "bisect", "falsify", "synth", "verify"]
MORE = ["screen", "topology", "route"]  # tested with some of the others: each pair takes a start
RUN_FAILED, ASKED_WRONG = 1, 2  # exit codes, docs/running.md
START = 30  # dist/comm.c: seconds that MPI's start may take beyond the deadline


def line(command, **sets):
    if command == "synth":
        return [moe.PROGRAM, "synth", "--shape", "tiny", "--layers", "1", "--out", moe.fresh(".gguf")]
    sets = {key.replace("__", "."): value for key, value in sets.items()}
    if command == "verify":
        few = {"run.arms": ["f64@cpu", "q8k@cpu"], "derive.draws": 2, "derive.checks": 1}
        words = moe.words(command=command, sets=SETS | few | sets)
        return words[:2] + ["--derive"] + words[2:]
    return moe.words(command=command, out=TRACES if command == "trace" else None, sets=SETS | sets)


def together(*parts):
    """A job whose ranks have the command lines of `parts`: [(ranks, line)]."""
    return moe.finish(moe.start(moe.under_mpirun(parts)), LIMIT)


def together_each(jobs):
    """Some at a time: most of a job that is refused is waiting for its end."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda parts: together(*parts), jobs))


class RanksThatDiffer(unittest.TestCase):
    def one_error(self, outcome, pattern, code=ASKED_WRONG):
        self.assertIsNotNone(outcome.code, f"no end in {LIMIT} s\n{outcome.err}")
        self.assertEqual(outcome.code, code, outcome.err)
        self.assertNotRegex(outcome.err, r"Sanitizer|received signal|on signal \d|Segmentation|Aborted|corrupt")
        self.assertEqual(len(outcome.faults()), 1, outcome.err)
        self.assertRegex(outcome.faults()[0], pattern)

    def test_the_control(self):
        for command in COMMANDS:
            outcome = together((2, line(command)))
            self.assertEqual((outcome.code, outcome.faults()), (0, []), outcome.err)

    def test_commands(self):
        chance = random.Random(SEED)
        cases = [(*chance.sample(pair, 2), chance.choice([(1, 1), (1, 2), (2, 1)]))
                 for pair in [*itertools.combinations(COMMANDS, 2), MORE, ("screen", "parity"), ("topology", "synth"), ("route", "bench")]]
        outcomes = together_each([((ranks[0], line(one)), (ranks[1], line(other))) for one, other, ranks in cases])
        for (one, other, ranks), outcome in zip(cases, outcomes):
            with self.subTest(commands=(one, other), ranks=ranks):
                self.one_error(outcome, rf"^rank 0 \(.*the command \({one} here\): expected the same on every rank, but rank "
                                        rf"{ranks[0]} \([^)]*\).* differs")

    def test_three_commands(self):
        self.one_error(together((1, line("bench")), (1, line("inspect")), (1, line("perplexity"))),
                       r"the command \(bench here\).*rank 1 \(.*, 2 \(")

    def test_configurations(self):
        changes = [{"run__chunk": 3}, {"run__arms": ["q8k@cpu", "f32@cpu"]}, {"input__tokens": list(range(41))},
                   {"run__generate": 30, "run__context": 100}, {"experts__placement": "strided"},
                   {"bench__prompt": [8, 16]}, {"comm__deadline": 1}]
        chance = random.Random(SEED)
        for change in changes:
            command, ranks = chance.choice(COMMANDS[:8]), chance.choice([(1, 1), (1, 2), (2, 1)])
            with self.subTest(command=command, ranks=ranks, **change):
                self.one_error(together((ranks[0], line(command)), (ranks[1], line(command, **change))),
                               rf"^rank 0 \(.*the configuration: expected the same .*rank {ranks[0]} \(")

    def test_models_to_write(self):
        other = [moe.PROGRAM, "synth", "--shape", "tiny", "--layers", "2", "--out", moe.fresh(".gguf")]
        self.one_error(together((1, line("synth")), (2, other)), r"the model to write: expected the same .*rank 1 \(")

    def test_a_configuration_that_one_rank_cannot_read(self):
        self.one_error(together((2, line("generate")), (1, line("generate", run__chnuk=3))),
                       r"^rank 2 \(.*unknown key \"run.chnuk\"")
        self.one_error(together((1, line("synth")), (1, [moe.PROGRAM, "synth", "--shape", "none"])),
                       r"^rank 1 \(.*none")

    def test_a_command_that_needs_no_ranks_among_those_that_do(self):
        """It ends, well or not; the others would wait for its start for ever."""
        outcome = together((1, [moe.PROGRAM, "--version"]), (1, line("parity", comm__deadline=1)))
        if 'did not call "init" before exiting' in outcome.err:  # rank 1 was in MPI_Init first: mpirun itself ends the job
            self.assertNotIn(outcome.code, (0, None), outcome.err)
        else:
            self.one_error(outcome, rf"^rank 1 \(.*: the start: after {START + 1} s, still waiting for other ranks of this job in MPI_Init",
                           RUN_FAILED)
        self.one_error(together((1, [moe.PROGRAM, "compare", "/dev/null", MODEL]), (1, line("parity"))),
                       "^moe_run: .*/dev/null")


class Help(unittest.TestCase):
    def said(self, *args):
        done = subprocess.run([moe.PROGRAM, *args, "--help"], capture_output=True, text=True, timeout=moe.LIMIT)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertLessEqual(max(map(len, done.stdout.splitlines())), 110)
        return done.stdout

    def keys(self, text):
        """The keys that a help explains, each under the heading of its section."""
        found, section = [], None
        for row in text.splitlines():
            heading, key = re.match(r"\[(\w+)\] \w", row), re.match(r"  (\w+)\.(\w+) +\S", row)
            section = heading[1] if heading else section
            if key and section:  # before the first heading is prose
                self.assertEqual(key[1], section, row)
                found.append(f"{key[1]}.{key[2]}")
        self.assertEqual(len(set(found)), len(found))
        return set(found)

    def test_all(self):
        text = self.said()
        for command in COMMANDS + MORE + ["compare"]:
            self.assertRegex(text, rf"(?m)^  {command} +\w")
        self.assertEqual(self.keys(text), set().union(*(self.keys(self.said(command)) for command in COMMANDS + MORE)))

    def test_of_a_command_says_its_keys_and_no_others(self):
        common = {"model.path", "run.arms", "run.threads", "comm.deadline"}
        some = {"parity": {"input.tokens", "run.generate", "run.top_p", "output.logits", "run.kv", "output.dir"},
                "generate": {"input.file", "run.generate", "run.seed", "output.dir"},
                "perplexity": {"input.file", "perplexity.skip", "run.context"},
                "trace": {"trace.probes", "trace.layers", "input.file", "output.dir"},
                "bench": {"bench.prompt", "bench.format", "run.seed", "run.chunk"},
                "bisect": {"bisect.tensor", "bisect.a", "input.tokens", "run.kv", "output.dir"},
                "inspect": {"experts.placement", "ranks.arm"}}
        for command, wanted in some.items():
            with self.subTest(command):
                text = self.said(command)
                found = self.keys(text)
                self.assertLessEqual(common | wanted, found)
                self.assertNotRegex(text, rf"(?m)^  ({'|'.join(set(COMMANDS) - {command})})  ")
                for other in ("bench", "perplexity", "trace", "bisect"):
                    self.assertEqual(any(key.startswith(other + ".") for key in found), command == other)
        self.assertFalse(any(key.startswith("input.") for key in self.keys(self.said("bench")) | self.keys(self.said("inspect"))))
        self.assertNotIn("run.generate", self.keys(self.said("perplexity")))

    def test_of_commands_with_options_of_their_own(self):
        for command, word in (("synth", "--shape NAME"), ("compare", "report.json")):
            text = self.said(command)
            self.assertIn(word, text)
            self.assertEqual(self.keys(text), set())


if __name__ == "__main__":
    moe.main()
