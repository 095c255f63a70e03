#!/usr/bin/env python3
"""How far honest traces come to the bounds of `moe_run compare` (docs/trace.md): the largest of each figure that a bound
holds, over random models, both caches and pairs of arms. Not a test: where a bound is to be moved, run it before.

Use:  PYTHONPATH=tests/support MOE_RUN=build/moe_run python3 tests/support/honest_traces.py [SEEDS]
"""
import json
import os
import shutil
import subprocess
import sys

import gguf_random
import moe
import numpy as np

SHAPES = [dict(), dict(layers=6, experts=16, top_k=4), dict(layers=5, outliers=3),
          dict(layers=4, types="Q4_K_M", hidden=512, expert_width=512),
          dict(layers=3, heads=8, kv_heads=2, hidden=512, head_dim=128, outliers=2, types="Q6_K"), dict(layers=4, types="Q8_0"),
          dict(layers=8, experts=32, top_k=8, outliers=1)]
PAIRS = [("f32", "f64"), ("q8k", "f64"), ("q8k", "f32"), ("f64", "q8k")]


def compare(a, b):
    out = moe.fresh()
    done = subprocess.run([moe.PROGRAM, "compare", a, b, "--out", out], capture_output=True, text=True, timeout=moe.LIMIT)
    if done.returncode not in (0, 3):
        sys.exit(done.stderr)
    with open(os.path.join(out, "compare.json"), encoding="utf-8") as file:
        return json.load(file)["pairs"][0]


def figures(probes):
    """[(figure, value, probe)] of the probes that a bound looks at, as src/measure/trace_verdict.c takes them."""
    products = [p for p in probes if p["judged_by"] == "gain" and p["gain"]]
    usual = max(np.median([p["gain"] for p in products] or [1]), 1)
    usual_worst = max(np.median([p["worst_gain"] for p in products] or [1]), 1)
    for p in products:
        others = [q["gain"] for q in products if q["probe"] == p["probe"] and q["layer"] != p["layer"]]
        yield "gain / products", p["gain"] / usual, p["name"]
        yield "worst row / products", p["worst_gain"] / usual_worst, p["name"]
        if len(others) > 1:
            yield "gain / other layers", p["gain"] / max(np.median(others), 0.2), p["name"]
        error = 2 * p["bias_in_error"] + p["bias_error"]
        if p["rows"] >= 8 and error > 0:
            inherited = 2 * (abs(p["bias_in"]) + p["error_out"] ** 2 + p["own_error"])
            yield "scale / standard errors", (abs(p["bias"]) - inherited) / error, p["name"]
    for p in probes:
        if p["judged_by"] == "residual" and max(p["rounding"]) > 0:
            yield "residual / bound", max(r / b for r, b in zip(p["worst_residual"], p["rounding"])), p["name"]


def main():
    worst, count, off = {}, 0, []
    for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1):
        for i, shape in enumerate(SHAPES):
            rng = np.random.default_rng([seed, i])
            model = gguf_random.write_model(moe.fresh(".gguf"), 100 * seed + i, **shape)[0]
            for kv in ("f16", "f32"):
                keys = {"model.path": model, "input.tokens": rng.integers(0, 512, int(rng.integers(2, 90))).tolist(),
                        "run.arms": ["f64@cpu", "f32@cpu", "q8k@cpu"], "run.kv": kv, "run.threads": 1}
                folder = moe.fresh()
                outcome = moe.attempt(keys, out=folder, command="trace", alone=True)
                if outcome.code:
                    sys.exit(outcome.err)
                for a, b in PAIRS:
                    pair = compare(f"{folder}/{a}@cpu", f"{folder}/{b}@cpu")
                    count += 1
                    off += [(seed, i, kv, a, b, pair["first"])] if pair["first"] else []
                    for figure, value, name in figures(pair["probes"]):
                        if value > worst.get(figure, (0,))[0]:
                            worst[figure] = (value, f"{a} - {b}, kv {kv}, model {i}: {name}")
                shutil.rmtree(folder)
            os.remove(model)
    print(f"{count} honest pairs, {len(off)} off {off}")
    for figure, (value, where) in sorted(worst.items()):
        print(f"  {figure:<24} {value:9.3g}  {where}")


if __name__ == "__main__":
    main()
