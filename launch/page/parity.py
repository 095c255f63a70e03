"""report.json of parity, generate and perplexity: the arms, how far each is from the truth, layer by layer and position by
position, and the account of the difference.

Owns: the finding of a run in a sentence, and which arm has which line. Independent of: ranks, routers, experts as such.
"""
import numpy

from page import plots
from page.document import (Section, bar, code, count, details, error, figure, figures, html, join, listed, note, paragraph,
                           percent, rounded, table)
from page.files import number

MODES = {"free": ("Free run", "Each arm for itself: errors of earlier layers are in those of later ones."),
         "teacher": ("Teacher-forced", "Every layer starts from the truth's stream: the error that this layer alone makes."),
         "forced": ("Forced routing", "As free, with the experts that the truth chose: no flips."),
         "local": ("Local", "The truth's stream and the truth's experts: the error of this layer's arithmetic alone.")}
STYLES = {"f32": 0, "q8k": 1, "q8k_split": 2, "ranks": 3, "f64": 6}
PARTS = [("local", "local", "errors that the layers make themselves"), ("interference", "interference", "what these do to each other in the sum"),
         ("compounding", "compounding", "what later layers make of earlier errors"), ("flips", "flips", "other experts, with all that follows")]


def truth(report):
    """The arm that the others are measured against (docs/metrics.md)."""
    names = [arm["name"] for arm in report["arms"]]
    return next((name for name in names if name.startswith("f64@")), names[0])


def against_truth(report, pairs):
    return [pair for pair in pairs if pair["b"] == truth(report)]


def modes(report):
    """{mode: its pairs against the truth}, free first."""
    found = {"free": report["pairs"]} | {mode: report["modes"][mode]["pairs"] for mode in MODES if mode in report["modes"]}
    return {mode: against_truth(report, pairs) for mode, pairs in found.items() if against_truth(report, pairs)}


def styles(report):
    """{arm: its number in plots.SERIES}; two arms of a path get two."""
    given = {}
    for arm in report["arms"]:
        wanted = STYLES.get(arm["name"].split("@")[0], 4)
        free = [style for style in range(len(plots.SERIES)) if style not in given.values()]
        given[arm["name"]] = wanted if wanted in free or not free else free[0]
    return given


# ---- the finding ----

def finding(found):
    report = found.report
    pairs = against_truth(report, report["pairs"])
    if not pairs:
        return _finding_of_arms(report)
    bad = [pair["a"] for pair in pairs if not pair["finite"]]
    if bad:
        return f"{listed(bad)} came to a NaN or an infinity: no figure of {'these arms' if len(bad) > 1 else 'this arm'} is good", []
    pairs = sorted(pairs, key=lambda pair: -pair["logits"]["rel_l2"])
    if all(pair["logits"]["rel_l2"] == 0 for pair in pairs):
        return f"{listed(pair['a'] for pair in pairs)} gave the logits of {truth(report)}, to the bit", _more(report, pairs)
    off = [f"{pair['a']} is {percent(pair['logits']['rel_l2'])} off the truth" if i == 0 else f"{pair['a']} {percent(pair['logits']['rel_l2'])}"
           for i, pair in enumerate(pairs)]
    return f"At the worst position {listed(off)}{_tokens(report, pairs)}", _more(report, pairs)


def _tokens(report, pairs):
    """The rest of the sentence: does the next token change?"""
    least = min(pairs, key=lambda pair: pair["logits"]["top1_agreement"])
    share, positions = least["logits"]["top1_agreement"], report["arms"][0]["tokens"]
    if share == 1:
        every = "every arm chooses" if len(pairs) > 1 else "it chooses"
        return f", and {every} the truth's next token at all {count(positions, 'position')}"
    return f", and {least['a']} chooses another next token at {percent(1 - share)} of {count(positions, 'position')}"


def _more(report, pairs):
    """Sentences that follow: where, and why."""
    said = []
    for account in report["accounts"]:
        if account["b"] != truth(report) or account["a"] != pairs[0]["a"] or account["verdict"] != "adds up":
            continue
        total = account["total"]["mean"]
        parts = sorted(((account[key]["mean"] / total, words) for key, _, words in PARTS), reverse=True)
        parts = [f"{percent(share)} is {words}" for share, words in parts if share >= 0.05]
        said.append(f"Of {account['a']}'s difference {listed(parts)}.")
    if not said:
        worst = max(pairs[0]["layers"], key=lambda layer: layer["rel_l2"] or 0, default=None)
        if worst:
            said.append(f"{pairs[0]['a']} is furthest from the truth after layer {worst['layer']}: {percent(worst['rel_l2'])}.")
    flips = [(pair["a"], sum(layer["router_flips"] for layer in pair["layers"])) for pair in pairs]
    choices = report["model"]["n_layers"] * report["model"]["top_k"] * report["arms"][0]["tokens"]
    if any(flipped for _, flipped in flips):
        others = ", the others none" if not all(flipped for _, flipped in flips) else ""
        said.append(f"Of {choices:,} choices of an expert {listed(f'{name} flips {flipped:,}' for name, flipped in flips if flipped)}{others}.")
    elif pairs[0]["layers"]:
        said.append(f"No arm flips one of {choices:,} choices of an expert.")
    return said


def _finding_of_arms(report):
    digests = {arm["digest"] for arm in report["arms"]}
    names = listed(arm["name"] for arm in report["arms"])
    scored = [arm for arm in report["arms"] if arm["perplexity"] is not None and arm["scored"]]
    if report["command"] == "generate" or not scored:
        written = sum(len(text["tokens"]) for text in report["arms"][0]["generated"])
        return f"{names} wrote {count(written, 'token')} on {count(len(report['ranks']), 'rank')}", [f"Digest {listed(sorted(digests))}."]
    said = listed(f"{arm['name']} has a perplexity of {rounded(arm['perplexity'], 5)}" for arm in scored)
    return f"{said} over {count(scored[0]['scored'], 'scored position')}", []


# ---- sections ----

def sections(found):
    report = found.report
    return [Section("arms", "Arms", *_arms(report)), Section("layers", "Layer by layer", *_layers(report)),
            Section("account", "Account of the difference", *_account(report)),
            Section("inside", "Inside the layers", *_probes(report)), Section("positions", "Position by position", *_positions(found))]


def _arms(report):
    """Against the truth, and what each arm is."""
    pairs = {pair["a"]: pair for pair in against_truth(report, report["pairs"])}
    rows = []
    for arm in report["arms"]:
        pair = pairs.get(arm["name"])
        logits = pair["logits"] if pair else None
        flips = sum(layer["router_flips"] for layer in pair["layers"]) if pair else None
        rows.append([arm["name"], f"v{arm['path_version']}", arm["cache"], code(arm["digest"]), rounded(arm["perplexity"], 6),
                     *([error(logits["rel_l2"]), error(logits["one_minus_cos"]), error(logits["kl"]), percent(logits["top1_agreement"], 4),
                        f"{flips:,}"] if pair else ["the truth" if pairs and arm["name"] == truth(report) else "", "", "", "", ""])])
    parts = [table(["arm", "path", "cache", "digest of logits", "perplexity", "rel_l2", "1 − cos", "KL", "top-1", "flips"], rows, range(4, 10),
                   "Each arm, and its logits against the truth's: worst position, free run")]
    for warning in report["warnings"]:
        parts.append(html(f'<p class="warning">{_text(warning)}</p>'))
    others = [pair for pair in report["pairs"] if pair["b"] != truth(report)]
    if others:
        parts.append(details("The other pairs", table(["pair", "rel_l2 of logits", "1 − cos", "KL", "top-1", "flips"],
                     [[f"{pair['a']} − {pair['b']}", error(pair["logits"]["rel_l2"]), error(pair["logits"]["one_minus_cos"]),
                       error(pair["logits"]["kl"]), percent(pair["logits"]["top1_agreement"], 4),
                       f"{sum(layer['router_flips'] for layer in pair['layers']):,}"] for pair in others], range(1, 6))))
    firsts = [(pair, pair["first"]) for pair in report["pairs"] if pair["first"]]
    if firsts:
        parts.append(table(["pair", "first above its bound", "rel_l2", "bound", "position"],
                     [[f"{pair['a']} − {pair['b']}", f"{first['probe']} of layer {first['layer']}", error(first["rel_l2"]), error(first["bound"]),
                       first["position"]] for pair, first in firsts], (2, 3, 4), "First point of the forward pass above parity.bound"))
    return parts


def _text(value):
    from page.document import text
    return text(value)


def _positive(values):
    """For a logarithmic axis: what is not above 0 is left out."""
    return numpy.array([value if value else numpy.nan for value in values], float)


def _layers(report):
    found = {mode: pairs for mode, pairs in modes(report).items() if any(pair["layers"] for pair in pairs)}
    values = [layer[key] for pairs in found.values() for pair in pairs for layer in pair["layers"]
              for layer, key in ((layer, "rel_l2"), (layer["spread"]["rel_l2"], "median")) if layer[key]]
    if not values:
        return []
    limits = 10 ** numpy.floor(numpy.log10(min(values))), 10 ** numpy.ceil(numpy.log10(max(values)))
    drawn = [figure(plots.svg(lambda f, pairs=pairs: _draw_layers(f, report, pairs, limits), plots.COLUMN,
                              f"{MODES[mode][0]}: rel_l2 of the residual stream after each layer"),
                    *MODES[mode]) for mode, pairs in found.items()]
    return [note("rel_l2 of the residual stream after each layer, against the truth's. Lines with marks: the worst position; without: the "
                 "median; shaded: from the least to the worst. All plots have one scale."), figures(*drawn), _layer_table(report, found)]


def _draw_layers(figure_, report, pairs, limits):
    axes, style = figure_.add_subplot(), styles(report)
    for pair in pairs:
        at = [layer["layer"] for layer in pair["layers"]]
        spread = [layer["spread"]["rel_l2"] for layer in pair["layers"]]
        worst = _positive([one["max"] for one in spread])
        plots.line(axes, at, worst, style[pair["a"]], pair["a"])
        plots.line(axes, at, _positive([one["median"] for one in spread]), style[pair["a"]], marks=False, linewidth=0.9, alpha=0.9)
        axes.fill_between(at, _positive([max(one["min"] or 0, limits[0]) for one in spread]), worst, color=plots.SERIES[style[pair["a"]]],
                          alpha=0.10, linewidth=0)
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
        rows = [[layer["layer"]] + [cell for pair in pairs for cell in
                 (error(pair["layers"][i]["rel_l2"]), error(pair["layers"][i]["same_experts"]["rel_l2"]), pair["layers"][i]["router_flips"])]
                for i, layer in enumerate(pairs[0]["layers"])]
        parts.append(table(head, rows, range(len(head)), f"{MODES[mode][0]}: largest rel_l2 over positions, over those with the truth's experts, and flips"))
    return details("Every layer in figures", *parts)


# ---- the account ----

def _account(report):
    accounts = [account for account in report["accounts"] if account["b"] == truth(report) and account["total"]["mean"]]
    if not accounts:
        return []
    sized = [account for account in accounts if account["verdict"] in ("adds up", "parts cancel")]
    height = 96 + 44 * len(sized)
    drawing = [plots.svg(lambda f: _draw_account(f, sized), (width, height), "Shares of the account, arm by arm") for width in (400, 860)]
    rows = []
    for account in accounts:
        total = account["total"]
        rows.append([account["a"], account["verdict"], f"{error(total['mean'])} ± {error(total['standard_error'])}",
                     *(percent(account[key]["mean"] / total["mean"], 3) for key, *_ in PARTS), error(account["local_flips"]["mean"]),
                     f"{account['flipped_points']:,}"])
    shares = [figure(plots.svg(lambda f, account=account: _draw_shares(f, report, account), plots.COLUMN,
                               f"{account['a']}: local error of each layer"),
                     account["a"], "Which layers make the local part; thin: the standard error.")
              for account in sized if any(layer["local"] for layer in account["layers"])]
    return [note("Energy of the last residual stream's difference over the truth's, mean over positions, split into what the layers make "
                 "themselves, what these errors do to each other, what later layers make of them, and what other experts cause."),
            figure(drawing, "Shares of the whole", "Where parts cancel, some lie left of 0 and none is a share.", wide=True) if sized else "",
            table(["arm", "verdict", "total", *(name for _, name, _ in PARTS), "local flips", "flipped points"], rows, range(2, 9)),
            figures(*shares)]


def _draw_account(figure_, accounts):
    axes = figure_.add_subplot()
    for i, (key, name, _) in enumerate(PARTS):
        shares = numpy.array([account[key]["mean"] / account["total"]["mean"] for account in accounts])
        before = numpy.array([sum(other for other in (account[k]["mean"] / account["total"]["mean"] for k, *_ in PARTS[:i])
                                  if (other < 0) == (share < 0)) for account, share in zip(accounts, shares)])
        plots.bars(axes, 100 * before, 100 * shares, range(len(accounts)), i, name)
    axes.axvline(0, color=plots.INK, linewidth=0.8)
    axes.set_yticks(range(len(accounts)), [account["a"] for account in accounts])
    axes.set_ylim(len(accounts) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("% of the total")
    plots.legend(axes, ncol=2 if figure_.get_figwidth() < 8 else 4)


def _draw_shares(figure_, report, account):
    axes = figure_.add_subplot()
    at = [layer["layer"] for layer in account["layers"]]
    energy = numpy.array([layer["local"] or 0 for layer in account["layers"]])
    spread = numpy.array([layer["standard_error"] or 0 for layer in account["layers"]])
    style = styles(report)[account["a"]]
    axes.bar(at, energy, 0.7, yerr=spread, color=plots.SERIES[style], ecolor=plots.INK, error_kw={"elinewidth": 0.8})
    axes.set_ylim(0, None)
    axes.set_xlabel("layer")
    axes.set_ylabel("local energy")
    axes.yaxis.set_major_formatter(lambda value, place: "0" if value == 0 else f"{value:.1e}".replace("e-0", "e-"))
    axes.grid(axis="x", visible=False)
    plots.whole_numbers(axes.xaxis)


# ---- inside a layer, and over positions ----

def _probes(report):
    """A map of probes and layers for each pair, of the mode that has least of other layers' errors."""
    mode, pairs = next(((mode, modes(report)[mode]) for mode in ("local", "teacher", "forced", "free") if mode in modes(report)), ("", []))
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
            drawn.append(figure(plots.svg(lambda f: _draw_probes(f, names, values), (400, 150 + 26 * len(names)),
                                          f"{pair['a']}: rel_l2 of probes in each layer"), pair["a"], "Largest rel_l2 over positions."))
    return [note(f"Named tensors within a layer (docs/trace.md), {MODES[mode][0].lower()}, from top to bottom in the order of the forward pass."),
            figures(*drawn)] if drawn else []


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
    for key, name, words in (("rel_l2", "distance of logits", "rel_l2: how far the logits are off at each position of the input"),
                             ("kl", "KL", "What this does to the next token's distribution")):
        sizes = (plots.NARROW, (520, 300)) if len(rows) > 64 else (plots.COLUMN,)
        drawn.append(figure([plots.svg(lambda f: _draw_positions(f, report, rows, key, name), size, f"{name} by position") for size in sizes],
                            name[0].upper() + name[1:], f"{words}."))
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
