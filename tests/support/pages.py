"""What the tests of launch/report share: folders as commands leave them, and their pages.

Each folder and page is made once a script, pages by this process where it has matplotlib: it takes a second to load. Skips the
script where launch/report has none either."""

import functools
import json
import os
import subprocess
import sys

import check_schema
import moe

sys.path.append(os.path.join(moe.SOURCE, "launch"))
REPORT = os.path.join(moe.SOURCE, "launch", "report")
CONFIG = os.path.join(moe.SOURCE, "configs", "tiny.toml")
STUDY_SCHEMA = os.path.join(moe.SOURCE, "docs", "study.schema.json")
STRICT = """name = "strict"
version = 1
status = "draft"
run = "moe_run --config configs/tiny.toml --out DIR"
[invariants]
finite = true
[gates.layers_of_q8k]
metric = "rel_l2"
pair = ["q8k@cpu", "f64@cpu"]
at = "l_out"
at_most = 1e-3
[gates.layers_of_f32]
metric = "rel_l2"
pair = ["f32@cpu", "f64@cpu"]
at = "l_out"
at_most = 1e-3
"""


def _run(command, sets, ranks=1, code=0):
    folder = moe.fresh()
    line = moe.words(command=command, config=CONFIG, out=folder, sets={"run.threads": 1, "run.generate": 4} | sets)
    outcome = moe.finish(
        moe.start(line if ranks == 1 else moe.under_mpirun([(ranks, line)]), cwd=moe.SOURCE), folder=folder
    )
    if outcome.code != code:
        raise AssertionError(f"{command} ended with {outcome.code}\n{outcome.err}{outcome.out}")
    return folder


@functools.cache
def parity():
    """Everything that a run can write, on three ranks."""
    return _run(
        "parity",
        {
            "parity.mode": ["free", "teacher", "forced", "local"],
            "parity.probes": ["kqv_out", "ffn_moe_down"],
            "output.routes": True,
        },
        3,
    )


@functools.cache
def plain():
    """The least: no modes, no probes."""
    return _run("parity", {"run.arms": ["f64@cpu", "q8k@cpu"], "run.generate": 0})


@functools.cache
def failed_contract():
    """A run that its contract judged, with verify.json beside the report."""
    contract = moe.fresh(".toml")
    with open(contract, "w", encoding="utf-8") as file:
        file.write(STRICT)
    return _run("parity", {"contract.path": contract, "run.generate": 0}, code=3)


@functools.cache
def product():
    return _run("bisect", {"bisect.draws": 5})


@functools.cache
def whole():
    return _run("bisect", {"bisect.a": "q8k@cpu", "bisect.b": "f32@cpu", "bisect.budget": 20})


@functools.cache
def bench():
    return _run(
        "bench",
        {"run.arms": ["q8k@cpu"], "bench.prompt": [8], "bench.generate": [2], "bench.repeats": 1, "bench.phases": True},
    )


def _point(number, ranks, digest):
    """Of a study whose work takes 0.8 s on one rank: a shared part that every rank computes, experts that are divided."""
    experts, shared, exchange = 0.6 / ranks, 0.2, 0.01 * (ranks > 1)
    waiting = 0.02 * (ranks > 1)
    seconds, bound = shared + experts + exchange + waiting, shared + experts + exchange / 2
    parts = {"shared": shared, "experts": experts, "exchange": exchange, "waiting": waiting, "rest": 0.0}
    each = [
        {
            "rank": rank,
            "host": "node1",
            "seconds": seconds,
            "parts": parts,
            "phases": {"attention": shared, "gate, up": experts},
        }
        for rank in range(ranks)
    ]
    layers = [
        {
            "first": layer,
            "last": layer + 1,
            "ranks": [{part: parts[part] / 2 for part in ("shared", "experts", "exchange", "waiting")}] * ranks,
        }
        for layer in (0, 2)
    ]
    even = {"ranks": [480 // ranks] * ranks, "least": 480 // ranks, "mean": 480 / ranks, "most": 480 // ranks}
    link = {"bytes": 1 << 20, "seconds": 1e-4, "busbw_gb_per_s": 10.0}
    return {
        "id": number,
        "series": "ranks",
        "status": "ok",
        "reason": None,
        "at": ranks,
        "arm": "q8k@cpu",
        "path": "q8k",
        "row": "avx2",
        "test": "pp64",
        "kind": "pp",
        "tokens": 64,
        "depth": 0,
        "batch": 1,
        "ranks": ranks,
        "ranks_per_host": None,
        "hosts": 1,
        "threads": 1,
        "resources": ranks,
        "work": "q8k pp64",
        "command": f"launch/run -np {ranks} -- bench",
        "n": 3,
        "seconds": {
            "median": seconds,
            "min": 0.99 * seconds,
            "max": 1.02 * seconds,
            "runs": [seconds, 0.99 * seconds, 1.02 * seconds],
            "slowest_rank": [0] * 3,
            "ranks": [[seconds] * 3] * ranks,
        },
        "tokens_per_s": {"median": 64 / seconds, "min": 64 / (1.02 * seconds), "max": 64 / (0.99 * seconds)},
        "digest": digest,
        "split": {
            "seconds": seconds,
            "exchange_is_inside": False,
            "waiting_is_known": True,
            "slowest_rank": 0,
            "parts": parts,
            "ranks": each,
            "layers": layers,
        },
        "exchange": (
            None
            if ranks == 1
            else {
                "transport": "mpi",
                "peers": False,
                "sent_bytes": [10**6] * ranks,
                "received_bytes": [10**6] * ranks,
                "seconds": exchange,
                "gb_per_s": 0.2,
                "busbw_gb_per_s": 5.0,
                "link": {"same_size": link, "large": link},
            }
        ),
        "load": {"slots": even, "expert_bytes": even, "busiest_share": 1 / ranks, "token_share": 1 / ranks},
        "speedup": 0.8 / seconds,
        "efficiency": 0.8 / seconds / ranks,
        "bound": {
            "seconds": bound,
            "speedup": 0.8 / bound,
            "reached": bound / seconds,
            "memory_floor": None,
            "parts": {"replicated": shared, "tokens": 0.0, "experts": experts, "exchange": exchange / 2, "rest": 0.0},
        },
        "losses": [{"what": "waiting for the slowest rank", "seconds": waiting, "share": waiting / seconds}],
        "says": f"{100 * bound / seconds:.0f} % of the bound",
    }


def study_tree(digests=("0123456789abcdef",) * 3):
    """study.json of launch/scaling over 1, 2 and 4 ranks, with a point that could not run."""
    points = [_point(i, ranks, digests[i]) for i, ranks in enumerate((1, 2, 4))]
    nothing = {
        key: None
        for key in (
            "n",
            "seconds",
            "tokens_per_s",
            "digest",
            "split",
            "exchange",
            "load",
            "speedup",
            "efficiency",
            "bound",
            "says",
        )
    }
    points.append(
        points[0]
        | nothing
        | {
            "id": 3,
            "at": 17,
            "ranks": 17,
            "resources": 17,
            "status": "failed",
            "reason": "17 ranks for 16 experts",
            "losses": [],
        }
    )
    agree = len(set(digests)) == 1
    return {
        "study_version": 1,
        "complete": True,
        "name": "tiny",
        "title": "The shipped model",
        "file": "tiny.toml",
        "commands": ["launch/scaling tiny.toml --out DIR"],
        "program": {"version": "moe_run 0.1.0"},
        "model": {
            "path": "tiny.gguf",
            "name": "Tiny",
            "fingerprint": "a87bebed83289570",
            "bytes": 24091264,
            "types": "Q4_K 20",
        },
        "machine": {
            "hosts": 1,
            "host": ["node1"],
            "cpu": "a processor",
            "cores": 4,
            "bandwidth_bytes_per_s": 2e10,
            "warnings": [],
        },
        "digests": {
            "agree": agree,
            "digest": digests[0] if agree else None,
            "works": [{"work": "q8k pp64", "digest": digests[0] if agree else None, "points": [0, 1, 2]}],
            "known": None,
        },
        "series": [
            {
                "name": "ranks",
                "scaling": "strong",
                "over": "ranks",
                "curves": [{"arm": "q8k@cpu", "test": "pp64", "label": "q8k@cpu pp64", "points": [0, 1, 2, 3], "base": 0}],
            }
        ],
        "points": points,
        "extrap": [
            {
                "series": "ranks",
                "curve": "q8k@cpu pp64",
                "parameter": "ranks",
                "file": "extrap-1.txt",
                "values": [1, 2],
                "held_out": 4,
                "status": "fitted",
                "reason": None,
                "model": "0.2 + 0.6 / p",
                "measured": 0.38,
                "predicted": 0.35,
                "miss": -0.079,
            }
        ],
    }


@functools.cache
def study(tree=None):
    tree = study_tree()
    if os.path.exists(STUDY_SCHEMA):
        with open(STUDY_SCHEMA, encoding="utf-8") as file:
            schema = json.load(file)
        wrong = list(check_schema.faults(tree, schema, schema))
        assert not wrong, wrong
    return folder_of("study", tree)


def folder_of(name, tree):
    """A folder with that one file."""
    folder = moe.fresh()
    os.mkdir(folder)
    with open(os.path.join(folder, f"{name}.json"), "w", encoding="utf-8") as file:
        json.dump(tree, file)
    return folder


# ---- pages ----


def make(folder, *more):
    """Ends as launch/report does."""
    return subprocess.run(
        [sys.executable, "-B", REPORT, folder, *more], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


@functools.cache
def page(folder):
    """The path of a folder's page."""
    path = os.path.join(folder, "report.html")
    try:
        from page import files, whole
    except ImportError:
        return _page_of_script(folder, path)
    with open(path, "w", encoding="utf-8") as file:
        file.write(whole.page(files.read(folder)))
    return path


def _page_of_script(folder, path):
    made = make(folder)
    if made.returncode == 77:
        moe.skip(made.stderr.strip())
    if made.returncode:
        raise AssertionError(f"launch/report {folder} ended with {made.returncode}\n{made.stderr}")
    return path


def html(folder):
    with open(page(folder), encoding="utf-8") as file:
        return file.read()
