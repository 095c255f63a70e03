"""bisect.json: of one product which axis makes the difference, of the whole model which steps, layers and experts."""

import numpy

from page import plots
from page.document import (
    Section,
    bar,
    block,
    code,
    command,
    count,
    definitions,
    details,
    error,
    figure,
    figures,
    html,
    join,
    mark,
    note,
    paragraph,
    percent,
    table,
    warning,
    wrapped,
)

STEPS = ["embedding", "q, k, v", "attention", "o", "router", "gate and up", "SwiGLU", "down", "head"]
SHOWN = 24  # parts in the table; the others are folded away


def _sentence(text):
    """With a capital, unless it starts with a name."""
    return text if any(sign in text.split(" ")[0] for sign in "@_0123456789") else text[:1].upper() + text[1:]


def finding(found):
    if "whole" in found.bisect:
        whole = found.bisect["whole"]
        first, _, rest = whole["sentence"].partition("; ")
        first = first.replace("a and b differ", f"{whole['a']['arm']} and {whole['b']['arm']} differ", 1)
        return _sentence(first), [_sentence(rest) + "."] if rest else []
    walks = found.bisect["product"]["walks"]
    if not walks:
        return "All operations on this product agree to rounding", []
    first, _, rest = walks[0]["sentence"].partition("; ")
    return _sentence(first), ([_sentence(rest) + "."] if rest else []) + [
        _sentence(walk["sentence"]) + "." for walk in walks[1:]
    ]


def sections(found):
    warned = [warning(words) for words in found.bisect["warnings"]]
    made = _whole(found.bisect) if "whole" in found.bisect else _product(found.bisect)
    made[0].parts[:0] = warned
    return made


# ---- one product ----


def _product(bisect):
    product = bisect["product"]
    operations = [operation for operation in product["operations"] if operation["absent"] is None]
    size = len(operations)
    about = definitions(
        [
            ("tensor", f"{product['tensor']} ({product['type']}), {product['rows']} × {product['cols']}"),
            (
                "activations",
                product["activations"] + (f" of {product['arm']}" if product["arm"] else f", seed {product['seed']}"),
            ),
            ("draws", f"{product['draws']:,}"),
            ("reordered", f"{error(product['reordered'])}: the most that another order of the sum makes"),
            ("bound", f"{error(product['bound'])}: no further apart is agreement to rounding"),
        ]
    )
    drawing = figure(
        [
            plots.svg(
                lambda f: _draw_pairs(f, product, operations, wide > 500),
                (wide, 130 + 26 * size),
                "rel_l2 of each pair of operations",
            )
            for wide in (400, 620)
        ],
        "Each operation against each",
        "rel_l2. Operations of one class agree to rounding, directly or through others; "
        "the number before a name is its class. Pairs with the same bits are blank.",
        wide=True,
    )
    axes = [axis["axis"] for axis in operations[0]["axes"]]
    what = table(
        ["class", "operation", *axes],
        [
            [operation["class"], operation["name"], *(axis["value"] for axis in operation["axes"])]
            for operation in operations
        ],
        (0,),
        "Operations that were computed, and where each stands on five axes",
    )
    absent = [operation for operation in product["operations"] if operation["absent"] is not None]
    left = (
        details(
            f"{count(len(absent), 'operation')} that this build cannot compute",
            table(["operation", "why"], [[operation["name"], wrapped(operation["absent"])] for operation in absent]),
        )
        if absent
        else ""
    )
    pairs = details(
        "Every pair in figures",
        table(
            ["pair", "max_rel", "rel_l2", "1 − cos", "rel_l2: median", "99 %"],
            [
                [
                    f"{pair['a']} − {pair['b']}",
                    *(error(pair[key]["shown"]) for key in ("max_rel", "rel_l2", "one_minus_cos")),
                    error(pair["rel_l2"]["quantiles"][4]),
                    error(pair["rel_l2"]["quantiles"][7]),
                ]
                for pair in product["pairs"]
            ],
            range(1, 6),
        ),
    )
    return [
        Section("why", "One axis at a time", *_walks(product)),
        Section("operations", "Operations", about, drawing, what, left, pairs),
        Section("repeat-bisect", "To repeat it", *_again(bisect, product)),
    ]


def _again(bisect, product):
    keys = {"model__path": bisect["model"]} | {
        f"bisect__{key}": product[key] for key in ("tensor", "rows", "cols", "activations")
    }
    if product["arm"]:  # captured of the run's input, which bisect.json has not
        return [
            note("With the input's keys of the run."),
            block(command("bisect", **keys, run__arms=[product["arm"]]), "command"),
        ]
    return [block(command("bisect", **keys, bisect__seed=product["seed"], bisect__draws=product["draws"]), "command")]


def _draw_pairs(figure_, product, operations, wide):
    names = [f"{operation['class']}  {operation['name']}" for operation in operations]
    at = {operation["name"]: i for i, operation in enumerate(operations)}
    values = numpy.full((len(names), len(names)), numpy.nan)
    for pair in product["pairs"]:
        if pair["a"] in at and pair["b"] in at and pair["rel_l2"]["shown"]:
            values[at[pair["a"]], at[pair["b"]]] = values[at[pair["b"]], at[pair["a"]]] = pair["rel_l2"]["shown"]
    low, high = (numpy.nanmin(values) / 2, numpy.nanmax(values) * 2) if numpy.isfinite(values).any() else (1e-8, 1)
    axes = plots.heat_map(figure_, values, low, high, "", "", "rel_l2", wide)
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(names)), [operation["name"] for operation in operations], rotation=90)


def _walks(product):
    parts = [
        note(
            "From an operation to one of the truth's class, one axis switched at a time, each point computed. A step above"
            " the bound separates them."
        )
    ]
    bound = product["bound"]
    for walk in product["walks"]:
        largest = max([step["rel_l2"] or 0 for step in walk["steps"]] + [bound])
        rows = [
            [
                step["axis"],
                f"{step['from']} → {step['to']}",
                error(step["rel_l2"]),
                bar(_logarithmic(step["rel_l2"], largest), "s2" if step["separates"] else "", _logarithmic(bound, largest)),
                html("<b>separates</b>") if step["separates"] else "rounding",
            ]
            for step in walk["steps"]
        ]
        parts += [
            paragraph(_sentence(walk["sentence"]) + "."),
            table(
                ["axis", "switched", "rel_l2", "against the bound", ""],
                rows,
                (2,),
                f"From {walk['a']} to {walk['b']}; bars on a logarithmic scale, the line is the bound",
            ),
        ]
    return parts


def _logarithmic(value, largest):
    """Ten decades below the largest to it, as 0 to 1."""
    return 0 if not value else max(0, 1 + numpy.log10(value / largest) / 10)


# ---- the whole model ----


def _whole(bisect):
    whole = bisect["whole"]
    between = whole["a_to_b"]
    about = definitions(
        [
            (
                side,
                join(
                    [
                        f"{whole[side]['arm']}, digest ",
                        code(whole[side]["digest"]),
                        f", {whole[side]['model']}, {whole[side]['kv']} cache, row {whole[side]['row']}",
                    ]
                ),
            )
            for side in ("a", "b")
        ]
        + [
            (
                "a − b",
                (
                    f"KL {error(between['kl'])}, rel_l2 {error(between['rel_l2'])}, top-1"
                    f" {percent(between['top1_agreement'], 4)}, {count(between['flips'], 'flip')}"
                ),
            ),
            (
                "passes",
                f"{whole['passes']} over {count(whole['tokens'], 'token')}"
                + (f"; the budget of {whole['budget']} is spent, and parts are left" if whole["budget_spent"] else ""),
            ),
        ]
    )
    parts = [part for part in whole["parts"] if part["gone"] is not None]
    parts.sort(key=lambda part: -part["gone"])
    drawn = figures(_steps(parts), _layers(parts)) if parts else note("There is no difference to look into.")
    return [
        Section(
            "parts",
            "Which part",
            about,
            note(
                "Only this computed as b does, on a's inputs: how much of the KL between a and b goes away with it, and how"
                " much it alone brings into a. Shares do not add up: differences of rounding are vectors."
            ),
            drawn,
            _settings(whole),
            _parts(parts[:SHOWN], "The parts that take most away") if parts else "",
            details(f"{count(len(parts) - SHOWN, 'part')} more", _parts(parts[SHOWN:], "")) if len(parts) > SHOWN else "",
        ),
        Section("next", "To go on", *_next(bisect)),
    ]


def _bounds(parts):
    """(layers, experts) of the model, as far as parts tell."""
    return max(part["end_layer"] for part in parts), max(part["end_expert"] for part in parts)


def _steps(parts):
    """Each step over all layers and experts."""
    layers, experts = _bounds(parts)
    single = {
        part["steps"][0]: part
        for part in parts
        if len(part["steps"]) == 1
        and part["end_expert"] - part["first_expert"] == experts
        and (part["end_layer"] - part["first_layer"] == layers or part["steps"][0] in ("embedding", "head"))
    }
    names = [step for step in STEPS if step in single]
    return (
        figure(
            plots.svg(
                lambda f: _draw_gone(f, names, [single[name] for name in names]),
                (400, 90 + 34 * len(names)),
                "What goes with each step",
            ),
            "Steps",
            "Each step of all layers.",
        )
        if len(names) > 1
        else ""
    )


def _layers(parts):
    """Each single layer that was tried with all its steps."""
    _, experts = _bounds(parts)
    single = {}
    for part in parts:
        if (
            part["end_layer"] - part["first_layer"] == 1
            and len(part["steps"]) > 3
            and part["end_expert"] - part["first_expert"] == experts
        ):
            single.setdefault(part["first_layer"], part)
    at = sorted(single)
    return (
        figure(
            plots.svg(
                lambda f: _draw_gone(f, [f"layer {layer}" for layer in at], [single[layer] for layer in at]),
                (400, 90 + 34 * len(at)),
                "What goes with each layer",
            ),
            "Layers",
            "Those that were tried alone, with all their steps.",
        )
        if len(at) > 1
        else ""
    )


def _draw_gone(figure_, names, parts):
    axes = figure_.add_subplot()
    at = numpy.arange(len(names))
    for style, (key, label) in enumerate((("gone", "goes away from a"), ("appears", "comes into a"))):
        plots.bars(axes, 0, [100 * (part[key] or 0) for part in parts], at + 0.38 * style - 0.19, style, label, 0.34)
    axes.axvline(0, color=plots.INK, linewidth=0.8)
    axes.set_yticks(at, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("% of the KL between a and b")
    plots.legend(axes)


def _bits(part):
    return mark(True, "b’s bits") if part["to_b"]["same_bits"] else "a’s bits" if part["to_a"]["same_bits"] else ""


def _parts(parts, caption):
    rows = [
        [
            wrapped(part["name"]),
            percent(part["gone"], 3),
            bar(max(part["gone"], 0), "s1"),
            percent(part["appears"], 3),
            error(part["to_b"]["kl"]),
            error(part["to_b"]["rel_l2"]),
            f"{part['to_b']['flips']:,}",
            _bits(part),
        ]
        for part in parts
    ]
    return table(
        ["part as in b", "gone", "", "appears", "KL to b", "rel_l2 to b", "flips", ""], rows, (1, 3, 4, 5, 6), caption
    )


def _settings(whole):
    if not whole["settings"]:
        return ""
    return table(
        ["setting", "gone", "appears", "KL to b", ""],
        [
            [one["name"], percent(one["gone"], 3), percent(one["appears"], 3), error(one["to_b"]["kl"]), _bits(one)]
            for one in whole["settings"]
        ],
        (1, 2, 3),
        "Settings in which a and b differ, each switched alone",
    )


def _next(bisect):
    whole = bisect["whole"]
    a, b = whole["a"], whole["b"]
    other = {"bisect__model_b": b["model"]} if b["model"] != a["model"] else {}
    if {a["kv"], b["kv"]} == {"f16", "f32"}:  # else a path's own cache
        other["bisect__kv_b"] = b["kv"]
    if a["row"] != b["row"] and a["arm"].endswith("@cpu") and b["arm"].endswith("@cpu"):  # else a device's name
        other["bisect__rows_b"] = b["row"]
    again = command(
        "bisect",
        model__path=bisect["model"],
        bisect__a=a["arm"],
        bisect__b=b["arm"],
        **other,
        bisect__budget=whole["budget"],
    )
    keys = note("With the input's keys of the run.")
    if not whole["tensor"]:
        return [keys, block(again, "command")]
    return [
        keys,
        paragraph("Which axis of the product: a bisection of one tensor of the step that takes most away."),
        block(
            again
            + command(
                "bisect",
                model__path=bisect["model"],
                bisect__tensor=whole["tensor"],
                bisect__activations=whole["activations"],
            ),
            "commands",
        ),
    ]
