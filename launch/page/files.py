"""What is in a folder: the files of moe_run and launch/scaling, read and known to be whole.

Owns: their names and versions. Independent of: what the page shows of them. A file that is not there is None; one that is
cut short, of another version or no JSON is refused by name."""

import csv
import dataclasses
import glob
import json
import os
import tomllib

import numpy

# name, the key of its version, the version that this page reads, the key that a whole file ends with
JSON_FILES = [
    ("report", "schema", 4, "complete"),
    ("verify", None, None, "complete"),
    ("bisect", "schema", 1, None),
    ("bench", "bench_version", 1, None),
    ("falsify", "schema", 1, None),
    ("study", "study_version", 1, None),
]


BESIDE = [("timeline", None, None, None)]  # what gives no page alone


class Refused(Exception):
    """In one line: which file, and why."""


@dataclasses.dataclass
class Found:
    folder: str
    report: dict = None
    verify: dict = None
    bisect: dict = None
    bench: dict = None
    falsify: dict = None
    study: dict = None
    timeline: dict = None
    tokens: list = dataclasses.field(default_factory=list)  # rows of tokens.csv
    experts: list = dataclasses.field(default_factory=list)  # rows of experts.csv
    routes: dict = dataclasses.field(default_factory=dict)  # arm -> [layers, tokens, top_k]


def read(folder):
    if not os.path.isdir(folder):
        raise Refused(f"{folder}: expected a folder")
    found = Found(folder, **{name: _json(folder, name, *rest) for name, *rest in JSON_FILES + BESIDE})
    if not any(getattr(found, name) for name, *_ in JSON_FILES):
        raise Refused(f"{folder}: expected one of {', '.join(name + '.json' for name, *_ in JSON_FILES)}, found none")
    if found.report:
        found.tokens, found.experts = _csv(folder, "tokens.csv"), _csv(folder, "experts.csv")
        for path in glob.glob(os.path.join(glob.escape(folder), "routes.*@*.npy")):
            found.routes[os.path.basename(path)[len("routes.") : -len(".npy")]] = _array(path)
    return found


def _json(folder, name, key, version, last):
    path = os.path.join(folder, f"{name}.json")
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            tree = json.load(file)
    except (OSError, ValueError) as reason:
        raise Refused(f"{path}: {reason}") from None
    if not isinstance(tree, dict):
        raise Refused(f"{path}: expected an object")
    if key and tree.get(key) != version:
        raise Refused(f"{path}: {key}: expected {version}, found {tree.get(key)}")
    if last and tree.get(last) is not True:
        raise Refused(f"{path}: not whole: {last} is not true")
    return tree


def _csv(folder, name):
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _array(path):
    try:
        return numpy.load(path)
    except (OSError, ValueError) as reason:
        raise Refused(f"{path}: {reason}") from None


def number(word):
    """Of a CSV file: empty is None."""
    return float(word) if word else None


def owners(report):
    """The rank of each expert, where the report's placement says it; else None: of a map for each layer, with replicas, the
    routing alone does not say which rank computed a slot."""
    experts, ranks = report["model"]["n_experts"], report["ranks"]
    kind = report["run"]["placement"]
    if kind in ("contiguous", "balanced"):  # runs of experts, in the order of ranks
        return numpy.repeat([rank["rank"] for rank in ranks], [rank["experts"] for rank in ranks])
    if kind == "strided":
        return numpy.arange(experts) % len(ranks)
    if kind == "list":
        try:
            return numpy.array(tomllib.loads(report["run"]["config"])["experts"]["placement"])
        except (tomllib.TOMLDecodeError, KeyError):
            return None
    return None
