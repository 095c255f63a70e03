"""run.chunk = 0: which batches a run takes. By the backends of its arms, the same on every rank; halved until the device
has memory for them (an emulated GPU); the digests stay."""
import json
import os
import re
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import moe

EMULATED = os.path.join(os.path.dirname(moe.PROGRAM), "moe_run_emulated")
TINY = os.path.join(moe.SOURCE, "configs", "tiny", "tiny-qwen3moe-Q4_K_M.gguf")
CPU, GPU = "q8k@cpu", "q8k@cuda"


def attempt(arms, ranks=1, n_tokens=9, program=None, memory=None, **sets):
    """A run of tiny; on an emulated GPU with so many bytes of memory, where given."""
    keys = {"model.path": TINY, "input.tokens": [(7 * t) % 4096 for t in range(n_tokens)], "run.arms": arms}
    if memory:
        os.environ["MOE_EMULATED_BYTES"] = str(memory)
    try:
        return moe.attempt(keys | {k.replace("__", "."): v for k, v in sets.items()}, ranks, out=moe.fresh(), program=program)
    finally:
        os.environ.pop("MOE_EMULATED_BYTES", None)


def report(*args, **sets):
    outcome = attempt(*args, **sets)
    assert outcome.code == 0, outcome.err
    return outcome.report()


class Chunk(unittest.TestCase):
    def test_cores(self):
        found = {}
        for ranks, chunk in ((1, 0), (3, 0), (1, 4), (1, 2048)):
            said = report([CPU], ranks, run__chunk=chunk)
            self.assertEqual(said["run"]["chunk"], chunk or 512)
            found[ranks, chunk] = said["arms"][0]["digest"]
        self.assertEqual(len(set(found.values())), 1, found)
        self.assertEqual(report(["ranks"], 2, ranks__arm=[CPU, "f32@cpu"], ranks__shared=CPU)["run"]["chunk"], 512)

    @unittest.skipUnless(os.access(EMULATED, os.X_OK), "no emulated GPU")
    def test_devices(self):
        for arms, ranks, sets, chunk in (
                ([GPU], 1, {}, 2048), ([GPU], 2, {}, 2048), ([GPU, CPU], 1, {}, 512),
                (["ranks"], 2, {"ranks__arm": [GPU, GPU], "ranks__shared": GPU}, 2048),
                (["ranks"], 2, {"ranks__arm": [GPU, CPU], "ranks__shared": GPU}, 512),
                ([GPU], 1, {"run__chunk": 3}, 3)):
            with self.subTest(arms=arms, ranks=ranks, **sets):
                self.assertEqual(report(arms, ranks, 3, EMULATED, **sets)["run"]["chunk"], chunk)

    @unittest.skipUnless(os.access(EMULATED, os.X_OK), "no emulated GPU")
    def test_a_device_without_room(self):
        n = 48
        refused = attempt([GPU], 1, n, EMULATED, 1 << 22, run__chunk=n)
        needed = int(re.search(r"memory: expected (\d+) MiB", refused.err).group(1)) << 20
        explicit = attempt([GPU], 1, n, EMULATED, needed, run__chunk=n)
        fits = re.search(r"run\.chunk = (\d+)", explicit.err)
        self.assertTrue(fits, explicit.err)  # what is asked for is not lowered
        chunk = n
        while chunk > int(fits.group(1)):
            chunk //= 2
        alone = report([GPU], 1, n, EMULATED, needed)
        self.assertEqual(alone["run"]["chunk"], chunk)
        self.assertEqual(alone["arms"][0]["digest"], report([CPU], 1, n)["arms"][0]["digest"])
        never = attempt([GPU], 1, n, EMULATED, 1 << 22)
        self.assertRegex(never.err, "memory: expected")


if __name__ == "__main__":
    moe.main()
