#!/usr/bin/env python3
"""Faults in mid-run: a rank killed, stopped, gone or failed in each phase, a model file cut short or changed under
its map, a disk that is too small. All ranks end, with a non-zero code and in time, with one message that names the
rank and the cause; a good report that was there is whole or gone."""
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
import unittest

import moe

LIMIT = 30.0
DEADLINE = 3.0
PLANTED_LIMIT, PLANTED_DEADLINE = 90.0, 8.0  # the deadline: longer than all turns to speak (comm_turn_seconds)
PHASES = ("load", "prefill", "exchange", "report", "end")
# much to write
SHAPE = dict(layers=4, hidden=256, heads=2, kv_heads=1, expert_width=256, experts=6, top_k=4, context=20000)
MODEL = moe.model(moe.random_seed(), **SHAPE)


def long_run(model=MODEL, **sets):
    """Three ranks that decode for many seconds."""
    keys = {"model.path": model, "input.tokens": [1, 2, 3], "run.arms": ["q8k@cpu"], "run.threads": 1,
            "run.generate": 19000, "comm.deadline": DEADLINE}
    return moe.Job(keys | {key.replace("__", "."): value for key, value in sets.items()}, 3)


@unittest.skipUnless(os.access(moe.FAULTY, os.X_OK), "moe_run_faulty is not built")
class Faults(unittest.TestCase):
    def ended(self, job, outcome):
        self.assertIsNotNone(outcome.code, f"no end in {LIMIT} s\n{outcome.err}")
        self.assertNotEqual(outcome.code, 0)
        patience = time.monotonic() + 20  # mpirun does not wait for those that it ends
        while any(map(self.lives, job.ranks.values())) and time.monotonic() < patience:
            time.sleep(0.1)
        self.assertEqual([rank for rank, pid in job.ranks.items() if self.lives(pid)], [], "ranks that live on")
        self.assertNotIn("report.json", os.listdir(outcome.folder))

    def lives(self, pid):
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    def test_a_rank_killed(self):
        for rank in (0, 1):
            with self.subTest(rank=rank):
                job = long_run()
                job.signal(rank, signal.SIGKILL)
                outcome = job.finish(LIMIT)
                self.ended(job, outcome)
                self.assertRegex(outcome.err, rf"rank {rank}\b.*signal 9")  # mpirun's line

    def test_a_rank_stopped(self):
        shares = {"run__arms": ["ranks"], "ranks__arm": ["q8k@cpu"], "ranks__shared_ranks": [0]}
        for rank, sets in ((0, {}), (2, {}), (0, shares), (2, shares)):
            with self.subTest(rank=rank, **sets):
                job = long_run(**sets)
                job.signal(rank, signal.SIGSTOP)
                outcome = job.finish(LIMIT)
                self.ended(job, outcome)
                self.assertGreater(outcome.seconds, DEADLINE - 1)
                # mpirun continues a stopped process before it ends it
                faults = [fault for fault in outcome.faults() if not fault.startswith(f"rank {rank} ")]
                self.assertTrue(faults, outcome.err)
                for fault in faults:
                    self.assertRegex(fault, rf"decoded token \d+: (.*layer \d+|the tokens written)\b.*"
                                            rf"deadline.*waiting for rank .*\b{rank} \(")

    def test_the_file_cut_short(self):
        path = moe.fresh(".gguf")
        shutil.copy(MODEL, path)
        parts = moe.model(moe.random_seed(), split=3, **SHAPE)
        for model, cut in ((path, path), (parts, parts.replace("00001-of", "00003-of"))):
            with self.subTest(cut=cut):
                job = long_run(model)
                job.since = time.monotonic()
                os.truncate(cut, os.path.getsize(cut) // 8)
                outcome = job.finish(LIMIT)
                self.ended(job, outcome)
                self.assertTrue(outcome.faults(), outcome.err)
                for fault in outcome.faults():
                    self.assertRegex(fault, r"^rank \d+ \(")
                    self.assertIn(cut, fault)
                self.assertLessEqual(len(outcome.faults()), 3)


@unittest.skipUnless(os.access(moe.FAULTY, os.X_OK), "moe_run_faulty is not built")
class Planted(unittest.TestCase):
    """A fault in a phase that is met for certain: tests/support/planted_fault.c. The output folder holds a good report."""
    RANKS = 3

    @classmethod
    def setUpClass(cls):
        cls.model = moe.model(moe.random_seed(), **(SHAPE | dict(layers=3)))
        cls.good = moe.run(cls.keys(cls.model), cls.RANKS).folder

    @staticmethod
    def keys(model):
        return {"model.path": model, "input.tokens": [1, 2, 3], "run.arms": ["q8k@cpu"], "run.threads": 1,
                "comm.deadline": PLANTED_DEADLINE, "output.logits": True}

    def attempt(self, kind, phase, rank):
        """A model of its own, which the fault may spoil, and a copy of the good folder."""
        model, folder = moe.fresh(".gguf"), moe.fresh()
        shutil.copy(self.model, model)
        shutil.copytree(self.good, folder)
        line = [moe.FAULTY, kind, phase, str(rank), model, *moe.words(sets=self.keys(model), out=folder)[1:]]
        outcome = moe.finish(moe.start(moe.under_mpirun([(self.RANKS, line)])), PLANTED_LIMIT, folder)
        outcome.model = model
        return outcome

    def left(self, folder):
        """Processes with the folder in their command line; mpirun does not wait for those that it ends."""
        found, patience = [], time.monotonic() + 20
        while time.monotonic() < patience:
            found = []
            for name in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open(f"/proc/{name}/cmdline", "rb") as file:
                        found += [name] if os.fsencode(folder) + b"\0" in file.read() else []
                except OSError:
                    pass
            if not found:
                break
            time.sleep(0.1)
        return found

    def ended(self, outcome, phase, rank):
        self.assertIsNotNone(outcome.code, f"no end in {PLANTED_LIMIT} s\n{outcome.err}")
        self.assertNotEqual(outcome.code, 0)
        self.assertIn("planted: ", outcome.err)
        self.assertNotIn("planted: a rank ended with 0", outcome.err)
        self.assertEqual(self.left(outcome.folder), [], "processes that live on")
        self.whole_report(outcome, may_be_new=phase in ("report", "end"))

    @staticmethod
    def files(folder):
        return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir() if path.name[0] != "."}

    def whole_report(self, outcome, may_be_new):
        """The old report and its files; or, where it was time for a new one, that one or none."""
        old, new = self.files(self.good), self.files(outcome.folder)
        if not may_be_new or new.get("report.json") == old["report.json"]:
            self.assertEqual(old, new)
        elif "report.json" in new:
            self.assertTrue(json.loads(new["report.json"])["complete"])
            self.assertEqual(old.keys(), new.keys())

    def each(self, cases, check):
        """Some at a time: most of a case is waiting."""
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for case, outcome in zip(cases, pool.map(lambda case: self.attempt(*case), cases)):
                with self.subTest(case=case):
                    self.ended(outcome, case[1], case[2])
                    check(outcome, *case)

    def one_fault(self, outcome, pattern):
        self.assertEqual(len(outcome.faults()), 1, outcome.err)
        self.assertRegex(outcome.faults()[0], pattern)

    def test_nothing_planted(self):
        outcome = self.attempt("none", "none", 0)
        self.assertEqual(outcome.code, 0, outcome.err)
        self.assertEqual(outcome.err.count("planted: a rank ended with 0"), self.RANKS)
        self.whole_report(outcome, True)

    def test_killed(self):
        def check(outcome, kind, phase, rank):
            self.assertRegex(outcome.err, rf"rank {rank}\b.*signal 9")  # mpirun's line
            self.assertEqual(outcome.faults(), [])

        self.each([("kill", phase, rank) for phase in PHASES for rank in (0, 2)], check)

    def test_stopped(self):
        waits = {"load": "the check of the weights", "prefill": "the exchange of layer 1", "end": "the end of MPI",
                 "exchange": "the exchange of layer [12]",
                 "report": "(reducing the comparison|the files of the comparison|writing the report)"}

        def check(outcome, kind, phase, rank):
            self.assertGreater(outcome.seconds, PLANTED_DEADLINE - 1)
            # mpirun continues a stopped process before it ends it
            outcome.err = "\n".join(line for line in outcome.err.splitlines() if not line.startswith(f"rank {rank} "))
            missing = "" if phase == "end" else rf" .*\b{rank} \("
            # mostly the lowest of the others says it; on a loaded machine one of them may be an exchange ahead
            self.assertIn(len(outcome.faults()), range(1, self.RANKS), outcome.err)
            for fault in outcome.faults():
                self.assertRegex(fault, rf"^rank \d \(.*{waits[phase]}.*deadline.*waiting for .*rank{missing}")

        self.each([("stop", phase, rank) for phase in PHASES for rank in (0, 2)], check)

    def test_gone_without_a_word(self):
        def check(outcome, kind, phase, rank):
            self.assertRegex(outcome.err, rf"rank {rank}\b")

        self.each([("leave", "prefill", 1), ("leave", "report", 0)], check)

    def test_failed(self):
        def check(outcome, kind, phase, rank):
            self.one_fault(outcome, rf"^rank {rank} \(.*a fault was planted in {phase}")

        self.each([("fail", phase, rank) for phase in ("load", "prefill", "report") for rank in (0, 2)], check)

    def test_the_file_cut(self):
        def check(outcome, kind, phase, rank):
            self.one_fault(outcome, rf"^rank \d \(.*{re.escape(outcome.model)}.*(cut short|changed)")

        self.each([("cut", "load", 0), ("cut", "load", 2), ("cut", "prefill", 1)], check)

    def test_the_file_changed(self):
        def check(outcome, kind, phase, rank):
            self.one_fault(outcome, rf"^rank \d \(.*{re.escape(outcome.model)}: the file changed")

        self.each([("spoil", phase, rank) for phase in ("load", "prefill", "exchange") for rank in (0, 2)], check)


@unittest.skipUnless(os.access(moe.FAULTY, os.X_OK), "moe_run_faulty is not built")
class SmallDisk(unittest.TestCase):
    """synth on a disk that is too small, which it learns at once or, without fallocate, from a write."""

    def test_synth(self):
        disk = moe.fresh()
        os.mkdir(disk)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], stderr=subprocess.DEVNULL).returncode:
            self.skipTest("a small disk needs the right to mount one")
        try:
            for kind, words in (("none", "no room for its"), ("sparse", "cannot be written at byte")):
                for ranks in (1, 3):
                    with self.subTest(kind=kind, ranks=ranks):
                        self.refused(disk, kind, ranks, words)
        finally:
            subprocess.run(["umount", disk], check=True)

    def refused(self, disk, kind, ranks, words):
        path = os.path.join(disk, "m.gguf")
        with open(path, "w") as old:
            old.write("an old file")
        line = [moe.FAULTY, kind, "none", "0", "none", "synth", "--shape", "tiny", "--seed", "1", "--out", path]
        outcome = moe.finish(moe.start(moe.under_mpirun([(ranks, line)])), LIMIT)
        self.assertNotIn(outcome.code, (0, None), outcome.err)
        self.assertNotIn("planted: a rank ended with 0", outcome.err)
        self.assertEqual(len(outcome.faults()), 1, outcome.err)
        self.assertRegex(outcome.faults()[0], rf"^rank \d \(.*{re.escape(path)}.*{words}.*No space left")
        with open(path) as old:
            self.assertEqual(old.read(), "an old file")
        self.assertEqual(os.listdir(disk), ["m.gguf"])


if __name__ == "__main__":
    moe.main()
