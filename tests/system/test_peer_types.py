#!/usr/bin/env python3
"""The shipped model in each weight type, quantised by llama.cpp: its perplexity and ours lie within 0.5 %.

Skipped without the packages: pip install llama-cpp-python."""
import ctypes
import importlib.util
import os
import unittest

import moe
import numpy as np

SHIPPED = os.path.join(moe.SOURCE, "configs", "tiny", "tiny-qwen3moe-Q4_K_M.gguf")
WINDOW, WINDOWS = 512, 4
# llama.cpp's numbers of its mixes (llama.h)
MIXES = {"Q2_K": 10, "Q3_K_M": 12, "IQ4_XS": 30, "Q8_0": 7, "IQ4_NL": 25, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "MXFP4": 38}
BOUND = 0.005

if not importlib.util.find_spec("llama_cpp"):
    moe.skip("no llama_cpp")
import llama_cpp


def quantised(mix):
    path = moe.fresh(f".{mix}.gguf")
    p = llama_cpp.llama_model_quantize_default_params()
    p.ftype, p.allow_requantize, p.nthread = MIXES[mix], True, 2
    assert llama_cpp.llama_model_quantize(SHIPPED.encode(), path.encode(), ctypes.byref(p)) == 0
    return path


def text():
    with open(os.path.join(moe.SOURCE, "configs", "tiny", "heldout.txt"), encoding="utf-8") as file:
        return file.read()[:9000]


def theirs(path, ids):
    llm = llama_cpp.Llama(path, n_ctx=WINDOW, n_batch=WINDOW, n_threads=2, logits_all=True, verbose=False)
    total, count = 0.0, 0
    for at in range(0, WINDOW * WINDOWS, WINDOW):
        window = ids[at:at + WINDOW]
        llm.reset()
        llm.eval(window)
        logits = np.array(llm.scores[:WINDOW], np.float64)
        for i in range(WINDOW // 2, WINDOW - 1):
            row = logits[i] - logits[i].max()
            total += np.log(np.exp(row).sum()) - row[window[i + 1]]
            count += 1
    return float(np.exp(total / count))


class Perplexity(unittest.TestCase):
    def test_each_type(self):
        ids = llama_cpp.Llama(SHIPPED, vocab_only=True, verbose=False).tokenize(text().encode(), add_bos=False, special=False)
        ids = ids[:WINDOW * WINDOWS]
        self.assertEqual(len(ids), WINDOW * WINDOWS)
        for mix in MIXES:
            with self.subTest(mix):
                path = quantised(mix)
                arms = ["f32@cpu", "q8k@cpu"]
                found = moe.run({"model.path": path, "input.tokens": ids, "run.arms": arms, "run.context": WINDOW},
                                command="perplexity").report()
                wanted = theirs(path, ids)
                for arm in found["arms"]:
                    off = arm["perplexity"] / wanted - 1
                    print(f"{mix:7s} {found['model']['types']}: {arm['name']} {arm['perplexity']:.4f}, "
                          f"llama.cpp {wanted:.4f}, {100 * off:+.3f} %", flush=True)
                    self.assertLess(abs(off), BOUND)
                os.remove(path)


if __name__ == "__main__":
    moe.main()
