"""Router and experts of a run: flips and margins, the map of layers and experts, and how much work each expert and rank got.

Independent of: how arms are compared otherwise.
"""

import numpy

from page import plots
from page.document import Section, count, details, error, figure, figures, listed, paragraph, percent, rounded, table
from page.files import number, owners
from page.parity import MODES, against_truth, modes, styles, truth


def sections(found):
    return [
        Section("router", "Router", *_router(found.report)),
        Section("experts", "Layer × expert", *_experts(found)),
        Section("load", "Expert load", *_load(found)),
    ]


# ---- flips and margins ----


def _router(report):
    pairs = [pair for pair in against_truth(report, report["pairs"]) if pair["layers"]]
    if not pairs:
        return []
    flipped = [pair for pair in pairs if any(layer["router_flips"] for layer in pair["layers"])]
    drawn = [
        figure(
            plots.svg(lambda f: _draw_margins(f, report, pairs), plots.COLUMN, "Router margins by layer"),
            "Margins",
            "How close the truth's router came to another choice: the smallest margin of a layer between its last chosen"
            " expert and the best one left out"
            + (", and the largest margin at which an arm chose otherwise." if flipped else "."),
        )
    ]
    if flipped:
        drawn.append(
            figure(
                plots.svg(lambda f: _draw_flips(f, report, flipped), plots.COLUMN, "Router flips by layer"),
                "Flips",
                "Experts that an arm chose and the truth did not, summed over positions.",
            )
        )
    rows, others = [], []
    for mode, of_mode in modes(report).items():
        for pair in of_mode:
            layers = pair["layers"]
            margins = [layer["flip_margin"] for layer in layers if layer["flip_margin"] is not None]
            (rows if mode == "free" else others).append(
                [
                    MODES[mode][0],
                    pair["a"],
                    f"{sum(layer['router_flips'] for layer in layers):,}",
                    f"{sum(layer['flipped_tokens'] for layer in layers):,}",
                    error(max(margins)) if margins else "–",
                    error(min((layer["min_margin"] for layer in layers if layer["min_margin"] is not None), default=None)),
                ]
            )
    said = (
        f"{listed(pair['a'] for pair in flipped)} chose other experts than the truth."
        if flipped
        else "Every arm chose the truth's experts at every position of every layer."
    )
    head = ["mode", "arm", "flips", "flipped positions", "largest flipped margin", "smallest margin"]
    return [
        paragraph(said),
        figures(*drawn),
        table(head, rows, range(2, 6)),
        details("The other modes", table(head, others, range(2, 6))) if others else "",
    ]


def _draw_margins(figure_, report, pairs):
    axes = figure_.add_subplot()
    layers = pairs[0]["layers"]
    plots.line(
        axes,
        [layer["layer"] for layer in layers],
        [layer["min_margin"] or numpy.nan for layer in layers],
        6,
        "smallest margin",
        color=plots.INK,
        marker=".",
    )
    for pair in pairs:
        at = [layer for layer in pair["layers"] if layer["flip_margin"]]
        if at:
            style = styles(report)[pair["a"]]
            axes.plot(
                [layer["layer"] for layer in at],
                [layer["flip_margin"] for layer in at],
                linestyle="none",
                marker=plots.MARKERS[style],
                color=plots.SERIES[style],
                markeredgewidth=0,
                markersize=6,
                label=f"flipped by {pair['a']}",
            )
    axes.set_yscale("log")
    axes.set_xlabel("layer")
    axes.set_ylabel("margin of probability")
    plots.logarithmic(axes.yaxis)
    plots.whole_numbers(axes.xaxis)
    plots.legend(axes)


def _draw_flips(figure_, report, pairs):
    axes = figure_.add_subplot()
    for pair in pairs:
        plots.line(
            axes,
            [layer["layer"] for layer in pair["layers"]],
            [layer["router_flips"] for layer in pair["layers"]],
            styles(report)[pair["a"]],
            pair["a"],
        )
    axes.set_ylim(0, None)
    axes.set_xlabel("layer")
    axes.set_ylabel("flips")
    plots.whole_numbers(axes.xaxis)
    plots.whole_numbers(axes.yaxis)
    plots.legend(axes)


# ---- the map ----


def expert_map(rows, key, layers, experts):
    """[layers, experts] of a column of experts.csv, NaN where it is empty."""
    values = numpy.full((layers, experts), numpy.nan)
    for row in rows:
        value = number(row[key])
        values[int(row["layer"]), int(row["expert"])] = numpy.nan if value is None else value
    return values


def maps(named, words):
    """named: [(arm, [layers, experts] of rel_l2)]: a map of each, and a table of their spread."""
    drawn, rows = [], []
    for arm, values in named:
        seen = values[numpy.isfinite(values) & (values > 0)]
        if not len(seen):
            continue
        layers, experts = values.shape
        sizes = [(400, max(170, min(330, 120 + 8 * layers))), (1080, max(200, min(520, 110 + 12 * layers)))]
        drawing = [
            plots.svg(
                lambda f: plots.heat_map(
                    f, values, seen.min() * 0.98, seen.max() * 1.02, "expert", "layer", "rel_l2", size[0] > 500
                ),
                size,
                f"{arm}: rel_l2 of each expert of each layer",
            )
            for size in sizes
        ]
        worst = numpy.unravel_index(numpy.nanargmax(values), values.shape)
        drawn.append(
            figure(
                drawing,
                arm,
                f"rel_l2 of each expert's output, {words}. The scale is this map's own; an expert that no token reached is"
                " left blank.",
                wide=True,
            )
        )
        rows.append(
            [
                arm,
                f"{len(seen):,} of {layers * experts:,}",
                error(seen.min()),
                error(numpy.median(seen)),
                error(numpy.quantile(seen, 0.95)),
                error(seen.max()),
                f"L{worst[0]} expert {worst[1]}",
                rounded(seen.max() / numpy.median(seen), 2),
            ]
        )
    if not drawn:
        return []
    head = ["arm", "experts measured", "least", "median", "95 %", "largest", "where", "largest over median"]
    return [table(head, rows, (1, 2, 3, 4, 5, 7)), figures(*drawn)]


def _experts(found):
    report = found.report
    model = report["model"]
    rows = [row for row in found.experts if row["b"] == truth(report)]
    for mode in ("local", "teacher", "forced", "free"):
        of_mode = [row for row in rows if row["mode"] == mode]
        if of_mode:
            break
    else:
        return []
    named = [
        (arm, expert_map([row for row in of_mode if row["a"] == arm], "rel_l2", model["n_layers"], model["n_experts"]))
        for arm in dict.fromkeys(row["a"] for row in of_mode)
    ]
    return maps(named, f"{MODES[mode][0].lower()}, over the positions at which both chose it")


# ---- load ----


def _hits(found):
    """[layers, experts]: slots of each expert in the truth's free run; None where no file has them."""
    model, name = found.report["model"], truth(found.report)
    if name in found.routes:
        routes = found.routes[name]
        return numpy.array([numpy.bincount(layer.ravel(), minlength=model["n_experts"]) for layer in routes], float)
    rows = [row for row in found.experts if row["b"] == name and row["mode"] == "free"]
    if not rows:
        return None
    return expert_map([row for row in rows if row["a"] == rows[0]["a"]], "hits_b", model["n_layers"], model["n_experts"])


def _load(found):
    report, hits = found.report, _hits(found)
    if hits is None:
        return []
    layers, experts = hits.shape
    mean, busiest = hits.mean(), hits.max(axis=1)
    used = (hits > 0).sum(axis=1)
    parts = [
        paragraph(
            f"{count(int(hits.sum()), 'slot')} of {count(experts, 'expert')} in {count(layers, 'layer')}: a layer used"
            f" {used.min()} to {used.max()} of its experts, and the busiest expert of a layer had"
            f" {rounded(busiest.max() / mean, 2)} times the mean at most."
        )
    ]
    drawn = [
        figure(
            plots.svg(lambda f: _draw_expert_load(f, hits), plots.COLUMN, "Slots of experts by layer"),
            "Experts",
            "Slots of a layer's experts over their mean: busiest, middle half, least.",
        )
    ]
    owner = owners(report)
    if owner is not None and len(report["ranks"]) > 1:
        of_rank = numpy.array([hits[:, owner == rank["rank"]].sum(axis=1) for rank in report["ranks"]])
        share = of_rank / of_rank.mean(axis=0)
        drawn.append(
            figure(
                plots.svg(lambda f: _draw_rank_load(f, share), plots.COLUMN, "Work of ranks by layer"),
                "Ranks",
                "Slots of a rank's experts over the mean of ranks: each layer ends with its busiest rank.",
            )
        )
        total = of_rank.sum(axis=1)
        parts.append(
            table(
                ["rank", "slots", "of all", "over the mean", "busiest layer, over the mean"],
                [
                    [
                        rank["rank"],
                        f"{int(slots):,}",
                        percent(slots / total.sum(), 3),
                        rounded(slots / total.mean(), 3),
                        rounded(of_layers.max(), 3),
                    ]
                    for rank, slots, of_layers in zip(report["ranks"], total, share)
                ],
                range(5),
            )
        )
    return [*parts, figures(*drawn)]


def _draw_expert_load(figure_, hits):
    axes, at = figure_.add_subplot(), range(len(hits))
    over = hits / hits.mean(axis=1, keepdims=True)
    axes.fill_between(
        at,
        numpy.quantile(over, 0.25, axis=1),
        numpy.quantile(over, 0.75, axis=1),
        color=plots.SERIES[0],
        alpha=0.25,
        linewidth=0,
        label="middle half",
    )
    plots.line(axes, at, over.max(axis=1), 1, "busiest")
    plots.line(axes, at, over.min(axis=1), 0, "least")
    _over_the_mean(axes)


def _draw_rank_load(figure_, share):
    axes, at = figure_.add_subplot(), range(share.shape[1])
    if len(share) <= 3:
        for rank, of_layers in enumerate(share):
            plots.line(axes, at, of_layers, rank, f"rank {rank}")
    else:
        plots.line(axes, at, share.max(axis=0), 1, "busiest rank")
        plots.line(axes, at, share.min(axis=0), 0, "least busy rank")
    _over_the_mean(axes)


def _over_the_mean(axes):
    axes.axhline(1, color=plots.INK, linewidth=0.8)
    axes.set_ylim(0, None)
    axes.set_xlabel("layer")
    axes.set_ylabel("over the mean")
    plots.whole_numbers(axes.xaxis)
    plots.legend(axes, ncol=3)
