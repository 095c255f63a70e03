#!/usr/bin/env python3
"""attention.placement on emulated GPUs: tokens of small batches and rows of the head divided among ranks change no digest,
for 2, 3 and 4 ranks, with linked GPUs, over the stand-in for NCCL, over MPI, and beside a rank on its cores; tokens of one
sequence and of several, logits that stay and that are read; what was chosen, and why, is said."""
import functools
import json
import os
import unittest

import moe

SEED = moe.random_seed()
os.environ["CUDA_VISIBLE_DEVICES"] = "0,1,2,3"  # the emulation takes the list as it is
# 3 key/value heads; rows of the head that are no multiple of what ranks divide
SHAPE = dict(hidden=256, layers=2, experts=5, top_k=2, heads=6, kv_heads=3, head_dim=64, expert_width=256, types="Q4_K_M",
             vocab=200)
BATCH = 5


@functools.cache
def model():
    return moe.model(SEED, **SHAPE)


def keys_of(arm, **sets):
    keys = {"model.path": model(), "run.arms": [arm], "run.threads": 1, "comm.deadline": 60}
    return keys | {key.replace("__", "."): value for key, value in sets.items()}


def decoded(arm, ranks, **sets):
    """Of bench: each token of a batch is of its own sequence, and no logits leave the ranks. Then two sequences alone, at a
    position to which the first test has filled the caches: with three ranks each needs what another one computed."""
    keys = keys_of(arm, **{"bench.prompt": [], "bench.generate": [1], "bench.depth": [1], "bench.batch": [BATCH, 2],
                           "bench.repeats": 1, "bench.warmup": 0, **sets})
    folder = moe.fresh()
    outcome = moe.attempt(keys, ranks, out=folder, command="bench")
    assert outcome.code == 0, outcome.err
    with open(os.path.join(folder, "bench.json"), encoding="utf-8") as file:
        rows = json.load(file)["rows"]
    return {"digest": [row["digest"] for row in rows], "attention": rows[0]["attention"]}


def scored(arm, ranks, **sets):
    """The arm of a perplexity: the tokens of a batch are of one sequence, and logits are read."""
    keys = keys_of(arm, **{"input.tokens": [(37 * t + SEED) % 200 for t in range(11)], "run.context": 11, "run.chunk": BATCH,
                           "perplexity.skip": 0, **sets})
    return moe.run(keys, ranks, command="perplexity").report()["arms"][0]


def sixteens(arm, ranks, **sets):
    """The same of 16 tokens at a time: a block of keys' limbs, in which the rows of different ranks do not ascend."""
    return scored(arm, ranks, **{"input.tokens": [(37 * t + SEED) % 200 for t in range(40)], "run.context": 40, "run.chunk": 16,
                                 **sets})


@functools.cache
def wanted(run, path):
    found = run(f"{path}@cpu", 1)
    return {key: found[key] for key in ("digest", "layer_digests") if key in found}


class Placement(unittest.TestCase):
    def check(self, run, path, ranks, arm=None, said="sharded by tokens", **sets):
        with self.subTest(run=run.__name__, path=path, ranks=ranks, **sets):
            found = run(arm or f"{path}@cuda", ranks, **{"attention.placement": "sharded", **sets})
            self.assertEqual({key: found[key] for key in wanted(run, path)}, wanted(run, path))
            self.assertRegex(found["attention"], said)

    def test_linked(self):
        for run in (decoded, scored):
            self.check(run, "q8k", 3)
        for ranks in (2, 4):
            self.check(sixteens, "q8k", ranks)
        self.check(decoded, "f32", 2)

    def test_without_links(self):
        self.check(scored, "q8k_split", 2, comm__peers=False)
        self.check(sixteens, "q8k", 2, comm__peers=False)
        self.check(decoded, "q8k", 4, comm__transport="mpi")

    def test_a_rank_on_its_cores(self):
        self.check(decoded, "q8k", 2, arm="ranks", ranks__arm=["q8k@cuda", "q8k@cpu"], ranks__shared_ranks=[0, 1])

    def test_chosen(self):
        """Both ways by turns, then the quicker one."""
        self.check(decoded, "q8k", 2, said=r"^batches of 5: (sharded by tokens|replicated), \S+ ms \(\S+\); heads of 5: ",
                   **{"attention.placement": "auto", "bench.batch": [BATCH, 2]})


if __name__ == "__main__":
    moe.main()
