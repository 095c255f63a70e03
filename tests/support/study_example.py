"""A study.json as launch/scaling writes it (docs/study.schema.json), of a machine and times that are made up: what a page of it
must show is then known."""

MEASURED = (
    "n",
    "seconds",
    "tokens_per_s",
    "digest",
    "split",
    "exchange",
    "load",
    "memory",
    "speedup",
    "efficiency",
    "bound",
    "says",
)


def _point(number, ranks, digest):
    """Of a study whose work takes 0.8 s on one rank: a shared part that every rank computes, experts that are divided."""
    experts, shared, exchange = 0.6 / ranks, 0.2, 0.01 * (ranks > 1)
    waiting = 0.02 * (ranks > 1)
    seconds, bound = shared + experts + exchange + waiting, shared + experts + exchange / 2
    parts = {"shared": shared, "experts": experts, "exchange": exchange, "waiting": waiting, "rest": 0.0}
    each = [
        {
            "rank": rank,
            "host": "node1",
            "seconds": seconds,
            "parts": parts,
            "phases": {"attention": shared, "gate, up": experts},
        }
        for rank in range(ranks)
    ]
    layers = [
        {
            "first": layer,
            "last": layer + 1,
            "ranks": [{part: parts[part] / 2 for part in ("shared", "experts", "exchange", "waiting")}] * ranks,
        }
        for layer in (0, 2)
    ]
    even = {"ranks": [480 // ranks] * ranks, "least": 480 // ranks, "mean": 480 / ranks, "most": 480 // ranks}
    link = {"bytes": 1 << 20, "seconds": 1e-4, "busbw_gb_per_s": 10.0}
    return {
        "id": number,
        "series": "ranks",
        "status": "ok",
        "reason": None,
        "at": ranks,
        "curve": "q8k@cpu pp64",
        "memory": None,
        "arm": "q8k@cpu",
        "path": "q8k",
        "row": "avx2",
        "test": "pp64",
        "kind": "pp",
        "tokens": 64,
        "depth": 0,
        "batch": 1,
        "ranks": ranks,
        "ranks_per_host": None,
        "hosts": 1,
        "threads": 1,
        "resources": ranks,
        "work": "q8k pp64",
        "command": f"launch/run -np {ranks} -- bench",
        "n": 3,
        "seconds": {
            "median": seconds,
            "min": 0.99 * seconds,
            "max": 1.02 * seconds,
            "runs": [seconds, 0.99 * seconds, 1.02 * seconds],
            "slowest_rank": [0] * 3,
            "ranks": [[seconds] * 3] * ranks,
        },
        "tokens_per_s": {"median": 64 / seconds, "min": 64 / (1.02 * seconds), "max": 64 / (0.99 * seconds)},
        "digest": digest,
        "split": {
            "seconds": seconds,
            "exchange_is_inside": False,
            "waiting_is_known": True,
            "slowest_rank": 0,
            "parts": parts,
            "ranks": each,
            "layers": layers,
            "exchanges": 4,
        },
        "exchange": (
            None
            if ranks == 1
            else {
                "transport": "mpi",
                "peers": False,
                "sent_bytes": [10**6] * ranks,
                "received_bytes": [10**6] * ranks,
                "seconds": exchange,
                "gb_per_s": 0.2,
                "busbw_gb_per_s": 5.0,
                "link": {"same_size": link, "large": link},
            }
        ),
        "load": {
            "slots": even,
            "expert_bytes": even,
            "busiest_by": "slots",
            "busiest_share": 1 / ranks,
            "token_share": 1 / ranks,
            "head_share": 1.0,
        },
        "speedup": 0.8 / seconds,
        "efficiency": 0.8 / seconds / ranks,
        "bound": {
            "base": 0,
            "seconds": bound,
            "speedup": 0.8 / bound,
            "reached": bound / seconds,
            "memory_floor": None,
            "parts": {"replicated": shared, "tokens": 0.0, "experts": experts, "exchange": exchange / 2, "rest": 0.0},
        },
        "losses": [{"what": "waiting for the slowest rank", "seconds": waiting, "share": waiting / seconds}],
        "says": f"{100 * bound / seconds:.0f} % of the bound",
    }


def study(digests=("0123456789abcdef",) * 3):
    """The tree of study.json: 1, 2 and 4 ranks, 17 that could not run, and two arms beside each other."""
    points = [_point(i, ranks, digests[i]) for i, ranks in enumerate((1, 2, 4))]
    points[0] |= {"bound": None, "losses": [], "says": "the base of its work's bounds"}
    failed = {"id": 3, "at": 17, "ranks": 17, "resources": 17, "status": "failed", "reason": "17 ranks for 16 experts"}
    points.append(points[0] | dict.fromkeys(MEASURED) | {"losses": []} | failed)
    arms = {
        "series": "arms",
        "curve": "pp64",
        "speedup": None,
        "efficiency": None,
        "bound": None,
        "losses": [],
        "says": None,
    }
    for name, work in (("q8k@cpu", "q8k pp64"), ("f32@cpu", "f32 pp64")):
        points.append(points[0] | arms | {"id": len(points), "at": name, "arm": name, "path": name[:3], "work": work})
    agree = len(set(digests)) == 1
    return {
        "study_version": 1,
        "complete": True,
        "name": "tiny",
        "title": "The shipped model",
        "file": "tiny.toml",
        "commands": ["launch/scaling tiny.toml --out DIR"],
        "program": {"version": "moe_run 0.1.0", "sha256": "0" * 64},
        "model": {
            "path": "tiny.gguf",
            "name": "Tiny",
            "fingerprint": "a87bebed83289570",
            "bytes": 24091264,
            "types": "Q4_K 20",
        },
        "machine": {
            "hosts": 1,
            "host": ["node1"],
            "cpu": "a processor",
            "cores": 4,
            "bandwidth_bytes_per_s": 2e10,
            "warnings": [],
        },
        "digests": {
            "agree": agree,
            "digest": digests[0] if agree else None,
            "works": [
                {"work": "q8k pp64", "digest": digests[0] if agree else None, "points": [0, 1, 2, 4]},
                {"work": "f32 pp64", "digest": digests[0], "points": [5]},
            ],
            "known": None,
        },
        "series": [
            {
                "name": "ranks",
                "scaling": "strong",
                "over": "ranks",
                "curves": [{"arm": "q8k@cpu", "test": "pp64", "label": "q8k@cpu pp64", "points": [0, 1, 2, 3], "base": 0}],
            },
            {
                "name": "arms",
                "scaling": "strong",
                "over": "arms",
                "curves": [{"arm": None, "test": "pp64", "label": "pp64", "points": [4, 5], "base": None}],
            },
        ],
        "points": points,
        "extrap": [
            {
                "series": "ranks",
                "curve": "q8k@cpu pp64",
                "parameter": "ranks",
                "file": "extrap-1.txt",
                "values": [1, 2, 3, 4, 6, 8],
                "held_out": 8,
                "status": "fitted",
                "reason": None,
                "model": "0.2 + 0.6 / p",
                "measured": 0.38,
                "predicted": 0.35,
                "miss": -0.079,
            }
        ],
    }
