"""verify.json: a contract's checks, each with its figure, its bound and how much of what the bound allows is used."""

import shlex

from page import plots
from page.document import (
    Section,
    bar,
    block,
    count,
    definitions,
    details,
    error,
    figure,
    join,
    mark,
    note,
    paragraph,
    percent,
    rounded,
    table,
    wrapped,
)

SIGNS = {"at_most": "≤", "at_least": "≥"}


def _gates(verify):
    return [check for check in verify["checks"] if "bound" in check]


def _closest(verify):
    """The gate that uses most of its bound; a figure that is NaN, or above a bound of 0, uses all of it and more."""
    gates = _gates(verify)
    return max(gates, key=lambda gate: float("inf") if gate["used"] is None else gate["used"]) if gates else None


def _times(gate):
    used = gate["used"]
    if gate["figure"] is None:
        return "is not a number"
    if used is None:
        return f"is {gate['figure']:g}, which a bound of {gate['bound']:g} does not admit"
    return f"is at {rounded(used, 3)} times its bound" if used > 1 else f"is at {percent(used)} of its bound"


def finding(found):
    verify = found.verify
    name, checks, closest = verify["contract"]["name"], verify["checks"], _closest(verify)
    if not verify["holds"]:
        failed = [check for check in checks if not check["holds"]]
        worst = closest if closest and not closest["holds"] else failed[0]
        words = _times(worst) if "bound" in worst else worst["reason"]
        return (
            (
                f"The contract {name} fails in {len(failed)} of {count(len(checks), 'check')}: {worst['name']},"
                f" {worst['where']}, {words}"
            ),
            [],
        )
    close = f"; the closest gate, {closest['name']}, {_times(closest)}" if closest else ""
    return f"The contract {name} holds in {'its one check' if len(checks) == 1 else f'all {len(checks)} checks'}{close}", []


def sections(found):
    verify = found.verify
    contract, report = verify["contract"], verify["report"]
    gates = _gates(verify)
    parts = [
        definitions(
            [
                ("contract", f"{contract['name']}, version {contract['version']}, {contract['status'].replace('_', ' ')}"),
                ("file", contract["file"]),
                ("meant for", contract["run"]),
                ("held against", report["file"]),
                (
                    "report",
                    (
                        f"{report['command']} on {count(report['ranks'], 'rank')}, model {report['fingerprint']}, input"
                        f" {report['input']}"
                    ),
                ),
            ]
        )
    ]
    own = found.report
    if own and (own["model"]["fingerprint"], own["run"]["input"]) != (report["fingerprint"], report["input"]):
        parts.append(note("The report.json in this folder is of another model or input than the one that was verified."))
    if gates:
        names = list(dict.fromkeys(gate["name"] for gate in gates))
        parts.append(
            figure(
                [
                    plots.svg(
                        lambda f: _draw(f, gates, names),
                        (width, 104 + 26 * len(names)),
                        "How much of its bound each gate uses",
                    )
                    for width in (400, 860)
                ],
                "How close to its bound",
                "How much of what its bound allows each gate uses, a mark for each place: filled circles hold, crosses"
                " fail, the line is the bound.",
                wide=True,
            )
        )
    parts.append(_table(verify["checks"]))
    for divergence in verify["divergences"]:
        parts.append(
            paragraph(join([f"Known divergence {divergence['name']}, {divergence['date']}: ", divergence["reason"]]))
        )
    parts.append(block(f"moe_run verify {shlex.quote(contract['file'])} DIR --out DIR\n", "command"))
    return [Section("contract", "Contract", *parts)]


def _draw(figure_, gates, names):
    axes = figure_.add_subplot()
    high = max([2.0] + [2 * gate["used"] for gate in gates if gate["used"] is not None])
    used = [high if gate["used"] is None else gate["used"] for gate in gates]
    low = min([0.5] + [value for value in used if value > 0]) / 2
    for holds, marker, colour, size, words in ((True, "o", plots.GOOD, 6, "holds"), (False, "X", plots.BAD, 8, "fails")):
        chosen = [
            (max(value, low), names.index(gate["name"])) for gate, value in zip(gates, used) if gate["holds"] is holds
        ]
        if chosen:
            axes.plot(
                *zip(*chosen),
                linestyle="none",
                marker=marker,
                color=colour,
                markersize=size,
                markeredgewidth=0,
                label=words,
                alpha=0.85,
            )
    axes.axvline(1, color=plots.INK, linewidth=1.4)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.5, high)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("used of the bound (1: at the bound)")
    plots.logarithmic(axes.xaxis)
    plots.legend(axes)


def _table(checks):
    """Those that fail first, then of each gate its worst place; the rest folded away."""
    worst = {}
    for check in checks:
        if "bound" in check and check["used"] is not None:
            kept = worst.get(check["name"])
            worst[check["name"]] = check if kept is None or check["used"] > kept["used"] else kept
    failed = [check for check in checks if not check["holds"]]
    shown = failed + [
        check for check in checks if check["holds"] and ("bound" not in check or worst.get(check["name"]) is check)
    ]
    rest = [check for check in checks if not any(check is other for other in shown)]
    parts = [_rows(shown, "Every check that fails, and the worst place of each gate that holds")]
    if rest:
        parts.append(
            details(f"The other {count(len(rest), 'place')}, which hold", _rows(rest, "Places of gates that hold"))
        )
    return join(parts)


def _rows(checks, caption):
    rows = []
    for check in checks:
        if "bound" in check:
            figures = [
                error(check["figure"]) if abs(check["figure"] or 0) < 0.1 else rounded(check["figure"], 6),
                f"{SIGNS[check['direction']]} {check['bound']:g}",
                error(check["margin"]),
                rounded(check["used"], 3) if (check["used"] or 0) >= 1e-4 else error(check["used"]),
                bar(_room(check["used"]), "good" if check["holds"] else "bad", _room(1)),
            ]
        else:
            figures = ["", "", "", "", ""]
        about = f"{check['where']}: {check['reason']}" if check["reason"] else check["where"]
        rows.append([mark(check["holds"]), check["name"], wrapped(about), *figures])
    return table(
        ["", "check", "where", "figure", "bound", "margin", "used", "of the bound"],
        rows,
        (3, 4, 5, 6),
        caption,
        ["" if check["holds"] else "failed" for check in checks],
    )


def _room(used):
    """The bound stands at three quarters of a bar, so that there is room beyond it."""
    return 1.01 if used is None else 0.75 * used
