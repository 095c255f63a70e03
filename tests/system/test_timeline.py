"""output.timeline: DIR/timeline.json is valid and whole, its events nest on every rank, and no digest changes."""
import json
import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import moe

TINY = os.path.join(moe.SOURCE, "configs", "tiny", "tiny-qwen3moe-Q4_K_M.gguf")
LAYERS = 3
WRITTEN = 4
TOKENS = [(7 * t) % 4096 for t in range(200)]  # 3 ranks share them


def timeline(folder):
    with open(os.path.join(folder, "timeline.json"), encoding="utf-8") as file:
        return json.load(file)


def events_of(read, rank):
    return [e for e in read["traceEvents"] if e["pid"] == rank and e["ph"] == "X"]


def nanoseconds(microseconds):
    return round(microseconds * 1000)


class Timeline(unittest.TestCase):
    def check_nesting(self, events):
        """In the order of the file each event lies in all that are open, or after them."""
        around = []
        for e in events:
            start = nanoseconds(e["ts"])
            end = start + nanoseconds(e["dur"])
            while around and around[-1][1] <= start and not around[-1][1] == end == start:
                around.pop()
            if around:
                self.assertLessEqual(around[-1][0], start, e)
                self.assertLessEqual(end, around[-1][1], e)
            around.append((start, end))
        return len(events)

    def check_file(self, folder, ranks):
        read = timeline(folder)
        clocks = read["otherData"]["ranks"]
        self.assertEqual([c["rank"] for c in clocks], list(range(ranks)))
        self.assertEqual({e["pid"] for e in read["traceEvents"]}, set(range(ranks)))
        for rank, clock in enumerate(clocks):
            events = events_of(read, rank)
            self.assertEqual(sum(e["cat"] != "wait" or e["name"] == "wait for the device" for e in events), clock["spans"])
            self.assertEqual(clock["lost"], 0)
            for when in ("clock_at_start", "clock_at_end"):  # one host has one clock
                self.assertLessEqual(abs(clock[when]["skew_seconds"]), clock[when]["bound_seconds"] + 1e-9)
                self.assertEqual(clock[when]["bound_seconds"] > 0, rank > 0)
            self.check_nesting(events)
        return read

    def test_generate(self):
        sets = {"model.path": TINY, "input.tokens": TOKENS, "run.arms": ["q8k@cpu"], "run.generate": WRITTEN}
        without = moe.run(sets, 3, command="generate")
        self.assertFalse(os.path.exists(os.path.join(without.folder, "timeline.json")))
        self.assertNotIn("timeline", without.report()["run"])
        outcome = moe.run(sets | {"output.timeline": True}, 3, command="generate")
        said = outcome.report()
        self.assertEqual(said["arms"][0]["digest"], without.report()["arms"][0]["digest"])
        self.assertEqual(said["arms"][0]["generated"], without.report()["arms"][0]["generated"])
        skew = said["run"]["timeline"]
        self.assertLessEqual(skew["largest_skew_seconds"], skew["skew_bound_seconds"])
        read = self.check_file(outcome.folder, 3)
        exchanges = []
        for rank in range(3):
            events = events_of(read, rank)
            names = {e["name"] for e in events}
            # the prompt is token-sharded, what is written is not
            self.assertLessEqual({"batch", "layer", "embed", "project", "attend", "attention", "route", "experts_up",
                                  "experts_down", "combine", "head", "digest", "exchange"}, names)
            batches = [e for e in events if e["name"] == "batch"]
            self.assertEqual([e["args"]["tokens"] for e in batches], [len(TOKENS)] + [1] * (WRITTEN - 1))
            self.assertEqual({e["args"]["arm"] for e in batches}, {"q8k@cpu"})
            layers = [e["args"]["layer"] for e in events if e["name"] == "layer"]
            self.assertEqual(layers, list(range(LAYERS)) * WRITTEN)
            exchanges.append([e for e in events if e["name"] == "exchange"])
            waits = [e for e in events if e["name"] == "wait for the last rank"]
            self.assertTrue(all(e["args"]["rank"] != rank for e in waits if e["dur"] > 1000))
        self.assertEqual(len({len(e) for e in exchanges}), 1)
        # somebody waits in nearly every exchange, for there is one that comes last
        waited = sum(e["name"] == "wait for the last rank" for e in read["traceEvents"])
        self.assertGreater(waited, len(exchanges[0]))

    def test_other_commands(self):
        folder = moe.fresh()
        sets = {"model.path": TINY, "run.arms": ["q8k@cpu"], "bench.prompt": [8], "bench.generate": [2], "bench.batch": [2],
                "bench.repeats": 1, "bench.warmup": 0}
        outcome = moe.attempt(sets | {"output.timeline": True}, 2, out=folder, command="bench")
        self.assertEqual(outcome.code, 0, outcome.err)
        with open(os.path.join(folder, "bench.json"), encoding="utf-8") as file:
            bench = json.load(file)
        self.assertLessEqual(bench["timeline"]["largest_skew_seconds"], bench["timeline"]["skew_bound_seconds"])
        self.check_file(folder, 2)
        parity = {"model.path": TINY, "input.tokens": TOKENS[:5], "run.arms": ["f32@cpu", "q8k@cpu"]}
        outcome = moe.attempt(parity | {"output.timeline": True}, 1, out=folder)
        self.assertEqual(outcome.code, 0, outcome.err)
        read = self.check_file(folder, 1)
        self.assertEqual({e["args"]["arm"] for e in read["traceEvents"] if e["name"] == "layer"}, {"f32@cpu", "q8k@cpu"})
        self.assertEqual(moe.attempt(parity, 1, out=folder).code, 0)  # what an earlier run left is gone
        self.assertFalse(os.path.exists(os.path.join(folder, "timeline.json")))
        refused = moe.attempt(parity | {"output.timeline": True}, 2)
        self.assertEqual(refused.code, 2)
        self.assertIn("output.timeline", refused.err)


if __name__ == "__main__":
    moe.main()
