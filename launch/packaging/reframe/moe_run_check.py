# ReFrame 4: the digest is the sanity of a machine, tok/s its performance.
#
#   reframe -C settings.py -c moe_run_check.py -r                    settings.py is for one machine
#   reframe ... -S moe_run=/path/to/moe_run -S num_tasks=4 -S arm=q8k@cuda
#   reframe ... -S model=/data/model.gguf -S digest=...              another model than the small synthetic one
#
# A reference for tok/s is a centre's own: -S reference_tokens_per_s=500 fails below 90 % of it.
import os

import reframe as rfm
import reframe.utility.sanity as sn


@rfm.simple_test
class MoeRunBench(rfm.RunOnlyRegressionTest):
    descr = "moe_run: digest and rate of decoded tokens"
    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    num_tasks = 1
    time_limit = "10m"

    moe_run = variable(str, value="moe_run")
    model = variable(str, value="")
    arm = variable(str, value="q8k@cpu")
    test = variable(str, value="tg128")
    # of [small] in configs/known-answers.toml, q8k version 2
    digest = variable(str, value="7a6e56dc92779f91")
    reference_tokens_per_s = variable(float, value=0.0)

    @run_after("setup")
    def command(self):
        self.env_vars = {"OMPI_ALLOW_RUN_AS_ROOT": 1, "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": 1} if os.geteuid() == 0 else {}
        if not self.model:
            self.prerun_cmds = [f"{self.moe_run} synth --shape tiny --seed 1 --out small.gguf"]
        kind, tokens = ("prompt", "generate")[self.test.startswith("tg")], self.test[2:]
        other = "generate" if kind == "prompt" else "prompt"
        self.executable = self.moe_run
        self.executable_opts = ["bench", "--set", f"model.path={self.model or 'small.gguf'}",
                                "--set", f"'run.arms=[\"{self.arm}\"]'", "--set", f"'bench.{kind}=[{tokens}]'",
                                "--set", f"'bench.{other}=[]'", "--set", "bench.format=csv"]
        if self.current_partition.launcher_type.registered_name == "mpirun":
            self.job.launcher.options = ["--bind-to", "none"]
        if self.reference_tokens_per_s:
            self.reference = {"*": {"tokens_per_s": (self.reference_tokens_per_s, -0.1, None, "tok/s")}}

    def field(self, number, kind=str):
        """A field of the one line of rates, counted from 0."""
        return sn.extractsingle(rf"^(?:[^,\n]*,){{3}}{self.test},.*$", self.stdout, 0,
                                lambda line: kind(line.split(",")[number]))

    @sanity_function
    def digest_is_the_known_one(self):
        return sn.assert_eq(self.field(-1), self.digest, "digest {0}, expected {1}")

    @performance_function("tok/s")
    def tokens_per_s(self):
        return self.field(11, float)
