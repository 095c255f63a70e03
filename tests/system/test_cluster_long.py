#!/usr/bin/env python3
"""By hand (label long): many ranks on one machine, slow and lossy networks between hosts, an audit over many seeds."""
import fcntl
import os
import pathlib
import random
import select
import struct
import subprocess
import threading
import time
import unittest

import hosts
import moe

SEED = moe.random_seed()
SHAPE = dict(layers=3, hidden=256, heads=2, kv_heads=1, expert_width=256, experts=8, top_k=4, context=20000)
MODEL = moe.model(SEED, **SHAPE)
ARM = "q8k@cpu"
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454ca, 2, 0x1000


def keys(**sets):
    own = {"model.path": MODEL, "input.tokens": [1, 2, 3], "run.arms": [ARM], "run.threads": 1, "run.bind": False,
           "run.generate": 12}
    return own | {key.replace("__", "."): value for key, value in sets.items()}


class Relay(threading.Thread):
    """Carries frames between two TAP devices, each after a delay, and loses some."""

    def __init__(self, names, delay, loss):
        super().__init__(daemon=True)
        self.delay, self.loss, self.ends, self.chance = delay, loss, [], random.Random(SEED)
        for name in names:
            end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
            self.ends.append(end)
        self.waiting, self.ended, self.lost = [], False, 0

    def run(self):
        while not self.ended:
            now = time.monotonic()
            while self.waiting and self.waiting[0][0] <= now:
                _, end, frame = self.waiting.pop(0)
                try:
                    os.write(end, frame)
                except OSError:
                    pass
            pause = max(0.0, min(0.02, self.waiting[0][0] - now)) if self.waiting else 0.02
            for end in select.select(self.ends, [], [], pause)[0]:
                frame = os.read(end, 65536)
                if self.chance.random() < self.loss:
                    self.lost += 1
                    continue
                self.waiting.append((time.monotonic() + self.delay, self.ends[1 - self.ends.index(end)], frame))

    def close(self):
        self.ended = True
        self.join()
        for end in self.ends:
            os.close(end)


class Network(unittest.TestCase):
    """h2 is behind a relay: its link leads to one TAP device, the other is on the bridge."""

    def through(self, delay, loss):
        local = moe.run(keys(), 1, command="generate")
        on = hosts.make(2)
        far = f"mc{on.key}"
        try:
            relay = Relay((f"ta{on.key}", f"tb{on.key}"), delay, loss)
            hosts.must("ip", "link", "add", far, "type", "bridge")
            hosts.must("ip", "link", "set", far, "up")
            for tap, bridge in ((f"ta{on.key}", on.bridge), (f"tb{on.key}", far)):
                hosts.must("ip", "link", "set", tap, "master", bridge, "up")
            hosts.must("ip", "link", "set", on.link("h2"), "master", far)
            relay.start()
            folder = moe.fresh()
            words = moe.words(command="generate", sets=keys(), out=folder)[1:]
            outcome = moe.finish(on.start(4, words), 300, folder)
            self.assertEqual(outcome.code, 0, outcome.err)
            self.assertEqual(outcome.arm(ARM)["generated"], local.arm(ARM)["generated"])
            print(f"delay {delay} s, loss {loss}: {outcome.seconds:.1f} s, {relay.lost} frames lost", flush=True)
            if loss:
                self.assertGreater(relay.lost, 0)
            else:
                self.assertGreater(outcome.seconds, 10 * delay)
            relay.close()
        finally:
            on.close()
            hosts.call("ip", "link", "del", far)

    def test_slow(self):
        self.through(0.05, 0)

    def test_lossy(self):
        self.through(0, 0.01)


class ManyRanks(unittest.TestCase):
    def started(self, model, ranks, **sets):
        """Start, agreement and end; the digest is that of one rank."""
        outcomes = [moe.run(keys(**sets) | {"model.path": model}, n, command="generate", limit=500) for n in (1, ranks)]
        self.assertEqual(outcomes[0].arm(ARM)["generated"], outcomes[1].arm(ARM)["generated"])
        print(f"{ranks} ranks: {outcomes[1].seconds:.1f} s", flush=True)

    def test_16(self):
        self.started(os.path.join(moe.SOURCE, "configs", "tiny", "tiny-qwen3moe-Q4_K_M.gguf"), 16)

    def test_64(self):
        self.started(moe.model(SEED, **(SHAPE | {"experts": 64})), 64, run__generate=4)


class Audit(unittest.TestCase):
    def test_a_rank_at_one_percent(self):
        for n in range(20):
            model, rank = moe.model(SEED + n + 1, **SHAPE), n % 4
            sets = keys(ranks__audit=0.01, run__generate=64) | {"model.path": model}
            line = [moe.FAULTY, "expert", "all", str(rank), "none", *moe.words(command="generate", sets=sets, out=moe.fresh())[1:]]
            outcome = moe.finish(moe.start(moe.under_mpirun([(4, line)])), moe.LIMIT)
            self.assertEqual(outcome.code, 1, outcome.err)
            self.assertRegex(outcome.err, rf"the audit: layer \d+, expert \d+, which rank {rank} \(")


if __name__ == "__main__":
    moe.main()
