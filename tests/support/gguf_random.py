#!/usr/bin/env python3
"""Writes random Qwen3-MoE models as GGUF, for tests.

Owns: the file layout, the quantisers, the mixes of types.
Independent of: how a model is run.
Invariant: a tensor's values depend on the seed, its own name and the shape only; every block is a valid
encoding; weights have a standard deviation of about 1/sqrt(fan_in), so that activations stay near 1.

Use:  python3 gguf_random.py --out model.gguf --seed 1 [--layers 2 ...]     or     write_model(path, layers=2)
"""
import argparse
import os
import struct
import zlib

import numpy as np

F32, F16, Q8_0, Q4_K, Q5_K, Q6_K, BF16 = 0, 1, 8, 12, 13, 14, 30
TYPES = {"F32": F32, "F16": F16, "Q8_0": Q8_0, "Q4_K": Q4_K, "Q5_K": Q5_K, "Q6_K": Q6_K, "BF16": BF16}
BLOCK = {F32: (1, 4), F16: (1, 2), BF16: (1, 2), Q8_0: (32, 34), Q4_K: (256, 144), Q5_K: (256, 176),
         Q6_K: (256, 210)}  # elements, bytes
U16, U32, I32, FLOAT32, BOOL, STRING, ARRAY = 2, 4, 5, 6, 7, 8, 9  # value types of keys
OUTLIER = 60.0  # how far an outlier channel stands above the others

DEFAULTS = dict(layers=2, hidden=256, heads=4, kv_heads=2, head_dim=64, experts=8, top_k=2, expert_width=256,
                vocab=512, context=4096, rope_base=1e6, eps=1e-6, tied=False, types="mix", split=1, version=3,
                outliers=0, alignment=0, tokenizer=False)


# ---- quantisers: x is [blocks, elements of a block] float32; the result is [blocks, bytes] uint8 ----

def _bytes(a):
    return np.ascontiguousarray(a).view(np.uint8).reshape(a.shape[0], -1)


def _over(a, b):
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape), np.float32), where=b != 0)


def quantise_f32(x, rng):
    return _bytes(x.astype("<f4"))


def quantise_f16(x, rng):
    return _bytes(x.astype("<f2"))


def quantise_bf16(x, rng):
    bits = x.view(np.uint32).astype(np.uint64)
    return _bytes(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2"))


def quantise_q8_0(x, rng):
    d = (np.abs(x).max(1, keepdims=True) / 127).astype("<f2")
    q = np.clip(np.rint(_over(x, d.astype(np.float32))), -127, 127).astype(np.int8)
    return np.concatenate([_bytes(d), _bytes(q)], 1)


def _scales_and_minimums(x, levels):
    """Of [blocks, 8, 32]: d, dmin (f16) and, 6 bits each, scales and minimums; then the quants 0..levels."""
    low = np.maximum(-x.min(2), 0)
    step = (x.max(2) + low) / levels
    d = (step.max(1, keepdims=True) / 63).astype("<f2")
    dmin = (low.max(1, keepdims=True) / 63).astype("<f2")
    df, mf = d.astype(np.float32), dmin.astype(np.float32)
    scale = np.clip(np.rint(_over(step, df)), 0, 63).astype(np.uint8)
    minimum = np.clip(np.rint(_over(low, mf)), 0, 63).astype(np.uint8)
    q = np.rint(_over(x + (mf * minimum)[:, :, None], (df * scale)[:, :, None]))
    return d, dmin, scale, minimum, np.clip(q, 0, levels).astype(np.uint8)


def _pack_6_bits(scale, minimum):
    s, m = scale, minimum
    return np.concatenate([s[:, :4] | (s[:, 4:] >> 4) << 6, m[:, :4] | (m[:, 4:] >> 4) << 6,
                           (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4], 1)


def _pack_nibbles(q):
    """[blocks, 8, 32] of 0..15: 32 bytes for two sub-blocks, low nibbles the first."""
    return (q[:, 0::2] | q[:, 1::2] << 4).reshape(q.shape[0], 128)


def quantise_q4_k(x, rng):
    d, dmin, scale, minimum, q = _scales_and_minimums(x.reshape(-1, 8, 32), 15)
    return np.concatenate([_bytes(d), _bytes(dmin), _pack_6_bits(scale, minimum), _pack_nibbles(q)], 1)


def quantise_q5_k(x, rng):
    d, dmin, scale, minimum, q = _scales_and_minimums(x.reshape(-1, 8, 32), 31)
    high = np.zeros((q.shape[0], 32), np.uint8)
    for j in range(8):
        high |= (q[:, j] >> 4) << j
    return np.concatenate([_bytes(d), _bytes(dmin), _pack_6_bits(scale, minimum), high, _pack_nibbles(q & 15)], 1)


def quantise_q6_k(x, rng):
    x = x.reshape(-1, 16, 16)
    step = np.abs(x).max(2) / 31 * rng.choice(np.float32([-1, 1]), x.shape[:2])  # scales have a sign
    d = (np.abs(step).max(1, keepdims=True) / 127).astype("<f2")
    df = d.astype(np.float32)
    scale = np.clip(np.rint(_over(step, df)), -128, 127).astype(np.int8)
    q = np.clip(np.rint(_over(x, (df * scale)[:, :, None])), -32, 31).astype(np.int8)
    q = (q + 32).astype(np.uint8).reshape(-1, 2, 4, 32)  # half, group of 32
    low = np.stack([(q[:, :, 0] & 15) | (q[:, :, 2] & 15) << 4, (q[:, :, 1] & 15) | (q[:, :, 3] & 15) << 4], 2)
    high = (q[:, :, 0] >> 4) | (q[:, :, 1] >> 4) << 2 | (q[:, :, 2] >> 4) << 4 | (q[:, :, 3] >> 4) << 6
    return np.concatenate([low.reshape(-1, 128), high.reshape(-1, 64), _bytes(scale), _bytes(d)], 1)


QUANTISE = {F32: quantise_f32, F16: quantise_f16, BF16: quantise_bf16, Q8_0: quantise_q8_0, Q4_K: quantise_q4_k,
            Q5_K: quantise_q5_k, Q6_K: quantise_q6_k}


# ---- which type a tensor has ----

def _more_bits(layer, layers):
    """The layers whose attn_v and ffn_down_exps are Q6_K in a Q4_K_M file."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _q4_k_m(kind, layer, layers):
    if kind == "output" or (kind in ("attn_v", "ffn_down_exps") and _more_bits(layer, layers)):
        return Q6_K
    return Q4_K


def _mix(kind, layer, layers):
    """Q4_K_M for the experts; the other tensors go through all types as the layers go on."""
    cycle = {"attn_q": [Q8_0, Q4_K, Q5_K], "attn_k": [F16, Q5_K, Q4_K], "attn_v": [Q5_K, Q6_K, BF16],
             "attn_output": [BF16, Q4_K, Q8_0, Q5_K], "ffn_gate_exps": [Q4_K, Q4_K, Q5_K],
             "ffn_down_exps": [Q6_K, Q4_K, Q4_K, Q8_0]}
    return cycle[kind][layer % len(cycle[kind])] if kind in cycle else _q4_k_m(kind, layer, layers)


def _type_of(p, kind, layer, columns):
    if "norm" in kind or kind == "ffn_gate_inp":
        return F32
    if p["types"] == "mix":
        wanted = _mix(kind, layer, p["layers"])
        if kind == "token_embd" and p["outliers"]:
            wanted = F16  # 4 bits would lose the 31 neighbours of an outlier
    elif p["types"] == "Q4_K_M":
        wanted = _q4_k_m(kind, layer, p["layers"])
    else:
        wanted = TYPES[p["types"]]
    for type_ in (wanted, Q8_0, F16):  # a row must be whole blocks
        if columns % BLOCK[type_][0] == 0:
            return type_


# ---- the tensors ----

def _tensors(p):
    """[(name, kind, layer, shape with the row length last)]"""
    h, q, kv = p["hidden"], p["heads"] * p["head_dim"], p["kv_heads"] * p["head_dim"]
    e, w = p["experts"], p["expert_width"]
    out = [("token_embd.weight", "token_embd", 0, (p["vocab"], h))]
    for layer in range(p["layers"]):
        for kind, shape in (("attn_norm", (h,)), ("attn_q", (q, h)), ("attn_k", (kv, h)), ("attn_v", (kv, h)),
                            ("attn_output", (h, q)), ("attn_q_norm", (p["head_dim"],)),
                            ("attn_k_norm", (p["head_dim"],)), ("ffn_norm", (h,)), ("ffn_gate_inp", (e, h)),
                            ("ffn_gate_exps", (e, w, h)), ("ffn_up_exps", (e, w, h)), ("ffn_down_exps", (e, h, w))):
            out.append((f"blk.{layer}.{kind}.weight", kind, layer, shape))
    out.append(("output_norm.weight", "output_norm", 0, (h,)))
    if not p["tied"]:
        out.append(("output.weight", "output", 0, (p["vocab"], h)))
    return out


def _outlier_channels(p, seed, layer=None):
    """Channels of the hidden state, or, with a layer, of its experts' inner state."""
    size = p["hidden"] if layer is None else p["expert_width"]
    rng = np.random.default_rng([seed, 0x0071E5, 0 if layer is None else layer + 1])
    return rng.choice(size, min(p["outliers"], size), replace=False)


def _norm_values(p, seed, kind, layer, n, rng):
    gain = 1.0
    if kind not in ("attn_q_norm", "attn_k_norm"):
        # outliers fill the mean square: give the others, whose own grows by about 1 a layer, their size back
        depth = p["layers"] if kind == "output_norm" else layer
        gain = float(np.sqrt(1 + p["outliers"] * OUTLIER**2 / p["hidden"] / (1 + depth)))
    if kind == "attn_q_norm":
        gain = 1.5  # sharper attention than a random model's
    values = gain * (1 + 0.1 * rng.standard_normal((1, n)))
    if kind == "output_norm" and p["tied"]:  # the head is the embedding, whose outliers cannot be made small
        values[:, _outlier_channels(p, seed)] /= OUTLIER**2
    return values.astype(np.float32)


def _rows(p, seed, kind, layer, rows, columns, rng):
    """The next `rows` rows of a matrix. Outliers: a channel is made large where it is written and its readers
    are made small, so the function stays sane while the activation between them has a channel that stands out."""
    std = 1 / np.sqrt(columns)
    if kind == "token_embd":
        std = 2 / np.sqrt(columns) if p["tied"] else 1.0
    if kind == "ffn_gate_inp":
        std *= 1.5
    x = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(std)
    if not p["outliers"]:
        return x
    hidden = _outlier_channels(p, seed)
    inner = _outlier_channels(p, seed, layer)
    if kind == "token_embd":
        sign = np.where(np.arange(len(hidden)) % 2, 1, -1)
        x[:, hidden] = sign * np.float32(OUTLIER) * (1 + 0.05 * x[:, hidden])
    elif kind == "ffn_up_exps":
        x[:, hidden] /= np.float32(OUTLIER)
        x[inner] *= np.float32(OUTLIER / 4)
    elif kind == "ffn_down_exps":
        x[:, inner] /= np.float32(OUTLIER / 4)
    elif columns == p["hidden"] and kind != "attn_output":
        x[:, hidden] /= np.float32(OUTLIER)
    return x


def _encoded(p, seed, name, kind, layer, shape, type_):
    """Yields the tensor's bytes, an expert or a few million weights at a time."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    columns = shape[-1]
    elements = BLOCK[type_][0]
    if len(shape) == 1:
        yield QUANTISE[type_](_norm_values(p, seed, kind, layer, columns, rng).reshape(-1, elements), rng).tobytes()
        return
    total = int(np.prod(shape[:-1]))
    step = shape[1] if len(shape) == 3 else max(1, 4_000_000 // columns)
    for at in range(0, total, step):
        rows = min(step, total - at)
        x = np.ascontiguousarray(_rows(p, seed, kind, layer, rows, columns, rng))
        yield QUANTISE[type_](x.reshape(-1, elements), rng).tobytes()


# ---- the keys ----

def _string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def _key(name, type_, value):
    formats = {U16: "<H", U32: "<I", I32: "<i", FLOAT32: "<f", BOOL: "<?"}
    if type_ == STRING:
        body = _string(value)
    elif type_ == ARRAY:
        kind, values = value
        body = struct.pack("<IQ", kind, len(values))
        body += b"".join(_string(v) if kind == STRING else struct.pack(formats[kind], v) for v in values)
    else:
        body = struct.pack(formats[type_], value)
    return _string(name) + struct.pack("<I", type_) + body


def _keys(p, seed):
    a = "qwen3moe."
    keys = [_key("general.architecture", STRING, "qwen3moe"), _key("general.name", STRING, f"random {seed}")]
    if p["alignment"]:
        keys.append(_key("general.alignment", U32, p["alignment"]))
    keys += [_key(a + "block_count", U32, p["layers"]), _key(a + "context_length", U32, p["context"]),
             _key(a + "embedding_length", U32, p["hidden"]),
             _key(a + "feed_forward_length", U32, 3 * p["hidden"]),
             _key(a + "expert_feed_forward_length", U32, p["expert_width"]),
             _key(a + "expert_count", U32, p["experts"]), _key(a + "expert_used_count", U32, p["top_k"]),
             _key(a + "attention.head_count", U32, p["heads"]),
             _key(a + "attention.head_count_kv", U32, p["kv_heads"]),
             _key(a + "attention.key_length", U32, p["head_dim"]),
             _key(a + "attention.value_length", U32, p["head_dim"]),
             _key(a + "attention.layer_norm_rms_epsilon", FLOAT32, p["eps"]),
             _key(a + "rope.freq_base", FLOAT32, p["rope_base"])]
    tokens = p["vocab"] if p["tokenizer"] is True else p["tokenizer"]
    return keys + (_tokenizer_keys(tokens) if tokens else [])


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = """The quick brown fox jumps over the lazy dog, and then the dog thinks that the fox is there. In the
beginning there was an answer to the question of what the other one said, and it is not the same as this one.
When they were young the children went into the garden where the roses are, and they sang: the river runs, the
wind blows, the rain comes down on the town. It's what we'll do, isn't it? She'd have said that he'd been here
before. Numbers are 0123456789 and naive cafes are naïve cafés; the world is 世界 and hello is 你好.
for (int i = 0; i < n; i++) sum += a[i] * b[i]; return sum; // a program in the language of the machine
"""


def byte_symbols():
    """The printable character that stands for each byte in a byte-level vocabulary, and the order of its tokens."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [b for b in range(256) if b not in kept]
    symbols = {b: chr(b) for b in kept} | {b: chr(256 + i) for i, b in enumerate(moved)}
    return symbols, kept + moved


def _merges(count):
    """Byte pair encoding trained on TEXT: the most frequent pair first, ties by the pair itself."""
    symbols, _ = byte_symbols()
    words = [[symbols[b] for b in (" " + word).encode()] for word in TEXT.split()]
    merges = []
    while len(merges) < count:
        pairs = {}
        for word in words:
            for pair in zip(word, word[1:]):
                pairs[pair] = pairs.get(pair, 0) + 1
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for k, word in enumerate(words):
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == best:
                    word[i:i + 2] = ["".join(best)]
                i += 1
    return merges


def _tokenizer_keys(vocab):
    symbols, order = byte_symbols()
    room = vocab - 256 - len(SPECIAL)
    if room < 0:
        raise ValueError(f"a tokenizer needs a vocabulary of {256 + len(SPECIAL)}, not {vocab}")
    merges = _merges(min(room, 200))
    tokens = [symbols[b] for b in order] + ["".join(pair) for pair in merges]
    special_at = len(tokens)
    tokens += SPECIAL
    kinds = [1] * special_at + [3] * len(SPECIAL) + [5] * (vocab - len(tokens))  # normal, control, unused
    tokens += [f"[PAD{i}]" for i in range(len(tokens), vocab)]
    t = "tokenizer.ggml."
    return [_key(t + "model", STRING, "gpt2"), _key(t + "pre", STRING, "qwen2"),
            _key(t + "tokens", ARRAY, (STRING, tokens)), _key(t + "token_type", ARRAY, (I32, kinds)),
            _key(t + "merges", ARRAY, (STRING, [f"{a} {b}" for a, b in merges])),
            _key(t + "eos_token_id", U32, special_at + 2), _key(t + "padding_token_id", U32, special_at),
            _key(t + "bos_token_id", U32, special_at), _key(t + "add_bos_token", BOOL, False)]


# ---- the files ----

def _padded(n, alignment):
    return (n + alignment - 1) // alignment * alignment


def _write_file(path, p, seed, keys, tensors, alignment):
    """tensors: [(name, kind, layer, shape, type)], in the order of their data."""
    infos, offset = [], 0
    for name, _, _, shape, type_ in tensors:
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        infos.append(_string(name) + dims + struct.pack("<IQ", type_, offset))
        elements, size = BLOCK[type_]
        offset = _padded(offset + int(np.prod(shape)) // elements * size, alignment)
    header = b"GGUF" + struct.pack("<IQQ", p["version"], len(tensors), len(keys)) + b"".join(keys + infos)
    with open(path, "wb") as file:
        file.write(header.ljust(_padded(len(header), alignment), b"\0"))
        for tensor in tensors:
            for part in _encoded(p, seed, *tensor):
                file.write(part)
            file.write(b"\0" * (-file.tell() % alignment))


def split_path(path, i, count):
    stem = path[:-5] if path.endswith(".gguf") else path
    return f"{stem}-{i + 1:05d}-of-{count:05d}.gguf"


def write_model(path, seed=0, **shape):
    """Writes the model; shape overrides DEFAULTS. Returns the paths of its files: [path], or those of a split set."""
    p = DEFAULTS | shape
    if set(p) != set(DEFAULTS):
        raise TypeError(f"unknown: {sorted(set(p) - set(DEFAULTS))}")
    path = os.fspath(path)
    keys = _keys(p, seed)
    tensors = [(*t, _type_of(p, t[1], t[2], t[3][-1])) for t in _tensors(p)]
    if p["split"] <= 1:
        _write_file(path, p, seed, keys, tensors, p["alignment"] or 32)
        return [path]
    paths = [split_path(path, i, p["split"]) for i in range(p["split"])]
    for i, part in enumerate(paths):
        own = [_key("split.no", U16, i), _key("split.count", U16, p["split"]),
               _key("split.tensors.count", I32, len(tensors))]
        first, last = (len(tensors) * k // p["split"] for k in (i, i + 1))
        # only the first file has general.alignment, so the others have the default one
        _write_file(part, p, seed, (keys if i == 0 else []) + own, tensors[first:last],
                    (p["alignment"] or 32) if i == 0 else 32)
    return paths


def main():
    parser = argparse.ArgumentParser(description="writes a random Qwen3-MoE GGUF file")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in DEFAULTS.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            parser.add_argument(option, action="store_true")
        elif name == "types":
            parser.add_argument(option, default=value, choices=["mix", "Q4_K_M", *TYPES])
        else:
            parser.add_argument(option, type=type(value), default=value)
    args = vars(parser.parse_args())
    for path in write_model(args.pop("out"), args.pop("seed"), **args):
        print(path)


if __name__ == "__main__":
    main()
