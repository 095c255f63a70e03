"""bench.json: rates, each beside the digest of the same run, and where a token's time goes, phase by phase."""

from page import plots
from page.document import (
    Section,
    bar,
    block,
    byte_size,
    code,
    command,
    count,
    definitions,
    figure,
    figures,
    listed,
    note,
    percent,
    rounded,
    table,
    warning,
)

FEW = 0.015  # phases with a smaller share of the time are one bar


def finding(found):
    """The best rate of each kind."""
    bench = found.bench
    said, last = [], None
    for kind, words in (("pp", "reads {rate} tokens of a prompt a second"), ("tg", "decodes {rate} tokens a second")):
        rows = [row for row in bench["rows"] if row["kind"] == kind]
        if rows:
            best = max(rows, key=lambda row: row["tokens_per_s"]["median"])
            name = "" if best["arm"] == last else best["arm"] + " "
            said.append(
                f"{name}{words.format(rate=rounded(best['tokens_per_s']['median'], 4))}"
                f" ({best['test'].replace(' x', ' x')})"
            )
            last = best["arm"]
    where = f"on {count(bench['ranks'], 'rank')} of {count(bench['threads'], 'thread')}"
    return f"{listed(said)}, {where}", []


def sections(found):
    bench = found.bench
    most = {
        kind: max(row["tokens_per_s"]["median"] for row in bench["rows"] if row["kind"] == kind)
        for kind in {row["kind"] for row in bench["rows"]}
    }
    rows = [
        [
            row["arm"],
            row["row"],
            row["test"],
            row["n"],
            rounded(rate["median"], 5),
            bar(rate["median"] / most[row["kind"]], "s1"),
            rounded(rate["min"], 5),
            rounded(rate["max"], 5),
            rounded(row["bytes_per_token"] and row["bytes_per_token"] / 1e6, 3),
            percent(row["share_of_bandwidth"], 3),
            _exchange(row),
            code(row["digest"]),
        ]
        for row in bench["rows"]
        for rate in [row["tokens_per_s"]]
    ]
    head = [
        "arm",
        "row",
        "test",
        "n",
        "median tok/s",
        "",
        "min",
        "max",
        "MB/token",
        "of bandwidth",
        "in exchange",
        "digest",
    ]
    about = definitions(
        [
            ("model", f"{bench['model']} ({bench['types']}), {byte_size(bench['model_bytes'])}"),
            ("fingerprint", code(bench["fingerprint"])),
            (
                "machine",
                (
                    f"{bench['cpu']}; {count(bench['ranks'], 'rank')} of {count(bench['threads'], 'thread')} on"
                    f" {count(bench['hosts'], 'host')}"
                ),
            ),
            ("memory", f"{bench['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s, all ranks reading"),
        ]
    )
    warned = [warning(words) for words in bench["warnings"]]
    timed = [row for row in bench["rows"] if row.get("phases")]
    return [
        Section(
            "rates",
            "Rates",
            *warned,
            about,
            table(head, rows, (3, 4, 6, 7, 8, 9, 10), "Median, least and most of n runs; bars against the best of a kind"),
            note(
                "docs/bench.md defines every column. A rate belongs to its digest: lines of one path and test have the"
                " same."
            ),
        ),
        Section("phases", "Where the time goes", *_phases(timed)),
        Section(
            "repeat-bench", "To repeat it", note("With the model's path for MODEL."), block(_command(bench), "command")
        ),
    ]


def _command(bench):
    def values(key, rows=bench["rows"]):
        return list(dict.fromkeys(row[key] for row in rows))

    lengths = {kind: values("tokens", [row for row in bench["rows"] if row["kind"] == kind]) for kind in ("pp", "tg")}
    return command(
        "bench",
        model__path="MODEL",
        run__arms=values("arm"),
        bench__prompt=lengths["pp"],
        bench__generate=lengths["tg"],
        bench__batch=values("batch"),
        bench__depth=values("depth"),
        bench__repeats=max(values("n")),
    )


def _exchange(row):
    if row["exchange_seconds"] is None:
        return "–"
    tokens = row["tokens"] * row["batch"]
    share = row["exchange_seconds"] * row["tokens_per_s"]["median"] / tokens
    return percent(share, 3) + (" alone" if row["exchange_is_alone"] else "")


def _phases(rows):
    drawn = []
    for row in rows:
        phases = row["phases"]
        parts = [(one["phase"], one["seconds"], one["waiting_seconds"] or 0) for one in phases["of"] if one["seconds"]]
        parts.append(("rest", phases["rest_seconds"], 0))
        kept = [part for part in parts if part[1] >= FEW * phases["seconds"]]
        few = [part for part in parts if part[1] < FEW * phases["seconds"]]
        if few:
            kept.append((f"{len(few)} others", sum(part[1] for part in few), sum(part[2] for part in few)))
        drawn.append(
            figure(
                plots.svg(
                    lambda f: _draw_phases(f, kept, phases["tokens"]),
                    (400, 92 + 22 * len(kept)),
                    f"{row['arm']}, {row['test']}: microseconds of phases",
                ),
                f"{row['arm']}, {row['test']}",
                f"{rounded(1e3 * phases['seconds'] / phases['tokens'], 3)} ms a token.",
            )
        )
    return (
        [
            note(
                "One pass with a clock at the end of every phase; the timed runs are without these clocks. Hatched: what"
                " the phase's threads waited for each other."
            ),
            figures(*drawn),
        ]
        if drawn
        else []
    )


def _draw_phases(figure_, parts, tokens):
    axes = figure_.add_subplot()
    micro = [1e6 * seconds / tokens for _, seconds, _ in parts]
    waiting = [1e6 * seconds / tokens for *_, seconds in parts]
    at = range(len(parts))
    plots.bars(axes, 0, [one - other for one, other in zip(micro, waiting)], at, 0, "work")
    plots.bars(axes, [one - other for one, other in zip(micro, waiting)], waiting, at, 1, "waiting")
    axes.set_yticks(at, [name for name, *_ in parts])
    axes.set_ylim(len(parts) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("µs a token")
    plots.legend(axes)
