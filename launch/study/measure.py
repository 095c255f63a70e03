"""Runs the jobs of a study, each once: what it found is kept in DIR/points, so that a study that was cut off goes on.

Owns: the processes that it starts and DIR/points. Independent of: what the numbers mean.
A job with several tests that fails is run again test by test, so that one that cannot be does not take the others along.
"""
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent.parent
KNOWN_DIFFERS = 3  # bench's exit code where a digest is not the known answer: it has written its rates


def toml(value):
    return json.dumps(value, ensure_ascii=False)  # of strings, numbers and booleans, and lists of them, JSON is TOML


def command_of(job, out, program=None):
    """The command line of a job, to be run or read."""
    line = [str(HERE / "run")] + (["--program", program] if program else []) + ["-np", str(job.ranks)]
    if job.ranks_per_host:
        line += ["-map-by", f"ppr:{job.ranks_per_host}:node:OVERSUBSCRIBE", "-bind-to", "none"]
    line += [*job.launcher, "--", "bench"]
    sets = {**job.sets, "run.arms": [job.arm], "run.threads": job.threads, **job.lists(), "bench.phases": True}
    if not job.threads:
        del sets["run.threads"]
    for key, value in sets.items():
        line += ["--set", f"{key}={toml(value)}"]
    return line + ["--out", out]


def reason_of(err, code):
    """What a run that failed said: moe_run's own lines, else what the launcher said, but for the command that it repeats."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    own = [line for line in lines if re.match(r"(rank \d+ \(|moe_run)", line)]
    said = " / ".join(dict.fromkeys(own)) or " ".join(line for line in lines if not re.match(r"[-=]+$|mpirun .*--set", line))
    return said[:500] or f"ended with {code} and said nothing"


class Ended(BaseException):
    """The study was told to end, by the signal `number`."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


class Runs:
    """The jobs that have been run, by id. program None: what is kept is taken, whichever program made it, and nothing runs."""

    def __init__(self, folder, program=None, limit=None, say=lambda text: None):
        self.folder = pathlib.Path(folder) / "points"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.program, self.limit, self.say = program, limit, say
        self.identity = {"sha256": hash_of(program), "version": version(program)} if program else None
        self.child, self.fresh = None, 0

    def file(self, job):
        return self.folder / f"{job.id()}.json"

    def found(self, job):
        """What was kept of a job, or None: of another program it is not taken."""
        try:
            kept = json.loads(self.file(job).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return kept if self.identity in (None, kept["program"]) else None

    def forget_failures(self):
        for file in self.folder.glob("*.json"):
            if json.loads(file.read_text(encoding="utf-8"))["bench"] is None:
                file.unlink()

    def keep(self, job, result):
        part = self.file(job).with_suffix(".part")
        with open(part, "w", encoding="utf-8") as file:
            json.dump({"program": self.identity, "job": dataclasses.asdict(job), **result}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.file(job))

    def end_child(self):
        """Ends the run that is under way, mpirun first so that it can end its ranks."""
        child = self.child
        if not child or child.poll() is not None:
            return
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def start(self, line, scratch):
        """(exit code or None at the limit, standard error)"""
        with open(os.path.join(scratch, "err"), "w+b") as err:
            env = os.environ | {"TMPDIR": scratch}  # mpirun's own: those of two at a time can take each other's away
            self.child = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err, env=env)
            try:
                code = self.child.wait(self.limit)
            except subprocess.TimeoutExpired:
                self.end_child()
                code = None
            except Ended:
                self.end_child()
                raise
            err.seek(0)
            return code, err.read().decode(errors="replace")

    def run(self, job):
        """Runs a job now and keeps what it found."""
        with tempfile.TemporaryDirectory(prefix="moe_study_") as scratch:
            out = os.path.join(scratch, "out")
            code, err = self.start(command_of(job, out, self.program), scratch)
            self.fresh += 1
            result = {"command": shlex.join(command_of(job, "OUT", self.program)), "code": code, "reason": None, "bench": None}
            if code in (0, KNOWN_DIFFERS):
                try:
                    with open(os.path.join(out, "bench.json"), encoding="utf-8") as file:
                        result["bench"] = json.load(file)
                except (OSError, ValueError) as e:
                    result["reason"] = f"{reason_of(err, code)} ({e})"
            if code == KNOWN_DIFFERS and result["bench"]:
                known = [line for line in err.splitlines() if "known" in line]
                result["known"] = known[-1].strip() if known else "a digest is not the known answer"
            if code is None:
                result["reason"] = f"not done after {self.limit:g} s"
            elif code not in (0, KNOWN_DIFFERS):
                result["reason"] = reason_of(err, code)
        self.keep(job, result)
        return result

    def measure(self, job):
        """Everything about a job is known afterwards."""
        result = self.found(job)
        if result is None and not self.program:
            return
        if result is None:
            self.say(f"{job.arm}, {job.ranks} ranks, {', '.join(test.name() for test in job.tests)}")
            result = self.run(job)
            if result["reason"]:
                self.say(f"  {result['reason']}")
        if result["bench"] is None and len(job.tests) > 1:
            for test in job.tests:
                self.measure(job.one(test))

    def row(self, job, test):
        """(what was kept of the run that has the test, its row of bench or None)"""
        result = self.found(job)
        if result and result["bench"] is None and len(job.tests) > 1:
            job = job.one(test)
            result = self.found(job)
        if not result or not result["bench"]:
            return result, None
        for row in result["bench"]["rows"]:
            if (row["kind"], row["tokens"], row["depth"], row["batch"]) == (test.kind, test.tokens, test.depth, test.batch):
                return result, row
        return result, None


def find_program(given):
    """moe_run's path: that given, else the one that launch/run takes."""
    if given:
        return given
    for built in (HERE.parent / "build" / "moe_run", HERE.parents[2] / "bin" / "moe_run"):
        if os.access(built, os.X_OK):
            return str(built)
    found = shutil.which("moe_run")
    if not found:
        raise FileNotFoundError("no moe_run here; launch/quickstart builds it")
    return found


def hash_of(program):
    return hashlib.sha256(pathlib.Path(program).read_bytes()).hexdigest()


def version(program):
    """The first line of what the program says of itself."""
    try:
        said = subprocess.run([program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        return (said.stdout.strip().splitlines() or ["not known"])[0]
    except (OSError, subprocess.TimeoutExpired):
        return "not known"


def listen():
    """A study that is told to end ends its run first; what was kept stays."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number, _):
        for one in signals:
            signal.signal(one, signal.SIG_IGN)
        raise Ended(number)  # in the main thread, which waits: it must leave that wait before it can wait for the end
    for one in signals:
        signal.signal(one, end)
