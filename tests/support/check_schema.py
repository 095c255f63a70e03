#!/usr/bin/env python3
"""Checks report.json files against docs/report.schema.json, and what a schema cannot say.

    check_schema.py [--schema FILE] [--self-test] REPORT...

The validator below knows the part of JSON Schema that our schema uses and refuses a schema with any other word; where
the jsonschema package is there, it must agree. --self-test also spoils each report in many ways, one at a time, and
fails unless every one is refused.
"""
import argparse
import copy
import json
import math
import pathlib
import re
import sys

try:
    from jsonschema import Draft202012Validator
except ImportError:
    Draft202012Validator = None

TYPES = {
    "object": lambda x: isinstance(x, dict),
    "array": lambda x: isinstance(x, list),
    "string": lambda x: isinstance(x, str),
    "boolean": lambda x: isinstance(x, bool),
    "null": lambda x: x is None,
    "integer": lambda x: isinstance(x, int) and not isinstance(x, bool),
    "number": lambda x: isinstance(x, (int, float)) and not isinstance(x, bool),
}
SILENT = {"$schema", "$defs", "title", "description"}
KNOWN = SILENT | {"$ref", "type", "const", "enum", "pattern", "minimum", "maximum", "minItems", "items", "required",
                  "properties", "additionalProperties"}


def same(a, b):
    return type(a) is type(b) and a == b  # in Python, True == 1


def faults(value, schema, root, at="report"):
    """Yields a text for each place where value breaks the schema."""
    for word in schema.keys() - KNOWN:
        raise SystemExit(f"the schema uses {word!r}, which this validator does not know")
    if "$ref" in schema:
        yield from faults(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, at)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(TYPES[k](value) for k in kinds):
        yield f"{at}: expected {' or '.join(kinds)}, found {json.dumps(value)[:60]}"
        return
    if "const" in schema and not same(value, schema["const"]):
        yield f"{at}: expected {schema['const']!r}, found {value!r}"
    if "enum" in schema and not any(same(value, e) for e in schema["enum"]):
        yield f"{at}: expected one of {schema['enum']}, found {value!r}"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{at}: expected {schema['pattern']}, found {value!r}"
    if TYPES["number"](value):
        if not schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf):
            yield f"{at}: {value} is out of range"
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{at}: expected at least {schema['minItems']} entries, found {len(value)}"
        for i, item in enumerate(value):
            yield from faults(item, schema.get("items", {}), root, f"{at}[{i}]")
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        for key in schema.get("required", []):
            if key not in value:
                yield f"{at}: no {key}"
        for key, item in value.items():
            if key in properties:
                yield from faults(item, properties[key], root, f"{at}.{key}")
            elif schema.get("additionalProperties", True) is False:
                yield f"{at}: {key} is not in the schema"


def spreads(report):
    """Yields every (place, object with a spread)."""
    lists = [("pairs", report["pairs"])] + [(f"modes.{m}.pairs", mode["pairs"]) for m, mode in report["modes"].items()]
    for at, pairs in lists:
        for p, pair in enumerate(pairs):
            yield f"{at}[{p}].logits", pair["logits"]
            for part in ("layers", "probes"):
                for i, entry in enumerate(pair[part]):
                    yield f"{at}[{p}].{part}[{i}]", entry


def disagreements(report):
    """Yields what the parts of a report that fits the schema say against each other."""
    if list(report)[-1] != "complete":
        yield "complete is not the last key"
    names = [arm["name"] for arm in report["arms"]]
    if len(set(names)) != len(names):
        yield "two arms have one name"
    if [r["rank"] for r in report["ranks"]] != list(range(len(report["ranks"]))):
        yield "the ranks are not 0, 1, 2 ..."
    for arm in report["arms"]:
        if arm["ranks"] != len(report["ranks"]) or len(arm["bytes_per_rank"]) != arm["ranks"]:
            yield f"{arm['name']}: its number of ranks disagrees"
        if len(arm["layer_digests"]) not in (0, report["model"]["n_layers"]):
            yield f"{arm['name']}: its number of layers disagrees"
        if arm["name"] not in ("ranks", arm["path"] + "@cpu", arm["path"] + "@cuda"):
            yield f"{arm['name']}: its path disagrees"
        total = sum(int(s["digest"], 16) for s in arm["sequences"]) % 2**64
        if arm["sequences"] and total != int(arm["digest"], 16):
            yield f"{arm['name']}: the digest is not the sum over sequences"
    for pair in report["pairs"]:
        if pair["a"] not in names or pair["b"] not in names or pair["a"] == pair["b"]:
            yield f"pair {pair['a']}, {pair['b']}: not two of the arms"
        if [layer["layer"] for layer in pair["layers"]] != list(range(len(pair["layers"]))):
            yield f"pair {pair['a']}, {pair['b']}: the layers are not 0, 1, 2 ..."
    yield from mode_disagreements(report)
    for at, entry in spreads(report):
        for metric, s in entry["spread"].items():
            if not same(entry[metric], s["max"]):
                yield f"{at}.{metric} is not its spread's max"
            numbers = [s["min"], s["median"], s["max"]]
            if None not in numbers and numbers != sorted(numbers):
                yield f"{at}.spread.{metric}: min, median and max are not in order"


PERCENTILES = ("min", "p0_1", "p1", "p5", "median", "p95", "p99", "p99_9", "max")


def mode_disagreements(report):
    """The same of modes, of what is over positions, and of accounts."""
    said = [arm["name"] for arm in report["arms"]]
    between = [(pair["a"], pair["b"]) for pair in report["pairs"]]
    for name, mode in report["modes"].items():
        if [arm["name"] for arm in mode["arms"]] != said:
            yield f"modes.{name}: not the arms of the report"
        if [(pair["a"], pair["b"]) for pair in mode["pairs"]] != between:
            yield f"modes.{name}: not the pairs of the report"
    for at, entry in spreads(report):
        for key, d in entry.get("distribution", {}).items():
            numbers = [d[p] for p in PERCENTILES]
            if None not in numbers and numbers != sorted(numbers):
                yield f"{at}.distribution.{key}: the percentiles are not in order"
            if key == "kl" and not same(d["max"], entry["kl"]):
                yield f"{at}.distribution.kl is not of the same numbers as kl"
    if report["accounts"] and [(a["a"], a["b"]) for a in report["accounts"]] != between:
        yield "accounts: not the pairs of the report"
    if report["accounts"] and set(report["modes"]) != {"forced", "teacher"}:
        yield "accounts: not of all three modes"
    for account in report["accounts"]:
        parts = [account[part]["mean"] for part in ("local", "interference", "compounding", "flips")]
        total = account["total"]["mean"]
        if None not in parts + [total] and abs(sum(parts) - total) > 1e-9 * max(map(abs, parts + [total])):
            yield f"account {account['a']}, {account['b']}: the parts do not add up to the total"


def refuse_constant(text):
    raise ValueError(f"{text} is not JSON")


def check_text(text, schema, second):
    """All faults of a report's text; `second` is jsonschema's validator or None."""
    try:
        report = json.loads(text, parse_constant=refuse_constant)
    except ValueError as e:
        return [f"not JSON: {e}"]
    found = list(faults(report, schema, schema))
    if second and second.is_valid(report) == bool(found):
        found.append(f"the two validators disagree: ours found {found}")
    return found or list(disagreements(report))


def places(node, path=()):
    """Every path into a JSON tree; of a list the last entry."""
    if path:
        yield path
    keys = node.keys() if isinstance(node, dict) else [len(node) - 1] if isinstance(node, list) and node else []
    for key in keys:
        yield from places(node[key], path + (key,))


def may_be_negative(path):
    if "distribution" in path:
        return path[-1] in ("mean", *PERCENTILES)
    return path[-1] in ("perplexity_delta", "increment") or ("accounts" in path and path[-1] == "mean")


def spoiled(report):
    """Yields (what was done, text) for reports with one thing wrong."""
    def changed(path, change):
        wrong = copy.deepcopy(report)
        parent = wrong
        for key in path[:-1]:
            parent = parent[key]
        change(parent, path[-1])
        return json.dumps(wrong)

    def remove(parent, key):
        del parent[key]

    def put(value):
        return lambda parent, key: parent.__setitem__(key, value)

    for path in places(report):
        node = report
        for key in path:
            node = node[key]
        yield f"{path} of another type", changed(path, put({"x": []} if isinstance(node, list) else [{}]))
        if isinstance(path[-1], str):
            yield f"{path} missing", changed(path, remove)
        if isinstance(node, dict):
            yield f"{path} with one more key", changed(path + ("more",), put(0))
        if TYPES["number"](node) and not may_be_negative(path):
            yield f"{path} negative", changed(path, put(-1))
            yield f"{path} a string", changed(path, put(str(node)))
        if isinstance(node, str) and re.fullmatch("[0-9a-f]{16}", node):
            yield f"{path} a short digest", changed(path, put(node[1:]))
            yield f"{path} in capitals", changed(path, put("ABCDEF" + node[6:]))
    yield "complete is false", changed(("complete",), put(False))
    yield "complete is 1", changed(("complete",), put(1))
    yield "complete comes first", json.dumps({"complete": True, **{k: v for k, v in report.items() if k != "complete"}})
    text = json.dumps(report)
    yield "cut short", text[: len(text) // 2]
    yield "a NaN", changed(("arms", 0, "perplexity"), put(math.nan))
    for at, _ in spreads(report):
        where = [int(n) if n.isdigit() else n for n in re.findall(r"\w+", at)]
        yield f"{at}: better than its spread", changed((*where, "rel_l2"), put(1e-30))
        yield f"{at}: a better maximum", changed((*where, "spread", "rel_l2", "max"), put(0))
    for account in range(len(report["accounts"])):
        yield f"account {account}: another part", changed(("accounts", account, "flips", "mean"), put(0.75))
        yield f"account {account}: another pair", changed(("accounts", account, "a"), put(report["accounts"][account]["b"]))
    for mode in report["modes"]:
        yield f"{mode}: another arm", changed(("modes", mode, "arms", 0, "name"), put("ranks"))
        yield f"{mode}: a pair less", changed(("modes", mode, "pairs"), lambda parent, key: parent[key].pop())
    for i, arm in enumerate(report["arms"]):
        if arm["name"] != "ranks":
            yield f"arm {i}: another path", changed(("arms", i, "path"), put("f32" if arm["path"] != "f32" else "f64"))
        if arm["sequences"]:
            yield f"arm {i}: another digest", changed(("arms", i, "digest"), put(f"{int(arm['digest'], 16) ^ 1:016x}"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schema", default=pathlib.Path(__file__).resolve().parents[2] / "docs/report.schema.json")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("reports", nargs="+")
    args = parser.parse_args()
    with open(args.schema, encoding="utf-8") as f:
        schema = json.load(f)
    second = Draft202012Validator(schema) if Draft202012Validator else None
    bad = False
    for name in args.reports:
        with open(name, encoding="utf-8") as f:
            text = f.read()
        found = check_text(text, schema, second)
        for fault in found:
            print(f"{name}: {fault}")
        bad |= bool(found)
        if not args.self_test or found:
            continue
        tried = 0
        for what, wrong in spoiled(json.loads(text)):
            tried += 1
            if not check_text(wrong, schema, second):
                print(f"{name}: accepted with {what}")
                bad = True
        print(f"{name}: {tried} spoiled copies tried{' (two validators)' if second else ''}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
