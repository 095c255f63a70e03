#!/usr/bin/env python3
"""The law: same path, same bits, whatever the ranks, threads, cuts, batches, rows and placements; and a digest
that catches each fault that is planted."""
import functools
import json
import os
import unittest

import moe
import numpy as np

ARMS = ["q8k@cpu", "f32@cpu", "f64@cpu"]
PLANTED = os.environ.get("MOE_RUN_PLANTED", os.path.join(os.path.dirname(moe.PROGRAM), "moe_run_planted"))
SEED = moe.random_seed()
# three K-quant blocks to a row, three chunks of keys, experts that few numbers of ranks divide evenly
SHAPE = dict(layers=2, hidden=768, heads=6, kv_heads=2, head_dim=64, experts=9, top_k=4, expert_width=256, vocab=512)
MODEL = moe.model(SEED, **SHAPE)
WITH_WORDS = moe.model(SEED, tokenizer=True, **SHAPE)
TOKENS = np.random.default_rng(SEED).integers(0, 512, 140).tolist()
LONG = np.random.default_rng(SEED + 1).integers(0, 512, 330).tolist()  # 64 tokens and more for each of four ranks
TEXTS = ["The quick brown fox jumps over the lazy dog, and then the dog thinks that the fox is there. " * 3, "a",
         "Numbers are 0123456789 and naïve cafés; the world is 世界.", "In the beginning there was an answer to the"]
MANY = {"model__path": WITH_WORDS, "input__tokens": None, "input__prompts": TEXTS * 3}  # unequal lengths


def parity(ranks=1, rest={}, **sets):
    keys = {"model.path": MODEL, "input.tokens": TOKENS, "run.arms": ARMS, "run.threads": 1}
    keys |= {key.replace("__", "."): value for key, value in sets.items()}
    return moe.run({key: value for key, value in keys.items() if value is not None}, ranks, **rest)


@functools.cache
def base():
    """One rank, one thread, one batch, the row that is the definition in C."""
    return parity(run__rows="portable", output__logits=True)


def digests(outcome):
    return {arm["name"]: (arm["digest"], arm["layer_digests"]) for arm in outcome.report()["arms"]}


@functools.cache
def rows_that_run():
    """Of the cpu backend on this machine, the one that "auto" takes first."""
    text = moe.finish(moe.start([moe.PROGRAM, "--version"])).out
    line = next(line for line in text.splitlines() if line.startswith("backend cpu"))
    return line.split(": ")[1].split(", ")


class Law(unittest.TestCase):
    maxDiff = None

    def same(self, outcome, ranks=None):
        self.assertEqual(digests(outcome), digests(base()))
        if ranks:
            self.assertEqual({arm["ranks"] for arm in outcome.report()["arms"]}, {ranks})

    def test_base_is_worth_comparing(self):
        found = digests(base())
        self.assertEqual(set(found), set(ARMS))
        texts = [text for digest, layers in found.values() for text in (digest, *layers)]
        self.assertEqual(len(set(texts)), len(texts), "arms and layers have digests of their own")
        self.assertTrue(np.isfinite(base().logits("q8k@cpu")).all())

    def test_ranks(self):
        for ranks in (2, 3, 4, 7):
            with self.subTest(ranks=ranks):
                outcome = parity(ranks)
                self.same(outcome, ranks)
                self.assertEqual(sum(rank["experts"] for rank in outcome.report()["ranks"]), 9)

    def test_threads(self):
        for ranks, threads in ((1, 2), (3, 2)):
            with self.subTest(ranks=ranks, threads=threads):
                outcome = parity(ranks, run__threads=threads)
                self.same(outcome, ranks)
                self.assertEqual(outcome.report()["arms"][0]["threads"], threads)

    def test_chunks(self):
        for ranks, chunk in ((1, 1), (2, 7), (1, 64), (1, 65)):
            with self.subTest(ranks=ranks, chunk=chunk):
                self.same(parity(ranks, run__chunk=chunk), ranks)

    def test_sharded_batches(self):
        """Batches that are large enough for each rank to have tokens of its own; the last batch is not. Everything that
        the comparison of arms finds is the same, too."""
        def found(outcome):
            report = outcome.report()
            self.assertGreaterEqual(sum(sequence["tokens"] for sequence in report["arms"][0]["sequences"]), 4 * 64)
            files = [np.fromfile(os.path.join(outcome.folder, name), np.uint8).tobytes()
                     for name in ("tokens.csv", "layers.csv", *(f"logits.{arm}.npy" for arm in ARMS))]
            return (digests(outcome), report["pairs"], [arm["perplexity"] for arm in report["arms"]],
                    [arm["sequences"] for arm in report["arms"]], files)

        for words in ({"input__tokens": LONG}, MANY):
            one = found(parity(1, output__logits=True, **words))
            for ranks, chunk in ((2, 512), (3, 200), (4, 512), (2, 130)):
                with self.subTest(ranks=ranks, chunk=chunk, input=words.keys()):
                    self.assertEqual(found(parity(ranks, run__chunk=chunk, output__logits=True, **words)), one)

    def test_sharded_batches_that_nobody_looks_into(self):
        """Without a comparison the routing goes another way; prompts are sharded and what is generated is not."""
        def found(ranks, command, **sets):
            report = parity(ranks, {"command": command}, **sets).report()
            keys = ("name", "digest", "layer_digests", "perplexity", "generated")
            return [{key: arm.get(key) for key in keys} for arm in report["arms"]]

        for command, words in (("generate", MANY | {"run__generate": 4}), ("perplexity", {"input__tokens": LONG}),
                               ("generate", {"input__tokens": LONG, "run__generate": 3})):
            one = found(1, command, **words)
            for ranks, chunk in ((2, 512), (3, 200), (4, 290)):
                with self.subTest(ranks=ranks, chunk=chunk, command=command):
                    self.assertEqual(found(ranks, command, run__chunk=chunk, **words), one)

    def test_placements(self):
        for ranks, placement in ((3, "strided"), (3, [2, 0, 0, 1, 2, 2, 2, 0, 2]), (7, "strided"), (1, "balanced"),
                                 (2, "balanced"), (4, "balanced")):
            with self.subTest(placement=placement, ranks=ranks):
                outcome = parity(ranks, experts__placement=placement)
                self.same(outcome, ranks)
                owned = [rank["experts"] for rank in outcome.report()["ranks"]]
                self.assertEqual((sum(owned), min(owned) > 0), (9, True))

    def test_balanced_gives_the_slow_less(self):
        """f64 takes several times as long as f32. The shares follow a measurement, which other work can spoil."""
        for _ in range(3):
            outcome = parity(2, run__arms=["ranks"], ranks__arm=["f64@cpu", "f32@cpu"], experts__placement="balanced")
            slow, fast = [rank["experts"] for rank in outcome.report()["ranks"]]
            if slow < fast:
                return
        self.assertLess(slow, fast)

    def test_rows_and_transports(self):
        rows = [{"run__rows": row} for row in rows_that_run() if row != "portable"]
        for sets in (*rows, {"comm__transport": "mpi"}, {"run__bind": False}):
            with self.subTest(**sets):
                outcome = parity(**sets)
                self.same(outcome)
                self.assertEqual(outcome.report()["build"]["row"], sets.get("run__rows", rows_that_run()[0]))

    def test_the_order_and_company_of_arms(self):
        for arm in ARMS:
            with self.subTest(arm=arm):
                self.assertEqual(digests(parity(2, run__arms=[arm]))[arm], digests(base())[arm])

    def test_the_cache_type_is_part_of_the_input(self):
        """Of f32; f64 keeps doubles and q8k integers whatever run.kv says, and each arm's report says what."""
        outcome = parity(run__kv="f32")
        found = digests(outcome)
        self.assertNotEqual(found["f32@cpu"], digests(base())["f32@cpu"])
        for name in ("f64@cpu", "q8k@cpu"):
            self.assertEqual(found[name], digests(base())[name])
        for run, kv in ((outcome, "f32"), (base(), "f16")):
            caches = {arm["name"]: arm["cache"] for arm in run.report()["arms"]}
            self.assertEqual(caches, {"f64@cpu": "f64", "f32@cpu": kv, "q8k@cpu": "limbs"})

    # ---- decode against prefill ----

    def test_decode(self):
        prompt = TOKENS[:57]
        written = parity(2, input__tokens=prompt, run__generate=12)  # across the end of a chunk of keys
        for name in ARMS:
            with self.subTest(arm=name):
                text = written.arm(name)["generated"][0]
                self.assertEqual(len(text["tokens"]), 12)
                fed = prompt + text["tokens"][:-1]  # the last one was written but not read
                read = parity(1, input__tokens=fed, run__arms=[name], run__chunk=7)
                self.assertEqual(text["digest"], read.arm(name)["digest"])
                self.assertNotEqual(text["digest"], written.arm(name)["digest"])

    def test_generate_command(self):
        sets = {"input__tokens": TOKENS[:70], "run__generate": 5, "run__temperature": 0.9, "run__top_k": 40,
                "run__top_p": 0.95, "run__seed": SEED}
        one, three = parity(1, **sets), parity(3, {"command": "generate"}, **sets)
        for name in ARMS:
            a, b = one.arm(name), three.arm(name)
            self.assertEqual(a["generated"], b["generated"])
            self.assertEqual((a["digest"], a["layer_digests"]), (b["digest"], b["layer_digests"]))

    # ---- alone or in a batch ----

    def test_batch(self):
        sets = {"model__path": WITH_WORDS, "input__tokens": None, "run__generate": 3, "run__arms": ARMS[:2]}
        batch = parity(3, input__prompts=TEXTS, run__chunk=50, **sets)
        alone = [parity(1, input__prompt=text, **sets) for text in TEXTS]
        for name in ARMS[:2]:
            with self.subTest(arm=name):
                arm, arms = batch.arm(name), [one.arm(name) for one in alone]
                self.assertEqual([s["digest"] for s in arm["sequences"]], [one["digest"] for one in arms])
                self.assertEqual([s["tokens"] for s in arm["sequences"]], [one["tokens"] for one in arms])
                self.assertGreater(arm["sequences"][0]["tokens"], 64)
                self.assertEqual(arm["digest"], moe.digest_sum(one["digest"] for one in arms))
                for layer, digest in enumerate(arm["layer_digests"]):
                    self.assertEqual(digest, moe.digest_sum(one["layer_digests"][layer] for one in arms))
                for text, one in zip(arm["generated"], arms):
                    self.assertEqual(text["tokens"], one["generated"][0]["tokens"])
                    self.assertEqual(text["digest"], one["generated"][0]["digest"])


# Experts 0 to 4 of the nine are q8k's, the others f32's, whatever the number of ranks.
MIXES = {2: (["q8k@cpu", "f32@cpu"], [0, 0, 0, 0, 0, 1, 1, 1, 1]),
         3: (["f32@cpu", "q8k@cpu", "q8k@cpu"], [2, 1, 2, 2, 1, 0, 0, 0, 0]),
         4: (["q8k@cpu", "f32@cpu"], [0, 2, 0, 2, 0, 3, 3, 1, 1])}


class Roles(unittest.TestCase):
    """Mixed jobs: the result follows from the map expert to arm, whoever computes the shared steps."""

    def mixed(self, ranks, shared, rest={}, **sets):
        arms, placement = MIXES[ranks]
        keys = {"run__arms": ["ranks"], "ranks__arm": arms, "ranks__shared": "q8k@cpu", "ranks__shared_ranks": shared,
                "experts__placement": placement}
        return parity(ranks, rest, **(keys | sets))

    def subsets(self, ranks):
        return [[r for r in range(ranks) if mask >> r & 1] for mask in range(1, 2**ranks)]

    @functools.cache
    def base(self):
        return digests(self.mixed(2, []))["ranks"]

    def test_sets_of_shared_ranks(self):
        self.assertNotIn(self.base()[0], [digest for digest, layers in digests(base()).values()])
        for ranks, sets in ((2, {}), (3, {"run__chunk": 50}), (4, {})):
            for shared in [[]] + self.subsets(ranks)[::1 if ranks < 4 else 3]:
                with self.subTest(ranks=ranks, shared=shared):
                    outcome = self.mixed(ranks, shared, **sets)
                    self.assertEqual(digests(outcome)["ranks"], self.base())
                    roles = [rank["role"] for rank in outcome.report()["ranks"]]
                    self.assertEqual(roles, ["shared" if not shared or r in shared else "experts" for r in range(ranks)])

    def test_one_arm_whoever_shares(self):
        for arm in ARMS:
            for ranks, shared in ((1, [0]), (3, [0, 2]), (4, [2])):
                with self.subTest(arm=arm, ranks=ranks, shared=shared):
                    found = digests(parity(ranks, run__arms=["ranks"], ranks__arm=[arm], ranks__shared_ranks=shared))
                    self.assertEqual(found["ranks"], digests(base())[arm])

    def test_other_reals(self):
        """Experts in floats whose inputs travel as doubles, and the other way round."""
        for path, arms in (("f64@cpu", ["q8k@cpu", "f32@cpu"]), ("f32@cpu", ["f64@cpu", "q8k@cpu"])):
            found = [digests(self.mixed(2, shared, ranks__arm=arms, ranks__shared=path)) for shared in ([], [0], [1])]
            self.assertEqual(found, found[:1] * 3)

    def test_cuts_and_batches(self):
        words = {"model__path": WITH_WORDS, "input__tokens": None, "input__prompts": TEXTS * 2}
        one = digests(self.mixed(2, [], **words))
        for ranks, shared, chunk in ((2, [1], 512), (3, [0, 2], 200), (4, [1, 3], 7), (4, [0, 1, 2], 300)):
            with self.subTest(ranks=ranks, shared=shared, chunk=chunk):
                self.assertEqual(digests(self.mixed(ranks, shared, run__chunk=chunk, **words)), one)

    def test_sharded_batches(self):
        """Several shared ranks with tokens of their own, and expert ranks that are sent all of them."""
        for words in ({"input__tokens": LONG}, MANY):
            one = self.mixed(2, [], **words)
            plain = self.mixed(2, [0], {"command": "generate"}, run__generate=2, **words).arm("ranks")
            for ranks, shared, chunk in ((3, [0, 2], 512), (3, [1, 2], 170), (4, [0, 1, 3], 300)):
                with self.subTest(ranks=ranks, shared=shared, chunk=chunk, input=words.keys()):
                    other = self.mixed(ranks, shared, run__chunk=chunk, **words)
                    self.assertEqual(digests(other), digests(one))
                    self.assertEqual(other.arm("ranks")["perplexity"], one.arm("ranks")["perplexity"])
                    other = self.mixed(ranks, shared, {"command": "generate"}, run__chunk=chunk, run__generate=2, **words)
                    for key in ("digest", "layer_digests", "generated"):
                        self.assertEqual(other.arm("ranks")[key], plain[key])

    def test_sharded_beside_pure_arms(self):
        """Different arms shard one batch over different ranks."""
        one = self.mixed(2, [], run__arms=[*ARMS, "ranks"], input__tokens=LONG)
        for ranks, shared in ((3, [0, 2]), (4, [1, 2])):
            with self.subTest(ranks=ranks, shared=shared):
                other = self.mixed(ranks, shared, run__arms=[*ARMS, "ranks"], input__tokens=LONG)
                self.assertEqual(digests(other), digests(one))
                self.assertEqual(other.report()["pairs"], one.report()["pairs"])

    def test_what_they_write(self):
        sets = {"model__path": WITH_WORDS, "input__tokens": None, "input__prompts": TEXTS, "run__generate": 6,
                "run__temperature": 0.9, "run__seed": SEED}
        one = self.mixed(2, [], **sets).arm("ranks")
        self.assertEqual(len(one["generated"]), len(TEXTS))
        for ranks, shared, rest in ((2, [1], {}), (3, [0], {"command": "generate"}), (4, [2, 3], {"command": "generate"})):
            with self.subTest(ranks=ranks, shared=shared, **rest):
                other = self.mixed(ranks, shared, rest, **sets).arm("ranks")
                for key in ("digest", "layer_digests", "generated", "sequences"):
                    self.assertEqual(other[key], one[key])

    def test_beside_pure_arms(self):
        """These are shared by all ranks; the rank that reports is the first that has every result."""
        def numbers(outcome):
            report = outcome.report()
            return digests(outcome), report["pairs"], [arm["perplexity"] for arm in report["arms"]]

        arms = [*ARMS, "ranks"]
        one = numbers(self.mixed(2, [], run__arms=arms))
        self.assertEqual({name: one[0][name] for name in ARMS}, digests(base()))
        for ranks, shared in ((2, [1]), (3, [2]), (4, [1, 2])):
            with self.subTest(ranks=ranks, shared=shared):
                self.assertEqual(numbers(self.mixed(ranks, shared, run__arms=arms)), one)

    def test_perplexity_and_bench(self):
        def found(ranks, shared):
            perplexity = self.mixed(ranks, shared, {"command": "perplexity"}, run__context=70).arm("ranks")
            folder = moe.fresh()
            arms, placement = MIXES[ranks]
            sets = {"model.path": MODEL, "run.arms": ["ranks", "f32@cpu"], "ranks.arm": arms, "ranks.shared": "q8k@cpu",
                    "ranks.shared_ranks": shared, "experts.placement": placement, "run.threads": 1, "bench.prompt": [140],
                    "bench.generate": [3], "bench.repeats": 2, "bench.depth": [9], "bench.format": "json"}
            outcome = moe.attempt(sets, ranks, command="bench", out=folder)
            self.assertEqual(outcome.code, 0, outcome.err)
            rows = json.loads(outcome.out)["rows"]
            return perplexity["perplexity"], perplexity["digest"], [(r["arm"], r["test"], r["digest"]) for r in rows]

        one = found(2, [])
        for ranks, shared in ((2, [1]), (4, [3, 1])):
            with self.subTest(ranks=ranks, shared=shared):
                self.assertEqual(found(ranks, shared), one)

    def test_expert_ranks_hold_less(self):
        ranks = self.mixed(2, [1], run__context=4000, run__chunk=8).report()["ranks"]
        self.assertLess(4 * ranks[0]["state_bytes"], ranks[1]["state_bytes"])
        self.assertEqual(ranks[0]["shared_bytes"], 0)


@unittest.skipUnless(os.access(PLANTED, os.X_OK), "moe_run_planted is not built")
class Planted(unittest.TestCase):
    """Each planted row is close to the truth, so that only the digest tells, and the digest does tell."""

    def test_the_planted_program_is_the_same_but_for_its_rows(self):
        found = digests(parity(rest={"program": PLANTED}, run__rows="portable", run__arms=ARMS[:2]))
        self.assertEqual(found, {name: digests(base())[name] for name in ARMS[:2]})

    def planted(self, row, caught, spared=(), subtle=True):
        outcome = parity(rest={"program": PLANTED}, run__rows=row, run__arms=[*caught, *spared], output__logits=True)
        self.assertEqual(outcome.report()["build"]["row"], row)
        found, true = digests(outcome), digests(base())
        for name in caught:
            self.assertNotEqual(found[name][0], true[name][0], f"{row}: the digest of {name} does not see it")
            self.assertNotEqual(found[name][1][-1], true[name][1][-1])
            error = moe.rel_l2(outcome.logits(name), base().logits(name))
            # one flipped rounding of q8k re-randomises what follows, so there only the middle of positions is close
            # and one flip of the router what follows in f32
            print(f"{row}: {name}: median rel_l2 {np.median(error):.2e}, worst {error.max():.2e}")
            if subtle:
                self.assertLess(np.median(error), 1e-3 if name == "f32@cpu" else 2e-2, f"{row}: no subtle fault")
        for name in spared:
            self.assertEqual(found[name], true[name])

    def test_block_order(self):
        self.planted("planted_block_order", ["q8k@cpu"], ["f32@cpu"])

    def test_packed_order(self):
        self.planted("planted_packed_order", ["q8k@cpu"], ["f32@cpu"])

    def test_slot_order(self):
        self.planted("planted_slot_order", ["q8k@cpu", "f32@cpu"])

    def test_fold_order(self):
        self.planted("planted_fold_order", ["f32@cpu"], ["q8k@cpu"])

    def test_fold_maximum(self):
        self.planted("planted_fold_maximum", ["f32@cpu"], ["q8k@cpu"])

    def test_exact_product(self):
        self.planted("planted_exact_product", ["q8k@cpu"], ["f32@cpu"], subtle=False)

    def test_exact_boundary(self):
        self.planted("planted_exact_boundary", ["q8k@cpu"], ["f32@cpu"])

    def test_exact_fold(self):
        self.planted("planted_exact_fold", ["q8k@cpu"], ["f32@cpu"])

    def test_exact_balance(self):
        self.planted("planted_exact_balance", ["q8k@cpu"], ["f32@cpu"])

    def test_lane_tree(self):
        self.planted("planted_lane_tree", ["q8k@cpu", "f32@cpu"])

    def test_rope_angle(self):
        self.planted("planted_rope_angle", ["q8k@cpu", "f32@cpu"])

    def test_rope_pairs(self):
        self.planted("planted_rope_pairs", ["q8k@cpu", "f32@cpu"], subtle=False)

    def test_exp_last_bit(self):
        self.planted("planted_exp_last_bit", ["q8k@cpu", "f32@cpu"])

    def test_f16_cache(self):
        """Toward zero it is as coarse as f16: too far off to ask for a small error, which decides nothing here."""
        self.planted("planted_f16_cache", ["f32@cpu"], ["q8k@cpu"], subtle=False)

    def test_q8k_sign_is_in_no_digest(self):
        """The other sign flips those of the scale and of every quant, so the products are the same: only who compares
        blocks can tell (test_rows, test_golden)."""
        self.planted("planted_q8k_sign", [], ["q8k@cpu", "f32@cpu"])


if __name__ == "__main__":
    moe.main()
