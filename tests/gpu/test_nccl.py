#!/usr/bin/env python3
"""Several GPUs: the law over transports and kinds of ranks, what a forced transport refuses, ranks that stop or die, a GPU
that is full. Needs a build with NCCL, and two GPUs for most of it; takes two to three minutes there.

What is expected follows from the number of GPUs: as many ranks as GPUs or fewer have one each and go over nccl, more
share some and go over mpi. On a machine with four or more, tests of shared GPUs also see two of them alone."""
import ctypes
import functools
import json
import os
import re
import signal
import subprocess
import sys
import unittest


def fill_gpu(leave):
    """Takes all memory of GPU 0 but `leave` MiB, says so and waits; a process of its own."""
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context, free, total = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    at = ctypes.c_uint64()
    assert cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0 and cuda.cuCtxSetCurrent(context) == 0
    assert cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
    assert cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(free.value - (leave << 20))) == 0
    print("full", flush=True)
    sys.stdin.read()


if sys.argv[1:2] == ["fill"]:
    fill_gpu(int(sys.argv[2]))
    sys.exit(0)

import moe
import numpy as np

VERSION = subprocess.run([moe.PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout
GPUS = re.search(r"^backend cuda, .*: (\d+) x ", VERSION, re.MULTILINE)
if not GPUS:
    moe.skip("no GPU")
if "nccl" not in re.search(r"^transports (.*)$", VERSION, re.MULTILINE)[1]:
    moe.skip("this build has no NCCL")

# What CUDA shows this process, by the names that CUDA_VISIBLE_DEVICES takes: a scheduler may have set it already.
VISIBLE = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name] or [
    str(i) for i in range(int(GPUS[1]))]
VISIBLE = VISIBLE[:int(GPUS[1])]
MACHINES = sorted({n for n in (1, 2, len(VISIBLE)) if n <= len(VISIBLE)})  # numbers of GPUs on which a test is run
two_gpus = unittest.skipIf(len(VISIBLE) < 2, "fewer than two GPUs")
SEED = moe.random_seed()
print(f"assumed: GPUs {', '.join(VISIBLE)}; nccl for up to {len(VISIBLE)} ranks, mpi for more", flush=True)


class only_gpus:
    """Within it the program sees these GPUs alone."""

    def __init__(self, names):
        self.names = names

    def __enter__(self):
        self.before = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.names)

    def __exit__(self, *_):
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if self.before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.before


def transport_of(ranks, gpus=len(VISIBLE)):
    """What "auto" chooses where at least one rank computes on a GPU: dist/transport.c. Ranks take GPUs in turn."""
    return "self" if ranks == 1 else "nccl" if ranks <= gpus else "mpi"


SHAPES = {
    # of the kind that one token at a time has kernels of its own for
    "wide": dict(hidden=512, layers=3, experts=12, top_k=4, heads=4, kv_heads=2, head_dim=128, expert_width=256,
                 types="Q4_K_M", outliers=4),
    # of no even number anywhere
    "odd": dict(hidden=160, layers=2, experts=7, top_k=3, heads=5, kv_heads=1, head_dim=50, expert_width=96, types="F16"),
}
TOKENS = 150
DEADLINE = 15.0  # also for the start of a run on a loaded machine
FAULT = re.compile(r"waiting for rank .*\b1 \(")


@functools.cache
def model(name):
    return moe.model(SEED, **SHAPES[name])


def digests(name, arms, ranks=1, chunk=512, transport="auto", wants="", **sets):
    """{arm: (digest, layer digests)} of a run that keeps routing on the GPUs where it can; `wants`: its transport."""
    tokens = [int(t) for t in np.random.default_rng(SEED).integers(0, 512, TOKENS)]
    keys = {"model.path": model(name), "input.tokens": tokens, "run.context": TOKENS, "run.chunk": chunk, "run.arms": arms,
            "perplexity.skip": 0, "comm.transport": transport, "comm.deadline": 60}
    keys.update({key.replace("__", "."): value for key, value in sets.items()})
    report = moe.run(keys, ranks, command="perplexity").report()
    if wants and report["run"]["transport"] != wants:
        raise AssertionError(f"expected {wants}, found {report['run']['transport']}: {report['run']['transport_reason']}")
    return {arm["name"]: (arm["digest"], arm["layer_digests"]) for arm in report["arms"]}


@functools.cache
def wanted(name):
    found = digests(name, ["f32@cpu", "q8k@cpu"])
    return {"f32": found["f32@cpu"], "q8k": found["q8k@cpu"]}


class Law(unittest.TestCase):
    def check(self, name, ranks, **options):
        for arm, found in digests(name, ["f32@cuda", "q8k@cuda"], ranks, **options).items():
            with self.subTest(model=name, arm=arm, ranks=ranks, **options):
                self.assertEqual(found, wanted(name)[arm[:3]])

    def test_transports_and_cuts(self):
        for name in SHAPES:
            self.check(name, 1)
            for chunk in (512, 37, 1):  # rows of known routing, then fixed places, then one token at a time
                self.check(name, 2, chunk=chunk, wants=transport_of(2))
            self.check(name, 2, transport="mpi", wants="mpi")
        self.check("wide", 2, transport="mpi", chunk=1)

    def test_routing_on_the_host_in_small_batches(self):
        """Parity looks at every layer, so no batch has fixed places."""
        keys = {"model.path": model("wide"), "input.tokens": list(range(70)), "run.chunk": 9,
                "run.arms": ["f32@cpu", "f32@cuda", "q8k@cpu", "q8k@cuda"], "comm.deadline": 60}
        arms = {arm["name"]: arm["digest"] for arm in moe.run(keys, 2).report()["arms"]}
        for path in ("f32", "q8k"):
            self.assertEqual(arms[f"{path}@cpu"], arms[f"{path}@cuda"])

    def test_sharded_batches_that_are_looked_into(self):
        """Here the routing of sharded tokens is gathered on the hosts; without a comparison, on the GPUs."""
        for name in SHAPES:
            keys = {"model.path": model(name), "input.tokens": list(range(300)), "run.chunk": 260,
                    "run.arms": ["f32@cpu", "f32@cuda", "q8k@cpu", "q8k@cuda"], "comm.deadline": 60}
            for ranks in (1, 2):
                arms = {arm["name"]: (arm["digest"], arm["layer_digests"]) for arm in moe.run(keys, ranks).report()["arms"]}
                for path in ("f32", "q8k"):
                    with self.subTest(model=name, path=path, ranks=ranks):
                        self.assertEqual(arms[f"{path}@cpu"], arms[f"{path}@cuda"])

    def test_sequences_decoded_together(self):
        keys = {"model.path": model("wide"), "bench.prompt": [90], "bench.generate": [12], "bench.batch": [1, 8],
                "bench.repeats": 1, "bench.format": "json", "run.seed": SEED, "run.arms": ["q8k@cpu", "q8k@cuda"],
                "comm.deadline": 60}
        rows = {}
        for ranks in (1, 2):
            outcome = moe.attempt(keys, ranks, command="bench")
            self.assertEqual(outcome.code, 0, outcome.err)
            for row in json.loads(outcome.out)["rows"]:
                rows.setdefault(row["test"], set()).add(row["digest"])
        for test, found in rows.items():
            with self.subTest(test=test):
                self.assertEqual(len(found), 1)

    def test_small_batches_divided(self):
        """attention.placement: tokens of sequences that are decoded together, with GPUs linked and not, and the head's rows;
        then two sequences alone, whose caches other ranks filled."""
        keys = {"model.path": model("wide"), "bench.prompt": [], "bench.generate": [5], "bench.depth": [1],
                "bench.batch": [9, 140, 2], "bench.repeats": 1, "bench.format": "json", "run.seed": SEED, "comm.deadline": 60}
        most = max(2, len(VISIBLE))
        jobs = {"q8k": [(3, "sharded", True), (most, "sharded", True), (2, "sharded", False), (most, "auto", True)],
                "f32": [(2, "sharded", True)], "q8k_split": [(most, "sharded", True)]}
        for path, on_gpus in jobs.items():
            rows = {}
            for arm, ranks, sets in [(f"{path}@cpu", 1, {})] + [
                    (f"{path}@cuda", ranks, {"attention.placement": way, "comm.peers": peers}) for ranks, way, peers in on_gpus]:
                outcome = moe.attempt({**keys, "run.arms": [arm], **sets}, ranks, command="bench")
                self.assertEqual(outcome.code, 0, outcome.err)
                for row in json.loads(outcome.out)["rows"]:
                    with self.subTest(test=row["test"], arm=arm, ranks=ranks, **sets):
                        self.assertEqual(row["digest"], rows.setdefault(row["test"], row["digest"]))

    def test_a_rank_on_its_cores(self):
        """Two ranks of which one computes on its cores, and four, which share GPUs where there are fewer."""
        for gpus in MACHINES:
            for path in ("q8k", "f32"):
                pair = [f"{path}@cuda", f"{path}@cpu"]
                for arms, chunk in ((pair, 512), (pair, 1), (pair[::-1], 37), ([pair[0], pair[0], pair[1], pair[1]], 512)):
                    with self.subTest(gpus=gpus, arms=arms, chunk=chunk), only_gpus(VISIBLE[:gpus]):
                        found = digests("wide", ["ranks"], len(arms), chunk=chunk, wants=transport_of(len(arms), gpus),
                                        ranks__arm=arms)
                        self.assertEqual(found["ranks"], wanted("wide")[path])

    @two_gpus
    def test_shared_ranks_on_both_backends(self):
        """Token-sharded batches (TOKENS is enough for two ranks) whose tokens a GPU and a rank's cores compute."""
        for path in ("q8k", "f32"):
            for chunk in (512, 1):
                with self.subTest(path=path, chunk=chunk):
                    found = digests("wide", ["ranks"], 2, chunk=chunk, wants="nccl", ranks__arm=[f"{path}@cuda", f"{path}@cpu"],
                                    ranks__shared_ranks=[0, 1])
                    self.assertEqual(found["ranks"], wanted("wide")[path])

    @two_gpus
    def test_ranks_that_own_gpus_and_compute_elsewhere(self):
        for chunk in (512, 1):
            found = digests("wide", ["q8k@cpu"], 2, chunk=chunk, transport="nccl", wants="nccl")
            self.assertEqual(found["q8k@cpu"], wanted("wide")["q8k"])

    def test_a_shared_gpu_falls_back_and_says_so(self):
        with only_gpus(VISIBLE[:1]):
            outcome = moe.run({"model.path": model("wide"), "input.tokens": [1, 2, 3], "run.arms": ["q8k@cuda"]}, 2)
        self.assertIn("transport mpi (ranks 0, 1 share a GPU)", outcome.out)
        self.assertEqual(outcome.report()["run"]["transport_reason"], "ranks 0, 1 share a GPU")

    @two_gpus
    def test_the_report_says_where_gpus_are(self):
        outcome = moe.run({"model.path": model("wide"), "input.tokens": [1, 2, 3], "run.arms": ["q8k@cuda"]}, 2)
        self.assertIn("transport nccl (each rank has a GPU)", outcome.out)
        gpus = [rank["gpu"] for rank in outcome.report()["ranks"]]
        self.assertEqual([gpu["index"] for gpu in gpus], [0, 1])
        self.assertEqual(len({gpu["pci"] for gpu in gpus}), 2)


def long_run():
    """Two ranks over NCCL that decode and do not end by themselves."""
    return moe.Job({"model.path": model("wide"), "run.arms": ["q8k@cuda"], "run.threads": 1, "bench.prompt": [],
                    "bench.generate": [300], "bench.repeats": 10000, "comm.transport": "nccl",
                    "comm.deadline": DEADLINE}, 2, "bench")


@unittest.skipUnless(os.access(moe.FAULTY, os.X_OK), "moe_run_faulty is not built")
class Faults(unittest.TestCase):
    def ended(self, outcome):
        self.assertIsNotNone(outcome.code, f"no end in time\n{outcome.err}")
        self.assertNotEqual(outcome.code, 0)
        self.assertLess(outcome.seconds, 4 * DEADLINE)

    @two_gpus
    def test_a_rank_killed(self):
        job = long_run()
        job.signal(1, signal.SIGKILL)
        outcome = job.finish(6 * DEADLINE)
        self.ended(outcome)
        self.assertRegex(outcome.err, r"rank 1\b")

    @two_gpus
    def test_a_rank_stopped(self):
        job = long_run()
        job.signal(1, signal.SIGSTOP)
        outcome = job.finish(6 * DEADLINE)
        self.ended(outcome)
        # mpirun continues a stopped process before it ends it
        faults = [fault for fault in outcome.faults() if not fault.startswith("rank 1 ")]
        self.assertTrue(faults, outcome.err)
        for fault in faults:
            self.assertRegex(fault, FAULT)

    def refused(self, ranks, why, **sets):
        keys = {"model.path": model("wide"), "input.tokens": [1, 2, 3], "run.arms": ["q8k@cuda"], "comm.deadline": 20}
        keys.update({key.replace("__", "."): value for key, value in sets.items()})
        outcome = moe.attempt(keys, ranks, limit=60)
        self.assertNotIn(outcome.code, (0, None), outcome.err)
        self.assertEqual(len(outcome.faults()), 1, outcome.err)
        self.assertRegex(outcome.faults()[0], why)

    def test_a_gpu_for_two_ranks_is_refused(self):
        """Four ranks on two GPUs, where there are two, and two on one."""
        if len(VISIBLE) > 1:
            with only_gpus(VISIBLE[:2]):
                self.refused(4, r"nccl.*ranks 0, 1, 2, 3 share GPUs", comm__transport="nccl")
        with only_gpus(VISIBLE[-1:]):
            self.refused(2, r"nccl.*ranks 0, 1 share a GPU", comm__transport="nccl")


class Memory(unittest.TestCase):
    CONTEXT = 1500000  # 4.4 GiB of keys and values, 0.7 GiB of angles

    @classmethod
    def setUpClass(cls):
        cls.model = moe.model(SEED, **{**SHAPES["wide"], "context": cls.CONTEXT})

    def keys(self, **sets):
        return {"model.path": self.model, "input.tokens": [1, 2, 3], "run.arms": ["q8k@cuda"], "comm.deadline": 20,
                **{key.replace("__", "."): value for key, value in sets.items()}}

    @two_gpus
    def test_a_full_gpu(self):
        filler = subprocess.Popen([sys.executable, __file__, "fill", "2500"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(filler.communicate)
        self.assertEqual(filler.stdout.readline(), b"full\n")
        outcome = moe.attempt(self.keys(run__context=self.CONTEXT), 2, limit=60)
        self.assertNotIn(outcome.code, (0, None), outcome.err)
        self.assertEqual(len(outcome.faults()), 1, outcome.err)
        fault = outcome.faults()[0]
        self.assertRegex(fault, r"^rank 0 \(.*GPU 0 \(.*MiB \(.*KV cache \d+.*\), found \d+ of \d+ MiB free; the largest is")
        fits = int(re.search(r"run\.context = (\d+)", fault)[1])
        self.assertLess(fits, self.CONTEXT)
        outcome = moe.attempt(self.keys(run__context=fits * 19 // 20), 2)
        self.assertEqual(outcome.code, 0, outcome.err)


if __name__ == "__main__":
    moe.main()
