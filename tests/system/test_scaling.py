#!/usr/bin/env python3
"""launch/scaling: a study that is killed goes on and ends with the same table; a point that cannot run stands in it with its
reason; digests that differ end it with exit code 3; study.json fits its schema and its parts add up; Extra-P's files."""
import csv
import html
import json
import os
import signal
import stat
import subprocess
import sys
import time
import unittest

import check_schema
import moe

moe.random_seed()
LAUNCH = os.path.join(moe.SOURCE, "launch")
sys.path.insert(0, LAUNCH)
sys.dont_write_bytecode = True
from study import bound, extrap, plan  # noqa: E402

PLANTED = os.environ.get("MOE_RUN_PLANTED", os.path.join(os.path.dirname(moe.PROGRAM), "moe_run_planted"))
LAYERS, HIDDEN, EXPERTS, TOP_K = 3, 512, 4, 2
with open(os.path.join(moe.SOURCE, "docs", "study.schema.json"), encoding="utf-8") as file:
    SCHEMA = json.load(file)

HEAD = """name = "test"
[set]
"model.path" = {model}
"bench.repeats" = 2
"run.rows" = "portable"
"attention.placement" = "replicated"
"""
RANKS = """[[series]]
name = "ranks"
ranks = [1, 2, 5]
threads = [1]
arms = ["q8k@cpu"]
prompts = [8]
generate = [4]
[[series]]
name = "weak"
scaling = "weak"
grows = "batches"
ranks = [1, 2]
threads = [1]
arms = ["q8k@cpu"]
prompts = [8]
generate = [4]
"""


def model():
    return moe.model(7, layers=LAYERS, hidden=HIDDEN, experts=EXPERTS, top_k=TOP_K)


def study_file(text, path=None):
    path = path or moe.fresh(".toml")
    with open(path, "w", encoding="utf-8") as opened:
        opened.write(text)
    return path


def command(study, out, program=None, *more):
    return [os.path.join(LAUNCH, "scaling"), study, "--out", out, "--program", program or moe.PROGRAM, "--no-page", *more]


def scaling(*args):
    return moe.finish(moe.start(command(*args)))


def read(folder):
    with open(os.path.join(folder, "study.json"), encoding="utf-8") as opened:
        study = json.load(opened)
    found = list(check_schema.faults(study, SCHEMA, SCHEMA))
    assert not found, found
    return study


def kept(folder):
    """{name: (bytes, time of writing)} of the runs that were kept."""
    where = os.path.join(folder, "points")
    names = [name for name in os.listdir(where) if name.endswith(".json")] if os.path.isdir(where) else []
    out = {}
    for name in names:
        with open(os.path.join(where, name), "rb") as opened:
            out[name] = (opened.read(), os.stat(os.path.join(where, name)).st_mtime_ns)
    return out


def runs_still(pid):
    """Not where nobody has yet asked how it ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as opened:
            return opened.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def start_and_end(line, folder, runs):
    """Tells a study to end once so many runs are kept and another is under way; all that it has started ends with it."""
    process = moe.start(line)
    end = time.monotonic() + moe.LIMIT
    while len(kept(folder)) < runs and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.2)
    started = moe.children(process.pid)
    process.send_signal(signal.SIGTERM)
    outcome, end = moe.finish(process), time.monotonic() + moe.LIMIT
    while any(map(runs_still, started)) and time.monotonic() < end:
        time.sleep(0.1)
    return outcome, list(filter(runs_still, started))


def start_and_kill(line, folder, runs):
    """Kills a study and all that it has started once so many runs are kept."""
    process = moe.start(line)
    end = time.monotonic() + moe.LIMIT
    while len(kept(folder)) < runs and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


class Study(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = moe.fresh()
        cls.toml = study_file(HEAD.format(model=json.dumps(model())) + RANKS)
        cls.ended, cls.left = start_and_end(command(cls.toml, cls.folder), cls.folder, 1)
        start_and_kill(command(cls.toml, cls.folder), cls.folder, 2)
        cls.at_kill = kept(cls.folder)
        cls.written_at_kill = os.path.exists(os.path.join(cls.folder, "study.json"))
        cls.outcome = scaling(cls.toml, cls.folder)
        cls.runs = kept(cls.folder)
        assert cls.outcome.code == 0, cls.outcome.err
        cls.study = read(cls.folder)
        cls.points = cls.study["points"]

    def test_a_killed_study_goes_on(self):
        self.assertGreaterEqual(len(self.at_kill), 2)
        self.assertLess(len(self.at_kill), len(self.runs))
        self.assertFalse(self.written_at_kill)
        for name, run in self.at_kill.items():
            self.assertEqual(self.runs[name], run)
        again = scaling(self.toml, self.folder)
        self.assertEqual((again.code, again.out), (0, self.outcome.out))
        self.assertEqual(kept(self.folder), self.runs)
        self.assertEqual(read(self.folder), self.study)

    def test_a_study_that_is_told_to_end_leaves_nothing_running(self):
        self.assertEqual(self.ended.code, 128 + signal.SIGTERM, self.ended.err)
        self.assertIn("the same command goes on", self.ended.err)
        self.assertEqual(self.left, [])

    def test_every_point_is_there(self):
        self.assertTrue(self.study["complete"])
        self.assertEqual([(p["series"], p["ranks"], p["test"]) for p in self.points],
                         [("ranks", n, test) for n in (1, 2, 5) for test in ("pp8", "tg4")] +
                         [("weak", n, test + x) for n, x in ((1, ""), (2, " x2")) for test in ("pp8", "tg4")])
        with open(os.path.join(self.folder, "points.csv"), encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened))
        self.assertEqual([(row["test"], row["digest"]) for row in rows], [(p["test"], p["digest"] or "") for p in self.points])

    def test_its_page(self):
        """launch/report takes what launch/scaling writes (test_page.py has the rest)."""
        page = moe.fresh(".html")
        made = subprocess.run([os.path.join(LAUNCH, "report"), self.folder, "--out", page], capture_output=True, text=True)
        if made.returncode == 77:
            self.skipTest(made.stderr.strip())
        self.assertEqual(made.returncode, 0, made.stderr)
        with open(page, encoding="utf-8") as opened:
            text = opened.read()
        for point in self.points:
            self.assertIn(html.escape(point["digest"] or point["reason"]), text)

    def test_a_point_that_cannot_run_has_its_reason(self):
        for point in self.points:
            self.assertEqual(point["status"], "failed" if point["ranks"] > EXPERTS else "ok")
            if point["status"] == "failed":
                self.assertRegex(point["reason"], "expert")
                self.assertIn(point["reason"], self.outcome.out)
                self.assertIsNone(point["seconds"])

    def test_one_digest_for_the_same_work(self):
        works = {work["work"]: work for work in self.study["digests"]["works"]}
        self.assertTrue(self.study["digests"]["agree"])
        self.assertEqual(set(works), {"q8k pp8", "q8k tg4", "q8k pp8 x2", "q8k tg4 x2"})
        for name in ("q8k pp8", "q8k tg4"):
            self.assertEqual([self.points[i]["ranks"] for i in works[name]["points"]], [1, 2, 1])
        self.assertEqual(self.study["digests"]["digest"], moe.digest_sum([work["digest"] for work in works.values()]))

    def good(self):
        return [point for point in self.points if point["status"] == "ok"]

    def test_the_slowest_rank_counts(self):
        for point in self.good():
            seconds = point["seconds"]
            self.assertEqual(len(seconds["ranks"]), point["ranks"])
            self.assertEqual(seconds["runs"], [max(run) for run in zip(*seconds["ranks"])])
            self.assertAlmostEqual(seconds["median"], sum(seconds["runs"]) / 2)
            self.assertAlmostEqual(point["tokens_per_s"]["median"] * seconds["median"], point["tokens"] * point["batch"])

    def test_a_rank_s_time_is_all_of_its_parts(self):
        for point in self.good():
            for rank in point["split"]["ranks"]:
                self.assertAlmostEqual(sum(rank["parts"].values()), rank["seconds"], delta=1e-6)
            groups = point["split"]["layers"]
            self.assertEqual([layer for g in groups for layer in range(g["first"], g["last"] + 1)], list(range(LAYERS)))
            for key in ("experts", "exchange", "waiting"):
                for i, rank in enumerate(point["split"]["ranks"]):
                    self.assertAlmostEqual(sum(group["ranks"][i][key] for group in groups), rank["parts"][key], delta=1e-6)
            self.assertGreaterEqual(min(rank["parts"]["waiting"] for rank in point["split"]["ranks"]), 0)
            self.assertEqual(len({rank["parts"]["exchange"] for rank in point["split"]["ranks"]}), 1)

    def test_load_and_bytes_are_those_of_the_routing(self):
        for point in self.good():
            load, tokens = point["load"], point["tokens"] * point["batch"]
            slots = load["slots"]["ranks"]
            self.assertEqual(sum(slots), tokens * TOP_K * LAYERS)
            busiest = load[load["busiest_by"]]["ranks"]
            self.assertLessEqual(max(busiest) / sum(busiest), load["busiest_share"] + 1e-9)
            self.assertEqual((load["token_share"], load["head_share"]), (1, 1))
            if point["ranks"] == 1:
                self.assertIsNone(point["exchange"])
                continue
            sent = [n * HIDDEN * 4 * (point["ranks"] - 1) for n in slots]
            self.assertEqual(point["exchange"]["sent_bytes"], sent)
            self.assertEqual(point["exchange"]["received_bytes"], sent[::-1])
            rate = max(sent) / point["exchange"]["seconds"] * 1e-9
            self.assertAlmostEqual(point["exchange"]["busbw_gb_per_s"] / rate, 1)
            self.assertGreater(point["exchange"]["link"]["large"]["busbw_gb_per_s"], 0)

    def test_what_is_above_the_bound_is_named(self):
        for point in self.good():
            if point["bound"] is None:
                self.assertTrue(point["ranks"] == 1 or point["batch"] == 2)
                continue
            parts, seconds = point["bound"]["parts"], point["seconds"]["median"]
            base = self.points[point["bound"]["base"]]
            self.assertEqual((base["ranks"], base["work"]), (1, point["work"]))
            self.assertAlmostEqual(point["bound"]["seconds"], sum(parts.values()))
            self.assertAlmostEqual(sum(loss["seconds"] for loss in point["losses"]), seconds - sum(parts.values()), delta=1e-6)
            experts = base["split"]["parts"]["experts"] * base["seconds"]["median"] / base["split"]["seconds"]
            self.assertAlmostEqual(parts["experts"], experts * point["load"]["busiest_share"])
            exchange = max(point["exchange"]["received_bytes"]) * 1e-9 / point["exchange"]["link"]["large"]["busbw_gb_per_s"]
            self.assertAlmostEqual(parts["exchange"], exchange)
            self.assertAlmostEqual(point["speedup"], base["seconds"]["median"] / seconds)
            self.assertAlmostEqual(point["efficiency"], point["speedup"] / 2)
            if point["bound"]["reached"] < bound.SHORT:
                self.assertIn(point["losses"][0]["what"], point["says"])


class Failed(unittest.TestCase):
    def test_a_study_of_which_no_point_can_run_has_its_page(self):
        out = moe.fresh()
        scaling(study_file('name = "x"\nset = {"model.path" = "/nowhere.gguf"}\n[[series]]\nname = "a"\narms = ["f32@cpu"]\n'
                           'prompts = [4]\n'), out)
        study = read(out)
        self.assertEqual([point["status"] == "ok" for point in study["points"]], [False])
        self.assertIsNone(study["machine"]["cores"])
        made = subprocess.run([os.path.join(LAUNCH, "report"), out], capture_output=True, text=True)
        if made.returncode == 77:
            self.skipTest(made.stderr.strip())
        with open(os.path.join(out, "report.html"), encoding="utf-8") as file:
            self.assertIn("No point of this study could be measured", file.read(), made.stderr)


@unittest.skipUnless(os.access(PLANTED, os.X_OK), "moe_run_planted is not built")
class Planted(unittest.TestCase):
    def test_digests_that_differ_fail_the_study(self):
        series = '[[series]]\nname = "{}"\nthreads = [1]\narms = ["q8k@cpu"]\ngenerate = [2]\nset = {{"run.rows" = "{}"}}\n'
        text = HEAD.format(model=json.dumps(model())) + series.format("honest", "portable") + series.format("planted", "planted_q8k_truncates")
        folder = moe.fresh()
        outcome = scaling(study_file(text), folder, PLANTED)
        self.assertEqual(outcome.code, 3, outcome.err)
        study = read(folder)
        self.assertEqual([point["status"] for point in study["points"]], ["ok", "ok"])
        self.assertEqual((study["digests"]["agree"], study["digests"]["digest"]), (False, None))
        self.assertIn("DIFFER between points 0, 1", outcome.out)


class Plans(unittest.TestCase):
    def test_what_cannot_be_is_refused(self):
        series = '[[series]]\nname = "a"\narms = ["f32@cpu"]\n'
        for text, words in ((series, "expected arms, and prompts or generate"), (series + "prompts = [4]\nsteps = 3\n", "unknown key steps"),
                            (series + "prompts = [4, 4]\n", "list of different integers"), (series + "prompts = [0]\n", "from 1"),
                            (series + 'prompts = [4]\nscaling = "weak"\n', "weak scaling"),
                            (series + 'prompts = [4]\nscaling = "weak"\ngrows = "prompts"\nover = "threads"\n', "0 is none"),
                            (series + 'prompts = [4]\nscaling = "weak"\ngrows = "prompts"\nranks = []\n', "ranks: expected at least one"),
                            (series + 'prompts = [4]\nset = {"bench.batch" = [2]}\n', "the study's own"), ("", r"\[\[series\]\]"), ("a = ", "toml")):
            with self.assertRaisesRegex(plan.Refusal, words):
                plan.read(study_file('name = "x"\n' + text))
        outcome = scaling(study_file('name = "x"\n'), moe.fresh())
        self.assertEqual(outcome.code, 2)
        self.assertRegex(outcome.err, r"^launch/scaling: .*expected a name and at least one \[\[series\]\]")

    def test_the_shipped_studies(self):
        folder = os.path.join(moe.SOURCE, "configs", "studies")
        for name in sorted(os.listdir(folder)):
            points = plan.points_of(plan.read(os.path.join(folder, name)))
            self.assertTrue(points)
            self.assertEqual(len({(p.series, p.job.id(), p.test.name()) for p in points}), len(points))

    def test_jobs_that_differ_in_lengths_share_a_process(self):
        series = '[[series]]\nname = "{}"\narms = ["f32@cpu"]\nprompts = {}\nbatches = {}\n'
        points = plan.points_of(plan.read(study_file(
            'name = "x"\n' + series.format("a", "[8, 4]", "[1]") + series.format("b", "[4, 2]", "[1]") + series.format("c", "[4]", "[2]"))))
        self.assertEqual([(p.series, p.test.tokens, p.test.batch) for p in points],
                         [("a", 8, 1), ("a", 4, 1), ("b", 4, 1), ("b", 2, 1), ("c", 4, 2)])
        self.assertEqual([test.name() for test in points[0].job.tests], ["pp8", "pp4", "pp2"])
        self.assertEqual(len({p.job.id() for p in points}), 2)

    def test_weak_scaling_grows_the_work(self):
        text = 'name = "x"\n[[series]]\nname = "a"\nscaling = "weak"\ngrows = "prompts"\nranks = [2, 4, 6]\narms = ["f32@cpu"]\nprompts = [10]\n'
        self.assertEqual([(p.at, p.test.tokens) for p in plan.points_of(plan.read(study_file(text)))], [(2, 10), (4, 20), (6, 30)])


class ExtraP(unittest.TestCase):
    """With a program in place of Extra-P that prints a model as it does."""

    def points(self):
        return [{"at": n, "status": "ok", "seconds": {"median": 1 / n, "runs": [1 / n, 2 / n, 0.5 / n]}} for n in (1, 2, 3, 4, 6, 8)]

    def models(self, venv, points):
        curve = {"label": "a", "points": list(range(len(points)))}
        folder = moe.fresh()
        os.mkdir(folder)
        found = extrap.models(folder, [{"name": "s", "scaling": "strong", "over": "ranks", "curves": [curve]}], points, venv)
        return folder, found

    def test_the_largest_is_foretold(self):
        venv = moe.fresh()
        os.makedirs(os.path.join(venv, "bin"))
        program = os.path.join(venv, "bin", "extrap")
        with open(program, "w", encoding="utf-8") as opened:
            opened.write('#!/bin/sh\ncase "$*" in\n  *functions-python*) echo "0.05+ -0.5*ranks**(-1)*log2(ranks)**(1)+2*ranks**(-1)" ;;\n'
                         '  *) echo "0.05 + ..." ;;\nesac\n')
        os.chmod(program, stat.S_IRWXU)
        folder, (entry,) = self.models(venv, self.points())
        with open(os.path.join(folder, entry["file"]), encoding="ascii") as opened:
            lines = opened.read().splitlines()
        self.assertEqual(lines[:4], ["PARAMETER ranks", "POINTS 1 2 3 4 6", "REGION run", "METRIC time"])
        self.assertEqual([float(x) for x in lines[5].split()[1:]], [0.5, 1, 0.25])
        self.assertEqual(len(lines), 9)
        self.assertEqual((entry["status"], entry["held_out"], entry["model"]), ("fitted", 8, "0.05 + ..."))
        self.assertAlmostEqual(entry["predicted"], 0.05 - 0.5 / 8 * 3 + 2 / 8)
        self.assertAlmostEqual(entry["miss"], entry["predicted"] * 8 - 1)

    def test_without_it_the_file_is_there(self):
        folder, (entry,) = self.models(moe.fresh(), self.points())
        self.assertEqual((entry["status"], entry["miss"]), ("not found", None))
        self.assertTrue(os.path.exists(os.path.join(folder, entry["file"])))
        self.assertEqual(self.models(None, self.points()[:5])[1], [])


if __name__ == "__main__":
    moe.main()
