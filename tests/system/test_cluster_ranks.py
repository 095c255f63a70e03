#!/usr/bin/env python3
"""What ranks promise a cluster, on one host: a start with a deadline, builds that agree, an audit that names the rank which
lies, runs that are ended and go on, and an installed tree that runs from anywhere."""
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

SEED = moe.random_seed()
SHAPE = dict(layers=3, hidden=256, heads=2, kv_heads=1, expert_width=256, experts=8, top_k=4, context=20000)
MODEL = moe.model(SEED, **SHAPE)
BUILD = os.path.dirname(moe.PROGRAM)
ARM = "q8k@cpu"


def keys(**sets):
    own = {"model.path": MODEL, "input.tokens": [1, 2, 3], "run.arms": [ARM], "run.threads": 1, "run.generate": 40}
    return own | {key.replace("__", "."): value for key, value in sets.items()}


def together(*parts):
    return moe.finish(moe.start(moe.under_mpirun(list(parts))), moe.LIMIT)


class Start(unittest.TestCase):
    def test_the_deadline_of_the_command_line(self):
        """A process of the job never starts MPI. The configuration is a pipe that nobody writes to, so none was read."""
        silent = moe.fresh()
        os.mkfifo(silent)
        for config, waits in (([], "still waiting for other ranks of this job in MPI_Init.*btl_tcp_if_include"),
                              (["--config", silent], "still reading .*the configuration")):
            line = [moe.PROGRAM, "--deadline", "3", "generate", *config, *moe.words(sets=keys())[1:]]
            outcome = together((1, ["sleep", "100"]), (1, line))
            self.assertEqual(outcome.code, 1)
            self.assertLess(outcome.seconds, 90)
            self.assertEqual(len(outcome.faults()), 1, outcome.err)
            self.assertRegex(outcome.faults()[0], rf"^rank 1 \(.*\): the start: after 3 s, {waits}")

    def test_what_the_launcher_asks(self):
        def told(*args):
            return subprocess.run([moe.PROGRAM, "--tell-deadline", *args], capture_output=True, text=True, timeout=60)

        base = ["--set", f"model.path={MODEL}"]
        self.assertEqual(told(*base).stdout, "300\n")
        self.assertEqual(told("--deadline", "12", *base).stdout, "12\n")
        self.assertEqual(told("--deadline", "12", *base, "--set", "comm.deadline=7").stdout, "7\n")
        self.assertEqual(told("--deadline", "9", "synth", "--shape", "tiny").stdout, "9\n")
        self.assertEqual(told("--deadline", "0", *base).returncode, 2)
        self.assertEqual(told("--deadline", "12", "synth", "--help").stdout, "12\n")
        for word, said in (("--help", "moe_run [COMMAND]"), ("--version", "moe_run")):
            line = [os.path.join(moe.SOURCE, "launch", "run"), "--program", moe.PROGRAM, "-np", "1", "--", word]
            done = subprocess.run(line, capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(said, done.stdout)

    def test_the_launcher_in_the_build_s_folder(self):
        """The program is the one here, not one of its name in PATH."""
        tree, other = pathlib.Path(moe.fresh()), pathlib.Path(moe.fresh())
        (tree / "launch").mkdir(parents=True)
        (tree / "build").mkdir()
        other.mkdir()
        shutil.copy(os.path.join(moe.SOURCE, "launch", "run"), tree / "launch")
        for folder, word in ((tree / "build", "this"), (other, "other")):
            (folder / "moe_run").write_text(f"#!/bin/sh\nif [ \"$1\" = --tell-deadline ]; then echo 42.4; else echo {word}; fi\n")
            (folder / "moe_run").chmod(0o755)
        env = os.environ | {"PATH": f"{other}:{os.environ['PATH']}"}
        done = subprocess.run(["../launch/run", "-np", "1", "--", "x"], cwd=tree / "build", env=env, capture_output=True, text=True, timeout=60)
        self.assertEqual((done.returncode, done.stdout), (0, "this\n"), done.stderr)
        self.assertIn("oob_tcp_keepalive_time 21", done.stderr)


class Agreement(unittest.TestCase):
    def refused(self, other, pattern):
        line = moe.words(command="generate", sets=keys())
        outcome = together((2, line), (1, [os.path.join(BUILD, other), *line[1:]]))
        self.assertEqual(outcome.code, 1, outcome.err)
        self.assertEqual(len(outcome.faults()), 1, outcome.err)
        self.assertRegex(outcome.faults()[0], pattern)

    def test_other_sources(self):
        self.refused("moe_run_other_sources", r"the build \(hash of the sources .*rank 2 \(.*has 0123456789abcdef")

    def test_a_kernel_that_computes_something_else(self):
        self.refused("moe_run_other_kernel", r"the self-check of the path q8k.*but rank 2 \(.*as 2 of 3 ranks")


class Audit(unittest.TestCase):
    """Three of four ranks are honest; rank 2 computes experts 4 and 5 of 8."""

    def lying(self, expert, share, model=MODEL, rank=2, tokens=64):
        sets = keys(ranks__audit=share, run__generate=tokens) | {"model.path": model}
        line = [moe.FAULTY, "expert", expert, str(rank), "none", *moe.words(command="generate", sets=sets, out=moe.fresh())[1:]]
        return together((4, line))

    def named(self, outcome, rank, expert=r"\d+"):
        self.assertEqual(outcome.code, 1, outcome.err)
        self.assertRegex(outcome.err, rf"the audit: layer \d+, expert {expert}, which rank {rank} \(.*\) computes")

    def test_without_it_nobody_sees(self):
        self.assertEqual(self.lying("5", 0).code, 0)

    def test_one_expert(self):
        self.named(self.lying("5", 1), 2, 5)

    def test_one_rank_at_a_small_share(self):
        for n in range(2):
            self.named(self.lying("all", 0.01, moe.model(SEED + n + 1, **SHAPE), rank=n + 1), n + 1)

    def test_honest_ranks(self):
        """No false alarm; the same digest; what is covered is told. A mixed job, and a prompt that is token-sharded."""
        prompt = [n * 7 % 300 for n in range(200)]
        mixed = {"run__arms": ["ranks"], "ranks__arm": ["q8k@cpu", "f32@cpu"], "ranks__shared_ranks": [0, 1]}
        for sets in ({}, {"input__tokens": prompt}, mixed):
            plain, audited = (moe.run(keys(**sets, ranks__audit=share), 3, command="generate") for share in (0, 1))
            name = sets.get("run__arms", [ARM])[0]
            a, b = plain.arm(name), audited.arm(name)
            self.assertEqual((a["digest"], a["generated"]), (b["digest"], b["generated"]))
            self.assertNotIn("audit", a)
            self.assertEqual(b["audit"]["slots"], b["audit"]["slots_of_others"])
            self.assertTrue(0 <= b["audit"]["bad_expert_missed"] <= (1 if sets.get("ranks__arm") else 0))
            positions = len(sets.get("input__tokens", [1, 2, 3])) + 39
            every = positions * SHAPE["layers"] * SHAPE["top_k"]
            if not sets:
                self.assertEqual(b["audit"]["slots"], every)
            if not sets.get("ranks__arm"):  # of token shards, what a rank computes for its own tokens crosses no ranks
                self.assertTrue(every / 2 < b["audit"]["slots"] <= every)
                self.assertEqual((b["audit"]["ranks"], b["audit"]["bad_rank_missed"]), (3, 0))

    def test_one_rank_has_no_other(self):
        outcome = moe.attempt(keys(ranks__audit=0.5), 1, command="generate")
        self.assertEqual(outcome.code, 2)
        self.assertIn("ranks.audit", outcome.err)


class Resume(unittest.TestCase):
    SETS = keys(run__generate=10000, run__keep=0.05)  # seconds, on a quiet machine

    def kept(self, folder):
        try:
            return json.loads(pathlib.Path(folder, "state.json").read_text())["arms"][0]["numbers"]
        except (OSError, ValueError):
            return []

    def ended(self, command, sets, ranks, number, enough):
        """A run that a signal ends once it has kept enough. One that was over before is not counted; another is tried."""
        for _ in range(10):
            outcome = self.signalled(command, sets, ranks, number, enough)
            if outcome.code != 0:
                break
        self.assertNotEqual(outcome.code, 0)
        self.assertEqual(os.listdir(outcome.folder), ["state.json"])
        return outcome

    def signalled(self, command, sets, ranks, number, enough):
        folder = moe.fresh()
        process = moe.start(moe.under_mpirun([(ranks, moe.words(command=command, sets=sets, out=folder))]))
        limit = time.monotonic() + moe.LIMIT
        while not enough(self.kept(folder)) and process.poll() is None:
            self.assertLess(time.monotonic(), limit)
            time.sleep(0.02)
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
            for pid in moe.children(process.pid):
                os.kill(pid, number)
        else:
            process.send_signal(number)
        return moe.finish(process, moe.LIMIT, folder)

    def test_generate(self):
        whole = moe.run(self.SETS, 2, command="generate")
        for number, ranks in ((signal.SIGUSR1, 2), (signal.SIGKILL, 1)):
            outcome = self.ended("generate", self.SETS, ranks, number, lambda kept: kept and kept[0] > 100)
            if number == signal.SIGUSR1:
                self.assertRegex(outcome.err, r"signal \d+ ended the run; what was done is kept in .*--resume goes on")
            self.refusals(outcome.folder)
            again = moe.attempt(self.SETS | {"run.resume": True}, 3, command="generate", out=outcome.folder)
            self.assertEqual(again.code, 0, again.err)
            for what in ("digest", "generated", "layer_digests", "sequences"):
                if what != "layer_digests":  # of the prompt alone in both
                    self.assertEqual(again.arm(ARM)[what], whole.arm(ARM)[what])
            self.assertNotIn("state.json", os.listdir(outcome.folder))

    def refusals(self, folder):
        state = pathlib.Path(folder, "state.json").read_text()
        other = moe.model(SEED + 9, **SHAPE)
        for sets, names in (({"run.seed": 4, "run.temperature": 1}, r"run\.seed = 0.*found 4"), ({"model.path": other}, "another model"),
                            ({"input.tokens": [1, 2, 4]}, "another input"), ({"run.arms": ["f32@cpu"]}, r"run\.arms"),
                            ({"run.stop": [7]}, r"run\.stop"), ({"run.ignore_eos": True}, r"run\.ignore_eos")):
            outcome = moe.attempt(self.SETS | {"run.resume": True} | sets, 1, command="generate", out=folder, alone=True)
            self.assertEqual(outcome.code, 2, outcome.err)
            self.assertRegex(outcome.err, names)
        version = int(re.search(r'"path_version": ?(\d+)', state)[1])
        for old, new, names in ((f'"path_version": {version}', '"path_version": 1', f"version {version} of the path q8k"),
                                ('"numbers": [', '"numbers": [1, ', "hash")):
            broken = state.replace(old, new) if old in state else state.replace(old.replace(": ", ":"), new.replace(": ", ":"))
            self.assertNotEqual(broken, state)
            pathlib.Path(folder, "state.json").write_text(broken)
            outcome = moe.attempt(self.SETS | {"run.resume": True}, 1, command="generate", out=folder, alone=True)
            self.assertEqual(outcome.code, 2, outcome.err)
            self.assertRegex(outcome.err, names)
        pathlib.Path(folder, "state.json").write_text(state)

    def test_perplexity(self):
        arm = "f64@cpu"  # the slowest: ranks look for a signal once a second
        tokens = [n * n % 10 for n in range(40000)]
        sets = keys(input__tokens=tokens, run__context=40, run__keep=0, run__generate=0, run__arms=[arm])
        whole = moe.run(sets, 2, command="perplexity")
        outcome = self.ended("perplexity", sets, 2, signal.SIGUSR1, lambda kept: kept and kept[0] > 10)
        again = moe.attempt(sets | {"run.resume": True}, 1, command="perplexity", out=outcome.folder)
        self.assertEqual(again.code, 0, again.err)
        for what in ("digest", "layer_digests", "perplexity", "scored", "tokens", "sequences"):
            self.assertEqual(again.arm(arm)[what], whole.arm(arm)[what], what)

    def test_nothing_to_go_on_with(self):
        outcome = moe.attempt(keys(run__resume=True), 1, command="generate", out=moe.fresh(), alone=True)
        self.assertEqual(outcome.code, 0, outcome.err)
        outcome = moe.attempt(keys(run__resume=True), 1, command="generate", alone=True)
        self.assertEqual(outcome.code, 2)


class Installed(unittest.TestCase):
    def test_from_another_folder(self):
        prefix, work = moe.fresh(), moe.fresh()
        os.mkdir(work)
        binary = os.environ.get("MOE_BINARY_DIR", BUILD)
        done = subprocess.run(["cmake", "--install", binary, "--prefix", prefix], capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        share = pathlib.Path(prefix, "share", "moe_run")
        arms = ["--set", f'run.arms=["{ARM}"]', "--set", "run.generate=0"]
        line = [share / "launch" / "run", "-np", "2", "--", "--config", share / "configs" / "tiny.toml", *arms]
        outcome = moe.finish(moe.start(list(map(str, line)), cwd=work))
        self.assertEqual(outcome.code, 0, outcome.err)
        self.assertIn("b01fc54fdceedba3", outcome.out)
        self.assertIn("oob_tcp_keepalive_time 150", outcome.err)
        # the batch script, with an srun that starts one rank
        tools = pathlib.Path(moe.fresh())
        tools.mkdir()
        (tools / "srun").write_text('#!/bin/bash\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n')
        (tools / "srun").chmod(0o755)
        spooled = moe.fresh()
        shutil.copy(share / "launch" / "slurm.sbatch", spooled)
        (tools / "scontrol").write_text(f"#!/bin/bash\necho '   Command={share}/launch/slurm.sbatch a b'\n")
        (tools / "scontrol").chmod(0o755)
        env = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": work}
        done = subprocess.run(["bash", spooled], env=env, cwd="/", capture_output=True, text=True, timeout=moe.LIMIT)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("b01fc54fdceedba3", done.stdout)
        self.assertTrue(pathlib.Path(work, "out-7", "report.json").exists())


if __name__ == "__main__":
    moe.main()
