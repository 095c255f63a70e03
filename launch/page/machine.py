"""Where a run ran: speed, ranks and what they hold, environment, the commands to repeat it, and what its arms wrote."""

import numpy

from page import plots
from page.document import (
    Section,
    block,
    byte_size,
    code,
    count,
    definitions,
    details,
    figure,
    html,
    join,
    note,
    paragraph,
    rounded,
    table,
)


def sections(found):
    report = found.report
    return [
        Section("speed", "Speed", *_speed(report)),
        Section("ranks", "Ranks", *_ranks(report)),
        Section("texts", "What the arms wrote", *_texts(report)),
        Section("environment", "Environment", *_environment(report)),
        Section("repeat", "To repeat it", *_repeat(report)),
    ]


def _speed(report):
    rows = []
    for arm in report["arms"]:
        prefill = arm["prefill_tokens_per_s"]
        seconds = arm["tokens"] / prefill if prefill else None
        decoded = sum(max(len(one["tokens"]) - 1, 0) for one in arm["generated"])
        if seconds is not None and arm["decode_tokens_per_s"]:
            seconds += decoded / arm["decode_tokens_per_s"]
        exchange = arm["exchange_seconds"]
        rows.append(
            [
                arm["name"],
                rounded(prefill, 4),
                rounded(arm["decode_tokens_per_s"], 4),
                rounded(seconds),
                rounded(exchange) if exchange else "–",
                arm["transport"],
                code(arm["digest"]),
            ]
        )
    return [
        table(
            ["arm", "prefill tok/s", "decode tok/s", "seconds of passes", "in exchange", "transport", "digest"],
            rows,
            (1, 2, 3, 4),
            "Rates of this run, in which all arms run in step and are measured; each beside the digest of the same run",
        ),
        note(
            "For rates to quote there is moe_run bench. Seconds of passes follow from the rates; those in the exchange are"
            " the reporting rank's, waiting included (docs/metrics.md)."
        ),
    ]


def _ranks(report):
    ranks = report["ranks"]
    rows = []
    for rank in ranks:
        gpu = f"{rank['gpu']['index']}: {rank['gpu']['name']} ({rank['gpu']['pci']})" if rank["gpu"] else ""
        rows.append(
            [
                rank["rank"],
                rank["host"],
                rank["cores"],
                rank["threads"],
                gpu,
                rank["arm"] or rank["role"],
                f"{rank['experts']:,}",
                byte_size(rank["experts_bytes"]),
                byte_size(rank["shared_bytes"]),
                byte_size(rank["state_bytes"]),
            ]
        )
    head = [
        "rank",
        "host",
        "cores",
        "threads",
        "GPU",
        "arm" if any(rank["arm"] for rank in ranks) else "role",
        "experts",
        "expert weights",
        "shared weights",
        "state",
    ]
    kept = [i for i in range(len(head)) if head[i] != "GPU" or any(rank["gpu"] for rank in ranks)]
    listed = table(
        [head[i] for i in kept],
        [[row[i] for i in kept] for row in rows],
        [kept.index(i) for i in (0, 3, 6, 7, 8, 9) if i in kept],
        f"{count(len(ranks), 'rank')} on {count(report['machine']['hosts'], 'host')}; placement of experts:"
        f" {report['run']['placement']}",
    )
    shown = ranks[:64]
    height = 84 + 22 * len(shown)
    drawing = figure(
        [plots.svg(lambda f: _draw_memory(f, shown), (width, height), "Memory of each rank") for width in (400, 860)],
        "Memory",
        "What each rank holds." + (f" The first {len(shown)} of {len(ranks)}." if len(shown) < len(ranks) else ""),
        wide=True,
    )
    return [listed if len(ranks) <= 32 else details(f"All {len(ranks)} ranks", listed), drawing]


def _draw_memory(figure_, ranks):
    axes = figure_.add_subplot()
    before = numpy.zeros(len(ranks))
    unit, name = (
        (2**30, "GiB") if max(rank["experts_bytes"] + rank["shared_bytes"] for rank in ranks) >= 2**30 else (2**20, "MiB")
    )
    for style, (key, label) in enumerate(
        (("experts_bytes", "experts"), ("shared_bytes", "shared"), ("state_bytes", "caches and work space"))
    ):
        widths = numpy.array([rank[key] / unit for rank in ranks])
        plots.bars(axes, before, widths, range(len(ranks)), style, label)
        before = before + widths
    hosts = len({rank["host"] for rank in ranks}) > 1
    axes.set_yticks(
        range(len(ranks)), [f"{rank['rank']} {rank['host']}" if hosts else f"rank {rank['rank']}" for rank in ranks]
    )
    axes.set_ylim(len(ranks) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(name)
    plots.legend(axes, ncol=3)


def _texts(report):
    """A text that several arms wrote stands once."""
    written = {}
    for arm in report["arms"]:
        for one in arm["generated"]:
            said = one["text"] if one["text"] is not None else " ".join(str(token) for token in one["tokens"])
            written.setdefault((one["sequence"], said, one["stopped_by"]), []).append((arm["name"], one))
    parts = []
    for (sequence, said, stopped), arms in sorted(written.items(), key=lambda item: item[0][0]):
        names = ", ".join(name for name, _ in arms)
        parts.append(
            paragraph(
                join(
                    [
                        html("<b>"),
                        names,
                        html("</b>"),
                        f": {count(len(arms[0][1]['tokens']), 'token')} after sequence {sequence}, stopped by {stopped}",
                    ]
                )
            )
        )
        parts.append(html(str(block(said, f"written by {names}")).replace("<pre", '<pre class="said"', 1)))
    return parts


def _environment(report):
    model, machine, build, run = report["model"], report["machine"], report["build"], report["run"]
    gpus = sorted({rank["gpu"]["name"] for rank in report["ranks"] if rank["gpu"]})
    return [
        definitions(
            [
                ("model", f"{model['name']} ({model['architecture']})"),
                ("file", join([f"{model['path']}, {byte_size(model['bytes'])}, fingerprint ", code(model["fingerprint"])])),
                (
                    "shape",
                    (
                        f"{model['n_layers']} layers, hidden {model['hidden']}, heads"
                        f" {model['n_heads']}/{model['n_kv_heads']} of {model['head_dim']}, {model['n_experts']} experts of"
                        f" {model['expert_width']}, top-{model['top_k']}, vocabulary {model['vocabulary']:,}"
                    ),
                ),
                ("types", model["types"]),
                (
                    "reference",
                    (
                        join([f"{run['reference']['path']}, fingerprint ", code(run["reference"]["fingerprint"])])
                        if run["reference"]
                        else ""
                    ),
                ),
                (
                    "input",
                    join(
                        [
                            f"{report['arms'][0]['tokens']:,} positions in {count(run['sequences'], 'sequence')}, hash ",
                            code(run["input"]),
                        ]
                    ),
                ),
                ("imposed routes", code(run["routes"]) if run["routes"] else ""),
                ("cut", f"chunk {run['chunk']}, context {run['context']}, kv {run['kv']}"),
                (
                    "transport",
                    run["transport"]
                    + (f": {run['transport_reason']}" if run["transport_reason"] else "")
                    + (f"; peers: {run['peers']}" if run["peers"] else ""),
                ),
                (
                    "attention and head of small batches",
                    ", ".join(dict.fromkeys(arm.get("attention", "") for arm in report["arms"])),
                ),
                (
                    "load of the busiest rank, as counted",
                    f"{rounded(run['counted_load'], 3)} times the mean" if run.get("counted_load") else "",
                ),
                ("processor", f"{machine['cpu']}, {count(machine['cores'], 'core')} on {count(machine['hosts'], 'host')}"),
                ("GPU", ", ".join(gpus)),
                ("system", machine["os"]),
                ("program", f"moe_run {build['version']}, {build['compiler']}, {build['flags']}"),
                ("MPI", build["mpi"]),
                ("CPU row", build["row"]),
            ]
        ),
        details("Digests of every layer", _digests(report)),
    ]


def _digests(report):
    arms = [arm for arm in report["arms"] if arm["layer_digests"]]
    if not arms:
        return html("")
    return table(
        ["layer"] + [arm["name"] for arm in arms],
        [[layer] + [code(arm["layer_digests"][layer]) for arm in arms] for layer in range(len(arms[0]["layer_digests"]))],
        (0,),
        "Of the residual stream after each layer, free run",
    )


def _repeat(report):
    ranks = len(report["ranks"])
    command = f"launch/run -np {ranks} -- {report['command']} --config run.toml --out DIR\nlaunch/report DIR\n"
    return [
        paragraph(
            "With the configuration below as run.toml. Digests must come out as above on any number of ranks, threads and"
            " backends."
        ),
        block(command, "commands"),
        details("run.toml", block(report["run"]["config"], "run.toml")),
    ]
