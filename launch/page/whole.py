"""The page of a folder: which parts there are, in which order, and the sentence that it opens with."""

import os

from page import account, bench, bisection, contract, experiments, layers, machine, parity, plots, router, study, timeline
from page.document import document, html, join
from page.files import Refused

# file, its finding, its sections. The first that is there gives the headline, the others a sentence below it; None: no finding.
PARTS = [
    ("study", study.finding, [study.sections]),
    ("verify", contract.finding, [contract.sections]),
    ("bisect", bisection.finding, [bisection.sections]),
    ("report", parity.finding, [parity.sections, layers.sections, account.sections, layers.closer, router.sections]),
    ("timeline", None, [timeline.sections]),
    ("report", None, [machine.sections]),
    ("falsify", experiments.finding, [experiments.sections]),
    ("bench", bench.finding, [bench.sections]),
]


def page(found):
    headlines, deck, sections = [], [], []
    plots.restart()
    for name, finding, makers in PARTS:
        if not getattr(found, name):
            continue
        try:
            if finding:
                headline, more = finding(found)
                headlines.append(headline)
                deck += more if len(headlines) == 1 else [headline + ".", *more]
            sections += [section for make in makers for section in make(found)]
        except (KeyError, IndexError, TypeError, ValueError) as reason:
            path = os.path.join(found.folder, f"{name}.json")
            raise Refused(f"{path}: not what its schema says: {type(reason).__name__}: {reason}") from reason
    said = html(f"<p>{join(deck, ' ')}</p>") if deck else html("")
    return document(f"moe_run: {headlines[0]}", _eyebrow(found), headlines[0] + ".", said, sections)


def _eyebrow(found):
    """What was run, on which model, where."""
    if found.report:
        report = found.report
        parts = [
            "moe_run " + report["command"],
            report["model"]["name"],
            f"{len(report['ranks'])} ranks" if len(report["ranks"]) > 1 else "1 rank",
            report["machine"]["cpu"],
        ]
    elif found.study:
        parts = [
            "scaling study",
            found.study["title"] or found.study["name"],
            found.study["model"]["name"],
            found.study["machine"]["cpu"],
        ]
    elif found.verify:
        parts = ["moe_run verify", found.verify["contract"]["file"]]
    elif found.bisect:
        parts = ["moe_run bisect", found.bisect["model"]]
    elif found.falsify:
        parts = ["moe_run falsify", found.falsify["model"]]
    else:
        parts = ["moe_run bench", found.bench["model"], found.bench["cpu"]]
    return join([part for part in parts if part], " · ")
