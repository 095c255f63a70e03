"""Where the time of a study went: by part and group of layers, in the exchange, in experts that are not divided evenly."""

import numpy

from page import plots
from page.study_curves import AXES, place
from page.document import Section, bar, details, figure, figures, note, percent, rounded, table, wrapped

PARTS = ["shared", "experts", "exchange", "waiting", "rest"]


def sections(study):
    done = [point for point in study["points"] if point["status"] == "ok"]
    return [
        Section("time", "Where the time goes", *_split(study, done)),
        Section("lost", "What took the rest", *_losses(done)),
        Section("exchange", "Exchange", *_exchange(done)),
        Section("study-load", "Load of experts", *_load(done)),
    ]


def _curves(study, done):
    """(title, its measured points with a split)"""
    for series in study["series"]:
        for curve in series["curves"]:
            points = [point for point in done if point["id"] in curve["points"] and point["split"]]
            if points:
                yield series, curve, points


def _split(study, done):
    drawn, groups = [], []
    for series, curve, points in _curves(study, done):
        title = f"{series['name']}, {curve['label']}"
        drawn.append(
            figure(
                plots.svg(
                    lambda f: _draw_split(f, points, series["over"]),
                    (400, 110 + 26 * len(points)),
                    f"{title}: shares of the time",
                ),
                title,
                "The slowest rank's pass, in shares.",
            )
        )
        last = points[-1]
        if len(last["split"]["layers"]) > 1:
            groups.append(
                figure(
                    plots.svg(lambda f: _draw_groups(f, last), plots.COLUMN, f"{title}: time of groups of layers"),
                    f"{title}, at {place(last)}",
                    "Groups of layers, the slowest rank.",
                )
            )
    if not drawn:
        return []
    inside = any(point["split"]["exchange_is_inside"] for point in done if point["split"])
    unknown = any(not point["split"]["waiting_is_known"] for point in done if point["split"])
    about = [
        "Shared: attention, router and head, which are not divided over ranks by expert. One pass with clocks at every"
        " phase, which can be slower than a timed run: shares, not rates."
    ]
    if inside:
        about.append(
            "Where GPUs store into each other's memory inside the experts' kernels, exchange and waiting are in experts."
        )
    if unknown:
        about.append("Where waiting is not known it is in the exchange.")
    return [
        note(*about),
        figures(*drawn, *groups),
        details("Phases of every rank", *[_phases(point) for point in done if point["split"]]),
    ]


def _stack(axes, at, values):
    """values: {part: [share, ...]}"""
    before = numpy.zeros(len(at))
    for style, part in enumerate(PARTS):
        widths = numpy.array([value or 0 for value in values[part]])
        if widths.any():
            plots.bars(axes, before, widths, at, style, part)
        before = before + widths


def _draw_split(figure_, points, over):
    axes = figure_.add_subplot()
    whole = [sum(value or 0 for value in point["split"]["parts"].values()) for point in points]
    _stack(
        axes,
        range(len(points)),
        {
            part: [100 * (point["split"]["parts"].get(part) or 0) / total for point, total in zip(points, whole)]
            for part in PARTS
        },
    )
    axes.set_yticks(range(len(points)), [place(point) for point in points])
    axes.set_ylim(len(points) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_ylabel(AXES[over].split(",")[0] if over != "arms" else "")
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("% of the pass")
    plots.legend(axes, ncol=3)


def _draw_groups(figure_, point):
    axes, split = figure_.add_subplot(), point["split"]
    groups = split["layers"]
    at = numpy.arange(len(groups))
    before = numpy.zeros(len(groups))
    for style, part in enumerate(PARTS[:-1]):
        heights = numpy.array([1e3 * (group["ranks"][split["slowest_rank"]].get(part) or 0) for group in groups])
        if heights.any():
            axes.bar(
                at,
                heights,
                0.75,
                before,
                color=plots.SERIES[style],
                edgecolor=plots.PAPER,
                linewidth=0.8,
                hatch=plots.HATCHES[style],
                label=part,
            )
        before = before + heights
    every = max(1, len(groups) // 8)
    axes.set_xticks(
        at[::every],
        [
            f"{group['first']}–{group['last']}" if group["last"] > group["first"] else f"{group['first']}"
            for group in groups[::every]
        ],
    )
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("layers")
    axes.set_ylabel("ms")
    plots.legend(axes, ncol=3)


def _phases(point):
    split = point["split"]
    names = list(dict.fromkeys(name for rank in split["ranks"] for name in rank["phases"]))
    rows = [
        [
            rank["rank"],
            rank["host"],
            rounded(1e3 * rank["seconds"], 4),
            *(rounded(1e3 * rank["phases"].get(name, 0), 3) for name in names),
        ]
        for rank in split["ranks"]
    ]
    return table(
        ["rank", "host", "pass", *names],
        rows,
        [0, *range(2, 3 + len(names))],
        f"Point {point['id']}, {point['arm']}, {point['test']}, {point['ranks']} ranks: milliseconds",
    )


def _losses(done):
    bounded = [point for point in done if point["bound"]]
    if not bounded:
        return []
    names = [f"{point['id']}: {point['test']}, {point['ranks']} × {point['threads']}" for point in bounded]
    causes = dict.fromkeys(loss["what"] for point in bounded for loss in point["losses"] if (loss["share"] or 0) >= 0.005)
    height = 74 + 17 * (len(causes) + 1) + 24 * len(bounded)
    drawing = [
        plots.svg(
            lambda f: _draw_losses(f, bounded, names, list(causes)), (width, height), "The bound and what took the rest"
        )
        for width in (400, 860)
    ]
    rows = [[name, percent(point["bound"]["reached"], 3), wrapped(point["says"])] for point, name in zip(bounded, names)]
    return [
        figure(drawing, "Of a point's time", "The bound, and what took the rest, by cause; gains are left out.", wide=True),
        table(["point, ranks × threads", "of the bound", "in words"], rows, (1,)),
    ]


def _draw_losses(figure_, points, names, causes):
    axes, at = figure_.add_subplot(), range(len(points))
    before = numpy.array([100 * min(point["bound"]["reached"] or 0, 1) for point in points])
    axes.barh(at, before, 0.62, color=plots.RULE, label="the bound")
    for style, cause in enumerate(causes):
        shares = [next((loss["share"] or 0 for loss in point["losses"] if loss["what"] == cause), 0) for point in points]
        widths = numpy.array([100 * max(share, 0) for share in shares])
        plots.bars(axes, before, widths, at, style % len(plots.SERIES), cause)
        before = before + widths
    axes.axvline(100, color=plots.INK, linewidth=0.8)
    axes.set_yticks(at, names)
    axes.set_ylim(len(points) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("% of the time")
    plots.legend(axes, ncol=1)


def _exchange(done):
    rows = []
    for point in done:
        exchange = point["exchange"]
        if not exchange:
            continue
        link = exchange.get("link") or {}
        same, large = (link.get(key) or {} for key in ("same_size", "large"))
        busbw = exchange["busbw_gb_per_s"]
        share = busbw / same["busbw_gb_per_s"] if busbw and same.get("busbw_gb_per_s") else None
        rows.append(
            [
                point["id"],
                point["test"],
                point["ranks"],
                exchange["transport"] + (", peers" if exchange["peers"] else ""),
                rounded(sum(exchange["received_bytes"]) / 1e6, 3),
                rounded(exchange["seconds"] and 1e3 * exchange["seconds"], 3),
                rounded(exchange["gb_per_s"], 3),
                rounded(busbw, 3),
                rounded(same.get("busbw_gb_per_s"), 3),
                rounded(large.get("busbw_gb_per_s"), 3),
                percent(share, 3),
            ]
        )
    head = [
        "",
        "test",
        "ranks",
        "transport",
        "MB received",
        "ms",
        "GB/s",
        "busbw",
        "link, same size",
        "link, large",
        "of same size",
    ]
    if not rows:
        return []
    return [
        note(
            "GB/s: bytes that all ranks sent over the seconds in the exchange; busbw, as nccl-tests defines it for an"
            " all-gather: bytes of the rank that receives most over the same. The link's rate is that of an all-gather"
            " alone, of as many bytes as a layer transfers and of large ones (docs/scaling.md)."
        ),
        table(head, rows, (0, 2, 4, 5, 6, 7, 8, 9, 10)),
    ]


def _load(done):
    rows, seen = [], set()
    for point in done:
        load = point["load"]
        if not load or point["ranks"] < 2 or (point["work"], point["ranks"]) in seen:
            continue
        seen.add((point["work"], point["ranks"]))
        slots = load["slots"]
        rows.append(
            [
                point["id"],
                point["test"],
                point["ranks"],
                f"{slots['least']:,}",
                rounded(slots["mean"], 4),
                f"{slots['most']:,}",
                rounded(slots["most"] / slots["mean"], 3),
                bar(slots["mean"] / slots["most"], "s1"),
                rounded(load["busiest_share"], 3),
            ]
        )
    if not rows:
        return []
    head = ["", "test", "ranks", "least", "mean", "most", "most over mean", "mean over most", "busiest share"]
    return [
        note(
            "Slots of each rank's experts in a run, from its own routing. A layer ends with its busiest rank: the busiest"
            " share is the sum over layers and batches of the most that a rank had, over all; even would be 1 over the"
            " ranks."
        ),
        table(head, rows, (0, 2, 3, 4, 5, 6, 8)),
    ]
