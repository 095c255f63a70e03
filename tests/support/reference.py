#!/usr/bin/env python3
"""Qwen3-MoE in float64: an independent check of the program's truth.

Owns: its own GGUF reader, its own dequantisation, the forward pass as Hugging Face defines Qwen3-MoE.
Independent of: the program under test, and the writer of the test models.
Invariant: a weight is the float32 that the format fixes, widened; everything after it is float64, keys, values
and RoPE angles too.

Use:  python3 reference.py MODEL --tokens 1,2,3 --out logits.npy [--layers-out layers.npy]
"""
import argparse
import glob
import re
import struct
from collections import OrderedDict

import numpy as np

SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9


# ---- dequantisation: raw is [blocks, bytes] uint8; the result is [blocks, elements] float32 ----

def _halves(raw, at):
    return raw[:, at:at + 2].copy().view("<f2").astype(np.float32)


def dequantise_f32(raw):
    return raw.copy().view("<f4")


def dequantise_f16(raw):
    return raw.copy().view("<f2").astype(np.float32)


def dequantise_bf16(raw):
    return (raw.copy().view("<u2").astype(np.uint32) << 16).view(np.float32)


def dequantise_q8_0(raw):
    return raw[:, 2:].view(np.int8).astype(np.float32) * _halves(raw, 0)


def _steps_and_bases(raw):
    """[blocks, 8] each: the float32 step d * scale and base dmin * minimum of every sub-block of 32."""
    scale = np.empty((len(raw), 8), np.float32)
    minimum = np.empty_like(scale)
    packed = raw[:, 4:16].astype(np.int32)
    for j in range(4):
        low, mid, high = packed[:, j], packed[:, j + 4], packed[:, j + 8]
        scale[:, j], minimum[:, j] = low % 64, mid % 64
        scale[:, j + 4] = high % 16 + low // 64 * 16
        minimum[:, j + 4] = high // 16 + mid // 64 * 16
    return _halves(raw, 0) * scale, _halves(raw, 2) * minimum


def _nibbles(quants):
    """[blocks, 128] to [blocks, 8, 32]: sub-blocks 2k and 2k + 1 are the low and high nibbles of 32 bytes."""
    quants = quants.reshape(-1, 4, 32)
    return np.stack([quants % 16, quants // 16], 2).reshape(-1, 8, 32)


def dequantise_q4_k(raw):
    step, base = _steps_and_bases(raw)
    q = _nibbles(raw[:, 16:]).astype(np.float32)
    return (step[:, :, None] * q - base[:, :, None]).reshape(-1, 256)


def dequantise_q5_k(raw):
    step, base = _steps_and_bases(raw)
    fifth = np.stack([raw[:, 16:48] >> j & 1 for j in range(8)], 1)
    q = (_nibbles(raw[:, 48:]) + 16 * fifth).astype(np.float32)
    return (step[:, :, None] * q - base[:, :, None]).reshape(-1, 256)


def dequantise_q6_k(raw):
    low = raw[:, :128].reshape(-1, 2, 2, 32)
    low = np.concatenate([low % 16, low // 16], 2)  # [blocks, half, group of 32, 32]
    high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3
    q = (low + 16 * high).astype(np.int32) - 32
    step = _halves(raw, 208) * raw[:, 192:208].view(np.int8).astype(np.float32)
    return (step[:, :, None] * q.reshape(-1, 16, 16).astype(np.float32)).reshape(-1, 256)


TYPES = {0: ("F32", 1, 4, dequantise_f32), 1: ("F16", 1, 2, dequantise_f16), 8: ("Q8_0", 32, 34, dequantise_q8_0),
         12: ("Q4_K", 256, 144, dequantise_q4_k), 13: ("Q5_K", 256, 176, dequantise_q5_k),
         14: ("Q6_K", 256, 210, dequantise_q6_k), 30: ("BF16", 1, 2, dequantise_bf16)}


# ---- the file ----

class Gguf:
    """keys: name to value; tensors: name to (type, shape with the row length last, bytes in the map)."""

    def __init__(self, path):
        self.keys, self.tensors = {}, {}
        self._read(path, self.keys)
        if self.keys.get("split.count", 0) > 1:
            pattern = re.sub(r"-\d{5}-of-(\d{5})\.gguf$", r"-?????-of-\1.gguf", path)
            parts = sorted(glob.glob(pattern))
            if len(parts) != self.keys["split.count"]:
                raise ValueError(f"{path}: {self.keys['split.count']} files expected, found {parts}")
            self.tensors = {}
            for i, part in enumerate(parts):
                self._read(part, self.keys if i == 0 else {})

    def _read(self, path, keys):
        self._map, self._at = np.memmap(path, np.uint8, "r"), 0
        if bytes(self._take(4)) != b"GGUF" or self._number("<u4") not in (2, 3):
            raise ValueError(f"{path}: not a GGUF file of version 2 or 3")
        n_tensors, n_keys = self._number("<u8"), self._number("<u8")
        for _ in range(n_keys):
            name = self._string().decode()
            keys[name] = self._value(self._number("<u4"))
        infos = [self._tensor_info() for _ in range(n_tensors)]
        alignment = int(keys.get("general.alignment", 32))
        data = -(-self._at // alignment) * alignment
        for name, shape, type_, offset in infos:
            _, elements, size, _ = TYPES[type_]
            at, length = data + offset, int(np.prod(shape)) // elements * size
            self.tensors[name] = (type_, shape, self._map[at:at + length])

    def _take(self, n):
        self._at += n
        return self._map[self._at - n:self._at]

    def _number(self, kind):
        return struct.unpack("<" + {"<u4": "I", "<u8": "Q"}[kind], bytes(self._take(int(kind[-1]))))[0]

    def _string(self):
        return bytes(self._take(self._number("<u8")))

    def _value(self, type_):
        if type_ == STRING:
            return self._string()
        if type_ == ARRAY:
            kind, count = self._number("<u4"), self._number("<u8")
            if kind == STRING:
                return [self._string() for _ in range(count)]
            return self._take(np.dtype(SCALARS[kind]).itemsize * count).copy().view(SCALARS[kind])
        return self._take(np.dtype(SCALARS[type_]).itemsize).copy().view(SCALARS[type_])[0].item()

    def _tensor_info(self):
        name = self._string().decode()
        dims = [self._number("<u8") for _ in range(self._number("<u4"))]
        type_ = self._number("<u4")
        return name, tuple(reversed(dims)), type_, self._number("<u8")

    def rows(self, name, index=None):
        """Weights as float32: the whole tensor, or the sub-tensors [index] of its first (slowest) dimension."""
        type_, shape, raw = self.tensors[name]
        _, _, size, dequantise = TYPES[type_]
        if index is not None:
            raw = raw.reshape(shape[0], -1)[index]
            shape = np.shape(index) + shape[1:]
        return dequantise(np.ascontiguousarray(raw).reshape(-1, size)).reshape(shape)


# ---- the model ----

class Model:
    CACHE_BYTES = 2 << 30  # of dequantised matrices

    def __init__(self, path):
        self.gguf = Gguf(path)
        keys = self.gguf.keys
        if keys["general.architecture"] != b"qwen3moe":
            raise ValueError(f"{path}: {keys['general.architecture']} is no qwen3moe")
        get = lambda name: keys["qwen3moe." + name]
        self.layers, self.hidden = get("block_count"), get("embedding_length")
        self.heads, self.kv_heads = get("attention.head_count"), get("attention.head_count_kv")
        self.head_dim = keys.get("qwen3moe.attention.key_length", self.hidden // self.heads)
        self.top_k = get("expert_used_count")
        self.eps, self.rope_base = get("attention.layer_norm_rms_epsilon"), get("rope.freq_base")
        self._cache, self._cached = OrderedDict(), 0
        self._shown = None

    def weight(self, name, index=None):
        """A matrix as float64; the least recently used ones are forgotten beyond CACHE_BYTES."""
        key = (name, index)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        value = self.gguf.rows(name + ".weight", index).astype(np.float64)
        self._cache[key] = value
        self._cached += value.nbytes
        while self._cached > self.CACHE_BYTES and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].nbytes
        return value

    def show(self, name, value):
        """A named point of the forward pass, for `probes`."""
        if self._shown is not None:
            self._shown.setdefault(name, []).append(value)

    def norm(self, x, name):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + self.eps) * self.weight(name)

    def rotate(self, x):
        """RoPE in halves (element i is rotated with i + head_dim / 2); x is [position, head, head_dim]."""
        half = self.head_dim // 2
        speed = np.float64(self.rope_base) ** (-2.0 * np.arange(half, dtype=np.float64) / self.head_dim)
        angle = np.arange(len(x), dtype=np.float64)[:, None, None] * speed
        a, b, c, s = x[..., :half], x[..., half:], np.cos(angle), np.sin(angle)
        return np.concatenate([a * c - b * s, b * c + a * s], -1)

    def attention(self, x, blk):
        shape = (len(x), -1, self.head_dim)
        q = self.rotate(self.norm((x @ self.weight(blk + "attn_q").T).reshape(shape), blk + "attn_q_norm"))
        k = self.rotate(self.norm((x @ self.weight(blk + "attn_k").T).reshape(shape), blk + "attn_k_norm"))
        v = (x @ self.weight(blk + "attn_v").T).reshape(shape)
        self.show("Qcur", q / np.sqrt(np.float64(self.head_dim)))
        self.show("Kcur", k)
        self.show("Vcur", v)
        out = np.empty_like(q)
        for head in range(self.heads):
            group = head // (self.heads // self.kv_heads)
            out[:, head] = self.attend(q[:, head] / np.sqrt(np.float64(self.head_dim)), k[:, group], v[:, group], blk)
        self.show("kqv_out", out)
        return out.reshape(len(x), -1) @ self.weight(blk + "attn_output").T

    def attend(self, q, k, v, blk):
        """One head over all positions, each of which sees those up to its own; q, k, v are [position, head_dim]."""
        score = np.where(np.triu(np.ones((len(q), len(k)), bool), 1), -np.inf, q @ k.T)
        score = np.exp(score - score.max(1, keepdims=True))
        return score / score.sum(1, keepdims=True) @ v

    def route(self, x, blk):
        """[token, top_k] experts, probability descending and index ascending on a tie, and their weights."""
        logit = x @ self.weight(blk + "ffn_gate_inp").T
        self.show("ffn_moe_logits", logit)
        p = np.exp(logit - logit.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        chosen = np.argsort(-p, 1, kind="stable")[:, :self.top_k]
        share = np.take_along_axis(p, chosen, 1)
        return chosen, share / share.sum(1, keepdims=True), p

    def experts(self, x, blk, chosen, share):
        out = np.zeros_like(x)
        slots = {name: [None] * chosen.size for name in ("gate", "up", "swiglu", "down")}
        for expert in np.unique(chosen):
            token, slot = np.nonzero(chosen == expert)
            gate = x[token] @ self.weight(blk + "ffn_gate_exps", int(expert)).T
            up = x[token] @ self.weight(blk + "ffn_up_exps", int(expert)).T
            inner = gate / (1 + np.exp(-gate)) * up
            down = inner @ self.weight(blk + "ffn_down_exps", int(expert)).T
            out[token] += share[token, slot, None] * down
            for name, rows in zip(slots, (gate, up, inner, down)):
                for i, row in zip(token * self.top_k + slot, rows):
                    slots[name][i] = row
        for name, rows in slots.items():
            self.show("ffn_moe_" + name, np.reshape(rows, chosen.shape + (-1,)))
        self.show("ffn_moe_out", out)
        return out

    def forward(self, tokens):
        """A dict: logits [token, vocabulary], layers [layer, token, hidden] (the residual stream after each),
        chosen and share [layer, token, top_k], probability [layer, token, expert]."""
        trace = {"layers": [], "chosen": [], "share": [], "probability": []}
        x = self.gguf.rows("token_embd.weight", np.asarray(tokens, np.int64)).astype(np.float64)
        self.show("inp_embd", x)
        for layer in range(self.layers):
            blk = f"blk.{layer}."
            y = self.norm(x, blk + "attn_norm")
            self.show("attn_norm", y)
            x = x + self.attention(y, blk)
            self.show("ffn_inp", x)
            y = self.norm(x, blk + "ffn_norm")
            self.show("ffn_norm", y)
            chosen, share, probability = self.route(y, blk)
            self.show("ffn_moe_topk", chosen)
            self.show("ffn_moe_weights_norm", share)
            x = x + self.experts(y, blk, chosen, share)
            self.show("l_out", x)
            for name, value in zip(trace, (x, chosen, share, probability)):
                trace[name].append(value)
        head = "output" if "output.weight" in self.gguf.tensors else "token_embd"
        trace = {name: np.stack(values) for name, values in trace.items()}
        y = self.norm(x, "output_norm")
        logits = y @ self.weight(head).T
        self.show("result_norm", y)
        self.show("result_output", logits)
        return trace | {"logits": logits}

    def probes(self, tokens):
        """Every named point: a list of arrays [token, ...], one for each layer, or one alone where there is no layer.
        Qcur is what is multiplied by the keys: with 1/sqrt(head_dim)."""
        self._shown = {}
        self.forward(tokens)
        shown, self._shown = self._shown, None
        return shown


def main():
    parser = argparse.ArgumentParser(description="the float64 forward pass of a Qwen3-MoE GGUF")
    parser.add_argument("model")
    parser.add_argument("--tokens", required=True, help="ids with commas between")
    parser.add_argument("--out", required=True, help=".npy for the logits, float64 [token, vocabulary]")
    parser.add_argument("--layers-out", help=".npy for the residual stream, float64 [layer, token, hidden]")
    args = parser.parse_args()
    trace = Model(args.model).forward([int(t) for t in args.tokens.split(",")])
    np.save(args.out, trace["logits"])
    if args.layers_out:
        np.save(args.layers_out, trace["layers"])


if __name__ == "__main__":
    main()
