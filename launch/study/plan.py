"""A study's file: which points it has, and which runs of moe_run bench measure them.

Owns: the keys of a study. Independent of: how runs are started and what they find.
A job is one run of bench: its ranks, threads, arm and settings, and a list of tests that share a process.
"""
import dataclasses
import hashlib
import itertools
import json

try:
    import tomllib
except ImportError:  # before Python 3.11
    try:
        import tomli as tomllib
    except ImportError:
        tomllib = None

AXES = ("ranks", "ranks_per_host", "threads", "arms", "batches", "prompts", "generate", "depths")
RESOURCES = ("ranks", "ranks_per_host", "threads")
WORK = ("batches", "prompts", "generate", "depths")
LISTS = {"arms": "run.arms", "batches": "bench.batch", "prompts": "bench.prompt", "generate": "bench.generate",
         "depths": "bench.depth"}
DEFAULTS = {"ranks": [1], "ranks_per_host": [0], "threads": [0], "batches": [1], "prompts": [], "generate": [],
            "depths": [0]}
STUDY_KEYS = {"name", "title", "set", "series", "extrap", "limit"}
SERIES_KEYS = {"name", "scaling", "over", "cores", "grows", "set", "launcher", "extrap", *AXES}
MOST_SIZES = 16  # of a list of bench
RESERVED = {"run.arms", "run.threads", "bench.batch", "bench.prompt", "bench.generate", "bench.depth", "bench.phases",
            "bench.format", "output.dir"}


class Refusal(Exception):
    """The study's file asks for what cannot be."""


@dataclasses.dataclass
class Test:
    """One point's work: kind is pp (a prompt of so many tokens) or tg (so many decoded)."""
    kind: str
    tokens: int
    depth: int
    batch: int

    def name(self):  # as bench names its rows
        text = f"{self.kind}{self.tokens}"
        text += f" @ d{self.depth}" if self.depth else ""
        return text + (f" x{self.batch}" if self.batch > 1 else "")


@dataclasses.dataclass
class Job:
    """One run of moe_run bench. tests: those of its lists, in the order of bench's rows."""
    ranks: int
    ranks_per_host: int
    threads: int
    arm: str
    sets: dict
    launcher: list
    tests: list

    def id(self):
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{self.arm.replace('@', '-')}-r{self.ranks}-t{self.threads}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def one(self, test):
        return dataclasses.replace(self, tests=[test])

    def lists(self):
        """bench's lists, from which it makes the same tests."""
        of = lambda kind: list(dict.fromkeys(t.tokens for t in self.tests if t.kind == kind))
        return {"bench.prompt": of("pp"), "bench.generate": of("tg"),
                "bench.depth": list(dict.fromkeys(t.depth for t in self.tests)),
                "bench.batch": list(dict.fromkeys(t.batch for t in self.tests))}


@dataclasses.dataclass
class Planned:
    """A point before it is measured. axes: its value on every axis of its series."""
    series: str
    job: Job
    test: Test
    axes: dict
    at: object
    label: str  # of its curve
    grown: int = 1


def read(path):
    """The study as a dictionary, checked."""
    if tomllib is None:
        raise Refusal("reading TOML needs Python 3.11, or the package python3-tomli")
    try:
        with open(path, "rb") as file:
            study = tomllib.load(file)
    except OSError as e:
        raise Refusal(f"{path}: {e.strerror}") from e
    except tomllib.TOMLDecodeError as e:
        raise Refusal(f"{path}: {e}") from e
    check(path, study)
    return study


def flat(table, before=""):
    """{"run": {"seed": 1}} as {"run.seed": 1}."""
    out = {}
    for key, value in table.items():
        out.update(flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value})
    return out


def check(path, study):
    def refuse(what):
        raise Refusal(f"{path}: {what}")

    def known(table, keys, where):
        for key in table:
            if key not in keys:
                refuse(f"{where}: unknown key {key}; known are {', '.join(sorted(keys))}")

    known(study, STUDY_KEYS, "the study")
    if not study.get("name") or not study.get("series"):
        refuse("expected a name and at least one [[series]]")
    names = [series.get("name") for series in study["series"]]
    if None in names or len(set(names)) != len(names):
        refuse("expected a name of its own for each series")
    for series in study["series"]:
        where = f"series {series['name']}"
        known(series, SERIES_KEYS, where)
        if series.get("scaling", "strong") not in ("strong", "weak"):
            refuse(f"{where}: scaling is \"strong\" or \"weak\"")
        if series.get("over", "ranks") not in AXES:
            refuse(f"{where}: over is one of {', '.join(AXES)}")
        if series.get("scaling") == "weak" and (series.get("grows") not in ("batches", "prompts")
                                                or series.get("over", "ranks") not in ("ranks", "threads")):
            refuse(f"{where}: weak scaling is over ranks or threads, and grows \"batches\" or \"prompts\"")
        if not series.get("arms") or not (series.get("prompts") or series.get("generate")):
            refuse(f"{where}: expected arms, and prompts or generate")
        for axis in AXES:
            check_list(axis, series.get(axis, DEFAULTS.get(axis)), lambda what: refuse(f"{where}: {what}"))
            if axis in series and not series[axis] and axis not in ("prompts", "generate"):
                refuse(f"{where}: {axis}: expected at least one")
        if series.get("scaling") == "weak" and 0 in series.get(series.get("over", "ranks"), DEFAULTS[series.get("over", "ranks")]):
            refuse(f"{where}: weak scaling is over numbers of threads, and 0 is none")
        for key in {**flat(study.get("set", {})), **flat(series.get("set", {}))}:
            if key in RESERVED:
                refuse(f"{where}: {key} is the study's own to set")


def check_list(axis, values, refuse):
    least = 0 if axis in ("ranks_per_host", "threads", "depths") else 1
    good = isinstance(values, list) and all(
        isinstance(v, str) if axis == "arms" else isinstance(v, int) and not isinstance(v, bool) and v >= least for v in values)
    if not good or len(set(values)) != len(values):
        refuse(f"{axis}: expected a list of different {'arms' if axis == 'arms' else f'integers from {least}'}")


def tests_of(series, grown):
    """In the order of bench's rows. grown: of weak scaling, how many times the first point's work."""
    grows = series.get("grows")
    take = lambda axis: [v * (grown if axis == grows else 1) for v in series.get(axis, DEFAULTS[axis])]
    return product_of(take("batches"), take("depths"), [("pp", n) for n in take("prompts")] + [("tg", n) for n in take("generate")])


def product_of(batches, depths, lengths):
    """lengths: [(kind, number)], prompts first."""
    return [Test(kind, n, depth, batch) for batch in batches for depth in depths for kind, n in lengths]


def threads_of(series, ranks, threads):
    return max(1, series["cores"] // ranks) if series.get("cores") else threads


def jobs_of(study, series):
    """Yields (job, grown)."""
    values = [series.get(axis, DEFAULTS.get(axis)) for axis in ("ranks", "ranks_per_host", "threads", "arms")]
    sets = {**flat(study.get("set", {})), **flat(series.get("set", {}))}
    over = series.get("over", "ranks")
    for ranks, per_host, threads, arm in itertools.product(*values):
        of = {"ranks": ranks, "threads": threads}
        grown = 1
        if series.get("scaling") == "weak":
            first = min(series.get(over, DEFAULTS[over]))
            if of[over] % first:
                raise Refusal(f"series {series['name']}: {over} {of[over]} is no multiple of {first}")
            grown = of[over] // first
        yield Job(ranks, per_host, threads_of(series, ranks, threads), arm, sets, series.get("launcher", []),
                  tests_of(series, grown)), grown


def axes_of(job, test, grown, series):
    grows = series.get("grows")
    per = lambda axis, value: value // grown if axis == grows else value
    return {"ranks": job.ranks, "ranks_per_host": job.ranks_per_host, "threads": 0 if series.get("cores") else job.threads,
            "arms": job.arm, "kind": test.kind, "batches": per("batches", test.batch), "depths": test.depth,
            "prompts": per("prompts", test.tokens) if test.kind == "pp" else 0,
            "generate": test.tokens if test.kind == "tg" else 0}


def label_of(series, axes, over):
    """A curve's name: the arm, the test, and what else has several values in the series."""
    length = {"pp": "prompts", "tg": "generate"}[axes["kind"]]
    text = [] if over == "arms" else [axes["arms"]]
    text.append(axes["kind"] if over == length else f"{axes['kind']}{axes[length]}")
    if axes["depths"] and over != "depths":
        text.append(f"@ d{axes['depths']}")
    if over != "batches" and axes["batches"] > 1:
        text.append(f"x{axes['batches']}")
    if series.get("scaling") == "weak":
        text.append("a rank" if over == "ranks" else "a thread")
    for axis in RESOURCES:
        if axis != over and len(series.get(axis, DEFAULTS[axis])) > 1:
            text.append(f"{axis} {axes[axis]}")
    return " ".join(text)


def merged(jobs):
    """{id of a job: the job that has its tests}. Jobs that differ only in lengths share a process: its start takes longer
    than most tests."""
    groups, out = {}, {}
    for job in jobs:
        batches, depths = job.lists()["bench.batch"], job.lists()["bench.depth"]
        groups.setdefault((dataclasses.replace(job, tests=[]).id(), str(batches), str(depths)), []).append(job)
    for group in groups.values():
        lists = group[0].lists()
        lengths = dict.fromkeys((test.kind, test.tokens) for kind in ("pp", "tg") for job in group for test in job.tests
                                if test.kind == kind)
        if max(sum(kind == of for kind, _ in lengths) for of in ("pp", "tg")) > MOST_SIZES:
            out |= {job.id(): job for job in group}
            continue
        whole = dataclasses.replace(group[0], tests=product_of(lists["bench.batch"], lists["bench.depth"], lengths))
        out |= {job.id(): whole for job in group}
    return out


def points_of(study):
    """All points of a study, in the order of its file."""
    out = []
    for series in study["series"]:
        over = series.get("over", "ranks")
        for job, grown in jobs_of(study, series):
            for test in job.tests:
                axes = axes_of(job, test, grown, series)
                if over in ("prompts", "generate") and not axes[over]:
                    continue  # a prompt has no place on an axis of decoded tokens
                out.append(Planned(series["name"], job, test, axes, axes[over], label_of(series, axes, over), grown))
    shared = merged([point.job for point in out])
    return [dataclasses.replace(point, job=shared[point.job.id()]) for point in out]
