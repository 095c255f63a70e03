#!/usr/bin/env python3
"""Reads the shipped GGUF twice: by llama.cpp, and by train.py's PyTorch model on its dequantised weights.

Prints the perplexity of a text by both, how the router spreads that text over the experts, how alike the
experts are, and what llama.cpp writes. A window of W tokens is read from an empty context; its predictions
at positions W/2 .. W-2 are scored, as llama-perplexity does; tokens that fill no window are left out.
"""

import argparse
import json
import math
import tomllib
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch

from quantize import HERE, NAME, gguf_name
from train import Qwen3MoE, perplexity


def llama_perplexity(llm, ids, window):
    total, count = 0.0, 0
    for start in range(0, len(ids) // window * window, window):
        part = ids[start : start + window]
        llm.reset()
        llm.eval(part)
        logits = torch.from_numpy(np.array(llm.scores[window // 2 : window - 1])).double()
        goal = torch.tensor(part[window // 2 + 1 :])
        total += torch.nn.functional.cross_entropy(logits, goal, reduction="sum").item()
        count += len(goal)
    return math.exp(total / count), count


def dequantised(path, m):
    """train.py's model with the weights that the GGUF stands for."""
    tensors = {t.name: t for t in gguf.GGUFReader(str(path)).tensors}
    model = Qwen3MoE(m)
    state = {}
    for name, w in model.state_dict().items():
        t = tensors[gguf_name(name)]
        state[name] = torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)).view(
            w.shape
        )
    model.load_state_dict(state)
    return model.eval()


def entropy(p):
    return -(p * p.clamp_min(1e-30).log()).sum(-1)


def off_diagonal(c):
    return c[~torch.eye(len(c), dtype=torch.bool)]


def weights_cosine(experts):
    w = torch.cat([x.flatten(1) for x in (experts.gate, experts.up, experts.down)], 1)
    w = w / w.norm(dim=1, keepdim=True)
    return off_diagonal(w @ w.T)


def outputs_cosine(experts, x):
    """Mean over tokens of the cosine of two experts' outputs for the same input, every expert asked."""
    y = [
        (torch.nn.functional.silu(x @ g.T) * (x @ u.T)) @ d.T
        for g, u, d in zip(experts.gate, experts.up, experts.down)
    ]
    y = torch.stack([v / v.norm(dim=-1, keepdim=True) for v in y], 1)
    return off_diagonal(torch.einsum("tid,tjd->ij", y, y) / len(x))


@torch.no_grad()
def routing(model, ids, window):
    n, k = model.m["num_experts"], model.m["num_experts_per_tok"]
    seen = [[] for _ in model.layers]

    def watch(layer, experts, x):
        seen[layer].append(x.flatten(0, 1))

    for row in ids[: len(ids) // window * window].view(-1, window):
        model(row.view(1, -1), watch)
    result = []
    for layer, xs in enumerate(seen):
        experts, x = model.layers[layer].experts, torch.cat(xs)
        p, index, w = experts.route(x)
        share = torch.bincount(index.flatten(), minlength=n).double() / index.numel()
        top = p.sort(-1, descending=True).values
        result.append(
            {
                "share_percent": [round(100 * s, 2) for s in share.tolist()],
                "entropy_of_mean_share": entropy(share).item(),
                "mean_entropy_of_a_token": entropy(p).mean().item(),
                "mean_probability_of_chosen": p.gather(1, index).sum(-1).mean().item(),
                "mean_first_weight": w[:, 0].mean().item(),
                "median_margin_slot_k": (top[:, k - 1] - top[:, k]).median().item(),
                "different_sets_chosen": len(torch.unique(index.sort(-1).values, dim=0)),
                "weights_cosine_max_abs": weights_cosine(experts).abs().max().item(),
                "outputs_cosine_mean": outputs_cosine(experts, x[::16]).mean().item(),
                "outputs_cosine_max": outputs_cosine(experts, x[::16]).max().item(),
            }
        )
    return result


def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("--model", type=Path, default=HERE / NAME)
    a.add_argument("--text", type=Path, default=HERE / "heldout.txt")
    a.add_argument("--settings", type=Path, default=HERE / "settings.toml")
    a.add_argument("--window", type=int, default=512)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--prompt", default="ROMEO\t")
    args = a.parse_args()
    m = tomllib.loads(args.settings.read_text())["model"]
    context = max(args.window, 512)
    llm = llama_cpp.Llama(
        str(args.model),
        n_ctx=context,
        n_batch=context,
        n_threads=args.threads,
        logits_all=True,
        verbose=False,
        seed=1,
    )
    ids = llm.tokenize(args.text.read_bytes(), add_bos=False, special=False)
    model = dequantised(args.model, m)
    r = {"tokens": len(ids)}
    r["llama_cpp_perplexity"], r["scored"] = llama_perplexity(llm, ids, args.window)
    r["pytorch_f32_perplexity"], _ = perplexity(model, torch.tensor(ids), args.window)
    r["routing"] = routing(model, torch.tensor(ids), args.window)
    print(json.dumps(r, indent=1))
    greedy = {"temperature": 0.0, "repeat_penalty": 1.0}
    sampled = {"temperature": 0.8, "top_k": 40, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
    for name, how in (("greedy", greedy), ("sampled", sampled)):
        llm.reset()
        print(f"--- {name}\n{args.prompt}{llm(args.prompt, max_tokens=160, **how)['choices'][0]['text']}")


if __name__ == "__main__":
    main()
