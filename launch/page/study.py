"""study.json of launch/scaling: curves with their bounds, and what took the rest; digests, failed points, Extra-P.

Where the time of the points went is in study_time.py. Independent of: how a study is run.
"""
import math

import matplotlib.ticker

from page import plots, study_time
from page.document import (Section, bar, block, code, count, definitions, details, error, figure, figures, html, join, listed, mark, note, paragraph, percent,
                           rounded, size, table, wrapped)

SHORT = 0.85  # a point that reaches less of its bound is said to fall short: docs of launch/scaling
AXES = {"ranks": "ranks", "ranks_per_host": "ranks a host", "threads": "threads a rank", "batch": "sequences", "prompt": "prompt, tokens",
        "generate": "tokens decoded", "depth": "depth, tokens"}


def points_of(study, curve):
    by_id = {point["id"]: point for point in study["points"]}
    return [by_id[name] for name in curve["points"] if name in by_id]


def measured(points):
    return [point for point in points if point["status"] == "ok"]


# ---- the finding ----

def finding(found):
    study = found.study
    differ = [work for work in study["digests"]["works"] if work["digest"] is None]
    if differ:
        return (f"Points of the same work have different digests: {listed(work['work'] for work in differ)}",
                ["So not all of them computed the same, and no rate of theirs may be compared."])
    return _gain(study), _more(study)


def _gain(study):
    """The point of the largest speed-up of a strong study, else the fastest."""
    strong = [point for series in study["series"] if series["scaling"] == "strong" for curve in series["curves"] for point in measured(points_of(study, curve))
              if point["speedup"] is not None and series["over"] in ("ranks", "ranks_per_host", "threads")]
    done = measured(study["points"])
    if not done:
        return "No point of this study could be measured"
    if not strong:
        best = max(done, key=lambda point: point["tokens_per_s"]["median"])
        return f"{best['arm']} computes {rounded(best['tokens_per_s']['median'], 4)} tokens a second ({best['test']}, {count(best['ranks'], 'rank')})"
    best = max(strong, key=lambda point: (point["resources"], point["speedup"]))
    base = min((point for point in strong if point["work"] == best["work"]), key=lambda point: point["resources"], default=best)
    said = (f"{count(best['resources'], 'GPU' if _on_gpus(best) else 'core')} compute {best['test']} on {best['path']} {rounded(best['speedup'], 3)} times as fast as "
            f"{base['resources']}")
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
        said.append(f"{count(len(short), 'point falls', 'points fall')} short of {'its' if len(short) == 1 else 'their'} bound by more than 15 %." if short
                    else "No point falls short of its bound by more than 15 %.")
    failed = len(study["points"]) - len(done)
    if failed:
        said.append(f"{count(failed, 'point')} could not run.")
    if not study["complete"]:
        said.append("The study was cut off, or still runs.")
    return said


# ---- sections ----

def sections(found):
    study = found.study
    return [Section("curves", "Scaling", *_curves(study)), Section("points", "Points", *_points(study)), *study_time.sections(study),
            Section("digests", "Digests", *_digests(study)), Section("extrap", "Extra-P", *_extrap(study)),
            Section("study-machine", "Machine and model", *_machine(study)), Section("repeat-study", "To repeat the study", *_commands(study))]


def _curves(study):
    parts = []
    for series in study["series"]:
        curves = [(curve, measured(points_of(study, curve))) for curve in series["curves"]]
        curves = [(curve, points) for curve, points in curves if points]
        if not curves:
            continue
        named = f"{series['name']}: {'the same work' if series['scaling'] == 'strong' else 'work that grows'} over {AXES.get(series['over'], series['over'])}"
        drawn = []
        if all(point["speedup"] is not None for _, points in curves for point in points) and series["over"] in ("ranks", "ranks_per_host", "threads"):
            drawn.append(figure(plots.svg(lambda f: _draw_speedup(f, series, curves), plots.COLUMN, f"{named}: speed-up"), "Speed-up",
                                "Over the smallest point. Dotted: ideal. Without marks: the bound."))
            drawn.append(figure(plots.svg(lambda f: _draw_share(f, series, curves), plots.COLUMN, f"{named}: efficiency and share of the bound"), "Efficiency",
                                "Speed-up over ideal (1: ideal), and hollow how much of the bound a point reached."))
        drawn.append(figure(plots.svg(lambda f: _draw_rate(f, series, curves), plots.COLUMN, f"{named}: tokens per second"), "Tokens a second",
                            "Median, bars from the least to the most of its runs" + (". Without marks: the bound." if _bounds(curves) else ".")))
        parts += [html(f"<h3>{join([named])}</h3>"), figures(*drawn)]
    return [note("The bound of a point is the time of its busiest rank's experts, of the part that every rank computes, and of the exchange at the link's rate, from "
                 "what was measured on the smallest point and on the link."), *parts] if parts else []


def _bounds(curves):
    return any(point["bound"] for _, points in curves for point in points)


def _at(axes, series, curves):
    """The x axis: powers of two where the values are far apart."""
    values = sorted({point["at"] for _, points in curves for point in points})
    if values[0] > 0 and values[-1] / values[0] >= 4:
        axes.set_xscale("log", base=2)
    elif values[0] == 0 and values[-1] >= 1024:
        axes.set_xscale("symlog", base=2, linthresh=min(value for value in values if value))
    kept = values if len(values) <= 8 else values[::math.ceil(len(values) / 8)]
    axes.set_xticks(kept, [f"{value:,}" for value in kept])
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_xlabel(AXES.get(series["over"], series["over"]))


def _draw_speedup(figure_, series, curves):
    axes = figure_.add_subplot()
    ideal = sorted({(point["at"], point["speedup"] / point["efficiency"]) for _, points in curves for point in points if point["efficiency"]})
    if ideal:
        axes.plot(*zip(*ideal), color=plots.MUTED, linestyle=":", linewidth=1.2)
    for i, (curve, points) in enumerate(curves):
        style = i % len(plots.SERIES)
        plots.line(axes, [point["at"] for point in points], [point["speedup"] for point in points], style, curve["label"])
        bound = [(point["at"], point["bound"]["speedup"]) for point in points if point["bound"] and point["bound"]["speedup"]]
        if bound:
            axes.plot(*zip(*bound), color=plots.SERIES[style], linestyle=plots.DASHES[style], linewidth=0.9)
    _at(axes, series, curves)
    axes.set_ylim(0, None)
    axes.set_ylabel("speed-up")
    plots.legend(axes)


def _draw_share(figure_, series, curves):
    axes = figure_.add_subplot()
    for i, (curve, points) in enumerate(curves):
        style = i % len(plots.SERIES)
        at = [point["at"] for point in points]
        plots.line(axes, at, [point["efficiency"] if point["efficiency"] is not None else math.nan for point in points], style, curve["label"])
        if any(point["bound"] for point in points):
            reached = [point["bound"]["reached"] if point["bound"] else math.nan for point in points]
            axes.plot(at, reached, color=plots.SERIES[style], linestyle="none", marker=plots.MARKERS[style], markerfacecolor=plots.PAPER, markersize=6)
    axes.axhline(1, color=plots.INK, linewidth=0.8)
    _at(axes, series, curves)
    axes.set_ylim(0, None)
    axes.set_ylabel("efficiency, share of bound")
    plots.legend(axes)


def _draw_rate(figure_, series, curves):
    axes = figure_.add_subplot()
    for i, (curve, points) in enumerate(curves):
        style = i % len(plots.SERIES)
        at = [point["at"] for point in points]
        rate = [point["tokens_per_s"] for point in points]
        plots.line(axes, at, [one["median"] for one in rate], style, curve["label"])
        axes.vlines(at, [one["min"] for one in rate], [one["max"] for one in rate], color=plots.SERIES[style], linewidth=1.2)
        bound = [(point["at"], point["tokens_per_s"]["median"] / point["bound"]["reached"]) for point in points if point["bound"] and point["bound"]["reached"]]
        if bound:
            axes.plot(*zip(*bound), color=plots.SERIES[style], linestyle=plots.DASHES[style], linewidth=0.9)
    _at(axes, series, curves)
    axes.set_ylim(0, None)
    axes.yaxis.set_major_formatter(lambda value, place: f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:g}")
    axes.set_ylabel("tokens a second")
    plots.legend(axes)


def _points(study):
    done = measured(study["points"])
    rows = []
    for point in done:
        seconds, bound = point["seconds"], point["bound"]
        rows.append([point["id"], point["series"], point["arm"], point["test"], point["ranks"], point["threads"], point["n"], rounded(seconds["median"], 4),
                     f"{rounded(seconds['min'], 4)} to {rounded(seconds['max'], 4)}", rounded(point["tokens_per_s"]["median"], 5), rounded(point["speedup"], 3),
                     percent(point["efficiency"], 3), rounded(bound["speedup"], 3) if bound else "–",
                     join([percent(bound["reached"], 3), " ", bar(bound["reached"] * 0.75, "good" if bound["reached"] >= SHORT else "bad", 0.75)]) if bound else "–"])
    head = ["", "series", "arm", "test", "ranks", "threads", "n", "seconds", "of n runs", "tok/s", "speed-up", "efficiency", "bound", "of the bound"]
    parts = [table(head, rows, (0, 4, 5, 6, 7, 8, 9, 10, 11, 12), "Every point that ran; seconds are those of the slowest rank, median of n")] if rows else []
    failed = [point for point in study["points"] if point["status"] != "ok"]
    if failed:
        parts.append(table(["", "", "series", "arm", "test", "ranks", "threads", "why"],
                           [[mark(False, "failed"), point["id"], point["series"], point["arm"], point["test"], point["ranks"], point["threads"], wrapped(point["reason"])] for point in failed],
                           (1, 5, 6), "Points that could not run", ["failed"] * len(failed)))
    samples = [[point["id"], point["test"], point["ranks"], " ".join(rounded(value, 4) for value in point["seconds"]["runs"]),
                " ".join(str(rank) for rank in point["seconds"]["slowest_rank"]), code(point["digest"])] for point in done]
    if samples:
        parts.append(details("Every sample and digest", table(["", "test", "ranks", "seconds of each run", "slowest rank of each", "digest"], samples, (0, 2))))
    return parts


def _digests(study):
    digests = study["digests"]
    rows = [[mark(work["digest"] is not None, "one digest" if work["digest"] is not None else "differ"), work["work"], code(work["digest"]) if work["digest"] else "",
             ", ".join(str(point) for point in work["points"])] for work in digests["works"]]
    return [table(["", "work", "digest", "points"], rows, (), "Points of the same work must have computed the same bits", ["" if work["digest"] else "failed" for work in digests["works"]])] if rows else []


def _extrap(study):
    rows = []
    for one in study["extrap"]:
        fitted = one["status"] == "fitted"
        rows.append([one["series"], one["curve"], wrapped(code(one["model"]) if fitted else one["reason"] or one["status"]), ", ".join(f"{value:,}" for value in one["values"]),
                     one["held_out"], rounded(one["measured"], 4), rounded(one["predicted"], 4), percent(one["miss"], 3) if fitted else "–"])
    return [note("A model of the time, fitted by Extra-P to all values but the largest, and by how much it misses that one."),
            table(["series", "curve", "model", "values", "held out", "measured", "predicted", "missed by"], rows, (4, 5, 6, 7))] if rows else []


def _machine(study):
    machine, model = study["machine"], study["model"]
    bandwidth = machine.get("bandwidth_bytes_per_s")
    warned = [html(f'<p class="warning">{join([warning])}</p>') for warning in machine["warnings"]]
    return [definitions([("model", f"{model['name']} ({model['types']}), {size(model['bytes'])}"), ("file", model["path"]), ("fingerprint", code(model["fingerprint"])),
                         ("hosts", f"{machine['hosts']}: {', '.join(machine['host'])}"), ("processor", f"{machine['cpu']}, {count(machine['cores'], 'core')}"),
                         ("memory", f"{bandwidth / 1e9:.1f} GB/s, all ranks reading" if bandwidth else ""), ("program", study["program"]["version"])]), *warned]


def _commands(study):
    own = [point for point in study["points"] if point.get("command")]
    return [block("\n".join(study["commands"]) + "\n", "commands")] + \
        ([details("The command of each point", table(["", "test", "command"], [[point["id"], point["test"], wrapped(code(point["command"]))] for point in own], (0,)))] if own else [])
