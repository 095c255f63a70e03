"""timeline.json (docs/timeline.md): where every rank's time went in each arm, and a few layers of all ranks on one clock."""

import numpy

from page import plots
from page.document import Section, details, figure, figures, html, listed, note, rounded, table, warning

CLASSES = ["shared", "experts", "exchange", "waiting", "measuring", "rest"]
EXPERTS = {"moe", "experts_up", "experts_down"}
MEASURING = {"digest"}
LAYERS = 3  # shown on one clock


def sections(found):
    events = [event for event in found.timeline["traceEvents"] if event["ph"] == "X"]
    if not events:
        return []
    ranks = sorted({event["pid"] for event in events})
    spent, layers = {}, {}
    for rank in ranks:
        _walk([event for event in events if event["pid"] == rank], rank, spent, layers)
    drawn = []
    for arm, kinds in spent.items():
        drawing = plots.svg(
            lambda f: _draw_spent(f, kinds, ranks), (400, 104 + 24 * len(ranks)), f"{arm}: seconds of each rank"
        )
        drawn.append(figure(drawing, arm, "Seconds of each rank."))
    parts = [
        _about(found.timeline["otherData"]),
        figures(*drawn),
        _clock(events, ranks, layers),
        _table(spent, ranks),
        _clocks(found),
    ]
    return [Section("timeline", "Time of each rank", *parts)]


def _clock(events, ranks, layers):
    """A few layers of the last arm."""
    arm = list(layers)[-1] if layers else None
    window = _window(layers, arm)
    if not window:
        return ""
    shown = [
        event
        for event in events
        if event["arm"] == arm and event["cat"] not in ("batch", "layer") and _overlaps(event, window)
    ]
    caption = f"From the middle of {arm}: what each rank does in the same few layers. Gaps are no step."
    drawing = [
        plots.svg(lambda f: _draw_clock(f, shown, ranks, window), (width, 104 + 26 * len(ranks)), caption)
        for width in (400, 1080)
    ]
    return figure(drawing, "On one clock", caption, wide=True)


def _about(other):
    lost = [rank["rank"] for rank in other["ranks"] if rank["lost"]]
    return html(
        note(
            "From the timeline of the run. Shared: attention, router, combine, embedding and head. Waiting: for the last"
            " rank of an exchange, or for a device. Measuring: digests. On a GPU a step is enqueued and returns: then these"
            " are the host's times."
        )
        + (warning(f"Spans are lacking, which had no room, of rank {listed(lost)}.") if lost else "")
    )


def _kind(event):
    if event["cat"] in ("exchange", "wait"):
        return "exchange" if event["cat"] == "exchange" else "waiting"
    if event["cat"] in ("batch", "layer"):
        return "rest"
    return "experts" if event["name"] in EXPERTS else "measuring" if event["name"] in MEASURING else "shared"


def _walk(events, rank, spent, layers):
    """Adds to spent[arm][class][rank] what each event has of its own, without those inside it, and to layers[arm] those of
    rank 0; and each event gets its arm."""
    events.sort(key=lambda event: (event["ts"], -event["dur"]))
    stack = []
    for event in events:
        while stack and event["ts"] >= stack[-1][0]["ts"] + stack[-1][0]["dur"] - 1e-4:
            stack.pop()
        arm = event["args"].get("arm") or (stack[-1][1] if stack else "")
        own = spent.setdefault(arm, {kind: {} for kind in CLASSES})
        _add(own[_kind(event)], rank, event["dur"])
        if stack:
            _add(own[_kind(stack[-1][0])], rank, -event["dur"])
        if event["cat"] == "layer" and rank == 0:
            layers.setdefault(arm, []).append((event["ts"], event["ts"] + event["dur"]))
        event["arm"] = arm
        stack.append((event, arm))


def _add(seconds, rank, microseconds):
    seconds[rank] = seconds.get(rank, 0) + 1e-6 * microseconds


def _draw_spent(figure_, spent, ranks):
    axes = figure_.add_subplot()
    before = numpy.zeros(len(ranks))
    for style, kind in enumerate(CLASSES):
        widths = numpy.array([max(spent[kind].get(rank, 0), 0) for rank in ranks])
        if widths.any():
            plots.bars(axes, before, widths, range(len(ranks)), style, kind)
        before = before + widths
    _rank_axis(axes, ranks)
    axes.set_xlabel("seconds")
    plots.legend(axes, ncol=3)


def _rank_axis(axes, ranks):
    axes.set_yticks(range(len(ranks)), [f"rank {rank}" for rank in ranks])
    axes.set_ylim(len(ranks) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def _window(layers, arm):
    """From the start of a layer in the middle to the end of the last of a few, or of this one where other arms run in between."""
    found = layers.get(arm, [])
    if not found:
        return None
    first = max(min(len(found) // 2, len(found) - LAYERS), 0)
    shown = found[first : first + LAYERS]
    whole, own = shown[-1][1] - shown[0][0], sum(end - start for start, end in shown)
    return (shown[0][0], shown[-1][1]) if whole < 1.5 * own else shown[0]


def _overlaps(event, window):
    return event["ts"] < window[1] and event["ts"] + event["dur"] > window[0]


def _within(event, window):
    """(start, length) of what of it lies in the window, from its start."""
    start, end = max(event["ts"], window[0]), min(event["ts"] + event["dur"], window[1])
    return start - window[0], end - start


def _draw_clock(figure_, events, ranks, window):
    axes = figure_.add_subplot()
    for style, kind in enumerate(CLASSES):
        of_kind = [event for event in events if _kind(event) == kind]
        label = kind
        for place, rank in enumerate(ranks):
            spans = [_within(event, window) for event in of_kind if event["pid"] == rank]
            if spans:
                axes.broken_barh(
                    spans,
                    (place - 0.32, 0.64),
                    facecolor=plots.SERIES[style],
                    hatch=plots.HATCHES[style],
                    edgecolor=plots.PAPER,
                    linewidth=0.3,
                    label=label,
                )
                label = None
    _rank_axis(axes, ranks)
    axes.set_xlim(0, window[1] - window[0])
    axes.set_xlabel("µs")
    plots.legend(axes, ncol=3 if figure_.get_figwidth() < 8 else 6)


def _table(spent, ranks):
    rows = []
    for arm, kinds in spent.items():
        for rank in ranks:
            seconds = [kinds[kind].get(rank, 0) for kind in CLASSES]
            rows.append([arm, rank, rounded(sum(seconds), 4), *(rounded(value, 3) for value in seconds)])
    return details("Seconds in figures", table(["arm", "rank", "all", *CLASSES], rows, range(1, 9)))


def _clocks(found):
    rows = []
    for rank in found.timeline["otherData"]["ranks"]:
        start, end = rank["clock_at_start"], rank["clock_at_end"]
        rows.append(
            [
                rank["rank"],
                rank["host"],
                *(f"{1e6 * clock[key]:.2f}" for clock in (start, end) for key in ("skew_seconds", "bound_seconds")),
            ]
        )
    head = ["rank", "host", "skew at the start, µs", "within", "skew at the end, µs", "within"]
    return details("Clocks of the ranks", table(head, rows, (0, 2, 3, 4, 5))) if len(rows) > 1 else ""
