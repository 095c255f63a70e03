"""How far each arm is from the truth: after each layer in each mode, inside the layers, and at each position."""

import numpy

from page import plots
from page.document import Section, details, error, figure, figures, note, table
from page.files import number
from page.parity import MODES, modes, styles, truth


def sections(found):
    return [Section("layers", "Layer by layer", *_layers(found.report))]


def closer(found):
    """Inside the layers, and at each position."""
    return [
        Section("inside", "Inside the layers", *_probes(found.report)),
        Section("positions", "Position by position", *_positions(found)),
    ]


def _positive(values):
    """For a logarithmic axis: what is not above 0 is left out."""
    return numpy.array([value if value else numpy.nan for value in values], float)


def _layers(report):
    found = {mode: pairs for mode, pairs in modes(report).items() if any(pair["layers"] for pair in pairs)}
    values = [
        layer[key]
        for pairs in found.values()
        for pair in pairs
        for layer in pair["layers"]
        for layer, key in ((layer, "rel_l2"), (layer["spread"]["rel_l2"], "median"))
        if layer[key]
    ]
    if not values:
        return []
    limits = 10 ** numpy.floor(numpy.log10(min(values))), 10 ** numpy.ceil(numpy.log10(max(values)))
    drawn = [
        figure(
            plots.svg(
                lambda f, pairs=pairs: _draw_layers(f, report, pairs, limits),
                plots.COLUMN,
                f"{MODES[mode][0]}: rel_l2 of the residual stream after each layer",
            ),
            *MODES[mode],
        )
        for mode, pairs in found.items()
    ]
    return [
        note(
            "rel_l2 of the residual stream after each layer, against the truth's. Lines with marks: the worst position;"
            " without: the median; shaded: from the least to the worst. All plots have one scale."
        ),
        figures(*drawn),
        _layer_table(report, found),
    ]


def _draw_layers(figure_, report, pairs, limits):
    axes, style = figure_.add_subplot(), styles(report)
    for pair in pairs:
        at = [layer["layer"] for layer in pair["layers"]]
        spread = [layer["spread"]["rel_l2"] for layer in pair["layers"]]
        worst = _positive([one["max"] for one in spread])
        plots.line(axes, at, worst, style[pair["a"]], pair["a"])
        plots.line(
            axes, at, _positive([one["median"] for one in spread]), style[pair["a"]], marks=False, linewidth=0.9, alpha=0.9
        )
        axes.fill_between(
            at,
            _positive([max(one["min"] or 0, limits[0]) for one in spread]),
            worst,
            color=plots.SERIES[style[pair["a"]]],
            alpha=0.10,
            linewidth=0,
        )
    axes.set_yscale("log")
    axes.set_ylim(*limits)
    axes.set_xlabel("layer")
    axes.set_ylabel("rel_l2")
    plots.logarithmic(axes.yaxis)
    plots.whole_numbers(axes.xaxis)
    plots.legend(axes)


def _layer_table(report, found):
    parts = []
    for mode, pairs in found.items():
        head = ["layer"] + [title for pair in pairs for title in (pair["a"], "same experts", "flips")]
        rows = [
            [layer["layer"]]
            + [
                cell
                for pair in pairs
                for cell in (
                    error(pair["layers"][i]["rel_l2"]),
                    error(pair["layers"][i]["same_experts"]["rel_l2"]),
                    pair["layers"][i]["router_flips"],
                )
            ]
            for i, layer in enumerate(pairs[0]["layers"])
        ]
        parts.append(
            table(
                head,
                rows,
                range(len(head)),
                f"{MODES[mode][0]}: largest rel_l2 over positions, over those with the truth's experts, and flips",
            )
        )
    return details("Every layer in figures", *parts)


def _probes(report):
    """A map of probes and layers for each pair, of the mode that has least of other layers' errors."""
    mode, pairs = next(
        ((mode, modes(report)[mode]) for mode in ("local", "teacher", "forced", "free") if mode in modes(report)), ("", [])
    )
    pairs = [pair for pair in pairs if len({probe["probe"] for probe in pair["probes"]}) > 1 or len(pair["probes"]) > 1]
    drawn = []
    for pair in pairs:
        names = list(dict.fromkeys(probe["probe"] for probe in pair["probes"])) + ["l_out"]
        values = numpy.full((len(names), len(pair["layers"])), numpy.nan)
        for probe in pair["probes"]:
            values[names.index(probe["probe"]), probe["layer"]] = probe["rel_l2"] or numpy.nan
        for layer in pair["layers"]:
            values[-1, layer["layer"]] = layer["rel_l2"] or numpy.nan
        if numpy.isfinite(values).any():
            drawn.append(
                figure(
                    plots.svg(
                        lambda f: _draw_probes(f, names, values),
                        (400, 150 + 26 * len(names)),
                        f"{pair['a']}: rel_l2 of probes in each layer",
                    ),
                    pair["a"],
                    "Largest rel_l2 over positions.",
                )
            )
    return (
        [
            note(
                f"Named tensors within a layer (docs/trace.md), {MODES[mode][0].lower()}, from top to bottom in the order"
                " of the forward pass."
            ),
            figures(*drawn),
        ]
        if drawn
        else []
    )


def _draw_probes(figure_, names, values):
    low, high = numpy.nanmin(values), numpy.nanmax(values)
    axes = plots.heat_map(figure_, values, low * 0.9, high * 1.1, "layer", "", "rel_l2", False)
    axes.set_yticks(range(len(names)), names)


def _positions(found):
    """tokens.csv: a row for each pair and position."""
    report = found.report
    rows = [row for row in found.tokens if row["b"] == truth(report)]
    if not rows:
        return []
    drawn = []
    for key, name, words in (
        ("rel_l2", "distance of logits", "rel_l2: how far the logits are off at each position of the input"),
        ("kl", "KL", "What this does to the next token's distribution"),
    ):
        sizes = (plots.NARROW, (520, 300)) if len(rows) > 64 else (plots.COLUMN,)
        drawn.append(
            figure(
                [
                    plots.svg(lambda f: _draw_positions(f, report, rows, key, name), size, f"{name} by position")
                    for size in sizes
                ],
                name[0].upper() + name[1:],
                f"{words}.",
            )
        )
    return [figures(*drawn)]


def _draw_positions(figure_, report, rows, key, name):
    axes, style = figure_.add_subplot(), styles(report)
    for arm in dict.fromkeys(row["a"] for row in rows):
        values = _positive([number(row[key]) for row in rows if row["a"] == arm])
        plots.line(axes, range(len(values)), values, style[arm], arm, marks=len(values) <= 64, linewidth=1.2)
    axes.set_yscale("log")
    axes.set_xlabel("position, all sequences")
    axes.set_ylabel(name)
    plots.logarithmic(axes.yaxis)
    plots.whole_numbers(axes.xaxis)
    plots.legend(axes)
