"""Curves of a study over ranks, threads, batches and lengths, each with its bound."""

import math

import matplotlib.ticker

from page import plots
from page.document import figure, figures, html, join, note

AXES = {
    "ranks": "ranks",
    "ranks_per_host": "ranks a host",
    "threads": "threads a rank",
    "batch": "sequences",
    "prompt": "prompt, tokens",
    "generate": "tokens decoded",
    "depth": "depth, tokens",
}


def points_of(study, curve):
    by_id = {point["id"]: point for point in study["points"]}
    return [by_id[name] for name in curve["points"] if name in by_id]


def measured(points):
    return [point for point in points if point["status"] == "ok"]


def curves(study):
    parts = []
    for series in study["series"]:
        curves = [(curve, measured(points_of(study, curve))) for curve in series["curves"]]
        curves = [(curve, points) for curve, points in curves if points]
        if not curves:
            continue
        named = (
            f"{series['name']}: {'the same work' if series['scaling'] == 'strong' else 'work that grows'} over"
            f" {AXES.get(series['over'], series['over'])}"
        )
        drawn = []
        if all(point["speedup"] is not None for _, points in curves for point in points) and series["over"] in (
            "ranks",
            "ranks_per_host",
            "threads",
        ):
            drawn.append(
                figure(
                    plots.svg(lambda f: _draw_speedup(f, series, curves), plots.COLUMN, f"{named}: speed-up"),
                    "Speed-up",
                    "Over the smallest point. Dotted: ideal. Without marks: the bound.",
                )
            )
            drawn.append(
                figure(
                    plots.svg(
                        lambda f: _draw_share(f, series, curves),
                        plots.COLUMN,
                        f"{named}: efficiency and share of the bound",
                    ),
                    "Efficiency",
                    "Speed-up over ideal (1: ideal), and hollow how much of the bound a point reached.",
                )
            )
        drawn.append(
            figure(
                plots.svg(lambda f: _draw_rate(f, series, curves), plots.COLUMN, f"{named}: tokens per second"),
                "Tokens a second",
                "Median, bars from the least to the most of its runs"
                + (". Without marks: the bound." if _bounds(curves) else "."),
            )
        )
        parts += [html(f"<h3>{join([named])}</h3>"), figures(*drawn)]
    return (
        [
            note(
                "The bound of a point is the time of its busiest rank's experts, of the part that every rank computes, and"
                " of the exchange at the link's rate, from what was measured on the smallest point and on the link."
            ),
            *parts,
        ]
        if parts
        else []
    )


def _bounds(curves):
    return any(point["bound"] for _, points in curves for point in points)


def _at(axes, series, curves):
    """The x axis: powers of two where the values are far apart."""
    values = sorted({point["at"] for _, points in curves for point in points})
    if values[0] > 0 and values[-1] / values[0] >= 4:
        axes.set_xscale("log", base=2)
    elif values[0] == 0 and values[-1] >= 1024:
        axes.set_xscale("symlog", base=2, linthresh=min(value for value in values if value))
    kept = values if len(values) <= 8 else values[:: math.ceil(len(values) / 8)]
    axes.set_xticks(kept, [f"{value:,}" for value in kept])
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_xlabel(AXES.get(series["over"], series["over"]))


def _draw_speedup(figure_, series, curves):
    axes = figure_.add_subplot()
    ideal = sorted(
        {
            (point["at"], point["speedup"] / point["efficiency"])
            for _, points in curves
            for point in points
            if point["efficiency"]
        }
    )
    if ideal:
        axes.plot(*zip(*ideal), color=plots.MUTED, linestyle=":", linewidth=1.2)
    for i, (curve, points) in enumerate(curves):
        style = i % len(plots.SERIES)
        plots.line(axes, [point["at"] for point in points], [point["speedup"] for point in points], style, curve["label"])
        bound = [
            (point["at"], point["bound"]["speedup"]) for point in points if point["bound"] and point["bound"]["speedup"]
        ]
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
        plots.line(
            axes,
            at,
            [point["efficiency"] if point["efficiency"] is not None else math.nan for point in points],
            style,
            curve["label"],
        )
        if any(point["bound"] for point in points):
            reached = [point["bound"]["reached"] if point["bound"] else math.nan for point in points]
            axes.plot(
                at,
                reached,
                color=plots.SERIES[style],
                linestyle="none",
                marker=plots.MARKERS[style],
                markerfacecolor=plots.PAPER,
                markersize=6,
            )
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
        axes.vlines(
            at, [one["min"] for one in rate], [one["max"] for one in rate], color=plots.SERIES[style], linewidth=1.2
        )
        bound = [
            (point["at"], point["tokens_per_s"]["median"] / point["bound"]["reached"])
            for point in points
            if point["bound"] and point["bound"]["reached"]
        ]
        if bound:
            axes.plot(*zip(*bound), color=plots.SERIES[style], linestyle=plots.DASHES[style], linewidth=0.9)
    _at(axes, series, curves)
    axes.set_ylim(0, None)
    axes.yaxis.set_major_formatter(lambda value, place: f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:g}")
    axes.set_ylabel("tokens a second")
    plots.legend(axes)
