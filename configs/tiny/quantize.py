#!/usr/bin/env python3
"""Writes what train.py left as GGUF, with llama.cpp's keys and names for a Qwen3-MoE, and quantises it.

The rounding is llama.cpp's own (llama_model_quantize, Q4_K_M), from a file with the bf16 weights as f32.
"""

import argparse
import ctypes
import json
import tempfile
import tomllib
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
NAME = "tiny-qwen3moe-Q4_K_M.gguf"
NAMES = {  # of train.py's tensors, in a layer
    "attention_norm.weight": "attn_norm.weight",
    "attention.q_proj.weight": "attn_q.weight",
    "attention.k_proj.weight": "attn_k.weight",
    "attention.v_proj.weight": "attn_v.weight",
    "attention.o_proj.weight": "attn_output.weight",
    "attention.q_norm.weight": "attn_q_norm.weight",
    "attention.k_norm.weight": "attn_k_norm.weight",
    "expert_norm.weight": "ffn_norm.weight",
    "experts.router": "ffn_gate_inp.weight",
    "experts.gate": "ffn_gate_exps.weight",
    "experts.up": "ffn_up_exps.weight",
    "experts.down": "ffn_down_exps.weight",
}
TOP = {"embedding": "token_embd.weight", "norm.weight": "output_norm.weight", "head": "output.weight"}


def gguf_name(name):
    if name in TOP:
        return TOP[name]
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{NAMES[rest]}"


def add_keys(w, m):
    w.add_type("model")
    w.add_name("Tiny Qwen3-MoE, Shakespeare")
    w.add_block_count(m["num_hidden_layers"])
    w.add_context_length(m["max_position_embeddings"])
    w.add_embedding_length(m["hidden_size"])
    w.add_feed_forward_length(m["num_experts_per_tok"] * m["moe_intermediate_size"])  # no dense layer uses it
    w.add_head_count(m["num_attention_heads"])
    w.add_head_count_kv(m["num_key_value_heads"])
    w.add_key_length(m["head_dim"])
    w.add_value_length(m["head_dim"])
    w.add_rope_freq_base(m["rope_theta"])
    w.add_layer_norm_rms_eps(m["rms_norm_eps"])
    w.add_expert_count(m["num_experts"])
    w.add_expert_used_count(m["num_experts_per_tok"])
    w.add_expert_feed_forward_length(m["moe_intermediate_size"])
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_tokenizer(w, path):
    t = json.loads(path.read_text())
    vocabulary = dict(t["model"]["vocab"])
    special = {a["content"]: a["id"] for a in t["added_tokens"]}
    vocabulary.update(special)
    tokens = sorted(vocabulary, key=vocabulary.get)
    if [vocabulary[x] for x in tokens] != list(range(len(tokens))):
        raise SystemExit(f"{path}: token ids have gaps")
    kind = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.NORMAL}
    end = special["<|endoftext|>"]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens)
    w.add_token_types([kind[x in special] for x in tokens])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in t["model"]["merges"]])
    w.add_eos_token_id(end)
    w.add_pad_token_id(end)
    w.add_bos_token_id(end)
    w.add_add_bos_token(False)


def write_f32(path, m, folder):
    w = gguf.GGUFWriter(str(path), "qwen3moe")
    add_keys(w, m)
    add_tokenizer(w, folder / "tokenizer.json")
    weights = {gguf_name(n): x.float().numpy() for n, x in load_file(folder / "model.safetensors").items()}
    for name in sorted(weights, key=lambda n: (not n.startswith("token_embd"), n.startswith("output"), n)):
        w.add_tensor(name, np.ascontiguousarray(weights[name], dtype=np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def quantise(out, source):
    p = llama_cpp.llama_model_quantize_default_params()
    p.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(p)) != 0:
        raise SystemExit(f"{source}: llama.cpp could not quantise it")


def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("--trained", type=Path, required=True, help="the --out folder of train.py")
    a.add_argument("--settings", type=Path, default=HERE / "settings.toml")
    a.add_argument("--out", type=Path, default=HERE / NAME)
    args = a.parse_args()
    m = tomllib.loads(args.settings.read_text())["model"]
    with tempfile.TemporaryDirectory() as tmp:
        write_f32(Path(tmp) / "f32.gguf", m, args.trained)
        quantise(args.out, Path(tmp) / "f32.gguf")
    for t in gguf.GGUFReader(str(args.out)).tensors:
        print(f"{t.name:32} {t.tensor_type.name:5} {' x '.join(map(str, t.shape))}")
    print(args.out, args.out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
