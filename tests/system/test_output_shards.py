"""attention.placement: heads and rows divided among ranks change no digest, for any number of ranks, heads that do not
divide, batches of one and of many; what was chosen, and why, is in the report."""
import json
import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import moe

# 3 key/value heads over 2 and 4 ranks; rows of o and of the head that are no multiples of what ranks divide
SHAPE = {"layers": 2, "hidden": 320, "heads": 6, "kv_heads": 3, "head_dim": 32, "experts": 8, "vocab": 500}
KBLOCKS = {"layers": 2, "hidden": 512, "heads": 8, "kv_heads": 4, "head_dim": 64, "experts": 8, "vocab": 1000}
ARMS = ["f64@cpu", "f32@cpu", "q8k@cpu", "q8k_split@cpu"]
WRITTEN = 41  # 38 batches of one token are run before one way is chosen
PROMPTS = [[5, 17, 100, 3], [44, 2, 9, 31], [7, 7, 7, 8]]


def generate(model, placement, ranks, tokens, **sets):
    keys = {"model.path": model, "run.arms": ARMS, "input.tokens": tokens, "run.generate": WRITTEN, "run.temperature": 0.8,
            "run.ignore_eos": True, "run.threads": 1, "attention.placement": placement}
    return moe.run(keys | sets, ranks, command="generate")


def found(outcome):
    return [(a["name"], a["digest"], a["layer_digests"], a["generated"]) for a in outcome.report()["arms"]]


def bench(model, placement, ranks, **sets):
    folder = moe.fresh()
    keys = {"model.path": model, "run.arms": ["q8k@cpu"], "bench.prompt": [], "bench.generate": [9], "bench.repeats": 1,
            "bench.warmup": 0, "attention.placement": placement}
    outcome = moe.attempt(keys | sets, ranks, out=folder, command="bench")
    assert outcome.code == 0, outcome.err
    with open(os.path.join(folder, "bench.json"), encoding="utf-8") as file:
        return json.load(file)["rows"]


class OutputShards(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.uneven = moe.model(moe.random_seed(), **SHAPE)
        cls.blocks = moe.model(moe.random_seed() + 1, **KBLOCKS)

    def test_what_is_written(self):
        for model, ways in ((self.uneven, ((3, "auto"), (4, "sharded"))), (self.blocks, ((2, "sharded"),))):
            one = found(generate(model, "replicated", 1, PROMPTS[0]))
            for ranks, placement in ways:
                with self.subTest(ranks=ranks, placement=placement):
                    outcome = generate(model, placement, ranks, PROMPTS[0])
                    self.assertEqual(found(outcome), one)
                    said = [a["attention"] for a in outcome.report()["arms"]]
                    if placement == "sharded":
                        self.assertEqual(said, ["sharded"] * len(ARMS))
                    else:
                        for text in said:
                            self.assertRegex(text, r"^batches of 1: (sharded|replicated), \S+ ms \(\S+\); heads of 1: ")

    def test_rates(self):
        """More sequences than logits at once; and what every rank read, one of them reads."""
        sets = {"bench.batch": [1, 40], "run.threads": 1}
        whole, divided = (bench(self.blocks, placement, 2, **sets) for placement in ("replicated", "sharded"))
        for one, other in zip(whole, divided):
            self.assertEqual(one["digest"], other["digest"], one["test"])
            self.assertEqual((one["attention"], other["attention"]), ("replicated", "sharded"))
        self.assertLess(divided[0]["bytes_per_token"], 0.75 * whole[0]["bytes_per_token"])

    def test_threads_that_share_keys(self):
        sets = {"bench.depth": [600], "run.threads": 2}
        one, other = bench(self.blocks, "replicated", 1, **sets), bench(self.blocks, "sharded", 2, **sets)
        self.assertEqual(one[0]["digest"], other[0]["digest"])

    def test_the_steps(self):
        outcome = generate(self.blocks, "sharded", 2, PROMPTS[1], **{"output.timeline": True, "run.arms": ["q8k@cpu"]})
        with open(os.path.join(outcome.folder, "timeline.json"), encoding="utf-8") as file:
            events = [e for e in json.load(file)["traceEvents"] if e["pid"] == 0]
        layer = [e["args"]["layer"] for e in events if e["name"] == "exchange" and "layer" in e["args"]]
        # heads, rows of o and slots of each layer; and the logits
        self.assertEqual(layer.count(0), 3 * WRITTEN)
        self.assertEqual(layer.count(KBLOCKS["layers"]), WRITTEN)

    def test_counted_placement(self):
        """Experts placed by the routes that a run chose: the same bits, and a busiest rank nearer to the mean."""
        keys = {"model.path": self.blocks, "run.arms": ["q8k@cpu"], "input.tokens": [(37 * t) % 1000 for t in range(60)]}
        routes = moe.run(keys | {"output.routes": True}, 1)
        path = os.path.join(routes.folder, "routes.npy")
        chosen = moe.np.load(path)
        for ranks in (2, 3):
            counted = moe.run(keys | {"experts.placement": "counted", "experts.counts": path, "attention.placement": "sharded"},
                              ranks).report()
            self.assertEqual(counted["arms"][0]["digest"], routes.report()["arms"][0]["digest"])
            self.assertEqual(counted["run"]["placement"], "counted")
            self.assertEqual([r["experts"] for r in counted["ranks"]], [8 // ranks + (r < 8 % ranks) for r in range(ranks)])
            counts = moe.np.stack([moe.np.bincount(layer.ravel(), minlength=8) for layer in chosen])
            contiguous = moe.np.array_split(moe.np.arange(8), ranks)
            busiest = sum(max(layer[own].sum() for own in contiguous) for layer in counts)
            self.assertLessEqual(1, counted["run"]["counted_load"])
            self.assertLessEqual(counted["run"]["counted_load"], busiest * ranks / counts.sum())
        for sets, said in (({"experts.placement": "counted"}, "experts.counts"),
                           ({"experts.placement": "counted", "experts.counts": moe.fresh(".npy")}, ".npy")):
            refused = moe.attempt(keys | sets, 2)
            self.assertNotEqual(refused.code, 0)
            self.assertIn(said, refused.err)

    def test_who_cannot(self):
        """A rank that computes only experts has no part of attention."""
        mixed = {"run.arms": ["ranks", "q8k@cpu"], "ranks.arm": ["q8k@cpu"], "ranks.shared_ranks": [0]}
        arms = generate(self.blocks, "sharded", 2, PROMPTS[2], **mixed).report()["arms"]
        self.assertEqual([a["attention"] for a in arms], ["replicated: some ranks compute only experts", "sharded"])
        self.assertEqual(arms[0]["digest"], arms[1]["digest"])


if __name__ == "__main__":
    moe.main()
