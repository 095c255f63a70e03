#!/usr/bin/env python3
"""launch/fuzz builds every target, and each runs on what its corpus holds. Needs clang with libFuzzer."""
import os
import pathlib
import shutil
import subprocess
import unittest

import moe

SCRIPT = os.path.join(moe.SOURCE, "launch", "fuzz")


def has_fuzzer():
    source, program = moe.fresh(".c"), moe.fresh()
    pathlib.Path(source).write_text("int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d && n ? 0 : 0; }\n")
    line = ["clang", "-fsanitize=fuzzer,address", source, "-o", program]
    return bool(shutil.which("clang") and shutil.which("clang++")) and not subprocess.run(line, capture_output=True).returncode


class Build(unittest.TestCase):
    def test_every_target(self):
        folder = moe.fresh()
        done = subprocess.run([SCRIPT, "all", "100", "1"], env=os.environ | {"FUZZ_BUILD": folder}, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout[-2000:] + done.stderr[-4000:])
        targets = {path.name for path in pathlib.Path(moe.SOURCE, "tests", "fuzz", "corpus").iterdir()}
        self.assertEqual(targets - set(os.listdir(folder)), set())


if __name__ == "__main__":
    if not has_fuzzer():
        moe.skip("no clang with libFuzzer")
    moe.main()
