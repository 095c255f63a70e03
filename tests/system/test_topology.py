#!/usr/bin/env python3
"""moe_run topology says what each rank sees and warns; a launcher whose tasks did not find each other is refused by every
command that runs a model; the launchers' dry runs print the command and the placement and start nothing."""
import os
import re
import subprocess
import unittest

import moe

SEED = moe.random_seed()
MODEL = moe.model(SEED, layers=1, hidden=256, heads=2, kv_heads=1, head_dim=64, experts=4, top_k=2, expert_width=256, vocab=64)
LAUNCH = os.path.join(moe.SOURCE, "launch")


def said(line, **environment):
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=moe.LIMIT, env=os.environ | environment,
                          cwd=moe.FOLDER)
    return done.returncode, done.stdout, done.stderr


class Topology(unittest.TestCase):
    def test_ranks(self):
        ranks = 2 * len(os.sched_getaffinity(0))
        if ranks > 64:
            self.skipTest("more ranks than cores would be too many here")
        outcome = moe.attempt({"model.path": MODEL}, ranks, command="topology")
        self.assertEqual(outcome.code, 0, outcome.err)
        self.assertEqual(len(re.findall(r"(?m)^rank \d+  \S+, 1 threads on cores any of", outcome.out)), ranks)
        self.assertEqual(len(re.findall(r"(?m)^host .*: %d ranks, \d+ cores" % ranks, outcome.out)), 1)
        self.assertIn("shared memory to 1", outcome.out)
        self.assertRegex(outcome.out, r"threads of %d ranks on \d+ cores: slow" % ranks)
        self.assertRegex(outcome.out, r"transport (mpi|nccl)")

    def test_a_missing_model_is_a_warning(self):
        outcome = moe.attempt({"model.path": "/nowhere.gguf"}, alone=True, command="topology")
        self.assertEqual(outcome.code, 0, outcome.err)
        self.assertIn("/nowhere.gguf: No such file", outcome.out)

    def test_a_model_that_is_no_file_is_not_waited_for(self):
        pipe = moe.fresh()
        os.mkfifo(pipe)
        for path, why in ((pipe, "Invalid argument"), ("/dev/zero", "Invalid argument"), (moe.FOLDER, "Is a directory")):
            outcome = moe.attempt({"model.path": path}, alone=True, command="topology")
            self.assertEqual(outcome.code, 0, outcome.err)
            self.assertIn(f"{path}: {why}", outcome.out)

    def test_tasks_that_are_alone(self):
        sets = {"model.path": MODEL, "input.tokens": [1], "run.arms": ["q8k@cpu"]}
        for variable in ("SLURM_STEP_NUM_TASKS", "PMI_SIZE"):
            code, out, _ = said(moe.words(command="topology", sets=sets), **{variable: "4"})
            self.assertEqual(code, 0)
            self.assertIn(f"{variable} = 4, but MPI knows one rank", out)
            for command in ("parity", "generate", "bench", "screen", "inspect"):
                code, out, err = said(moe.words(command=command, sets=sets), **{variable: "4"})
                self.assertEqual((code, out), (2, ""), command)
                self.assertIn(f"{variable} = 4, but MPI knows one rank", err)
            self.assertEqual(said(moe.words(sets=sets), **{variable: "1"})[0], 0)
        # under mpirun Slurm's variable counts mpirun's daemons
        line = moe.under_mpirun([(1, ["env", "SLURM_STEP_NUM_TASKS=4", *moe.words(sets=sets)])])
        self.assertEqual(said(line)[0], 0)


class DryRun(unittest.TestCase):
    def test_run(self):
        hosts = moe.fresh()
        with open(hosts, "w", encoding="utf-8") as f:
            f.write("one slots=2\ntwo slots=2\n")
        code, out, err = said([os.path.join(LAUNCH, "run"), "--program", moe.PROGRAM, "--dry-run", "-np", "4", "--hostfile", hosts, "--map-by", "node", "--",
                               "--config", "a b.toml"])
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out.splitlines()[0], r"^mpirun .*-np 4 .*--map-by node \S*moe_run --config a\\ b\.toml")
        self.assertRegex(out, r"(?s)node: one.*rank: 0.*rank: 2.*node: two.*rank: 1.*rank: 3")
        code, _, err = said([os.path.join(LAUNCH, "run"), "--program", moe.PROGRAM, "--dry-run", "-np", "5", "--hostfile", hosts, "--"],
                            OMPI_MCA_rmaps_base_oversubscribe="0")
        self.assertNotEqual(code, 0)
        self.assertIn("slots", err)

    def test_sbatch(self):
        script = os.path.join(LAUNCH, "slurm.sbatch")
        if not os.access(os.path.join(moe.SOURCE, "build", "moe_run"), os.X_OK):
            self.skipTest("the script takes build/moe_run")
        clean = {name: "" for name in os.environ if name.startswith("SLURM")}
        code, out, err = said(["bash", script, "--dry-run", "bench"], **clean)
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, r"^srun --mpi=pmix --cpus-per-task=8 .*moe_run bench")
        self.assertIn("node 0: ranks 0-3, 8 cores each\nnode 1: ranks 4-7, 8 cores each\n", out)
        _, out, _ = said(["bash", script, "--dry-run"], SLURM_JOB_NUM_NODES="1", SLURM_NTASKS_PER_NODE="16", SLURM_CPUS_PER_TASK="2")
        self.assertIn("node 0: ranks 0-15, 2 cores each\n", out)


if __name__ == "__main__":
    moe.main()
