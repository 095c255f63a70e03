"""What launch/trace-llama-cpp and launch/trace-transformers share: which tokens to read, and the folder of .npy files
that `moe_run compare` takes beside a trace (docs/trace.md).

A package that is missing ends a script with exit code 77 and its name."""
import argparse
import importlib
import json
import os
import sys

# Probes of `moe_run trace`, by llama.cpp's names, in the order of computation.
OF_LAYER = ["attn_norm", "Qcur", "Kcur", "Vcur", "kqv_out", "ffn_inp", "ffn_norm", "ffn_moe_logits", "ffn_moe_topk",
            "ffn_moe_weights_norm", "ffn_moe_gate", "ffn_moe_up", "ffn_moe_swiglu", "ffn_moe_down", "ffn_moe_out", "l_out"]
OF_NO_LAYER = ["inp_embd", "result_norm", "result_output"]


def need(*names):
    """The modules; without one of them the script is skipped."""
    found = []
    for name in names:
        try:
            found.append(importlib.import_module(name))
        except ImportError as error:
            print(f"skipped: {name}: {error}", file=sys.stderr)
            sys.exit(77)
    return found


def arguments(what):
    """A parser with what both scripts take."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--model", required=True, help="a GGUF of the architecture qwen3moe")
    parser.add_argument("--out", required=True, help="the folder to write; it may exist")
    tokens = parser.add_mutually_exclusive_group(required=True)
    tokens.add_argument("--tokens", help="ids of one sequence, as 1,2,3")
    tokens.add_argument("--trace", help="a folder of moe_run trace, whose sequences are taken")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser


def sequences(args):
    """[[id, ...], ...]"""
    if args.tokens:
        return [[int(word) for word in args.tokens.split(",")]]
    with open(os.path.join(args.trace, "index.json"), encoding="utf-8") as file:
        index = json.load(file)
    out = []
    for token, sequence in zip(index["tokens"], index["sequences"]):
        if sequence == len(out):
            out.append([])
        out[sequence].append(token)
    return out


class Folder:
    """Rows of each name, in the order of tokens; written at the end, after an earlier one's files are gone."""

    def __init__(self, path):
        self.path, self.rows = path, {}

    def add(self, name, rows):
        """rows: [tokens, ...] of one sequence."""
        self.rows.setdefault(name, []).append(rows)

    def write(self, tokens):
        import numpy as np
        os.makedirs(self.path, exist_ok=True)
        for name in os.listdir(self.path):
            if name.endswith(".npy"):
                os.remove(os.path.join(self.path, name))
        for name, parts in self.rows.items():
            np.save(os.path.join(self.path, name + ".npy"), np.concatenate(parts))
        np.save(os.path.join(self.path, "tokens.npy"), np.concatenate(tokens).astype(np.int32))
        print(f"{self.path}: {len(self.rows)} tensors of {sum(map(len, tokens))} tokens in {len(tokens)} sequences")
