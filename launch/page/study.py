"""study.json of launch/scaling: curves with their bounds, and what took the rest; digests, failed points, Extra-P.

Curves are in study_curves.py, where the time of the points went in study_time.py. Independent of: how a study is run.
"""

from page import study_time
from page.document import (
    Section,
    bar,
    block,
    byte_size,
    code,
    count,
    definitions,
    details,
    join,
    listed,
    mark,
    note,
    percent,
    rounded,
    table,
    warning,
    wrapped,
)
from page.study_curves import RESOURCES, curves, measured, points_of

SHORT = 0.85  # a point that reaches less of its bound is said to fall short: docs of launch/scaling


# ---- the finding ----


def finding(found):
    study = found.study
    differ = [work for work in study["digests"]["works"] if work["digest"] is None]
    if differ:
        return (
            f"Points of the same work have different digests: {listed(work['work'] for work in differ)}",
            ["So not all of them computed the same, and no rate of theirs may be compared."],
        )
    return _gain(study), _more(study)


def _gain(study):
    """The point of the largest speed-up of a strong study, else the fastest."""
    strong = [
        (point, curve)
        for series in study["series"]
        if series["scaling"] == "strong"
        for curve in series["curves"]
        for point in measured(points_of(study, curve))
        if point["speedup"] is not None and series["over"] in RESOURCES
    ]
    done = measured(study["points"])
    if not done:
        return "No point of this study could be measured"
    if not strong:
        best = max(done, key=lambda point: point["tokens_per_s"]["median"])
        return (
            f"{best['arm']} computes {rounded(best['tokens_per_s']['median'], 4)} tokens a second ({best['test']},"
            f" {count(best['ranks'], 'rank')})"
        )
    best, curve = max(strong, key=lambda found: (found[0]["resources"], found[0]["speedup"]))
    base = next((point for point in study["points"] if point["id"] == curve["base"]), best)
    said = (
        f"{count(best['resources'], 'GPU' if _on_gpus(best) else 'core')} compute {best['test']} on {best['path']}"
        f" {rounded(best['speedup'], 3)} times as fast as {base['resources']}"
    )
    if best["bound"]:
        said += f", {percent(best['bound']['reached'])} of what the bound allows"
    return said


def _on_gpus(point):
    return point["arm"].endswith("@cuda")


def _more(study):
    done, said = measured(study["points"]), []
    works = study["digests"]["works"]
    said.append(f"{count(len(done), 'point')}, {count(len(works), 'work')}: points of one work have one digest.")
    short = [point for point in done if point["bound"] and point["bound"]["reached"] < SHORT]
    if any(point["bound"] for point in done):
        said.append(
            f"{count(len(short), 'point falls', 'points fall')} short of {'its' if len(short) == 1 else 'their'} bound by"
            " more than 15 %."
            if short
            else "No point falls short of its bound by more than 15 %."
        )
    failed = len(study["points"]) - len(done)
    if failed:
        said.append(f"{count(failed, 'point')} could not run.")
    if not study["complete"]:
        said.append("The study was cut off, or still runs.")
    return said


# ---- sections ----


def sections(found):
    study = found.study
    return [
        Section("curves", "Scaling", *curves(study)),
        Section("points", "Points", *_points(study)),
        *study_time.sections(study),
        Section("digests", "Digests", *_digests(study)),
        Section("extrap", "Extra-P", *_extrap(study)),
        Section("study-machine", "Machine and model", *_machine(study)),
        Section("repeat-study", "To repeat the study", *_commands(study)),
    ]


def _points(study):
    done = measured(study["points"])
    failed = [point for point in study["points"] if point["status"] != "ok"]
    return [_measured(done), _failed(failed), _samples(done)]


def _measured(points):
    head = ["", "series", "arm", "test", "ranks", "threads", "n", "seconds", "of n runs", "tok/s", "speed-up", "efficiency"]
    rows = []
    for point in points:
        seconds, bound = point["seconds"], point["bound"]
        row = [point[key] for key in ("id", "series", "arm", "test", "ranks", "threads", "n")]
        row += [rounded(seconds["median"], 4), f"{rounded(seconds['min'], 4)} to {rounded(seconds['max'], 4)}"]
        row += [rounded(point["tokens_per_s"]["median"], 5), rounded(point["speedup"], 3), percent(point["efficiency"], 3)]
        row += (
            [rounded(bound["speedup"], 3), _reached(bound["reached"])] if bound else ["–", "base" if point["says"] else "–"]
        )
        rows.append(row + [percent(point["memory"]["share"], 3) if point["memory"] else "–"])
    caption = (
        "Every point that ran; seconds are those of the slowest rank; of memory: the share of the bandwidth that decode"
        " reads"
    )
    return table([*head, "bound", "of the bound", "of memory"], rows, (0, *range(4, 13), 14), caption) if rows else ""


def _reached(share):
    return join([percent(share, 3), " ", bar(0.75 * share, "small good" if share >= SHORT else "small bad", 0.75)])


def _failed(points):
    keys = ("id", "series", "arm", "test", "ranks", "threads")
    rows = [[mark(False, "failed"), *(point[key] for key in keys), wrapped(point["reason"])] for point in points]
    head = ["", "", "series", "arm", "test", "ranks", "threads", "why"]
    return table(head, rows, (1, 5, 6), "Points that could not run", ["failed"] * len(rows)) if rows else ""


def _samples(points):
    rows = []
    for point in points:
        seconds = point["seconds"]
        samples = " ".join(rounded(value, 4) for value in seconds["runs"])
        slowest = " ".join(str(rank) for rank in seconds["slowest_rank"])
        rows.append([point["id"], point["test"], point["ranks"], samples, slowest, code(point["digest"])])
    head = ["", "test", "ranks", "seconds of each run", "slowest rank of each", "digest"]
    return details("Every sample and digest", table(head, rows, (0, 2))) if rows else ""


def _digests(study):
    digests = study["digests"]
    rows = [
        [
            mark(work["digest"] is not None, "one digest" if work["digest"] is not None else "differ"),
            work["work"],
            code(work["digest"]) if work["digest"] else "",
            ", ".join(str(point) for point in work["points"]),
        ]
        for work in digests["works"]
    ]
    return (
        [
            table(
                ["", "work", "digest", "points"],
                rows,
                (),
                "Points of the same work must have computed the same bits",
                ["" if work["digest"] else "failed" for work in digests["works"]],
            )
        ]
        if rows
        else []
    )


def _extrap(study):
    rows = []
    for one in study["extrap"]:
        fitted = one["status"] == "fitted"
        rows.append(
            [
                one["series"],
                one["curve"],
                wrapped(code(one["model"]) if fitted else one["reason"] or one["status"]),
                ", ".join(f"{value:,}" for value in one["values"]),
                one["held_out"],
                rounded(one["measured"], 4),
                rounded(one["predicted"], 4),
                percent(one["miss"], 3) if fitted else "–",
            ]
        )
    return (
        [
            note(
                "A model of the time, fitted by Extra-P to all values but the largest, and by how much it misses that one."
            ),
            table(
                ["series", "curve", "model", "values", "held out", "measured", "predicted", "missed by"], rows, (4, 5, 6, 7)
            ),
        ]
        if rows
        else []
    )


def _machine(study):
    machine, model = study["machine"], study["model"]
    bandwidth = machine.get("bandwidth_bytes_per_s")
    warned = [warning(words) for words in machine["warnings"]]
    processor = (machine["cpu"], count(machine["cores"], "core") if machine["cores"] else None)
    return [
        definitions(
            [
                ("model", f"{model['name']} ({model['types']}), {byte_size(model['bytes'])}" if model["name"] else ""),
                ("file", model["path"]),
                ("fingerprint", code(model["fingerprint"]) if model["fingerprint"] else ""),
                ("hosts", f"{machine['hosts']}: {', '.join(machine['host'])}" if machine["hosts"] else ""),
                ("processor", join([part for part in processor if part], ", ")),
                ("memory", f"{bandwidth / 1e9:.1f} GB/s, all ranks reading" if bandwidth else ""),
                ("program", study["program"]["version"] if study["program"] else ""),
            ]
        ),
        *warned,
    ]


def _commands(study):
    own = [point for point in study["points"] if point.get("command")]
    return [block("\n".join(study["commands"]) + "\n", "commands")] + (
        [
            details(
                "The command of each point",
                table(
                    ["", "test", "command"],
                    [[point["id"], point["test"], wrapped(code(point["command"]))] for point in own],
                    (0,),
                ),
            )
        ]
        if own
        else []
    )
