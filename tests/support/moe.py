"""What the Python tests share: random models, runs of moe_run under mpirun, what they leave behind.

Owns: the command line of mpirun, the folder that a test writes in, the end of a run that hangs, the seed.
Independent of: what a test expects.

MOE_RUN is the program's path, MOE_SOURCE_DIR the source tree; without the program, mpirun or NumPy a test is
skipped (exit 77). MOE_SEED gives the random inputs of an earlier run again; CI fixes it (.ci/run).
"""
import atexit
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

SOURCE = os.environ.get("MOE_SOURCE_DIR", os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
PROGRAM = os.environ.get("MOE_RUN", os.path.join(SOURCE, "build", "moe_run"))
FAULTY = os.path.join(os.path.dirname(PROGRAM), "moe_run_faulty")  # tests/support/planted_fault.c
LIMIT = 120.0  # seconds for one run that is expected to succeed


def skip(reason):
    print("skipped:", reason)
    sys.exit(77)


try:
    import numpy as np
except ImportError:
    skip("no NumPy")
MPIRUN = shutil.which("mpirun")
if not MPIRUN or not os.access(PROGRAM, os.X_OK):
    skip(f"no mpirun or no {PROGRAM}")

FOLDER = tempfile.mkdtemp(prefix="moe_test_")
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
_names = iter(range(1 << 30))


def fresh(ending=""):
    """A path in this test's folder that nothing has yet."""
    return os.path.join(FOLDER, f"{next(_names)}{ending}")


@functools.cache
def random_seed():
    """The one seed of a script's random inputs: MOE_SEED, or drawn from the clock. Printed, and again after failures."""
    seed = int(os.environ.get("MOE_SEED") or time.time_ns() % 10**9)
    print(f"MOE_SEED={seed}", flush=True)
    random.seed(seed)
    return seed


def tell_seed_of_failure():
    print(f"the same inputs again: MOE_SEED={random_seed()}", file=sys.stderr, flush=True)


def model(seed, **shape):
    """A random model: the path of its (first) file. shape as in gguf_random.py."""
    import gguf_random
    return gguf_random.write_model(fresh(".gguf"), seed, **shape)[0]


# ---- running ----

def toml(value):
    """JSON's strings, numbers and booleans, and lists of them, are TOML."""
    return json.dumps(value, ensure_ascii=False)


def words(program=None, command=None, config=None, out=None, sets=None):
    """The program's command line."""
    line = [program or PROGRAM] + ([command] if command else []) + (["--config", config] if config else [])
    for key, value in (sets or {}).items():
        line += ["--set", f"{key}={toml(value)}"]
    return line + (["--out", out] if out else [])


def under_mpirun(parts):
    """parts: [(ranks, words)], more than one for ranks that differ."""
    line = [MPIRUN, "--oversubscribe", "--bind-to", "none"]
    if os.geteuid() == 0:
        line.append("--allow-run-as-root")
    for i, (ranks, part) in enumerate(parts):
        line += ([":"] if i else []) + ["-np", str(ranks)] + part
    return line


class Outcome:
    """code is negative for a signal, None for a run that did not end in time (and was ended)."""

    def __init__(self, code, out, err, seconds, folder):
        self.code, self.out, self.err, self.seconds, self.folder = code, out, err, seconds, folder

    def report(self):
        with open(os.path.join(self.folder, "report.json"), encoding="utf-8") as file:
            return json.load(file)

    def arm(self, name):
        return next(arm for arm in self.report()["arms"] if arm["name"] == name)

    def logits(self, name):
        return np.load(os.path.join(self.folder, f"logits.{name}.npy"))

    def faults(self):
        """The program's own lines of standard error, not those of mpirun."""
        return [line for line in self.err.splitlines() if re.match(r"(rank \d+ \(|moe_run)", line)]


def start(line, **options):
    """mpirun gets a temporary folder of its own: those that start and end at one time can take a common one away."""
    folder = fresh()
    os.mkdir(folder)
    options.setdefault("env", os.environ | {"TMPDIR": folder})
    return subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            start_new_session=True, **options)


def finish(process, limit=LIMIT, folder=None, since=None):
    """Waits for the run; one that takes longer is ended, mpirun first so that it can end its ranks."""
    since = since or time.monotonic()
    try:
        out, err = process.communicate(timeout=limit)
        code = process.returncode
    except subprocess.TimeoutExpired:
        code = None
        process.send_signal(signal.SIGTERM)
        try:
            out, err = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
    return Outcome(code, out.decode(errors="replace"), err.decode(errors="replace"), time.monotonic() - since, folder)


def attempt(sets=None, ranks=1, limit=LIMIT, out=None, alone=False, **rest):
    """Runs the program; it may fail. sets: keys and values; alone: without mpirun; rest: command, config, program."""
    line = words(sets=sets, out=out, **rest)
    return finish(start(line if alone else under_mpirun([(ranks, line)])), limit, out)


def run(sets, ranks=1, **rest):
    """Runs the program, which must succeed, with a report."""
    outcome = attempt(sets, ranks, out=fresh(), **rest)
    if outcome.code != 0:
        raise AssertionError(f"moe_run ended with {outcome.code}: {sets} on {ranks} ranks\n{outcome.err}{outcome.out}")
    return outcome


# ---- comparing ----

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
        return int(pairs.get(b"OMPI_COMM_WORLD_RANK") or pairs[b"PMIX_RANK"])  # under mpirun, under srun
    except (OSError, KeyError):
        return None


class Job:
    """A run on which to try faults: it is there when its ranks decode, at any place of a step. Needs FAULTY."""

    def __init__(self, sets, ranks, command=None):
        self.folder = fresh()
        words_of_run = words(command=command, sets=sets, out=self.folder)
        self.process = start(under_mpirun([(ranks, [FAULTY, "tell", "decode", "0", "none", *words_of_run[1:]])]), bufsize=0)
        said = b""
        while b"planted: tell in decode" not in said:
            line = self.process.stderr.readline()
            if not line:
                raise AssertionError(f"the run did not start: {said.decode()}")
            said += line
        self.ranks = {rank_of(pid): pid for pid in children(self.process.pid)}
        self.ranks.pop(None, None)
        time.sleep(random.uniform(0, 0.5))
        self.since = time.monotonic()

    def signal(self, rank, number):
        self.since = time.monotonic()
        os.kill(self.ranks[rank], number)

    def finish(self, limit):
        """Its outcome; seconds since the last signal."""
        return finish(self.process, limit, self.folder, self.since)


def rel_l2(a, b):
    """Of each row: |a - b| / |b|."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.sqrt(((a - b) ** 2).sum(-1) / (b ** 2).sum(-1))


def digest_sum(texts):
    return f"{sum(int(text, 16) for text in texts) % 2**64:016x}"


class TellsAtOnce(unittest.TextTestResult):
    """What failed is said when it fails, so that a run which is cut off has said it."""

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.stream.writeln(self.failures[-1][1])

    def addError(self, test, err):
        super().addError(test, err)
        self.stream.writeln(self.errors[-1][1])

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err:
            failed = self.failures if issubclass(err[0], test.failureException) else self.errors
            self.stream.writeln(failed[-1][1])


def main():
    random_seed()
    program = unittest.main(testRunner=unittest.TextTestRunner(verbosity=2, resultclass=TellsAtOnce), exit=False)
    if not program.result.wasSuccessful():
        tell_seed_of_failure()
        sys.exit(1)
    if len(program.result.skipped) >= max(program.result.testsRun, 1):  # of each the reason is told
        sys.exit(77)
