#!/usr/bin/env python3
"""Ranks whose GPUs store rows into each other's memory (kernels/cuda/peers.cuh), on emulated GPUs, whose memory is shared
between processes: the law over 2 and 3 ranks, with peers and over the stand-in for NCCL; who is not linked; a rank that
stops while the others wait for it in a kernel."""
import functools
import os
import signal
import time
import unittest

import moe
import numpy as np

SEED = moe.random_seed()
os.environ["CUDA_VISIBLE_DEVICES"] = "0,1,2"  # the emulation takes the list as it is
DEADLINE = 15.0  # also for the start of a run on a loaded machine
SHAPES = {
    # of the kind that one token at a time has kernels of its own for
    "wide": dict(hidden=512, layers=3, experts=6, top_k=3, heads=2, kv_heads=1, head_dim=128, expert_width=256, types="Q4_K_M",
                 vocab=256),
    # of so few thread blocks that ranks divide its cache from 4,096 positions on
    "long": dict(hidden=256, layers=1, experts=3, top_k=2, heads=2, kv_heads=1, head_dim=128, expert_width=256, types="Q4_K_M",
                 vocab=256, context=4200),
    # heads that the one launch of all layers does not know
    "narrow": dict(hidden=256, layers=2, experts=6, top_k=3, heads=8, kv_heads=2, head_dim=32, expert_width=256, types="Q4_K_M",
                   vocab=256),
    # of no even number anywhere; its experts read floats
    "odd": dict(hidden=160, layers=1, experts=7, top_k=3, heads=5, kv_heads=1, head_dim=50, expert_width=96, types="F16",
                vocab=256),
}


@functools.cache
def model(name):
    return moe.model(SEED, **SHAPES[name])


def outcome(name, arm, ranks, chunk, tokens, **sets):
    """(digest, layer digests), what the report says of peers"""
    ids = [int(t) for t in np.random.default_rng(SEED).integers(0, 256, tokens)]
    keys = {"model.path": model(name), "input.tokens": ids, "run.context": tokens, "run.chunk": chunk, "run.arms": [arm],
            "run.threads": 1, "perplexity.skip": 0, "comm.deadline": 60}
    keys |= {key.replace("__", "."): value for key, value in sets.items()}
    report = moe.run(keys, ranks, command="perplexity").report()
    found = report["arms"][0]
    return (found["digest"], found["layer_digests"]), report["run"]["peers"]


@functools.cache
def wanted(name, path, tokens):
    return outcome(name, f"{path}@cpu", 1, 512, tokens)[0]


class Law(unittest.TestCase):
    def check(self, name, path, ranks, chunk, tokens, peers="linked", **sets):
        with self.subTest(model=name, path=path, ranks=ranks, chunk=chunk, **sets):
            found, said = outcome(name, f"{path}@cuda", ranks, chunk, tokens, **sets)
            self.assertEqual(said, peers)
            self.assertEqual(found, wanted(name, path, tokens))

    def test_one_token(self):
        """A token's slots come to the launch of all layers, or to the inbox of a layer's last launch; with two ranks one of
        them often has no slot of a layer to send."""
        for ranks in (2, 3):
            self.check("wide", "q8k", ranks, 1, 6)
        self.check("narrow", "q8k", 2, 1, 4)

    def test_written_after_probes(self):
        """An arm whose probes were looked at is in places of its own from then on; what it writes after the comparison, too."""
        keys = {"model.path": model("wide"), "input.tokens": list(range(30, 38)), "run.generate": 4, "run.threads": 1,
                "comm.deadline": 60, "parity.probes": ["ffn_moe_out"], "parity.mode": ["teacher"]}
        texts = [[text["digest"] for text in moe.run(keys | {"run.arms": ["f64@cpu", arm]}, ranks).arm(arm)["generated"]]
                 for arm, ranks in (("q8k@cpu", 1), ("q8k@cuda", 2))]
        self.assertEqual(*texts)

    def test_a_second_chunk(self):
        self.check("wide", "q8k", 1, 128, 131, peers="")
        self.check("wide", "q8k", 2, 128, 129)

    def test_a_long_cache(self):
        """The 4,097th token, after two batches: its group of chunks is the second, which another rank folds; of three ranks one
        has none."""
        for ranks in (3, 1, 2):
            self.check("long", "q8k", ranks, 2048, 4097, peers="linked" if ranks > 1 else "")

    def test_small_batches(self):
        self.check("wide", "q8k", 3, 5, 12)
        self.check("odd", "f32", 2, 5, 12)

    def test_sharded_batches(self):
        """Rows of keys, values and routing, then each slot to its token's rank; a small batch after a large one."""
        self.check("wide", "q8k", 3, 200, 202)
        self.check("odd", "f32", 2, 130, 134)

    def test_replicas(self):
        """Maps for each layer, with experts that several ranks hold: one token, small and sharded batches; without peers slots
        at fixed places, and ranks that compute only experts."""
        routes = os.path.join(moe.run({"model.path": model("wide"), "run.arms": ["q8k@cpu"], "output.routes": True,
                                       "input.tokens": list(range(100, 140))}, 1).folder, "routes.npy")
        counted = dict(experts__placement="counted", experts__counts=routes, experts__replicas=1)
        self.check("wide", "q8k", 3, 1, 4, **counted)
        self.check("wide", "q8k", 2, 130, 134, **counted)
        self.check("wide", "q8k", 2, 5, 6, peers="", comm__peers=False, **counted)
        experts_only = dict(ranks__arm=["q8k@cuda"], ranks__shared_ranks=[0])
        found, _ = outcome("wide", "ranks", 2, 5, 6, **counted, **experts_only)
        self.assertEqual(found, wanted("wide", "q8k", 6))

    def test_outliers(self):
        """A product with outliers is sent when it is whole."""
        self.check("wide", "q8k_split", 2, 130, 134)

    def test_without_peers(self):
        for chunk, tokens in ((1, 6), (130, 134)):
            self.check("wide", "q8k", 2, chunk, tokens, peers="", comm__peers=False)

    def test_ranks_on_other_paths(self):
        _, said = outcome("wide", "ranks", 2, 5, 12, ranks__arm=["q8k@cuda", "f32@cuda"])
        self.assertRegex(said, r"^rank \d: .*rank \d computes its experts on another path$")


def is_linked(pid):
    """It has mapped the memory of another's emulated GPU besides its own."""
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
            return sum("memfd:emulated" in line for line in file) > 1
    except OSError:
        return False


class Faults(unittest.TestCase):
    def test_a_rank_stopped(self):
        """The other waits for it in a kernel, and the host, here, only after that."""
        words = moe.words(command="bench", out=moe.fresh(),
                          sets={"model.path": model("wide"), "run.arms": ["q8k@cuda"], "run.threads": 1, "bench.prompt": [],
                                "bench.generate": [50], "bench.repeats": 10000, "comm.deadline": DEADLINE})
        process = moe.start(moe.under_mpirun([(2, words)]))
        ranks = {}
        limit = time.monotonic() + 60
        while len(ranks) < 2 or not all(map(is_linked, ranks.values())):
            self.assertIsNone(process.poll())
            self.assertLess(time.monotonic(), limit)
            ranks = {moe.rank_of(pid): pid for pid in moe.children(process.pid) if moe.rank_of(pid) is not None}
            time.sleep(0.05)
        time.sleep(1)
        os.kill(ranks[1], signal.SIGSTOP)
        ended = moe.finish(process, 120)
        self.assertNotIn(ended.code, (0, None), ended.err)
        faults = [fault for fault in ended.faults() if not fault.startswith("rank 1 ")]
        self.assertTrue(faults, ended.err)
        for fault in faults:
            self.assertRegex(fault, r"waiting for rank .*\b1 \(")


if __name__ == "__main__":
    moe.main()
