#!/usr/bin/env python3
"""Jobs under Slurm on one and two nodes: the batch script with srun, launch/run inside an allocation, a job that a signal ends
and that goes on, and a node that is cut off."""
import os
import pathlib
import signal
import time
import unittest

import moe
import slurm

SEED = moe.random_seed()
SLURM = slurm.make(2)
SHAPE = dict(layers=4, hidden=256, heads=2, kv_heads=1, expert_width=256, experts=8, top_k=4, context=20000)
MODEL = moe.model(SEED, **SHAPE)
ARM = "q8k@cpu"
LONG = 12000  # tokens: ranks ask each other at least every 4,096 whether the run goes on
SCRIPT = SLURM.hosts.folder / "tree" / "launch" / "slurm.sbatch"


def keys(**sets):
    own = {"model.path": MODEL, "input.tokens": [1, 2, 3], "run.arms": [ARM], "run.threads": 1, "run.bind": False,
           "run.generate": 12}
    return own | {key.replace("__", "."): value for key, value in sets.items()}


def waits_for(pid, number):
    """Whether a signal was sent to a process that has not yet taken it."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return any(int(line.split()[1], 16) >> (number - 1) & 1 for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd")))


LOCAL = moe.run(keys(), 1, command="generate")


class Jobs(unittest.TestCase):
    def options(self, nodes, tasks):
        self.log = moe.fresh(".txt")
        return [f"--nodes={nodes}", f"--ntasks-per-node={tasks}", "--cpus-per-task=1", f"--output={self.log}", "--time=5"]

    def told(self):
        return pathlib.Path(self.log).read_text(errors="replace") if os.path.exists(self.log) else ""

    def ran(self, state, folder):
        self.assertEqual(state, "COMPLETED", self.told() + SLURM.logs())
        outcome = moe.Outcome(0, self.told(), "", 0, folder)
        for what in ("digest", "generated"):
            self.assertEqual(outcome.arm(ARM)[what], LOCAL.arm(ARM)[what])
        return outcome.report()

    def test_the_script(self):
        for nodes, tasks in ((1, 2), (2, 4)):
            folder = moe.fresh()
            words = moe.words(command="generate", sets=keys(), out=folder)[1:]
            job = SLURM.submit(SCRIPT, self.options(nodes, tasks), words)
            report = self.ran(SLURM.finish(job), folder)
            self.assertEqual((report["machine"]["hosts"], len(report["ranks"])), (nodes, nodes * tasks))

    def test_launch_run_inside(self):
        folder, script = moe.fresh(), moe.fresh(".sh")
        launch = SLURM.hosts.folder / "tree" / "launch" / "run"
        pathlib.Path(script).write_text(f"#!/bin/bash\nexec {launch} -np 4 --map-by node --bind-to none -- \"$@\"\n")
        words = moe.words(command="generate", sets=keys(), out=folder)[1:]
        job = SLURM.submit(script, self.options(2, 2), words)
        report = self.ran(SLURM.finish(job), folder)
        self.assertEqual((report["machine"]["hosts"], len(report["ranks"])), (2, 4))

    def decoding(self, folder, **sets):
        words = moe.words(command="generate", sets=keys(run__generate=LONG, run__keep=0, **sets), out=folder)[1:]
        job = SLURM.submit(SCRIPT, self.options(2, 2), words)
        limit = time.monotonic() + moe.LIMIT
        while not os.path.exists(os.path.join(folder, "state.json")):
            self.assertIn(SLURM.state(job), ("PENDING", "RUNNING", "CONFIGURING"), self.told())
            self.assertLess(time.monotonic(), limit, self.told() + SLURM.logs())
            time.sleep(0.1)
        return job, words

    def signal_to(self, job):
        """USR1 by Slurm. The ranks stand still until it is there, or a fast run would be over before."""
        ranks = [pid for host in SLURM.hosts.names for pid in SLURM.hosts.ranks(host)]
        self.assertEqual(len(ranks), 4)
        for pid in ranks:
            os.kill(pid, signal.SIGSTOP)
        try:
            self.assertEqual(SLURM.call("scancel", "--signal=USR1", job).returncode, 0)
            limit = time.monotonic() + moe.LIMIT
            while not all(waits_for(pid, signal.SIGUSR1) for pid in ranks):
                self.assertLess(time.monotonic(), limit, SLURM.logs())
                time.sleep(0.05)
        finally:
            for pid in ranks:
                os.kill(pid, signal.SIGCONT)

    def test_ended_by_a_signal_and_resumed(self):
        """As --signal=USR1@60 ends it before its time is over."""
        folder = moe.fresh()
        job, words = self.decoding(folder)
        self.signal_to(job)
        self.assertEqual(SLURM.finish(job), "FAILED")
        self.assertIn("the same command with --resume goes on", self.told())
        self.assertEqual(os.listdir(folder), ["state.json"])
        job = SLURM.submit(SCRIPT, self.options(1, 1), [*words, "--resume"])
        self.assertEqual(SLURM.finish(job, 500), "COMPLETED", self.told())
        whole = moe.run(keys(run__generate=LONG), 1, command="generate")
        resumed = moe.Outcome(0, "", "", 0, folder)
        self.assertEqual(resumed.arm(ARM)["generated"], whole.arm(ARM)["generated"])

    def test_a_node_is_cut_off(self):
        """Its ranks end by themselves, though their MPI_Abort would wait for ever."""
        job, words = self.decoding(moe.fresh(), comm__deadline=5)
        hosts = SLURM.hosts
        self.assertEqual((len(hosts.ranks("h1")), len(hosts.ranks("h2"))), (2, 2))
        since = time.monotonic()
        hosts.cut("h2")
        try:
            while hosts.ranks("h2") or hosts.ranks("h1"):
                self.assertLess(time.monotonic() - since, 120, f"{hosts.left()}")
                time.sleep(0.1)
            print(f"no rank is left after {time.monotonic() - since:.1f} s", flush=True)
        finally:
            hosts.join("h2")
            SLURM.call("scancel", job)
        SLURM.finish(job)
        SLURM.wait_idle()


if __name__ == "__main__":
    try:
        moe.main()
    finally:
        SLURM.close()
        SLURM.hosts.close()
