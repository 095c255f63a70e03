"""What the tests of launch/report share: folders as commands leave them, and their pages.

Each folder and page is made once a script, pages by this process where it has matplotlib: it takes a second to load. Skips
the test where launch/report has none either."""

import functools
import json
import os
import subprocess
import sys
import unittest

import check_schema
import moe
import study_example

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
            "output.timeline": True,
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
def same_bits():
    """Nothing separates the two."""
    return _run("bisect", {"bisect.a": "q8k@cpu", "bisect.b": "q8k@cpu", "bisect.rows_b": "portable", "bisect.budget": 20})


@functools.cache
def bench():
    return _run(
        "bench",
        {"run.arms": ["q8k@cpu"], "bench.prompt": [8], "bench.generate": [2], "bench.repeats": 1, "bench.phases": True},
    )


@functools.cache
def study():
    tree = study_example.study()
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
        raise unittest.SkipTest(made.stderr.strip())
    if made.returncode:
        raise AssertionError(f"launch/report {folder} ended with {made.returncode}\n{made.stderr}")
    return path


def html(folder):
    with open(page(folder), encoding="utf-8") as file:
        return file.read()
