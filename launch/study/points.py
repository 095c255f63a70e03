"""A row of bench as a point of a study: its samples, the split of its time, its exchange and its load.

Independent of: other points. Every number is defined in docs/scaling.md.
"""
import statistics

PARTS = ("shared", "experts", "exchange", "waiting", "rest")
MEASURED = ("row", "n", "seconds", "tokens_per_s", "digest", "threads", "hosts", "resources", "split", "exchange", "load",
            "memory", "speedup", "efficiency", "bound", "losses", "says")


def spread(values):
    return {"least": min(values), "mean": statistics.fmean(values), "most": max(values)}


def seconds_of(row):
    """Of a run: those of its slowest rank, which every other waited for."""
    ranks = row["rank_seconds"]
    runs = [max(run) for run in zip(*ranks)]
    return {"median": statistics.median(runs), "min": min(runs), "max": max(runs), "runs": runs,
            "slowest_rank": [run.index(max(run)) for run in zip(*ranks)], "ranks": ranks}


def parts_of(rank, known):
    """Of a rank's pass with clocks. What is outside of layers (embedding, head) is in `shared`."""
    sums = {part: sum(group[part] or 0 for group in rank["groups"]) for part in PARTS[:-1]}
    timed = sum(rank["phases"].values())
    sums["shared"] = timed - sums["experts"] - sums["exchange"] - sums["waiting"]
    sums["rest"] = rank["seconds"] - timed
    if not known:
        sums["waiting"] = None
    return {part: sums[part] for part in PARTS}


def split_of(row):
    of = row["ranks"]["of"]
    known = row["ranks"]["transfer_seconds"] is not None
    ranks = [{"rank": r["rank"], "host": r["host"], "seconds": r["seconds"], "parts": parts_of(r, known),
              "phases": r["phases"]} for r in of]
    slowest = max(range(len(ranks)), key=lambda i: ranks[i]["seconds"])
    layers = [{"first": group["first"], "last": group["last"],
               "ranks": [{part: r["groups"][g][part] for part in PARTS[:-1]} for r in of]}
              for g, group in enumerate(of[0]["groups"])]
    return {"seconds": ranks[slowest]["seconds"], "slowest_rank": slowest, "parts": ranks[slowest]["parts"],
            "exchanges": row["phases"]["batches"] * row["phases"]["layers"],
            "waiting_is_known": known, "exchange_is_inside": row["ranks"]["exchange_is_inside"], "ranks": ranks,
            "layers": layers}


def rate(nbytes, seconds):
    return nbytes / seconds * 1e-9 if seconds and nbytes else None


def link_of(link, n):
    """An all-gather of link["bytes"] a rank: each receives them from n - 1 others."""
    return {**link, "busbw_gb_per_s": rate(link["bytes"] * (n - 1), link["seconds"])}


def exchange_of(row):
    ranks = row["ranks"]
    sent, received = ([r[f"{way}_bytes"] for r in ranks["of"]] for way in ("sent", "received"))
    n = len(sent)
    if n == 1:
        return None
    seconds = ranks["transfer_seconds"]
    return {"transport": ranks["transport"], "peers": ranks["peers"], "sent_bytes": sent, "received_bytes": received,
            "seconds": seconds, "gb_per_s": rate(sum(sent), seconds), "busbw_gb_per_s": rate(max(received), seconds),
            "link": {"same_size": link_of(ranks["link_same_size"], n), "large": link_of(ranks["link_largest"], n)}}


def load_of(row):
    """The experts of each rank. busiest_share: of each layer of each batch the most that a rank had, summed, over all."""
    ranks = row["ranks"]
    of = {key: [r[key] for r in ranks["of"]] for key in ("slots", "expert_bytes")}
    key = "slots" if row["kind"] == "pp" else "expert_bytes"
    return {**{name: {"ranks": values, **spread(values)} for name, values in of.items()}, "busiest_by": key,
            "busiest_share": ranks[f"busiest_{key}"] / sum(of[key]), "token_share": ranks["token_share"],
            "head_share": ranks["head_share"]}


def memory_of(row, bench):
    """What all ranks read for a run, at the rate at which they read memory together; decode on CPUs only."""
    if row["bytes_per_token"] is None:
        return None
    nbytes = row["bytes_per_token"] * row["tokens"] * row["batch"]
    return {"bytes": nbytes, "gb_per_s": bench["bandwidth_bytes_per_s"] * 1e-9, "share": row["share_of_bandwidth"],
            "seconds": nbytes / bench["bandwidth_bytes_per_s"]}


def measured(row, bench):
    seconds = seconds_of(row)
    tokens = row["tokens"] * row["batch"]
    per_s = {"median": tokens / seconds["median"], "min": tokens / seconds["max"], "max": tokens / seconds["min"]}
    threads = row["threads"]  # 0: a device computes
    return {"row": row["row"], "n": row["n"], "seconds": seconds, "tokens_per_s": per_s, "digest": row["digest"],
            "threads": threads, "hosts": bench["hosts"], "resources": bench["ranks"] * max(1, threads),
            "split": split_of(row), "exchange": exchange_of(row), "load": load_of(row), "memory": memory_of(row, bench),
            "speedup": None, "efficiency": None, "bound": None, "losses": [], "says": None}


def work_of(planned, bench):
    """What a digest depends on: points of the same work must have the same one. Its name, and a key."""
    path = planned.job.arm.split("@")[0]
    sets = planned.job.sets
    if path == "ranks":  # a mixed job's digest depends on which expert is on which arm
        changes = {k: v for k, v in sets.items() if k.startswith(("ranks.", "experts."))} | {"ranks": planned.job.ranks}
    else:
        changes = {}
    changes |= {k: sets[k] for k in ("run.seed", "run.kv", "model.path") if k in sets}
    fingerprint = bench["fingerprint"] if bench else None
    return f"{path} {planned.test.name()}", (path, planned.test.name(), fingerprint, repr(sorted(changes.items())))


def point(number, planned, result, row):
    """The point as study.json has it; without a row it has failed."""
    job, test = planned.job, planned.test
    bench = result["bench"] if result else None
    name, key = work_of(planned, bench)
    if row is None:
        reason = (result or {}).get("reason") or "it was not measured"
        found = {key: [] if key == "losses" else None for key in MEASURED} | {"threads": job.threads or None}
    else:
        reason, found = None, measured(row, bench)
    head = {"id": number, "series": planned.series, "curve": planned.label, "at": planned.at,
            "status": "failed" if row is None else "ok", "reason": reason, "work": name, "arm": job.arm,
            "path": job.arm.split("@")[0], "test": test.name(), "kind": test.kind, "tokens": test.tokens,
            "depth": test.depth, "batch": test.batch, "ranks": job.ranks, "ranks_per_host": job.ranks_per_host or None,
            "command": result["command"] if result else None}
    return head | found, key
