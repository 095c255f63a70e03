"""Curves of a study over ranks, threads, batches and lengths, each with its bound; bars where it goes over arms."""

import math

import matplotlib.ticker

from page import plots
from page.document import figure, figures, html, join, note

AXES = {
    "ranks": "ranks",
    "ranks_per_host": "ranks a host",
    "threads": "threads a rank",
    "arms": "arms",
    "batches": "sequences",
    "prompts": "prompt, tokens",
    "generate": "tokens decoded",
    "depths": "depth, tokens",
}
RESOURCES = ("ranks", "ranks_per_host", "threads")  # over which there is a speed-up


def points_of(study, curve):
    by_id = {point["id"]: point for point in study["points"]}
    return [by_id[name] for name in curve["points"] if name in by_id]


def measured(points):
    return [point for point in points if point["status"] == "ok"]


def place(point):
    """On the axis: 2,048, or an arm."""
    return f"{point['at']:,}" if not isinstance(point["at"], str) else point["at"]


def curves(study):
    parts = []
    for series in study["series"]:
        found = [(curve, measured(points_of(study, curve))) for curve in series["curves"]]
        found = [(curve, points) for curve, points in found if points]
        if found:
            work = "the same work" if series["scaling"] == "strong" else "work that grows"
            title = f"{series['name']}: {work} over {AXES[series['over']].split(',')[0]}"
            parts += [html(f"<h3>{join([title])}</h3>"), figures(*_series(series, found, title))]
    if not parts:
        return []
    return [
        note(
            "The bound of a point: what every rank computes, the experts of the busiest rank and the exchange at the link's"
            " rate, from the split of the point of the same work on the fewest ranks and threads (docs/scaling.md)."
        ),
        *parts,
    ]


def _series(series, found, title):
    bound = ". Without marks: the bound." if any(point["bound"] for _, points in found for point in points) else "."
    if series["over"] == "arms":
        rows = sum(len(points) for _, points in found)
        drawing = plots.svg(lambda f: _draw_bars(f, found), (400, 70 + 26 * rows), f"{title}: tokens a second")
        return [figure(drawing, "Tokens a second", "Median; lines from the least to the most of its runs.")]
    drawn = []
    if series["over"] in RESOURCES and all(point["speedup"] is not None for _, points in found for point in points):
        drawing = plots.svg(lambda f: _draw_speedup(f, series, found), plots.COLUMN, f"{title}: speed-up")
        drawn.append(figure(drawing, "Speed-up", "Over the point with the fewest resources. Dotted: ideal" + bound))
        drawing = plots.svg(lambda f: _draw_share(f, series, found), plots.COLUMN, f"{title}: efficiency")
        caption = "Speed-up over ideal (1: ideal), and hollow how much of the bound a point reached."
        drawn.append(figure(drawing, "Efficiency", caption))
    drawing = plots.svg(lambda f: _draw_rate(f, series, found), plots.COLUMN, f"{title}: tokens a second")
    caption = "Median, and from the least to the most of its runs" + bound
    return [*drawn, figure(drawing, "Tokens a second", caption)]


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
    axes.set_xlabel(AXES[series["over"]])


def _draw_bars(figure_, curves):
    axes = figure_.add_subplot()
    points = [(point, curve["label"]) for curve, points in curves for point in points]
    rates = [point["tokens_per_s"] for point, _ in points]
    at = range(len(points))
    plots.bars(axes, 0, [rate["median"] for rate in rates], at, 0)
    axes.hlines(at, [rate["min"] for rate in rates], [rate["max"] for rate in rates], color=plots.INK, linewidth=1.2)
    several = len(curves) > 1
    axes.set_yticks(at, [f"{place(point)}, {label}" if several else place(point) for point, label in points])
    axes.set_ylim(len(points) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("tokens a second")


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
        _draw_bound(axes, curve, points, style, lambda point: point["speedup"])
    _at(axes, series, curves)
    axes.set_ylim(0, None)
    axes.set_ylabel("speed-up")
    plots.legend(axes)


def _draw_bound(axes, curve, points, style, value):
    """From the base, which is its own bound."""
    bounded = [point for point in points if point["bound"] and point["bound"]["reached"]]
    line = [(point["at"], value(point) / point["bound"]["reached"]) for point in bounded]
    if line:
        line = [
            (point["at"], value(point)) for point in points if point["id"] == curve["base"] and not point["bound"]
        ] + line
        axes.plot(*zip(*line), color=plots.SERIES[style], linestyle=plots.DASHES[style], linewidth=0.9)


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
            reached = [point["bound"]["reached"] or math.nan if point["bound"] else math.nan for point in points]
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
        _draw_bound(axes, curve, points, style, lambda point: point["tokens_per_s"]["median"])
    _at(axes, series, curves)
    axes.set_ylim(0, None)
    axes.yaxis.set_major_formatter(lambda value, place: f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:g}")
    axes.set_ylabel("tokens a second")
    plots.legend(axes)
