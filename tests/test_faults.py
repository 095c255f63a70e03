#!/usr/bin/env python3
"""Faults in mid-run: a rank killed, a rank stopped, a model file cut short under its map. All ranks end, with a
non-zero code and in time, and the one that did not come is named."""
import os
import shutil
import signal
import time
import unittest

import moe

LIMIT = 30.0
DEADLINE = 3.0
# much to write: the runs would take minutes
SHAPE = dict(layers=4, hidden=256, heads=2, kv_heads=1, expert_width=256, experts=6, top_k=4, context=20000)
MODEL = moe.model(moe.random_seed(), **SHAPE)


def children(pid):
    """Of a process: all below it, as {pid: parent}."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            pass
    found = {pid}
    while True:
        more = {child for child, parent in parents.items() if parent in found} - found
        if not more:
            return found - {pid}
        found |= more


def rank_of(pid):
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            pairs = dict(pair.split(b"=", 1) for pair in file.read().split(b"\0") if b"=" in pair)
        return int(pairs[b"OMPI_COMM_WORLD_RANK"])
    except (OSError, KeyError):
        return None


def seconds_of(pid):
    """Processor time."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Job:
    """A long run of three ranks that has got to its forward pass."""

    def __init__(self, model=MODEL, ranks=3, **sets):
        keys = {"model.path": model, "input.tokens": [1, 2, 3], "run.arms": ["q8k@cpu"], "run.threads": 1,
                "run.generate": 19000, "comm.deadline": DEADLINE}
        keys |= {key.replace("__", "."): value for key, value in sets.items()}
        self.folder, self.since = moe.fresh(), time.monotonic()
        self.process = moe.start(moe.under_mpirun([(ranks, moe.words(sets=keys, out=self.folder))]))
        while True:
            self.ranks = {rank_of(pid): pid for pid in children(self.process.pid)}
            self.ranks.pop(None, None)
            if len(self.ranks) == ranks and all(self.computes(pid, model) for pid in self.ranks.values()):
                break
            if self.process.poll() is not None or time.monotonic() - self.since > 60:
                raise AssertionError(f"the run did not start: {moe.finish(self.process, 1).err}")
            time.sleep(0.05)

    def computes(self, pid, model):
        """The start takes well under half a second of processor time."""
        try:
            with open(f"/proc/{pid}/maps") as file:
                return model in file.read() and seconds_of(pid) > 1.0
        except OSError:
            return False

    def finish(self):
        since = time.monotonic()
        return moe.finish(self.process, LIMIT, self.folder, since)


class Faults(unittest.TestCase):
    def ended(self, job, outcome):
        self.assertIsNotNone(outcome.code, f"no end in {LIMIT} s\n{outcome.err}")
        self.assertNotEqual(outcome.code, 0)
        patience = time.monotonic() + 5  # mpirun does not wait for those that it ends
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
                job = Job()
                os.kill(job.ranks[rank], signal.SIGKILL)
                outcome = job.finish()
                self.ended(job, outcome)
                self.assertRegex(outcome.err, rf"rank {rank}\b")  # mpirun says it, or another rank

    def test_a_rank_stopped(self):
        shares = {"run__arms": ["ranks"], "ranks__arm": ["q8k@cpu"], "ranks__shared_ranks": [0]}
        for rank, sets in ((0, {}), (2, {}), (0, shares), (2, shares)):
            with self.subTest(rank=rank, **sets):
                job = Job(**sets)
                os.kill(job.ranks[rank], signal.SIGSTOP)
                outcome = job.finish()
                self.ended(job, outcome)
                self.assertGreater(outcome.seconds, DEADLINE - 1)
                faults = outcome.faults()
                self.assertTrue(faults, outcome.err)
                for fault in faults:
                    self.assertRegex(fault, rf"layer \d+: .*deadline.*waiting for rank .*\b{rank} \(")
                    self.assertNotRegex(fault, rf"^rank {rank} ")

    def test_the_file_cut_short(self):
        path = moe.fresh(".gguf")
        shutil.copy(MODEL, path)
        job = Job(path)
        os.truncate(path, os.path.getsize(path) // 8)
        outcome = job.finish()
        self.ended(job, outcome)
        self.assertTrue(outcome.faults(), outcome.err)
        for fault in outcome.faults():
            self.assertRegex(fault, r"^rank \d+ \(")
            self.assertIn(path, fault)
        self.assertLessEqual(len(outcome.faults()), 3)


if __name__ == "__main__":
    moe.main()
