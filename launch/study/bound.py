"""How much of the possible a point reached, and what took the rest.

The possible follows from the point of the same work with the fewest resources: what each rank repeats stays, what is
divided falls to the share of the busiest rank, and the exchange takes its bytes over the link's measured rate.
docs/scaling.md derives it. Independent of: how points were measured.
"""
HEAD = ("head norm", "head", "digest")
OUTSIDE = ("embed", *HEAD)  # of the layers; every rank embeds all tokens
SHORT = 0.85  # a point below this share of its bound says where its time went
LEAST = 0.01  # of the point's time: smaller losses are not named


def scale_of(point):
    """From the pass with clocks to a timed run."""
    return point["seconds"]["median"] / point["split"]["seconds"]


def speed_of(point):
    """Of one rank's own work: its threads; a device counts as one."""
    return max(1, point["threads"])


def work_in(base):
    """Seconds of a run of `base` by kind of work, as one rank with base's threads would take for all of it."""
    rank = base["split"]["ranks"][base["split"]["slowest_rank"]]
    parts, scale = base["split"]["parts"], scale_of(base)
    timed = lambda names: sum(s for name, s in rank["phases"].items() if name in names)
    slowest_share = share_of(base, base["split"]["slowest_rank"])
    return {"embed": timed(["embed"]) * scale, "head": timed(HEAD) * scale / base["load"]["head_share"],
            "layers": (parts["shared"] - timed(OUTSIDE)) * scale / base["load"]["token_share"], "experts": parts["experts"] * scale / slowest_share, "rest": parts["rest"] * scale}


def share_of(point, rank):
    """Of the experts' work, that of one rank."""
    values = point["load"][point["load"]["busiest_by"]]["ranks"]
    return values[rank] / sum(values)


def exchange_bound(point):
    exchange = point["exchange"]
    if not exchange:
        return 0.0
    large = exchange["link"]["large"]["busbw_gb_per_s"]
    return max(exchange["received_bytes"]) * 1e-9 / large if large else 0.0


def bound_of(point, base):
    """Seconds that a run takes at least, by part."""
    work, load = work_in(base), point["load"]
    speed = speed_of(base) / speed_of(point)
    parts = {"replicated": work["embed"] * speed, "tokens": 0.0,
             "experts": work["experts"] * load["busiest_share"] * speed, "exchange": exchange_bound(point),
             "rest": work["rest"]}
    for name, share in (("layers", load["token_share"]), ("head", load["head_share"])):
        parts["tokens" if share < 1 else "replicated"] += work[name] * share * speed
    seconds = sum(parts.values())
    memory = point["memory"]
    return {"base": base["id"], "seconds": seconds, "speedup": base["seconds"]["median"] / seconds,
            "reached": seconds / point["seconds"]["median"], "parts": parts,
            "memory_floor": memory["seconds"] if memory else None}


def exchange_losses(point, beyond):
    """Of the time in the exchange beyond its bytes at the link's rate: what an all-gather alone of the same size also takes
    (small messages do not reach the rate), and the rest."""
    exchange = point["exchange"]
    alone = exchange["link"]["same_size"]["seconds"] if exchange else None
    if not alone or beyond <= 0:
        return [("exchange beyond the link's rate", beyond)]
    small = min(beyond, max(0.0, alone * point["split"]["exchanges"] - exchange_bound(point)))
    return [("small messages, which do not reach the link's rate", small),
            ("exchange beyond an all-gather alone", beyond - small)]


def losses_of(point, base):
    """[{what, seconds, share}]: the parts of the point's time above its bound. Their seconds add up to all of that."""
    bound, split, scale = point["bound"]["parts"], point["split"], scale_of(point)
    parts = {name: (value or 0.0) * scale for name, value in split["parts"].items()}
    own = work_in(base)["experts"] * share_of(point, split["slowest_rank"]) * speed_of(base) / speed_of(point)
    losses = [("attention, router, head slower than alone", parts["shared"] - bound["replicated"] - bound["tokens"]),
              ("experts slower than alone", parts["experts"] - own), ("between steps", parts["rest"] - bound["rest"])]
    waited = bound["experts"] - own  # as the bound has it: the slowest rank need not be the busiest
    if split["exchange_is_inside"]:
        losses[1] = ("experts, their exchange and the wait in it", parts["experts"] - bound["experts"] - bound["exchange"])
    elif split["waiting_is_known"]:
        losses += [("waiting for the slowest rank beyond its load", parts["waiting"] - waited)]
        losses += exchange_losses(point, parts["exchange"] - bound["exchange"])
    else:
        losses += [("exchange and waiting", parts["exchange"] - bound["exchange"] - waited)]
    seconds = point["seconds"]["median"]
    return [{"what": what, "seconds": s, "share": s / seconds} for what, s in sorted(losses, key=lambda l: -l[1]) if s]


def percent(share):
    return f"{100 * share:.0f} %"


def says(point):
    """One sentence about a point that has a bound."""
    bound, split = point["bound"], point["split"]
    text = f"{percent(bound['reached'])} of its bound"
    if bound["reached"] >= SHORT:
        return text
    named = [f"{loss['what']} {percent(loss['share'])}" for loss in point["losses"] if loss["share"] >= LEAST]
    text += f"; of its time went to: {', '.join(named)}" if named else "; no part stands out"
    slower = split["seconds"] / point["seconds"]["median"]
    if slower > 1.15:
        text += (f". The pass with clocks took {slower:.2f} times as long as a run, so this is how its time divides,"
                 " scaled to that of a run")
    memory = point["memory"]
    if memory and memory["share"] > 0.6:
        text += f". The ranks together read memory at {percent(memory['share'])} of what they can"
    return text
