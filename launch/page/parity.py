"""report.json of parity, generate and perplexity: the arms, and the finding of a run in a sentence.

Owns: which arm is the truth, which arm has which line. Layers, account, router and ranks have modules of their own.
"""

from page import plots
from page.document import Section, code, count, details, error, listed, percent, rounded, table, warning

MODES = {
    "free": ("Free run", "Each arm for itself: errors of earlier layers are in those of later ones."),
    "teacher": ("Teacher-forced", "Every layer starts from the truth's stream: the error that this layer alone makes."),
    "forced": ("Forced routing", "As free, with the experts that the truth chose: no flips."),
    "local": ("Local", "The truth's stream and the truth's experts: the error of this layer's arithmetic alone."),
}
STYLES = {"f32": 0, "q8k": 1, "q8k_split": 2, "ranks": 3, "f64": 6}
PARTS = [
    ("local", "local", "errors that the layers make themselves"),
    ("interference", "interference", "what these do to each other in the sum"),
    ("compounding", "compounding", "what later layers make of earlier errors"),
    ("flips", "flips", "other experts, with all that follows"),
]


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
        return (
            (
                f"{listed(bad)} came to a NaN or an infinity: no figure of {'these arms' if len(bad) > 1 else 'this arm'}"
                " is good"
            ),
            [],
        )
    pairs = sorted(pairs, key=lambda pair: -pair["logits"]["rel_l2"])
    if all(pair["logits"]["rel_l2"] == 0 for pair in pairs):
        return f"{listed(pair['a'] for pair in pairs)} gave the logits of {truth(report)}, to the bit", _more(report, pairs)
    off = [
        (
            f"{pair['a']} is {percent(pair['logits']['rel_l2'])} off the truth"
            if i == 0
            else f"{pair['a']} {percent(pair['logits']['rel_l2'])}"
        )
        for i, pair in enumerate(pairs)
    ]
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
            said.append(
                f"{pairs[0]['a']} is furthest from the truth after layer {worst['layer']}: {percent(worst['rel_l2'])}."
            )
    flips = [(pair["a"], sum(layer["router_flips"] for layer in pair["layers"])) for pair in pairs]
    choices = report["model"]["n_layers"] * report["model"]["top_k"] * report["arms"][0]["tokens"]
    if any(flipped for _, flipped in flips):
        others = ", the others none" if not all(flipped for _, flipped in flips) else ""
        said.append(
            f"Of {choices:,} choices of an expert"
            f" {listed(f'{name} flips {flipped:,}' for name, flipped in flips if flipped)}{others}."
        )
    elif pairs[0]["layers"]:
        said.append(f"No arm flips one of {choices:,} choices of an expert.")
    return said


def _finding_of_arms(report):
    digests = {arm["digest"] for arm in report["arms"]}
    names = listed(arm["name"] for arm in report["arms"])
    scored = [arm for arm in report["arms"] if arm["perplexity"] is not None and arm["scored"]]
    if report["command"] == "generate" or not scored:
        written = sum(len(text["tokens"]) for text in report["arms"][0]["generated"])
        return f"{names} wrote {count(written, 'token')} on {count(len(report['ranks']), 'rank')}", [
            f"Digest {listed(sorted(digests))}."
        ]
    said = listed(f"{arm['name']} {rounded(arm['perplexity'], 5)}" for arm in scored)
    return f"Perplexity over {count(scored[0]['scored'], 'scored position')}: {said}", []


# ---- sections ----


def sections(found):
    return [Section("arms", "Arms", *_arms(found.report))]


def _against(pair):
    logits = pair["logits"]
    metrics = [error(logits[key]) for key in ("rel_l2", "one_minus_cos", "kl")]
    return [*metrics, percent(logits["top1_agreement"], 4), f"{sum(layer['router_flips'] for layer in pair['layers']):,}"]


def _arms(report):
    """Against the truth, and what each arm is."""
    pairs = {pair["a"]: pair for pair in against_truth(report, report["pairs"])}
    rows = []
    for arm in report["arms"]:
        pair = pairs.get(arm["name"])
        row = [arm["name"], f"v{arm['path_version']}", arm["cache"], code(arm["digest"]), rounded(arm["perplexity"], 6)]
        if pairs:
            row += _against(pair) if pair else ["the truth" if arm["name"] == truth(report) else "", "", "", "", ""]
        rows.append(row)
    head = ["arm", "path", "cache", "digest of logits", "perplexity"]
    head += ["rel_l2", "1 − cos", "KL", "top-1", "flips"] if pairs else []
    caption = "Each arm" + (", and its logits against the truth's: worst position, free run" if pairs else "")
    parts = [table(head, rows, range(4, 10), caption)]
    parts += [warning(words) for words in report["warnings"]]
    others = [pair for pair in report["pairs"] if pair["b"] != truth(report)]
    if others:
        parts.append(
            details(
                "The other pairs",
                table(
                    ["pair", "rel_l2 of logits", "1 − cos", "KL", "top-1", "flips"],
                    [[f"{pair['a']} − {pair['b']}", *_against(pair)] for pair in others],
                    range(1, 6),
                ),
            )
        )
    firsts = [(pair, pair["first"]) for pair in report["pairs"] if pair["first"]]
    if firsts:
        parts.append(
            table(
                ["pair", "first above its bound", "rel_l2", "bound", "position"],
                [
                    [
                        f"{pair['a']} − {pair['b']}",
                        f"{first['probe']} of layer {first['layer']}",
                        error(first["rel_l2"]),
                        error(first["bound"]),
                        first["position"],
                    ]
                    for pair, first in firsts
                ],
                (2, 3, 4),
                "First point of the forward pass above parity.bound",
            )
        )
    return parts
