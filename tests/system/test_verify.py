#!/usr/bin/env python3
"""moe_run verify: honest reports keep the shipped contracts, doctored ones fail each for its own stated reason, and the whole
table of exit codes, on one rank and on three."""
import copy
import json
import os
import re
import shutil
import subprocess
import unittest

import moe
from gguf_layout import scales_times

HOLDS, RUN_FAILED, ASKED_WRONG, DIFFERS = 0, 1, 2, 3  # docs/running.md
CONFIG = os.path.join(moe.SOURCE, "configs", "tiny.toml")
CONTRACTS = os.path.join(moe.SOURCE, "configs", "contracts")
ACTIVE = ["forward-parity", "exact", "invariants", "f32-truth"]
HEAD = 'name = "x"\nversion = 1\nstatus = "draft"\nrun = "moe_run"\n'
GATE = '[gates.g]\nmetric = "cos"\npair = ["q8k@cpu", "f32@cpu"]\nat = "l_out"\n'
ALL = HEAD + """
[structure]
files = true
[invariants]
finite = true
ids_in_range = true
no_zero_layer = true
weights_sum_to_1 = 1e-6
""" + GATE + "at_least = 0.99\n"


def shipped(name):
    return os.path.join(CONTRACTS, f"{name}.toml")


def run(out, ranks=1, **sets):
    """A run of configs/tiny.toml, from the top of the tree, where its model's path starts."""
    keys = {"run.generate": 0, "run.threads": 1} | {key.replace("__", "."): value for key, value in sets.items()}
    line = moe.words(config=CONFIG, sets=keys, out=out)
    line = line if ranks == 1 else moe.under_mpirun([(ranks, line)])
    return moe.finish(moe.start(line, cwd=moe.SOURCE), folder=out)


def verify(contract, report, *more, ranks=1):
    line = [moe.PROGRAM, "verify", contract, report, *more]
    return moe.finish(moe.start(line if ranks == 1 else moe.under_mpirun([(ranks, line)])))


def written(text):
    path = moe.fresh(".toml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


class Verify(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = moe.fresh()
        outcome = run(cls.folder, parity__mode=["teacher"], parity__probes=["ffn_inp"])
        if outcome.code:
            raise AssertionError(outcome.err)
        cls.tree = outcome.report()
        cls.all = written(ALL)

    def ends(self, outcome, code, *words):
        self.assertEqual(outcome.code, code, f"{outcome.out}\n{outcome.err}")
        for word in words:
            self.assertRegex(outcome.out + outcome.err, word)
        self.assertEqual(len(outcome.faults()), code in (RUN_FAILED, ASKED_WRONG), outcome.err)

    # ---- honest reports ----

    def test_shipped_contracts_hold_on_the_run_that_they_name(self):
        folder = moe.fresh()
        self.assertEqual(run(folder, ranks=3).code, 0)
        for name in ACTIVE:
            with open(shipped(name), encoding="utf-8") as file:
                self.assertIn('run = "moe_run --config configs/tiny.toml --out DIR"\n', file.read())
            for report in (self.folder, folder, os.path.join(folder, "report.json")):
                with self.subTest(name, report=report):
                    self.ends(verify(shipped(name), report), HOLDS, "Holds: ")

    def test_figure_bound_and_distance(self):
        out = moe.fresh()
        self.ends(verify(shipped("forward-parity"), self.folder, "--out", out), HOLDS, "known divergence q8k_rounding")
        with open(os.path.join(out, "verify.json"), encoding="utf-8") as file:
            tree = json.load(file)
        self.assertTrue(tree["complete"] and tree["holds"])
        gates = [check for check in tree["checks"] if check["name"] == "q8k_layers"]
        pair = next(p for p in self.tree["pairs"] if (p["a"], p["b"]) == ("q8k@cpu", "f32@cpu"))
        self.assertEqual(len(gates), len(pair["layers"]))
        for gate, layer in zip(gates, pair["layers"]):
            self.assertEqual(gate["figure"], 1 - layer["one_minus_cos"])
            self.assertEqual((gate["direction"], gate["bound"], gate["falsifiers"]), ("at_least", 0.99, [6, 7, 8]))
            self.assertEqual(gate["margin"], gate["figure"] - 0.99)
            self.assertAlmostEqual(gate["used"], layer["one_minus_cos"] / 0.01, places=12)

    def test_a_terminal_does_not_obey_a_contract(self):
        head = HEAD.replace('name = "x"', 'name = "x\\u001b[2J"')
        gate = GATE.replace("[gates.g]", '[gates."g\\u009b2J"]') + "at_least = 0.99\n"
        more = '[divergences."d\\u001b]0;t"]\nreason = "r"\ndate = "2026-01-01"\n'
        outcome = verify(written(head.replace("draft", "active_with_documented_divergence") + gate + more), self.folder)
        self.assertEqual(outcome.code, HOLDS, outcome.err)
        self.assertIn("contract x?[2J", outcome.out)
        self.assertIn("g?2J", outcome.out)
        self.assertNotRegex(outcome.out, "[\x1b\x9b]")

    def test_a_bound_on_either_side_of_the_figure(self):
        pair = next(p for p in self.tree["pairs"] if (p["a"], p["b"]) == ("q8k@cpu", "f32@cpu"))
        teacher = next(p for p in self.tree["modes"]["teacher"]["pairs"] if (p["a"], p["b"]) == ("f32@cpu", "f64@cpu"))
        probe = next(p for p in teacher["probes"] if p["layer"] == 1)
        cases = (("kl", '["q8k@cpu", "f32@cpu"]', "logits", "free", pair["logits"]["kl"]),
                 ("max_abs", '["q8k@cpu", "f32@cpu"]', "l_out-2", "free", pair["layers"][2]["max_abs"]),
                 ("rel_l2", '["f32@cpu", "f64@cpu"]', "l_out-0", "teacher", teacher["layers"][0]["rel_l2"]),
                 ("rel_l2", '["f32@cpu", "f64@cpu"]', "ffn_inp-1", "teacher", probe["rel_l2"]))
        for metric, arms, at, mode, figure in cases:
            for factor, code in ((1.0000001, HOLDS), (0.9999999, DIFFERS)):
                with self.subTest(metric, at=at, factor=factor):
                    text = f'[gates.g]\nmetric = "{metric}"\npair = {arms}\nat = "{at}"\nmode = "{mode}"\n'
                    self.ends(verify(written(f"{HEAD}{text}at_most = {figure * factor!r}\n"), self.folder), code)

    def test_a_gate_of_one_arm(self):
        """A report of perplexity has no pairs; one of generate has no perplexity: null is NaN."""
        gate = '[gates.g]\nmetric = "perplexity"\narm = "q8k@cpu"\nat_most = '
        for command, bound, code in (("perplexity", 1000, HOLDS), ("perplexity", 1.5, DIFFERS), ("generate", 1000, DIFFERS)):
            with self.subTest(command, bound=bound):
                out = moe.fresh()
                keys = {"run.arms": ["q8k@cpu"], "run.threads": 1, "run.generate": 2, "contract.path": written(f"{HEAD}{gate}{bound}\n")}
                line = moe.words(command=command, config=CONFIG, sets=keys, out=out)
                outcome = moe.finish(moe.start(line, cwd=moe.SOURCE), folder=out)
                self.ends(outcome, code, r"q8k@cpu, perplexity  (\d|nan)")

    # ---- doctored reports ----

    def doctored(self, change, csv=None):
        folder = moe.fresh()
        shutil.copytree(self.folder, folder)
        tree = copy.deepcopy(self.tree)
        change(tree)
        with open(os.path.join(folder, "report.json"), "w", encoding="utf-8") as file:
            json.dump(tree, file)
        if csv:
            name, edit = csv
            path = os.path.join(folder, name)
            with open(path, encoding="utf-8") as file:
                text = edit(file.read())
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        return folder

    def test_doctored_reports(self):
        def at(tree, path):
            for part in path[:-1]:
                tree = tree[part]
            return tree, path[-1]

        def put(*path_and_value):
            *path, value = path_and_value

            def change(tree):
                owner, last = at(tree, path)
                owner[last] = value
            return change

        def delete(*path):
            def change(tree):
                owner, last = at(tree, path)
                del owner[last]
            return change

        def both(*changes):
            return lambda tree: [change(tree) for change in changes]

        layer = ("pairs", 0, "layers", 1)
        logits = ("pairs", 2, "logits")
        spread = (*layer, "spread", "rel_l2")
        nan = both(put(*layer, "rel_l2", None), *(put(*spread, key, None) for key in ("min", "median", "max")))
        digest = self.tree["arms"][2]["digest"]
        flipped = digest[:-1] + f"{int(digest[-1], 16) ^ 1:x}"
        nothing = lambda tree: None
        drop_position_0 = lambda text: "".join(row for row in text.splitlines(True) if not re.match(r"[^,]+,[^,]+,0,0,", row))
        cases = {
            "min above max": (put(*spread, "min", 1.0), None, r"spread\.rel_l2: expected min <= median <= max, found 1,"),
            "a metric beside its spread": (put(*layer, "max_abs", 1e-9), None, r"max_abs = .*its spread's max is"),
            "a worst position that is none": (put(*spread, "worst", 12), None, r"worst = 12, but the positions are 0 to 11"),
            "an angle beyond the distance": (both(put(*layer, "one_minus_cos", .5),
                                                  put(*layer, "spread", "one_minus_cos", "max", .5)), None,
                                             r"one_minus_cos = 0\.5, but vectors with rel_l2 up to"),
            "NaN in a layer": (nan, None, r"finite is true, but a metric is null"),
            "NaN in a layer, told": (both(nan, put("pairs", 0, "finite", False)), None, "invariant +finite .*a metric is null"),
            "a layer missing": (delete(*layer), None, r"layers: expected one for each of the model's 3, found 2"),
            "a layer twice": (put(*layer, "layer", 0), None, r"layer = 0: a layer is missing, or stands elsewhere"),
            "a pair missing": (delete("pairs", 1), None, r"pairs: expected 3 of 3 arms, found 2"),
            "a pair of a stranger": (put("pairs", 1, "a", "f32@cuda"), None, r"expected two arms of the report"),
            "a digest cut short": (put("arms", 2, "digest", digest[:-1]), None, r"expected 16 hexadecimal digits"),
            "a digest that is not its sequences'": (put("arms", 2, "digest", flipped), None, r"expected the sum of its sequences"),
            "flips without tokens": (put(*layer, "router_flips", 3), None, r"router_flips = 3, but 0 flipped tokens have 0 to 0"),
            "a share of no positions": (put(*logits, "top1_agreement", .93), None, r"0\.93 is no share of 12 positions"),
            "another perplexity": (put("arms", 1, "perplexity", 40.0), None, r"the arms' perplexities differ by"),
            "positions missing": (put("arms", 0, "tokens", 11), None, r"tokens = 11 and scored = 11, but its 1 sequences have 12"),
            "a report that is not complete": (put("complete", False), None, r"complete: expected true, found false"),
            "experts of nobody": (put("ranks", 0, "experts", 15), None, r"hold 15 experts of a layer's 16"),
            "a percentile out of order": (put(*logits, "distribution", "kl", "p95", 1.0), None,
                                          r"distribution\.kl\.p99 = .*below the percentile before it"),
            "a probe's layer missing": (delete("modes", "teacher", "pairs", 0, "probes", 1), None,
                                        r"modes\.teacher\.pairs\[0\]: probes: expected as many for each of 3 layers"),
            "an expert beyond the layer's": (put("arms", 1, "invariants", "most_expert", 16), None,
                                             r"ids_in_range +f32@cpu: experts 0 to 16 of 0 to 15"),
            "weights that sum to another number": (put("arms", 2, "invariants", "weight_sum_error", .01), None,
                                                   r"weights_sum_to_1 +q8k@cpu  0\.01 <= 1e-06"),
            "a layer of zeros": (put("arms", 0, "invariants", "layer_update", 2, 0.0), None,
                                 r"no_zero_layer +f64@cpu: layer 2: .*what the layer adds 0"),
            "position 0 missing": (nothing, ("tokens.csv", drop_position_0), r"expected a row for each position and pair, 36, found 33"),
            "a token that is none": (nothing, ("tokens.csv", lambda text: text.replace(",0,0,1877,", ",0,0,4096,", 1)),
                                     r"token 4096 is no id of a vocabulary of 4096"),
            "another worst position in a file": (nothing, ("tokens.csv", lambda text: re.sub(r"(,0,11,\d+,)[^,]+", r"\g<1>0.5", text, count=1)),
                                                 r"the largest rel_l2 is 0\.5, but report\.json has"),
            "another number in a file": (nothing, ("layers.csv", lambda text: re.sub(r"(cpu,1,)[^,]+", r"\g<1>0.25", text, count=1)),
                                         r"layers\.csv row 2: rel_l2_min = 0\.25, but report\.json has"),
        }
        self.ends(verify(self.all, self.doctored(nothing)), HOLDS)
        reasons = set()
        for name, (change, csv, reason) in cases.items():
            with self.subTest(name):
                contract = written(ALL.replace("files = true", "")) if name.endswith("told") else self.all
                outcome = verify(contract, self.doctored(change, csv))
                self.ends(outcome, DIFFERS, "FAILS .*" + reason)
                reasons.add(reason)
        self.assertGreaterEqual(len(reasons), 12)

    def test_null_in_a_gated_metric_is_nan(self):
        def change(tree):
            pair = tree["pairs"][2]
            assert (pair["a"], pair["b"]) == ("q8k@cpu", "f32@cpu")
            pair["finite"] = False
            layer = pair["layers"][0]
            layer["one_minus_cos"] = None
            layer["spread"]["one_minus_cos"] |= {"min": None, "median": None, "max": None}
        self.ends(verify(written(HEAD + GATE + "at_least = 0.99\n"), self.doctored(change)), DIFFERS,
                  "FAILS  gate .*l_out-0 cos  nan >= 0.99.*NaN: the report has null")

    def test_other_bits(self):
        def change(tree):
            arm = tree["arms"][1]
            arm["digest"] = arm["sequences"][0]["digest"] = "0123456789abcdef"
        self.ends(verify(shipped("exact"), self.doctored(change)), DIFFERS,
                  "FAILS  exact .*f32@cpu, logits: 0123456789abcdef, recorded is d7fb7af419e37195")
        same = written(HEAD + "[exact]\nsame_path = true\n")
        self.ends(verify(same, self.folder), ASKED_WRONG, "has no two arms of one path")

        def twins(tree):
            """As if q8k@cpu had run on another backend: the same path, the other digests of f32."""
            for arm, other in ((tree["arms"][2], tree["arms"][1]),):
                for key in ("path", "path_version", "expert_paths"):
                    arm[key] = other[key]
                arm["name"] = "f32@cuda"
            for pair in (*tree["pairs"], *tree["modes"]["teacher"]["pairs"]):
                for side in ("a", "b"):
                    pair[side] = "f32@cuda" if pair[side] == "q8k@cpu" else pair[side]
        self.ends(verify(same, self.doctored(twins)), DIFFERS, "f32@cpu, f32@cuda: digests of one path differ")

    # ---- the whole table of codes, on one rank and on three ----

    def test_exit_codes(self):
        bad = {
            "malformed": ("name = ", ":1: expected TOML"),
            "an unknown key": (HEAD + "vresion = 2\n", ':5: unknown key "vresion": did you mean "version"'),
            "an unknown key of a gate": (HEAD + GATE + "at_lest = 1\n", r':9: unknown key "gates\.g\.at_lest".*gates\.g\.at_least'),
            "a gate of nothing": (HEAD, "gates nothing"),
            "a gate without a bound": (HEAD + GATE, "gates nothing"),
            "a bound that every figure meets": (HEAD + GATE + "at_least = -1\n", "gates nothing"),
            "a contradiction": (HEAD + GATE + "at_least = 0.99\nat_most = 0.9\n", "contradicts itself"),
            "two gates that exclude each other": (HEAD + GATE + 'at_least = 0.99\n' + GATE.replace("gates.g", "gates.h").replace(
                '"cos"', '"one_minus_cos"').replace('"l_out"', '"l_out-1"') + "at_least = 0.5\n", "no figure meets both"),
            "an unknown metric": (HEAD + GATE.replace("cos", "kos") + "at_least = 0.9\n", 'did you mean "cos"'),
            "an extreme value": (HEAD + GATE.replace("cos", "max_rel") + "at_most = 0.9\n", "no bound rests on"),
            "a state that is none": (HEAD.replace("draft", "good") + GATE + "at_least = 0.9\n", "status: expected draft"),
            "a divergence that is not documented": (HEAD.replace("draft", "active_with_documented_divergence") + GATE +
                                                    "at_least = 0.9\n", r"expected a table \[divergences"),
            "a metric that the report lacks": (HEAD + GATE.replace('"l_out"', '"attn_norm"') + "at_least = 0.9\n", "which .* lacks"),
            "a mode that the report lacks": (HEAD + GATE + 'mode = "forced"\nat_least = 0.9\n', "in mode forced, which .* lacks"),
            "a layer that the report lacks": (HEAD + GATE.replace('"l_out"', '"l_out-3"') + "at_least = 0.9\n", "l_out-3, which"),
            "another scope": (HEAD + '[scope]\ncommand = "perplexity"\n' + GATE + "at_least = 0.9\n", "is not for this report"),
            "an empty gate": (HEAD + "[gates.foo]\n", r"gates\.foo: expected a table with keys"),
            "another model": (HEAD + '[scope]\nmodel = "0123456789abcdef"\n' + GATE + "at_least = 0.9\n", "is not for this report"),
            "other ranks": (HEAD + "[scope]\nranks = [2, 4]\n" + GATE + "at_least = 0.9\n", "is not for this report"),
        }
        for name, (text, words) in bad.items():
            with self.subTest(name):
                self.ends(verify(written(text), self.folder), ASKED_WRONG, words)
        good, strict = written(HEAD + GATE + "at_least = 0.99\n"), written(HEAD + GATE + "at_least = 0.999999\n")
        full = os.path.join(self.folder, "report.json")  # a file, where --out wants a folder
        cases = [(HOLDS, good, self.folder, (), "Holds"), (DIFFERS, strict, self.folder, (), "DOES NOT HOLD: 3 of 4"),
                 (ASKED_WRONG, shipped("kernel-order"), self.folder, (), "retired, refuted by 001, 004"),
                 (ASKED_WRONG, written("name = "), self.folder, (), "expected TOML"),
                 (ASKED_WRONG, "/nowhere.toml", self.folder, (), "No such file"), (ASKED_WRONG, good, "/nowhere", (), "No such file"),
                 (ASKED_WRONG, good, good, (), "not JSON"), (ASKED_WRONG, good, self.folder, ("more",), "more"),
                 (ASKED_WRONG, good, self.folder, ("--out",), "--out"), (RUN_FAILED, good, self.folder, ("--out", full), "report.json")]
        for code, contract, report, more, words in cases:
            for ranks in (1, 3):
                with self.subTest(words, ranks=ranks):
                    outcome = verify(contract, report, *more, ranks=ranks)
                    self.ends(outcome, code, words)
                    self.assertEqual(outcome.out.count("\ncontract "), code in (HOLDS, DIFFERS) or bool(more and code == RUN_FAILED))

    def test_a_run_that_is_gated(self):
        strict = written(HEAD + GATE + "at_least = 0.999999\n")
        for ranks in (1, 3):
            for code, contract in ((HOLDS, shipped("forward-parity")), (DIFFERS, strict), (ASKED_WRONG, shipped("kernel-order")),
                                   (ASKED_WRONG, "/nowhere.toml")):
                with self.subTest(contract, ranks=ranks):
                    out = moe.fresh()
                    self.ends(run(out, ranks, contract__path=contract), code)
                    self.assertEqual(os.path.exists(os.path.join(out, "report.json")), code != ASKED_WRONG)
                    if code != ASKED_WRONG:
                        with open(os.path.join(out, "verify.json"), encoding="utf-8") as file:
                            self.assertEqual(json.load(file)["holds"], code == HOLDS)
        self.ends(run(None, contract__path=strict), DIFFERS)
        self.ends(run(None, contract__path=shipped("invariants")), ASKED_WRONG, "structure.files: expected a folder")
        done = subprocess.run(moe.words(command="inspect", config=CONFIG, sets={"contract.path": strict}), cwd=moe.SOURCE,
                              capture_output=True, text=True, timeout=moe.LIMIT)
        self.assertEqual(done.returncode, ASKED_WRONG)
        self.assertIn("inspect writes no report", done.stderr)

    # ---- bounds that are derived ----

    DERIVED = {"run.arms": ["f64@cpu", "f32@cpu"], "parity.mode": ["teacher"], "run.kv": "f32", "run.generate": 0, "run.threads": 1,
               "derive.file": os.path.join(moe.SOURCE, "configs", "tiny", "heldout.txt")}

    def derive(self, ranks=1, **sets):
        out = moe.fresh()
        keys = self.DERIVED | {key.replace("__", "."): value for key, value in sets.items()}
        line = moe.words(command="verify", config=CONFIG, sets=keys, out=out)
        line = line[:2] + ["--derive"] + line[2:]
        outcome = moe.finish(moe.start(line if ranks == 1 else moe.under_mpirun([(ranks, line)]), cwd=moe.SOURCE), folder=out)
        return outcome, os.path.join(out, "contract.toml")

    def test_derived_bounds_see_what_cos_does_not(self):
        """All scales of one matrix of one layer x 1.001: f32 of the altered file against f64 of the good one."""
        outcome, contract = self.derive(derive__draws=12, derive__checks=4)
        self.assertEqual(outcome.code, 0, outcome.err)
        self.assertRegex(outcome.out, r"Bounds of 10 gates from 12 draws")
        self.assertRegex(outcome.out, r"False alarms of a whole run: at most \S+ by the fits")
        cos = written(HEAD + GATE.replace("q8k@cpu", "f64@cpu").replace('["f64@cpu", "f32@cpu"]', '["f32@cpu", "f64@cpu"]') +
                      'mode = "teacher"\nat_least = 0.99\n')
        good = os.path.join(moe.SOURCE, "configs", "tiny", "tiny-qwen3moe-Q4_K_M.gguf")
        with open(good, "rb") as file:
            data = bytearray(file.read())
        sets = {key.replace(".", "__"): value for key, value in self.DERIVED.items() if not key.startswith("derive")}
        honest = moe.fresh()
        self.ends(run(honest, contract__path=contract, **sets), HOLDS)
        self.ends(verify(shipped("f32-local"), honest), HOLDS)
        for layer, name, size in ((0, "attn_v", 768 * 256), (1, "ffn_up_exps", 768 * 256 * 16), (2, "attn_output", 768 * 768)):
            altered, folder = moe.fresh(".gguf"), moe.fresh()
            with open(altered, "wb") as file:
                file.write(scales_times(data, f"blk.{layer}.{name}.weight", size // 256 * 144, 1.001))
            with self.subTest(name, layer=layer):
                self.ends(run(folder, model__path=altered, parity__reference=good, contract__path=cos, **sets), HOLDS)
                outcome = verify(contract, folder)
                self.ends(outcome, DIFFERS)
                self.ends(verify(shipped("f32-local"), folder), DIFFERS, rf"FAILS  gate +teacher_l_out-{layer}_rel_l2")
                named = re.findall(r"FAILS  gate .*teacher: l_out-(\d) rel_l2", outcome.out)
                self.assertEqual(named, [str(layer)])  # each layer starts from the truth: that one alone is off
                with open(os.path.join(folder, "report.json"), encoding="utf-8") as file:
                    self.assertEqual(json.load(file)["run"]["reference"]["fingerprint"], self.tree["model"]["fingerprint"])
            os.remove(altered)
        # a contract of this truth is not for another one
        self.ends(verify(written(HEAD + '[scope]\nreference = "0123456789abcdef"\n' + GATE + "at_least = 0.9\n"), self.folder),
                  ASKED_WRONG, "scope.reference is 0123456789abcdef")

    def test_what_is_derived_depends_on_no_ranks(self):
        texts = []
        for ranks in (1, 3):
            outcome, contract = self.derive(ranks, derive__draws=3, derive__checks=1)
            self.assertEqual(outcome.code, 0, outcome.err)
            with open(contract, encoding="utf-8") as file:
                texts.append(file.read())
        self.assertEqual(*texts)
        other = self.derive(derive__draws=3, derive__checks=1, derive__seed=1)[1]
        with open(other, encoding="utf-8") as file:
            self.assertNotEqual(file.read(), texts[0])
        for ranks in (1, 3):
            for sets, words in (({"run__arms": ["f64@cpu"]}, "expected at least two arms"), ({"derive__draws": 1}, "derive.draws"),
                                ({"contract__path": contract}, "contract.path has no effect"),
                                ({"derive__file": CONFIG, "input__tokens": [1] * 4000, "run__context": 0}, "context|derive.file")):
                with self.subTest(words, ranks=ranks):
                    self.ends(self.derive(ranks, **sets)[0], ASKED_WRONG, words)

    def test_a_full_standard_output(self):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([moe.PROGRAM, "verify", shipped("exact"), self.folder], stdout=full, stderr=subprocess.PIPE,
                                  timeout=moe.LIMIT)
        self.assertEqual(done.returncode, RUN_FAILED)
        self.assertIn(b"standard output", done.stderr)


if __name__ == "__main__":
    moe.main()
