#!/usr/bin/env python3
"""launch/report: what stands on the page of a run, a contract, a bisection, a study and a bench, each beside the file that it is
from; what was not written leaves no hole; nothing on it is loaded or run; files that are not whole are refused by name."""

import collections
import html
import html.parser
import json
import os
import re
import shlex
import unittest

import moe
import pages
import study_example


class Page(html.parser.HTMLParser):
    """Of a page: its headline, its text, sections, links, ids, figures, and what it would load."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.sections, self.links, self.ids, self.tags, self.loads = [], [], [], [], []
        self.figures, self.words, self.headline, self.open = 0, [], "", []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag not in ("meta", "link", "br", "image", "use"):
            self.open.append(tag)
        self.figures += tag == "figure"
        if "id" in attributes:
            self.ids.append(attributes["id"])
            self.sections += [attributes["id"]] if tag == "section" else []
        for key, value in attributes.items():
            if key in ("href", "xlink:href", "src") and value.startswith("#"):
                self.links.append(value[1:])
            elif key in ("href", "xlink:href", "src", "action", "data", "srcset"):
                self.loads.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, text):
        if "style" in self.open:
            return
        self.words.append(text)
        if "h1" in self.open:
            self.headline += text


def page(folder):
    return Page(pages.html(folder))


def tree(folder, name):
    with open(os.path.join(folder, f"{name}.json"), encoding="utf-8") as file:
        return json.load(file)


class Parts(unittest.TestCase):
    def test_every_page_is_whole_in_itself(self):
        for folder in (
            pages.parity(),
            pages.failed_contract(),
            pages.product(),
            pages.whole(),
            pages.study(),
            pages.bench(),
        ):
            found, text = page(folder), pages.html(folder)
            self.assertEqual([load for load in found.loads if not load.startswith("data:")], [])
            self.assertNotIn("script", found.tags)
            self.assertNotIn("@import", text)
            self.assertEqual(re.findall(r"url\((?!#)[^)]*\)", text), [])
            self.assertEqual(len(found.ids), len(set(found.ids)))
            self.assertEqual(set(found.links) - set(found.ids), set())
            self.assertGreater(len(found.headline), 20)
            self.assertEqual(re.findall(r"#0101[01]\d", text), [], "a colour that no variable replaced")

    def test_a_run(self):
        found, report = page(pages.parity()), tree(pages.parity(), "report")
        self.assertEqual(
            found.sections,
            [
                "arms",
                "layers",
                "account",
                "inside",
                "positions",
                "router",
                "experts",
                "load",
                "timeline",
                "speed",
                "ranks",
                "texts",
                "environment",
                "repeat",
            ],
        )
        self.assertGreaterEqual(found.figures, 15)
        for arm in report["arms"]:
            self.assertIn(arm["digest"], found.text)
            for digest in arm["layer_digests"]:
                self.assertIn(digest, found.text)
        truth = [pair for pair in report["pairs"] if pair["b"] == "f64@cpu"]
        for pair in truth:
            self.assertIn(f"{pair['logits']['rel_l2']:.2e}", found.text)
            for mode in report["modes"].values():
                other = next(one for one in mode["pairs"] if (one["a"], one["b"]) == (pair["a"], pair["b"]))
                for layer in other["layers"]:
                    self.assertIn(f"{layer['rel_l2']:.2e}", found.text)
        worst = max(truth, key=lambda pair: pair["logits"]["rel_l2"])
        self.assertIn(f"{worst['a']} is {100 * worst['logits']['rel_l2']:.1f}", found.headline)
        self.assertIn("launch/run -np 3 -- parity --config run.toml", found.text)
        self.assertIn('run.arms = ["f64@cpu", "f32@cpu", "q8k@cpu"]', found.text)

    def test_load_of_ranks_is_that_of_the_routes(self):
        import numpy

        routes = numpy.load(os.path.join(pages.parity(), "routes.f64@cpu.npy"))
        counts = [rank["experts"] for rank in tree(pages.parity(), "report")["ranks"]]  # contiguous
        owner = numpy.repeat(range(len(counts)), counts)
        rows = re.findall(
            r'<tr><td class="n">(\d+)</td><td class="n">([\d,]+)</td><td class="n">[\d.]+\u00a0%',
            pages.html(pages.parity()),
        )
        self.assertEqual(
            [int(slots.replace(",", "")) for _, slots in rows],
            [int((owner[routes] == rank).sum()) for rank in range(len(counts))],
        )

    def test_time_of_ranks_is_that_of_the_outermost_events(self):
        sums = collections.Counter()
        for event in tree(pages.parity(), "timeline")["traceEvents"]:
            if "arm" in event.get("args", {}):
                sums[event["args"]["arm"], event["pid"]] += 1e-6 * event["dur"]
        rows = re.findall(
            r'<tr><td>(\w+@cpu)</td><td class="n">(\d)</td><td class="n">([\d.]+)</td>', pages.html(pages.parity())
        )
        found = {(arm, int(rank)): float(seconds) for arm, rank, seconds in rows}
        self.assertEqual(set(found), set(sums))
        for key, seconds in sums.items():
            self.assertAlmostEqual(found[key] / seconds, 1, delta=0.01, msg=key)

    def test_what_was_not_written_leaves_no_hole(self):
        found = page(pages.plain())
        self.assertEqual(
            found.sections, ["arms", "layers", "positions", "router", "speed", "ranks", "environment", "repeat"]
        )
        self.assertEqual([link for link in found.links if link in ("account", "experts", "load", "texts")], [])

    def test_a_contract_that_fails(self):
        found, verify = page(pages.failed_contract()), tree(pages.failed_contract(), "verify")
        failed = [check for check in verify["checks"] if not check["holds"]]
        worst = max(failed, key=lambda check: check["used"])
        self.assertEqual({check["name"] for check in failed}, {"layers_of_q8k"})
        self.assertRegex(
            found.headline,
            rf"strict fails in {len(failed)} of {len(verify['checks'])} checks: layers_of_q8k, .* at {worst['used']:.1f}"
            r" times its bound",
        )
        text = pages.html(pages.failed_contract())
        self.assertEqual(len(re.findall(r'class="fails"><span aria-hidden="true">✗</span> fails', text)), len(failed))
        self.assertEqual(
            len(re.findall(r'class="holds"><span aria-hidden="true">✓</span> holds', text)),
            len(verify["checks"]) - len(failed),
        )
        for check in verify["checks"]:
            self.assertIn(
                (
                    f"{check['margin']:.2e}".replace("-", "−", 1 if check["margin"] < 0 else 0)
                    if "margin" in check
                    else check["name"]
                ),
                found.text,
            )
        self.assertIn("layers", found.sections, "the run's own part")

    def test_a_bound_of_zero_that_fails(self):
        verify = tree(pages.failed_contract(), "verify")
        for check in verify["checks"]:
            check["holds"] = True
        gate = next(check for check in verify["checks"] if "bound" in check)
        gate |= {"holds": False, "figure": 3.0, "bound": 0.0, "direction": "at_most", "margin": -3.0, "used": None}
        verify["contract"]["file"] = "my contracts/x.toml"
        found = page(pages.folder_of("verify", verify))
        self.assertIn("is 3, which a bound of 0 does not admit", found.headline)
        self.assertIn("moe_run verify 'my contracts/x.toml' DIR", found.text)
        gate["figure"] = None
        self.assertIn("is not a number", page(pages.folder_of("verify", verify)).headline)

    def test_bisections(self):
        product, whole = tree(pages.product(), "bisect")["product"], tree(pages.whole(), "bisect")["whole"]
        found = page(pages.product())
        self.assertIn(product["walks"][0]["sentence"].split(";")[0], found.headline)
        self.assertGreaterEqual(found.figures, 1)
        for operation in product["operations"]:
            self.assertIn(operation["name"], found.text)
        found = page(pages.whole())
        self.assertIn("q8k@cpu and f32@cpu differ by", found.headline)
        self.assertGreaterEqual(found.figures, 1)
        for part in whole["parts"]:
            self.assertIn(part["name"], found.text)
        self.assertIn(f"--set bisect.tensor={whole['tensor']}", found.text)
        for key in ("model_b", "kv_b", "rows_b"):  # q8k's cache is its own, and all else is the same
            self.assertNotIn(f"bisect.{key}", found.text)
        same = page(pages.same_bits())
        self.assertIn("There is no difference to look into", same.text)
        self.assertIn("--set bisect.rows_b=portable", same.text)

    def test_the_command_of_a_page_gives_its_file_again(self):
        line = re.search(r'aria-label="command"><code>(.*?)\n</code>', pages.html(pages.product()))[1]
        words, out = shlex.split(html.unescape(line)), moe.fresh()
        self.assertEqual(words[0], "moe_run")
        outcome = moe.finish(moe.start([moe.PROGRAM, *words[1:-1], out], cwd=moe.SOURCE), folder=out)
        self.assertEqual(outcome.code, 0, outcome.err)
        self.assertEqual(tree(out, "bisect"), tree(pages.product(), "bisect"))

    def test_a_study(self):
        found, study = page(pages.study()), study_example.study()
        self.assertEqual(
            found.sections,
            [
                "curves",
                "points",
                "time",
                "lost",
                "exchange",
                "study-load",
                "digests",
                "extrap",
                "study-machine",
                "repeat-study",
            ],
        )
        self.assertRegex(
            found.headline, r"4 cores compute pp64 on q8k 2\.11 times as fast as 1, 93\u00a0% of what the bound allows"
        )
        self.assertIn("17 ranks for 16 experts", found.text)
        for point in study["points"][1:3]:
            self.assertIn(f"{100 * point['bound']['reached']:.0f} % of the bound", found.text)
        two = study_example.study()  # another curve, of the same work, starts at fewer cores
        curve = next(c for s in two["series"] for c in s["curves"] if s["scaling"] == "strong")
        curve["base"] = curve["points"][1]
        base = next(p for p in two["points"] if p["id"] == curve["base"])
        self.assertRegex(page(pages.folder_of("study", two)).headline, rf"times as fast as {base['resources']},")
        other = study_example.study(("0123456789abcdef", "0123456789abcdee", "0123456789abcdef"))
        self.assertIn("different digests: q8k pp64", page(pages.folder_of("study", other)).headline)

    def test_a_bench(self):
        found, bench = page(pages.bench()), tree(pages.bench(), "bench")
        self.assertEqual(found.sections, ["rates", "phases", "repeat-bench"])
        self.assertEqual(found.figures, len(bench["rows"]))
        for row in bench["rows"]:
            self.assertIn(row["digest"], found.text)

    def test_text_of_a_file_is_no_html(self):
        report = tree(pages.plain(), "report")
        report["model"]["name"] = '<script>alert("x")</script>'
        report["warnings"] = ["<img src=x onerror=alert(1)>"]
        found = page(pages.folder_of("report", report))
        self.assertNotIn("script", found.tags)
        self.assertNotIn("img", found.tags)
        self.assertIn('<script>alert("x")</script>', found.text)

    def test_numbers_that_are_not_finite(self):
        report = tree(pages.plain(), "report")
        pair = report["pairs"][0]
        pair["finite"] = False
        for owner in (pair["logits"], *pair["layers"]):
            for key in ("rel_l2", "one_minus_cos"):
                owner[key] = None
                owner["spread"][key] = owner["spread"][key] | {"min": None, "median": None, "max": None}
        self.assertRegex(page(pages.folder_of("report", report)).headline, "q8k@cpu came to a NaN")


class Refusals(unittest.TestCase):
    def refused(self, folder, words):
        made = pages.make(folder)
        if made.returncode == 77:
            self.skipTest(made.stderr.strip())
        self.assertEqual(made.returncode, 2, made.stderr)
        self.assertRegex(made.stderr, words)
        self.assertEqual(made.stderr.count("\n"), 1)
        self.assertFalse(os.path.exists(os.path.join(folder, "report.html")))

    def test_files_that_are_not_what_they_should_be(self):
        pages.page(pages.plain())
        report = tree(pages.plain(), "report")
        self.refused(moe.fresh(), "expected a folder")
        empty = moe.fresh()
        os.mkdir(empty)
        self.refused(empty, "expected one of report.json, .*, found none")
        self.refused(pages.folder_of("report", report | {"schema": 3}), r"report\.json: schema: expected \d+, found 3")
        self.refused(pages.folder_of("report", report | {"complete": False}), r"report\.json: not whole")
        self.refused(
            pages.folder_of("report", {key: value for key, value in report.items() if key != "pairs"}),
            r"report\.json: not what its schema says: .*pairs",
        )
        cut = pages.folder_of("report", report)
        os.truncate(os.path.join(cut, "report.json"), 1000)
        self.refused(cut, r"report\.json: ")

    def test_the_script_writes_the_same_bytes_again(self):
        before = pages.html(pages.product())
        made = pages.make(pages.product())
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertIn(os.path.join(pages.product(), "report.html"), made.stdout)
        self.assertEqual(pages.html(pages.product()), before)


if __name__ == "__main__":
    moe.main()
