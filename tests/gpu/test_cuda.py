#!/usr/bin/env python3
"""The law across backends: q8k@cuda gives the digest of q8k@cpu, q8k_split@cuda and f32@cuda those of theirs. Needs a GPU; an
emulated one (tests/gpu_emulation) gets fewer models and tokens.

Every shape is run in prefill (one chunk, an odd cut) and token by token, with both kinds of cache, on models of every
weight type, with one rank and with more that share the GPUs, batches large enough for token shards too; then mixed
jobs of a CPU and a GPU rank. Layer digests are compared as well, so that a failure names its first layer.
"""
import sys

import moe
import numpy as np
from gguf_layout import put_together, take_apart

SHAPES = [
    dict(hidden=768, layers=2, experts=7, top_k=3, heads=6, kv_heads=2, head_dim=128, types="mix"),
    dict(hidden=2048, layers=1, experts=16, top_k=8, heads=32, kv_heads=4, head_dim=128, expert_width=768,
         types="Q4_K_M", vocab=1000),
    dict(hidden=256, layers=2, experts=5, top_k=2, heads=4, kv_heads=4, head_dim=64, types="Q5_K"),
    dict(hidden=512, layers=2, experts=8, top_k=8, heads=8, kv_heads=1, head_dim=32, types="Q6_K", tied=True),
    dict(hidden=160, layers=2, experts=6, top_k=2, heads=5, kv_heads=1, head_dim=50, types="F16", expert_width=96),
    dict(hidden=256, layers=2, experts=6, top_k=2, types="Q8_0"),
    dict(hidden=1024, layers=2, experts=12, top_k=4, types="Q4_K", outliers=4),
    # attended rows of more than 8 blocks, and more of o's rows to a warp than it has in its registers at once
    dict(hidden=1024, layers=2, experts=4, top_k=2, heads=20, kv_heads=4, head_dim=128, types="Q5_K"),
    # what decode/token.cu has a kernel of its own for (qwen3_30b_shape)
    dict(hidden=2048, layers=2, experts=128, top_k=8, heads=32, kv_heads=4, head_dim=128, expert_width=768, types="Q4_K_M"),
]
EMULATED_SHAPES = (2, 3, 4, 7)


def run(model, tokens, chunk, kv, arms, ranks=1, **sets):
    """{arm: what the report says of it}"""
    keys = {"model.path": model, "input.tokens": tokens, "run.chunk": chunk, "run.kv": kv, "run.arms": arms}
    keys |= {key.replace("__", "."): value for key, value in sets.items()}
    return {arm["name"]: arm for arm in moe.run(keys, ranks, limit=300).report()["arms"]}


def mixed_jobs(model, tokens):
    """Jobs of a CPU and a GPU rank: one digest, that of two CPU ranks, whoever computes the shared steps and however
    the rows travel. Returns the number of those that differ, and of all."""
    faults = cases = 0
    for paths, shared in ((("q8k", "f32"), "f32"), (("f32", "q8k"), "q8k")):
        def job(backends, roles, chunk):
            names = [f"{path}@{backend}" for path, backend in zip(paths, backends)]
            arm = run(model, tokens, chunk, "f16", ["ranks"], 2, ranks__arm=names, ranks__shared=f"{shared}@{backends[1]}",
                      ranks__shared_ranks=roles, run__generate=4)["ranks"]
            return arm["digest"], arm["layer_digests"], [text["digest"] for text in arm["generated"]]

        true = job(("cpu", "cpu"), [], 512)
        for roles in ([], [0], [1], [0, 1]):
            for chunk in (512, 33):
                cases += 1
                if job(("cpu", "cuda"), roles, chunk) != true:
                    faults += 1
                    print(f"FAIL mixed {paths} on (cpu, cuda), shared {shared} on ranks {roles}, chunk {chunk}")
    return faults, cases


def one_not_finite(seed):
    """Channel 0 is 0 in every token but one, whose norm makes it too large for a value: the positions before it, in the same
    chunk of keys, have the logits that they have alone. Returns faults and cases."""
    odd = 7
    model = moe.model(seed, hidden=256, layers=1, experts=4, top_k=2, heads=2, kv_heads=1, head_dim=128, types="Q8_0")
    with open(model, "rb") as file:
        keys, tensors = take_apart(file.read())
    changed = []
    for name, dims, type_, data in tensors:
        data = bytearray(data)
        if name == "token_embd.weight":
            row = len(data) // dims[1]
            for token in range(dims[1]):
                data[token * row + 2] = 0 if token != odd else 100
        if name == "blk.0.attn_norm.weight":
            data[:4] = np.float32(3e38).tobytes()
        changed.append([name, dims, type_, bytes(data)])
    with open(model, "wb") as file:
        file.write(put_together(keys, changed))
    tokens = list(range(8, 28))
    tokens[12] = odd
    outcome = moe.run({"model.path": model, "input.tokens": tokens, "run.arms": ["q8k@cpu", "q8k@cuda"], "output.logits": True}, 1)
    alone = moe.run({"model.path": model, "input.tokens": tokens[:12], "run.arms": ["q8k@cpu"], "output.logits": True}, 1)
    bad = [name for name in ("q8k@cpu", "q8k@cuda") if not (outcome.logits(name)[:12] == alone.logits("q8k@cpu")).all()]
    if bad:
        print(f"FAIL {bad}: a token that is not finite changes positions before it")
    return len(bad), 2


def wide_experts(seed):
    """So wide that eight of down's inputs are more than a thread block's shared memory holds; few tokens."""
    model = moe.model(seed, hidden=256, layers=1, experts=3, top_k=2, heads=2, kv_heads=1, head_dim=128, expert_width=22016, types="Q8_0")
    found = run(model, list(range(5, 16)), 512, "f16", ["q8k@cpu", "q8k@cuda"])
    good = found["q8k@cpu"]["digest"] == found["q8k@cuda"]["digest"]
    if not good:
        print("FAIL wide experts")
    return int(not good), 1


def main():
    version = moe.finish(moe.start([moe.PROGRAM, "--version"])).out
    cuda = [line for line in version.splitlines() if line.startswith("backend cuda")]
    if not cuda or "none (" in cuda[0]:
        moe.skip(cuda[0] if cuda else "this build has no cuda backend")
    rng = np.random.default_rng(moe.random_seed())
    emulated = "emulated" in cuda[0]
    n_tokens, n_decoded = (140, 12) if emulated else (150, 70)  # enough for two token shards
    cuts = ((512, "f16", 1), (37, "f32", 1), (1, "f16", 1), (64, "f16", 2), (512, "f16", 2))
    faults = cases = 0
    for index, shape in enumerate(SHAPES):
        if emulated and index not in EMULATED_SHAPES:
            continue
        model = moe.model(int(rng.integers(1 << 30)), **shape)
        tokens = [int(t) for t in rng.integers(0, shape.get("vocab", 512), n_tokens)]
        for chunk, kv, ranks in (*cuts[1:3], cuts[4]) if emulated else cuts:
            used = tokens if chunk > 1 else tokens[:n_decoded]
            paths = ("f32", "q8k", "q8k_split") if not emulated or index == EMULATED_SHAPES[1] else ("f32", "q8k")
            got = run(model, used, chunk, kv, [f"{path}@{backend}" for path in paths for backend in ("cpu", "cuda")], ranks)
            for path in paths:
                cpu, cuda = got[f"{path}@cpu"], got[f"{path}@cuda"]
                layers = [i for i, (a, b) in enumerate(zip(cpu["layer_digests"], cuda["layer_digests"])) if a != b]
                cases += 1
                if layers or cpu["digest"] != cuda["digest"]:
                    faults += 1
                    print(f"FAIL {path} shape {index} {shape} chunk {chunk} kv {kv} ranks {ranks}: "
                          f"layers that differ {layers}, logits equal {cpu['digest'] == cuda['digest']}")
        print(f"shape {index}: {cases - faults} of {cases} digests equal", flush=True)
        if index == (EMULATED_SHAPES[0] if emulated else 0):
            bad, jobs = mixed_jobs(model, tokens)
            faults, cases = faults + bad, cases + jobs
    for special in (one_not_finite, wide_experts):
        bad, jobs = special(int(rng.integers(1 << 30)))
        faults, cases = faults + bad, cases + jobs
    print(f"{cases - faults} of {cases} digests equal")
    if faults:
        moe.tell_seed_of_failure()
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
