"""falsify.json: claims about why engines differ, what each predicts and what was found."""

import numpy

from page.document import Section, block, command, count, details, error, html, join, listed, mark, note, paragraph, table
from page.router import maps


def finding(found):
    verdicts = {
        verdict: [one["name"] for one in found.falsify["experiments"] if one["verdict"] == verdict]
        for verdict in ("supported", "refuted")
    }
    said = [f"{len(names)} {'is' if len(names) == 1 else 'are'} {verdict}" for verdict, names in verdicts.items() if names]
    return (
        f"Of {count(len(found.falsify['experiments']), 'claim')} about why engines differ {listed(said)}",
        [f"Refuted: {listed(verdicts['refuted'])}."] if verdicts["refuted"] else [],
    )


def sections(found):
    parts, mapped = [], []
    for one in found.falsify["experiments"]:
        rows = [
            [mark(prediction["holds"]), prediction["figure"], error(prediction["found"]), _range(prediction)]
            for prediction in one["predicts"]
        ]
        parts += [
            html(f"<h3>{join([one['id'], '. ', one['name'], ': ', one['verdict']])}</h3>"),
            paragraph(one["hypothesis"]),
            table(["", "predicted figure", "found", "predicted"], rows, (2,)),
            note(one["method"]),
        ]
        if one["notes"]:
            parts.append(note("; ".join(one["notes"])))
        parts.append(
            details(
                "Every figure",
                table(
                    ["figure", "found", "known case"],
                    [[name, error(value), error(one["known"].get(name))] for name, value in one["figures"].items()],
                    (1, 2),
                ),
            )
        )
        if one.get("map"):
            values = numpy.array(
                [[numpy.nan if value is None else value for value in row] for row in one["map"]["rel_l2"]], float
            )
            mapped = maps([(one["map"]["arm"], values)], "the truth's stream and routing imposed")
    again = command(
        "falsify", model__path=found.falsify["model"], falsify__only=[one["id"] for one in found.falsify["experiments"]]
    )
    return [
        Section("experiments", "Claims", *parts),
        Section("experiment-map", "Layer × expert of experiment 9", *mapped),
        Section("repeat-falsify", "To repeat it", note("With the input's keys of the run."), block(again, "command")),
    ]


def _range(prediction):
    low, high = prediction["min"], prediction["max"]
    if low is None:
        return f"≤ {high:g}"
    return f"≥ {low:g}" if high is None else f"{low:g} to {high:g}"
