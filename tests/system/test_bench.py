#!/usr/bin/env python3
"""moe_run bench: its digests are those of a parity run over the same tokens, whatever the ranks, the chunks, the
depth and the batch; its bytes are counted again here; its three forms say the same; its phases add up."""
import csv
import functools
import io
import json
import os
import re
import sys
import unittest

import moe
import numpy as np
import reference

SEED = moe.random_seed()
EMULATED = os.path.join(os.path.dirname(moe.PROGRAM), "moe_run_emulated")
ARMS = ["f32@cpu", "q8k@cpu"]
SHAPE = dict(layers=2, hidden=512, heads=4, kv_heads=2, head_dim=64, experts=8, top_k=2, expert_width=256, vocab=700,
             types="Q4_K_M", context=300)
MASK = 2**64 - 1


@functools.cache
def model():
    return moe.model(SEED, **SHAPE)


def mix(z):  # num_mix64 of kernels/formats/numerics.h
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9 & MASK
    z = (z ^ z >> 27) * 0x94d049bb133111eb & MASK
    return z ^ z >> 31


def tokens(sequence, n):
    """The tokens that bench feeds (docs/bench.md)."""
    key = mix(SEED + 0x9e3779b97f4a7c15 & MASK)
    return [mix(key + (sequence << 32) + t & MASK) % SHAPE["vocab"] for t in range(n)]


def bench(ranks=1, form="json", program=None, **sets):
    keys = {"model.path": model(), "run.arms": ARMS, "run.seed": SEED, "bench.repeats": 2, "bench.prompt": [20],
            "bench.generate": [5], "bench.format": form, **{k.replace("__", "."): v for k, v in sets.items()}}
    outcome = moe.attempt({k: v for k, v in keys.items() if k != "output.dir"}, ranks, command="bench",
                          out=keys.get("output.dir"), program=program)
    if outcome.code != 0:
        raise AssertionError(f"bench ended with {outcome.code}: {outcome.err}{outcome.out}")
    return outcome.out


def rows(ranks=1, **sets):
    """{(arm, test): row}"""
    return {(row["arm"], row["test"]): row for row in json.loads(bench(ranks, **sets))["rows"]}


@functools.cache
def base():
    return rows(bench__depth=[0, 30])


@functools.cache
def digest_of_prefix(arm, sequence, n):
    """Of the logits at the first n positions of a sequence, by the command parity."""
    if not n:
        return 0
    run = moe.run({"model.path": model(), "run.arms": [arm], "input.tokens": tokens(sequence, n)})
    return int(run.arm(arm)["digest"], 16)


def digest_of_span(arm, sequence, first, end):
    return digest_of_prefix(arm, sequence, end) - digest_of_prefix(arm, sequence, first)


def hexadecimal(digest):
    return f"{digest & MASK:016x}"


class Digests(unittest.TestCase):
    def test_they_are_those_of_parity(self):
        for arm in ARMS:
            for depth, mark in ((0, ""), (30, " @ d30")):
                with self.subTest(arm=arm, depth=depth):
                    last = digest_of_span(arm, 0, depth + 19, depth + 20)
                    self.assertEqual(base()[arm, f"pp20{mark}"]["digest"], hexadecimal(last))
                    decoded = digest_of_span(arm, 0, depth, depth + 5)
                    self.assertEqual(base()[arm, f"tg5{mark}"]["digest"], hexadecimal(decoded))

    def test_a_batch_is_the_sum_of_its_sequences(self):
        found = rows(bench__batch=[3], run__chunk=11)
        for arm in ARMS:
            last = sum(digest_of_span(arm, s, 19, 20) for s in range(3))
            decoded = sum(digest_of_span(arm, s, 0, 5) for s in range(3))
            self.assertEqual(found[arm, "pp20 x3"]["digest"], hexadecimal(last))
            self.assertEqual(found[arm, "tg5 x3"]["digest"], hexadecimal(decoded))

    def test_ranks_chunks_and_order_change_nothing(self):
        for ranks, sets in ((2, {}), (3, {"run__chunk": 7}), (1, {"run__chunk": 1, "run__threads": 1}),
                            (2, {"bench__depth": [30, 0], "run__context": 300})):
            with self.subTest(ranks=ranks, **sets):
                found = rows(ranks, **{"bench__depth": [0, 30], **sets})
                self.assertEqual({key: row["digest"] for key, row in found.items()},
                                 {key: row["digest"] for key, row in base().items()})

    def test_many_sequences(self):
        """More of them than logits are computed at once."""
        found = rows(bench__batch=[40], bench__prompt=[2], bench__generate=[1], run__arms=["q8k@cpu"])
        one = rows(2, bench__batch=[40], bench__prompt=[2], bench__generate=[1], run__arms=["q8k@cpu"], run__chunk=3)
        self.assertEqual(found["q8k@cpu", "tg1 x40"]["digest"], one["q8k@cpu", "tg1 x40"]["digest"])
        self.assertEqual(found["q8k@cpu", "pp2 x40"]["digest"], one["q8k@cpu", "pp2 x40"]["digest"])

    def test_the_seed_is_in_the_tokens(self):
        other = rows(run__seed=SEED + 1)
        self.assertNotEqual(other["q8k@cpu", "pp20"]["digest"], base()["q8k@cpu", "pp20"]["digest"])


class Bytes(unittest.TestCase):
    def count(self, batch, depth, n, ranks=1, divided=False):
        """Bytes a decoded token: experts chosen by the reference's routing, each once a layer and step; of attention and the
        head each rank all, or where they are divided a part."""
        m = reference.Model(model())
        size = {name: len(raw) for name, (_, _, raw) in m.gguf.tensors.items()}
        experts = {name: b for name, b in size.items() if "_exps" in name}
        row = size["token_embd.weight"] // SHAPE["vocab"]
        shared = sum(size.values()) - sum(experts.values()) - size["token_embd.weight"]
        parts = sum(b for name, b in size.items() if re.search(r"attn_(q|k|v|output)\.weight|^output\.weight", name))
        spared = (ranks - 1) * parts if divided else 0
        chosen = [m.forward(tokens(s, depth + n))["chosen"] for s in range(batch)]
        total = 0
        for p in range(depth, depth + n):
            cache = batch * (p + 1) * 2 * SHAPE["layers"] * SHAPE["kv_heads"] * SHAPE["head_dim"] * 8
            total += ranks * (shared + batch * row) - spared + (1 if divided else ranks) * cache
            for layer in range(SHAPE["layers"]):
                distinct = len({int(e) for c in chosen for e in c[layer][p]})
                each = sum(b for name, b in experts.items() if name.startswith(f"blk.{layer}.")) // SHAPE["experts"]
                total += distinct * each
        return total / (n * batch)

    def test_they_are_counted_exactly(self):
        for ranks, batch, depth, placement in ((1, 1, 0, "auto"), (1, 3, 4, "auto"), (2, 1, 4, "replicated"), (2, 1, 4, "sharded")):
            with self.subTest(ranks=ranks, batch=batch, depth=depth, placement=placement):
                # the reference's own path: another could choose another expert
                found = rows(ranks, bench__batch=[batch], bench__depth=[depth], run__arms=["f64@cpu"],
                             attention__placement=placement)
                row = next(row for row in found.values() if row["kind"] == "tg")
                expected = self.count(batch, depth, 5, ranks, placement == "sharded")
                self.assertLess(abs(row["bytes_per_token"] / expected - 1), 1e-6)

    def test_the_share_of_the_bandwidth(self):
        whole = json.loads(bench())
        self.assertTrue(1e8 < whole["bandwidth_bytes_per_s"] < 1e13, whole["bandwidth_bytes_per_s"])
        for row in whole["rows"]:
            if row["kind"] == "pp":
                self.assertIsNone(row["bytes_per_token"])
                self.assertIsNone(row["share_of_bandwidth"])
            else:
                share = row["bytes_per_token"] * row["tokens_per_s"]["median"] / whole["bandwidth_bytes_per_s"]
                self.assertLess(abs(row["share_of_bandwidth"] / share - 1), 1e-6)

    def test_stolen_time_is_of_each_run(self):
        for ranks in (1, 2):
            for row in rows(ranks, bench__repeats=3).values():
                stolen = row["stolen_seconds"]
                self.assertEqual(len(stolen), 3)
                self.assertTrue(all(x is None or x >= 0 for x in stolen), stolen)  # a machine may have any

    def test_what_reads_it_is_small_on_a_host_of_many_ranks(self):
        ranks, memory = 8, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        line = moe.words(command="bench", sets={"model.path": model(), "run.arms": ["q8k@cpu"], "run.threads": 1,
                                                "bench.prompt": [], "bench.generate": [1], "bench.repeats": 1})
        # of a process that waits for these ranks alone, the most memory that one of them had
        text = "import resource, subprocess, sys\nsubprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n" \
               "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
        outcome = moe.finish(moe.start([sys.executable, "-c", text, *moe.under_mpirun([(ranks, line)])]))
        self.assertEqual(outcome.code, 0, outcome.err)
        self.assertLess(int(outcome.out), min(memory / 16, 2**32) / ranks + 200e6)


PHASES = ["embed", "attn_norm", "q, k, v", "RoPE, cache", "attention", "o", "ffn_norm", "router", "top-k", "gate, up", "swiglu",
          "down", "combine", "exchange", "head norm", "head", "digest"]
FUSED = {"RoPE, cache"}  # of few tokens: in the tasks of attention; on one rank combine too, in those of down


class Phases(unittest.TestCase):
    def found(self, ranks, **sets):
        return rows(ranks, bench__phases=True, bench__repeats=1, **sets)

    def check(self, row, ranks, few):
        phases = row["phases"]
        of = {p["phase"]: p for p in phases["of"]}
        self.assertEqual(list(of), PHASES)
        ran = {name for name, p in of.items() if p["count"]}
        left_out = {"digest"} | (FUSED if few else set()) | ({"combine"} if few and ranks == 1 else set()) | (set() if ranks > 1 else {"exchange"})
        self.assertEqual(ran, set(PHASES) - left_out)
        parts = sum(of[name]["seconds"] for name in ran)
        self.assertAlmostEqual(parts + phases["rest_seconds"], phases["seconds"], delta=1e-6 * phases["seconds"])
        self.assertGreater(phases["rest_seconds"], -1e-6 * phases["seconds"])  # no moment is counted twice
        for name in ran - {"exchange"}:
            self.assertGreater(of[name]["seconds"], 0)
            self.assertTrue(-1e-9 <= of[name]["waiting_seconds"] <= of[name]["seconds"] * (1 + 1e-9), (name, of[name]))
        for p in phases["of"]:
            if p["bytes"] and p["count"]:
                share = p["bytes"] / p["seconds"] / phases["peak_bytes_per_s"]
                self.assertAlmostEqual(p["share_of_bandwidth"], share, delta=1e-6 * share)
        return of

    def test_they_add_up(self):
        for ranks in (1, 3):
            with self.subTest(ranks=ranks):
                found = self.found(ranks, run__arms=["q8k@cpu"], run__threads=2 if ranks == 1 else 1)
                for (arm, test), row in found.items():
                    of = self.check(row, ranks, test.startswith("tg"))
                    self.assertEqual(row["digest"], base()[arm, test]["digest"])
                    if ranks == 1 and row["kind"] == "tg":
                        each = sum(p["bytes"] for p in of.values()) / row["phases"]["tokens"]
                        self.assertAlmostEqual(each, row["bytes_per_token"], delta=1e-6 * each)

    @unittest.skipUnless(os.access(EMULATED, os.X_OK), "no emulated GPU")
    def test_a_device(self):
        for ranks in (1, 2):
            found = self.found(ranks, program=EMULATED, run__arms=["q8k@cuda"])
            for (arm, test), row in found.items():
                of = {p["phase"]: p for p in row["phases"]["of"]}
                ran = {name for name, p in of.items() if p["count"]}
                few = test.startswith("tg")
                # of a batch with few tokens an expert, as both here are, down makes what it reads
                fused = {"swiglu"} | ({"attn_norm", "RoPE, cache", "ffn_norm", "top-k", "combine"} if few else set())
                self.assertLessEqual(set(PHASES) - fused - {"exchange", "head norm"}, ran)
                self.assertEqual("exchange" in ran, ranks > 1)
                self.assertEqual(of["attention"]["count"], SHAPE["layers"] * row["phases"]["batches"])
                self.assertEqual(row["digest"], base()["q8k@cpu", test]["digest"])
                for name in ran:
                    self.assertGreaterEqual(of[name]["seconds"], 0)
                    self.assertIn(name == "exchange" or of[name]["waiting_seconds"], (None, True))

    def test_what_is_multiplied(self):
        """On q8k all matrices but the router in bytes, two operations a weight and token, and attention; on f64 none."""
        found = self.found(1, run__arms=["q8k@cpu", "f64@cpu"])
        s, n = SHAPE, 20
        width, weights = s["heads"] * s["head_dim"], s["hidden"] * s["expert_width"] * s["top_k"]
        expected = {"q, k, v": s["hidden"] * (width + 2 * s["kv_heads"] * s["head_dim"]), "o": s["hidden"] * width,
                    "gate, up": 2 * weights, "down": weights}
        of = {p["phase"]: p["int8_operations"] for p in found["q8k@cpu", "pp20"]["phases"]["of"]}
        for name, each in expected.items():
            self.assertEqual(of[name], 2 * each * n * s["layers"], name)
        self.assertEqual(of["attention"], 2 * 7 * width * s["layers"] * n * (n + 1) / 2)
        self.assertEqual(of["head"], 2 * s["hidden"] * s["vocab"])  # of the last position
        self.assertEqual(of["router"], 0)
        self.assertEqual({p["int8_operations"] for p in found["f64@cpu", "pp20"]["phases"]["of"]}, {0})
        # of a token-sharded batch the reporting rank has half of the tokens, of which the first are nearer
        found = self.found(2, run__arms=["q8k@cpu"], run__threads=1, bench__prompt=[130], bench__generate=[])
        of = {p["phase"]: p["int8_operations"] for p in found["q8k@cpu", "pp130"]["phases"]["of"]}
        for name in ("q, k, v", "o"):
            share = of[name] / (2 * expected[name] * 130 * s["layers"])
            self.assertTrue(0.4 < share < 0.6, (name, share))
        whole = 2 * 7 * width * s["layers"] * 130 * 131 / 2
        self.assertTrue(0.2 * whole < of["attention"] < 0.6 * whole, of["attention"] / whole)

    def test_the_table(self):
        text = bench(form="md", bench__phases=True, bench__repeats=1, run__arms=["q8k@cpu"], bench__prompt=[])
        lines = [line for line in text.splitlines() if line.startswith("|")]
        names = [line.split("|")[1].strip() for line in lines[3:]]
        self.assertIn("q8k@cpu, tg5, by phase: ", text)
        self.assertEqual(names[0], "phase")
        self.assertEqual([n for n in PHASES if n in names], [n for n in names if n in PHASES])  # in their order
        self.assertEqual(names[-2:], ["rest", "all"])
        self.assertNotIn("by phase", bench(form="md", bench__repeats=1, run__arms=["q8k@cpu"], bench__prompt=[]))


def row_seconds(row):
    """Of its slowest run."""
    return row["tokens"] * row["batch"] / row["tokens_per_s"]["min"]


class Forms(unittest.TestCase):
    def test_the_numbers(self):
        for row in base().values():
            rate = row["tokens_per_s"]
            self.assertEqual((row["n"], len(rate["runs"])), (2, 2))
            self.assertAlmostEqual(rate["median"], np.median(rate["runs"]), delta=1e-6 * rate["median"])
            self.assertEqual((rate["min"], rate["max"]), (min(rate["runs"]), max(rate["runs"])))
            self.assertGreater(rate["min"], 0)
            self.assertIsNone(row["exchange_seconds"])  # of one rank
            self.assertFalse(row["exchange_is_alone"])
        self.assertEqual(list(base()), [(a, t) for a in ARMS for t in ("pp20", "tg5", "pp20 @ d30", "tg5 @ d30")])

    def test_the_same_rows_in_each(self):
        sets = {"bench__depth": [0, 30], "bench__repeats": 1, "bench__warmup": 0}
        table = list(csv.DictReader(io.StringIO(bench(form="csv", **sets))))
        expected = {key: row["digest"] for key, row in base().items()}
        self.assertEqual({(row["arm"], row["test"]): row["digest"] for row in table}, expected)
        self.assertTrue(all(float(row["min_tokens_per_s"]) > 0 for row in table))
        lines = [line for line in bench(form="md", **sets).splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        self.assertEqual({(row[0], row[2]): row[-1] for row in cells[2:]}, expected)
        self.assertEqual({len(row) for row in cells}, {11})

    def test_the_time_in_the_exchange(self):
        for row in rows(2).values():
            self.assertFalse(row["exchange_is_alone"])
            self.assertGreater(row["exchange_seconds"], 0)
            self.assertLess(row["exchange_seconds"], 2 * row_seconds(row))

    def test_the_file(self):
        folder = moe.fresh()
        printed = json.loads(bench(output__dir=folder))
        with open(os.path.join(folder, "bench.json"), encoding="utf-8") as file:
            self.assertEqual(json.load(file), printed)
        self.assertEqual(os.listdir(folder), ["bench.json"])

    def test_the_fingerprint_is_that_of_parity(self):
        run = moe.run({"model.path": model(), "run.arms": ["q8k@cpu"], "input.tokens": [1, 2]})
        expected, few = run.report()["model"]["fingerprint"], {"bench__repeats": 1, "run__arms": ["q8k@cpu"]}
        self.assertEqual(json.loads(bench(2, **few))["fingerprint"], expected)
        self.assertIn(f"fingerprint {expected};", bench(form="md", **few))
        self.assertEqual({row["fingerprint"] for row in csv.DictReader(io.StringIO(bench(form="csv", **few)))}, {expected})

    def test_lists(self):
        self.assertEqual(list(rows(bench__prompt=[], bench__generate=[3, 1], run__arms=["q8k@cpu"])),
                         [("q8k@cpu", "tg3"), ("q8k@cpu", "tg1")])


class Refusals(unittest.TestCase):
    def refused(self, words, ranks=1, **sets):
        keys = {"model.path": model(), "run.arms": ARMS, **{k.replace("__", "."): v for k, v in sets.items()}}
        outcome = moe.attempt(keys, ranks, command="bench")
        self.assertNotIn(outcome.code, (0, None))
        self.assertEqual(outcome.out, "")
        self.assertTrue(outcome.faults(), outcome.err)
        for fault in outcome.faults():
            self.assertRegex(fault, words)

    def test_they_name_what_is_wrong(self):
        self.refused("640 positions.* context is 300", bench__prompt=[512], bench__depth=[128], ranks=2)
        self.refused(r"run\.context = 20: bench needs 30", bench__prompt=[30], bench__generate=[], run__context=20)
        self.refused("nothing to measure", bench__prompt=[], bench__generate=[])
        self.refused("nothing to measure", bench__depth=[])
        self.refused(r"bench\.prompt: expected an integer from 1", bench__prompt=[4, 0])
        self.refused(r"bench\.repeats", bench__repeats=0)
        self.refused(r"bench\.format", bench__format="xml")


if __name__ == "__main__":
    moe.main()
