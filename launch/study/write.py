"""The files of a study and what is printed of it: study.json (docs/study.schema.json), points.csv, the table.

Independent of: how the numbers came to be.
"""
import csv
import json
import os
import pathlib

# CSV: a column, and where its value stands in a point; a number of a list is an index.
COLUMNS = {name: (name,) for name in (
    "id", "series", "curve", "at", "status", "reason", "arm", "row", "test", "kind", "tokens", "depth", "batch", "ranks",
    "ranks_per_host", "hosts", "threads", "resources", "n")} | {
    "median_s": ("seconds", "median"), "min_s": ("seconds", "min"), "max_s": ("seconds", "max"),
    "tokens_per_s": ("tokens_per_s", "median"), "digest": ("digest",), "speedup": ("speedup",),
    "efficiency": ("efficiency",), "bound_s": ("bound", "seconds"), "of_bound": ("bound", "reached"),
    "clocked_s": ("split", "seconds"), "shared_s": ("split", "parts", "shared"), "experts_s": ("split", "parts", "experts"),
    "exchange_s": ("split", "parts", "exchange"), "waiting_s": ("split", "parts", "waiting"),
    "rest_s": ("split", "parts", "rest"), "busbw_gb_per_s": ("exchange", "busbw_gb_per_s"),
    "link_gb_per_s": ("exchange", "link", "large", "busbw_gb_per_s"),
    "slots_least": ("load", "slots", "least"), "slots_mean": ("load", "slots", "mean"),
    "slots_most": ("load", "slots", "most"), "busiest_share": ("load", "busiest_share"), "says": ("says",),
    "runs_s": ("seconds", "runs")}


def at(point, path):
    for key in path:
        if point is None:
            return None
        point = point[key]
    return " ".join(f"{x:.9g}" for x in point) if isinstance(point, list) else point


def replace(path, text):
    """Gives a file its name only when it is whole."""
    part = f"{path}.part"
    with open(part, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


class Lines(list):
    def write(self, text):
        self.append(text)


def csv_text(points):
    lines = Lines()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(COLUMNS)
    for point in points:
        writer.writerow("" if (value := at(point, path)) is None else f"{value:.9g}" if isinstance(value, float) else value
                        for path in COLUMNS.values())
    return "".join(lines)


def files(folder, study):
    replace(os.path.join(folder, "points.csv"), csv_text(study["points"]))
    replace(os.path.join(folder, "study.json"), json.dumps(study, indent=1, allow_nan=False) + "\n")


def clear(folder):
    """What an earlier end wrote is no longer true."""
    for path in [*pathlib.Path(folder).glob("extrap-*.txt"), *pathlib.Path(folder).glob("study.json"),
                 *pathlib.Path(folder).glob("points.csv")]:
        path.unlink()


# ---- the table ----

def number(value, form):
    return "-" if value is None else format(value, form)


def share(value):
    return "-" if value is None else f"{100 * value:.0f} %"


def table(study):
    """Lines for a terminal: each curve's points, and what is said of them."""
    for series in study["series"]:
        yield f"\n{series['name']}: {series['scaling']} scaling over {series['over']}"
        for curve in series["curves"]:
            yield f"\n  {curve['label']}"
            yield (f"  {series['over']:>10} {'median s':>10} {'min':>10} {'max':>10} {'tok/s':>10} {'speed-up':>9} "
                   f"{'efficiency':>10} {'of bound':>9}  digest")
            for point in (study["points"][i] for i in curve["points"]):
                yield from table_rows(point)
    for entry in study["extrap"]:
        yield f"\nExtra-P, {entry['series']}, {entry['curve']}: {entry['file']}"
        if entry["status"] == "fitted":
            yield (f"  {entry['model']}; at {entry['held_out']}: {entry['predicted']:.4g} s, measured {entry['measured']:.4g} s,"
                   f" off by {100 * entry['miss']:+.1f} %")
        else:
            yield f"  {entry['status']}: {entry['reason']}"
    yield from table_digests(study["digests"])


def table_rows(point):
    if point["status"] == "failed":
        yield f"  {point['at']!s:>10} failed: {point['reason']}"
        return
    s = point["seconds"]
    reached = point["bound"]["reached"] if point["bound"] else None
    yield (f"  {point['at']!s:>10} {s['median']:>10.4g} {s['min']:>10.4g} {s['max']:>10.4g} "
           f"{point['tokens_per_s']['median']:>10.2f} {number(point['speedup'], '.2f'):>9} {share(point['efficiency']):>10} "
           f"{share(reached):>9}  {point['digest']}")
    if reached is not None and reached < 0.85:
        yield f"  {'':>10} {point['says']}"


def table_digests(digests):
    works = len(digests["works"])
    if digests["agree"]:
        yield f"\ndigests: one for each of {works} works; over all {digests['digest'] or '-'}"
    for work in digests["works"]:
        if work["digest"] is None:
            yield f"\ndigests of {work['work']} DIFFER between points {', '.join(map(str, work['points']))}"
    for known in digests["known"] or []:
        yield f"known answers: {known}"
