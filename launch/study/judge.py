"""What points say together: the digests of the same work, speed-up and efficiency along curves, bounds.

Independent of: how points were measured and how they are written.
"""
from . import bound


def digests(points, keys, results):
    """Points of the same work must have one digest. Known answers are bench's to check: it says where one differs."""
    works = {}
    for point, key in zip(points, keys):
        if point["status"] == "ok":
            works.setdefault(key, []).append(point)
    out, total = [], 0
    for group in works.values():
        found = {point["digest"] for point in group}
        digest = found.pop() if len(found) == 1 else None
        total += int(digest or "0", 16)
        out.append({"work": group[0]["work"], "digest": digest, "points": [point["id"] for point in group]})
    agree = all(work["digest"] for work in out)
    known = sorted({result["known"] for result in results if result and result.get("known")})
    return {"agree": agree, "digest": f"{total % 2**64:016x}" if agree and out else None, "works": out,
            "known": known or None}


def curves_of(series, points):
    """Points of a series that differ only in the axis that it is over, in its order."""
    over = series.get("over", "ranks")
    found = {}
    for point in points:
        if point["series"] == series["name"]:
            found.setdefault((point["curve"], point["arm"] if over != "arms" else None), []).append(point)
    out = []
    for (label, arm), group in found.items():
        if over != "arms":
            group.sort(key=lambda point: point["at"])
        tests = {point["test"] for point in group}
        good = [point for point in group if point["status"] == "ok"]
        out.append({"label": label, "arm": arm, "test": tests.pop() if len(tests) == 1 else None,
                    "points": [point["id"] for point in group],
                    "base": min(good, key=lambda point: (point["resources"], point["ranks"]))["id"] if good else None})
    return {"name": series["name"], "scaling": series.get("scaling", "strong"), "over": over, "curves": out}


def along(series, points):
    """Speed-up and efficiency against the curve's base: rates, so that weak scaling's larger work counts."""
    if series["over"] not in ("ranks", "ranks_per_host", "threads"):
        return
    for curve in series["curves"]:
        if curve["base"] is None:
            continue
        base = points[curve["base"]]
        for point in (points[i] for i in curve["points"]):
            if point["status"] != "ok":
                continue
            point["speedup"] = point["tokens_per_s"]["median"] / base["tokens_per_s"]["median"]
            point["efficiency"] = point["speedup"] * base["resources"] / point["resources"]


def bounds(points, keys):
    """Each point's bound follows from the point of the same work and arm with the fewest ranks and threads."""
    bases = {}
    for point, key in zip(points, keys):
        if point["status"] != "ok":
            continue
        place = (key, point["arm"])
        if place not in bases or (point["ranks"], point["resources"]) < (bases[place]["ranks"], bases[place]["resources"]):
            bases[place] = point
    for point, key in zip(points, keys):
        if point["status"] != "ok":
            continue
        base = bases[(key, point["arm"])]
        if (base["ranks"], base["resources"]) == (point["ranks"], point["resources"]):
            point["says"] = "the base of its work's bounds"
            continue
        point["bound"] = bound.bound_of(point, base)
        point["losses"] = bound.losses_of(point, base)
        point["says"] = bound.says(point)
