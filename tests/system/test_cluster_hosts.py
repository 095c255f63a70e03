#!/usr/bin/env python3
"""One job over four hosts, which are network namespaces (support/hosts.py): its digest is the local one; a host that is cut
off, stopped, killed, blocked or different ends the job in time, with one clear error, and nothing of it is left anywhere."""
import os
import re
import shutil
import signal
import time
import unittest

import hosts
import moe

SEED = moe.random_seed()
HOSTS = hosts.make(4)
SHAPE = dict(layers=4, hidden=256, heads=2, kv_heads=1, expert_width=256, experts=8, top_k=4, context=20000)
MODEL = moe.model(SEED, **SHAPE)
BUILD = os.path.dirname(moe.PROGRAM)
ARM = "q8k@cpu"
DEADLINE = 10  # seconds; about half as many again until nothing is left
LONG = 19000   # tokens that take many seconds


def keys(**sets):
    own = {"model.path": MODEL, "input.tokens": [1, 2, 3], "run.arms": [ARM], "run.threads": 1, "run.bind": False,
           "run.generate": 12, "comm.deadline": DEADLINE}
    return own | {key.replace("__", "."): value for key, value in sets.items()}


def words(command="generate", out=None, **sets):
    return moe.words(command=command, sets=keys(**sets), out=out)[1:]


class Cluster(unittest.TestCase):
    def tearDown(self):
        HOSTS.end_all()
        for host in HOSTS.names:
            HOSTS.join(host)
            HOSTS.mounts(host, "")

    def nothing_left(self, since=None, seconds=90):
        waited = HOSTS.wait_until_empty(seconds)
        self.assertIsNotNone(waited, f"left: {HOSTS.left()}")
        return time.monotonic() - since if since else waited

    def decoding(self, host):
        """A long job, once the ranks of a host decode."""
        folder = moe.fresh()
        process = HOSTS.start(4, words(run__generate=LONG, run__keep=0, out=folder))
        limit = time.monotonic() + moe.LIMIT
        while not os.path.exists(os.path.join(folder, "state.json")):
            self.assertIsNone(process.poll(), "the job ended")
            self.assertLess(time.monotonic(), limit)
            time.sleep(0.05)
        return process, folder

    def lost(self, action):
        """Something happens to h3, which mpirun is not on: all ends, seconds told."""
        process, folder = self.decoding("h3")
        action()
        since = time.monotonic()
        outcome = moe.finish(process, 60, folder)
        self.assertIsNotNone(outcome.code, outcome.err)
        self.assertNotEqual(outcome.code, 0)
        self.assertNotIn("report.json", os.listdir(folder))
        seconds = self.nothing_left(since)
        print(f"{action.__name__}: nothing is left after {seconds:.1f} s", flush=True)
        return outcome, seconds


class Finished(Cluster):
    def test_the_law(self):
        local = moe.run(keys(), 1, command="generate")
        for ranks, how in ((4, "node"), (8, "slot")):
            folder = moe.fresh()
            outcome = moe.finish(HOSTS.start(ranks, words(out=folder), per_host=how), moe.LIMIT, folder)
            self.assertEqual(outcome.code, 0, outcome.err)
            self.assertEqual(outcome.report()["machine"]["hosts"], 4 if how == "node" else 2)
            for what in ("digest", "generated"):
                self.assertEqual(outcome.arm(ARM)[what], local.arm(ARM)[what])
            self.nothing_left()


class Lost(Cluster):
    def test_cut(self):
        def cut():
            HOSTS.cut("h3")

        outcome, seconds = self.lost(cut)
        self.assertRegex(outcome.err, r"h3|waiting for rank 2")

    def test_stopped(self):
        def stop():
            for pid in HOSTS.ranks("h3"):
                os.kill(pid, signal.SIGSTOP)

        outcome, seconds = self.lost(stop)
        self.assertRegex(outcome.err, r"still waiting for rank .*\b2 \(h3\)")

    def test_killed(self):
        def kill():
            for pid in HOSTS.ranks("h3"):
                os.kill(pid, signal.SIGKILL)

        outcome, seconds = self.lost(kill)
        self.assertRegex(outcome.err, r"rank 2 .*(h3)?.*signal 9")

    def test_the_daemon_killed(self):
        def kill_daemon():
            for pid, line in HOSTS.processes("h3").items():
                if re.search(r"\borted\b", line):
                    os.kill(pid, signal.SIGKILL)

        self.lost(kill_daemon)


class Blocked(Cluster):
    def test_ports(self):
        HOSTS.block("h3")
        try:
            since = time.monotonic()
            outcome = moe.finish(HOSTS.start(4, ["--deadline", "5", *words()]), 60)
        finally:
            HOSTS.unblock("h3")
        self.assertEqual(outcome.code, 1, outcome.err)
        self.assertRegex(outcome.err, r"rank \d \(h\d\): the start: after 5 s, still waiting .*btl_tcp_if_include.*firewall")
        self.nothing_left(since)


class Alike(Cluster):
    def tearDown(self):
        for host in HOSTS.names:
            HOSTS.remove(host, "docker0")
        super().tearDown()

    def test_one_address_on_every_host(self):
        """MPI may take the bridges of containers, which have one address everywhere, for a way to the others: the job has
        its digest, or ends by its deadline."""
        for host in HOSTS.names:
            HOSTS.add(host, "docker0", "172.17.0.1/16")
        since, folder = time.monotonic(), moe.fresh()
        options = ("--mca", "btl_tcp_if_include", "docker0,eth0")
        outcome = moe.finish(HOSTS.start(4, ["--deadline", "5", *words(out=folder)], options), 60, folder)
        if outcome.code:
            self.assertEqual(outcome.code, 1, outcome.err)
            self.assertRegex(outcome.err, r"btl_tcp_if_include")
        else:
            self.assertEqual(outcome.arm(ARM)["digest"], moe.run(keys(), 1, command="generate").arm(ARM)["digest"])
        print(f"one address on every host: exit code {outcome.code}", flush=True)
        self.nothing_left(since)


class Differing(Cluster):
    """h3 has another file in the place of one, or another command line."""

    def refused(self, pattern, code=1):
        outcome = moe.finish(HOSTS.start(4, self.line), 60)
        self.assertEqual(outcome.code, code, outcome.err)
        self.assertEqual(len(outcome.faults()), 1, outcome.err)
        self.assertRegex(outcome.faults()[0], pattern)
        self.nothing_left()

    def setUp(self):
        self.line = words()

    def test_sources(self):
        HOSTS.replace("h3", HOSTS.program, os.path.join(BUILD, "moe_run_other_sources"))
        self.refused(r"the build .*but rank 2 \(h3\)")

    def test_kernel(self):
        HOSTS.replace("h3", HOSTS.program, os.path.join(BUILD, "moe_run_other_kernel"))
        self.refused(r"the self-check of the path q8k.*but rank 2 \(h3, ")

    def test_model(self):
        HOSTS.replace("h3", MODEL, moe.model(SEED + 1, **(SHAPE | {"context": 19000})))
        self.refused(r"the model file's header.*rank 2 \(h3\)")

    def test_configuration(self):
        configs = []
        for seed in (1, 2):
            configs.append(moe.fresh(".toml"))
            with open(configs[-1], "w") as file:
                file.write(f"[run]\nseed = {seed}\n")
        self.line = ["generate", "--config", configs[0], *words()[1:]]
        HOSTS.replace("h3", configs[0], configs[1])
        self.refused(r"the configuration: expected the same.*rank 2 \(h3\)", 2)

    def test_command(self):
        wrapper = moe.fresh()
        with open(wrapper, "w") as file:
            file.write(f"#!/bin/bash\nshift\nexec {moe.PROGRAM} perplexity \"$@\"\n")
        os.chmod(wrapper, 0o755)
        HOSTS.replace("h3", HOSTS.program, wrapper)
        self.refused(r"the command \(generate here\).*rank 2 \(h3\)", 2)

    def test_no_program(self):
        HOSTS.replace("h3", HOSTS.program, "/dev/null")
        outcome = moe.finish(HOSTS.start(4, self.line), 60)
        self.assertNotIn(outcome.code, (0, None))
        self.nothing_left()


if __name__ == "__main__":
    try:
        moe.main()
    finally:
        HOSTS.close()
