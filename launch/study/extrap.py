"""Extra-P: its input files, and how well its model of the smaller values foretells the largest, which it has not seen.

Extra-P (PyPI: extrap) fits a + b p^i log2(p)^j to medians or means. It is a program of its own, in a virtual environment
that the study or the command line names; without it the files are written all the same.
Independent of: what the numbers are.
"""
import ast
import math
import os
import shutil
import subprocess

LEAST_VALUES = 6  # of the parameter: five to fit, which is what Extra-P asks for, and one to foretell


def program_of(venv):
    """The program extrap of a virtual environment, or that in PATH."""
    if venv:
        path = os.path.join(os.path.expanduser(venv), "bin", "extrap")
        return path if os.access(path, os.X_OK) else None
    return shutil.which("extrap")


def file_of(parameter, values, runs):
    """Extra-P's text format: every sample of each value."""
    lines = [f"PARAMETER {parameter}", "POINTS " + " ".join(str(v) for v in values), "REGION run", "METRIC time"]
    return "\n".join(lines + ["DATA " + " ".join(f"{s:.9g}" for s in samples) for samples in runs]) + "\n"


def value_of(node, names):
    """Of an arithmetic expression: numbers, names, + - * / **, and log2."""
    match node:
        case ast.Expression():
            return value_of(node.body, names)
        case ast.Constant(value=int() | float()):
            return node.value
        case ast.Name():
            return names[node.id]
        case ast.UnaryOp(op=ast.USub()):
            return -value_of(node.operand, names)
        case ast.Call(func=ast.Name(id="log2"), args=[of]):
            return math.log2(value_of(of, names))
        case ast.BinOp():
            a, b = value_of(node.left, names), value_of(node.right, names)
            match node.op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    return a / b
                case ast.Pow():
                    return a**b
    raise ValueError(f"not understood: {ast.dump(node)}")


def ask(program, path, form, falls):
    """What Extra-P prints of its model of a file. falls: the time may fall with the parameter."""
    line = [program, "--text", path, "--median", "--disable-progress", "--modeler", "basic"]
    line += ["--options", "allow_negative_exponents=True"] if falls else []
    said = subprocess.run(line + ["--print", form], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    lines = [text.strip() for text in said.stdout.splitlines() if text.strip()]
    if said.returncode or not lines:
        raise ValueError((said.stderr.strip().splitlines() or [f"it ended with {said.returncode}"])[-1])
    return lines[-1]


def fit(program, path, parameter, held_out, falls):
    """(the model as text, its value at held_out)"""
    text = ask(program, path, "functions", falls)
    value = value_of(ast.parse(ask(program, path, "functions-python", falls), mode="eval"), {parameter: held_out})
    return text, float(value)


def wanted(series):
    return series["over"] not in ("arms", "ranks_per_host")


def models(folder, study_series, points, venv):
    """Writes extrap-N.txt of each curve with enough values, and asks Extra-P about it. Returns extrap of study.json."""
    program, out = program_of(venv), []
    for series in filter(wanted, study_series):
        for curve in series["curves"]:
            good = [points[i] for i in curve["points"] if points[i]["status"] == "ok"]
            if len(good) < LEAST_VALUES:
                continue
            *known, last = good
            name = f"extrap-{len(out) + 1}.txt"
            path = os.path.join(folder, name)
            with open(path, "w", encoding="ascii") as file:
                file.write(file_of(series["over"], [p["at"] for p in known], [p["seconds"]["runs"] for p in known]))
            entry = {"series": series["name"], "curve": curve["label"], "parameter": series["over"], "file": name,
                     "values": [p["at"] for p in good], "held_out": last["at"], "status": "not found", "reason": None,
                     "model": None, "measured": last["seconds"]["median"], "predicted": None, "miss": None}
            falls = series["scaling"] == "strong" and series["over"] in ("ranks", "threads")
            if not program:
                entry["reason"] = "no program extrap: pip install extrap into a virtual environment, and name it"
            else:
                try:
                    entry["model"], entry["predicted"] = fit(program, path, series["over"], last["at"], falls)
                    entry["miss"] = entry["predicted"] / entry["measured"] - 1
                    entry["status"] = "fitted"
                except (ValueError, OSError, subprocess.TimeoutExpired, SyntaxError, KeyError) as e:
                    entry["status"], entry["reason"] = "failed", str(e)[:300]
            out.append(entry)
    return out
