"""The account of the final difference: what the layers make, what becomes of it, what flips cause; layer by layer."""

import numpy

from page import plots
from page.document import Section, error, figure, figures, note, percent, table
from page.parity import PARTS, styles, truth


def sections(found):
    return [Section("account", "Account of the difference", *_account(found.report))]


def _account(report):
    accounts = [account for account in report["accounts"] if account["b"] == truth(report) and account["total"]["mean"]]
    if not accounts:
        return []
    sized = [account for account in accounts if account["verdict"] in ("adds up", "parts cancel")]
    height = 96 + 44 * len(sized)
    drawing = [
        plots.svg(lambda f: _draw_account(f, sized), (width, height), "Shares of the account, arm by arm")
        for width in (400, 860)
    ]
    rows = []
    for account in accounts:
        total = account["total"]
        rows.append(
            [
                account["a"],
                account["verdict"],
                f"{error(total['mean'])} ± {error(total['standard_error'])}",
                *(percent(account[key]["mean"] / total["mean"], 3) for key, *_ in PARTS),
                error(account["local_flips"]["mean"]),
                f"{account['flipped_points']:,}",
            ]
        )
    shares = [
        figure(
            plots.svg(
                lambda f, account=account: _draw_shares(f, report, account),
                plots.COLUMN,
                f"{account['a']}: local error of each layer",
            ),
            account["a"],
            "Which layers make the local part; thin: the standard error.",
        )
        for account in sized
        if any(layer["local"] for layer in account["layers"])
    ]
    return [
        note(
            "Energy of the last residual stream's difference over the truth's, mean over positions, split into what the"
            " layers make themselves, what these errors do to each other, what later layers make of them, and what other"
            " experts cause."
        ),
        (
            figure(drawing, "Shares of the whole", "Where parts cancel, some lie left of 0 and none is a share.", wide=True)
            if sized
            else ""
        ),
        table(
            ["arm", "verdict", "total", *(name for _, name, _ in PARTS), "local flips", "flipped points"], rows, range(2, 9)
        ),
        figures(*shares),
    ]


def _draw_account(figure_, accounts):
    axes = figure_.add_subplot()
    for i, (key, name, _) in enumerate(PARTS):
        shares = numpy.array([account[key]["mean"] / account["total"]["mean"] for account in accounts])
        before = numpy.array(
            [
                sum(
                    other
                    for other in (account[k]["mean"] / account["total"]["mean"] for k, *_ in PARTS[:i])
                    if (other < 0) == (share < 0)
                )
                for account, share in zip(accounts, shares)
            ]
        )
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
