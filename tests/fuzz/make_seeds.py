#!/usr/bin/env python3
"""Writes the first inputs of the fuzz targets, tests/fuzz/corpus/TARGET/seed-*, and the words gguf.dict, config.dict.

Owns: what a fuzzer would need long to guess: the formats' frames. Independent of: what the targets check.
The corpus holds more than these: inputs that a run found, kept because they reach other code, and inputs of faults.
"""
import codecs
import pathlib
import re
import struct

HERE = pathlib.Path(__file__).resolve().parent
U32, I32, F32, STRING, ARRAY = 4, 5, 6, 8, 9
KINDS = "BbHhIif?"  # struct codes of value types 0 to 7


def text(value):
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def u32(name, value):
    return key(name, U32, struct.pack("<I", value))


def f32(name, value):
    return key(name, F32, struct.pack("<f", value))


def npy(version, header, numbers):
    """The first bytes of a .npy file, and how many bytes of numbers come after them."""
    length = struct.pack("<H" if version == 1 else "<I", len(header) + 1)
    return struct.pack("<H", numbers) + b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + b"\n"


def string(name, value):
    return key(name, STRING, text(value))


def array(name, kind, values):
    return key(name, ARRAY, struct.pack("<IQ", kind, len(values)) + b"".join(values))


def tensor(name, kind, dims, offset):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf(keys=(), tensors=(), data=b"", version=3):
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data if tensors else head


def model(hidden=2):
    """The smallest Qwen3-MoE: one layer, one head of 2, one expert, all F32."""
    shape = {"block_count": 1, "embedding_length": hidden, "attention.head_count": 1, "attention.head_count_kv": 1,
             "expert_count": 1, "expert_used_count": 1, "expert_feed_forward_length": 1, "context_length": 1}
    keys = [string("general.architecture", "qwen3moe")]
    keys += [u32("qwen3moe." + name, value) for name, value in shape.items()]
    keys += [f32("qwen3moe.attention.layer_norm_rms_epsilon", 1e-6), f32("qwen3moe.rope.freq_base", 1e6)]
    layer = {"attn_norm": [2], "attn_q": [2, 2], "attn_k": [2, 2], "attn_v": [2, 2], "attn_q_norm": [2],
             "attn_k_norm": [2], "attn_output": [2, 2], "ffn_norm": [2], "ffn_gate_inp": [2, 1],
             "ffn_gate_exps": [2, 1, 1], "ffn_up_exps": [2, 1, 1], "ffn_down_exps": [1, 2, 1]}
    dims = {"token_embd.weight": [2, 1], "output_norm.weight": [2]}
    dims |= {f"blk.0.{name}.weight": value for name, value in layer.items()}
    tensors = [tensor(name, 0, value, 32 * i) for i, (name, value) in enumerate(dims.items())]
    return gguf(keys, tensors, b"\0" * 32 * len(tensors))


def vocabulary():
    tokens = [text(t) for t in ("a", "b", "ab", "<|x|>")]
    return [string("tokenizer.ggml.model", "gpt2"), string("tokenizer.ggml.pre", "qwen2"),
            array("tokenizer.ggml.tokens", STRING, tokens),
            array("tokenizer.ggml.token_type", I32, [struct.pack("<i", t) for t in (1, 1, 1, 3)]),
            array("tokenizer.ggml.merges", STRING, [text("a b")]), u32("tokenizer.ggml.eos_token_id", 3)]


def every_kind():
    keys = [key(f"k{kind}", kind, struct.pack("<" + code, 1)) for kind, code in enumerate(KINDS)]
    keys += [key("k10", 10, struct.pack("<Q", 1 << 40)), key("k11", 11, struct.pack("<q", -1)),
             key("k12", 12, struct.pack("<d", 0.5)), string("s", b"a\xc3\xa9\x01\xff"), u32("general.alignment", 64)]
    keys += [array(f"a{kind}", kind, [struct.pack("<" + code, 1)] * 3) for kind, code in enumerate(KINDS)]
    return gguf(keys)


def every_type():
    rows = [(0, 1, 4), (1, 1, 2), (30, 1, 2), (8, 32, 34), (12, 256, 144), (13, 256, 176), (14, 256, 210)]
    tensors, at = [], 0
    for kind, elements, size in rows:
        tensors.append(tensor(f"t{kind}", kind, [elements], at))
        at += (size + 31) // 32 * 32
    return gguf([], tensors, b"\x01" * at, version=2)


def overlap():
    return gguf([], [tensor("a", 0, [16], 0), tensor("b", 0, [1], 32)], b"\0" * 64)


CONFIG = """[model]
path = "a.gguf"
[input]
tokens = [1, 2, 3]
[run]
arms = ["f32@cpu", "ranks"]
temperature = 0.5
[ranks]
arm = ["q8k@cpu"]
"""
GOOD_REPORT = codecs.decode("".join(re.findall(r'"((?:[^"\\]|\\.)*)"', (HERE.parent / "support" / "good_report.h").read_text())),
                            "unicode_escape")


def edits(*changes):
    """An input of `report`: in the second arm of the good report each text gives way to another, the last one first."""
    start, data = GOOD_REPORT.index('"f64@cpu"'), b"\1"
    for old, new in sorted(changes, key=lambda change: -GOOD_REPORT.index(change[0], start)):
        data += struct.pack("<HBB", GOOD_REPORT.index(old, start), len(old), len(new)) + new.encode()
    return data


INPUTS = {
    "gguf": [gguf(), model(), gguf(vocabulary()), every_kind(), every_type(),
             gguf([u32("split.no", 0), u32("split.count", 1)]), overlap()],
    "model": [b"\0", b"\1", b"\0\0\5\0\1\0\0", b"\1\x11\2\0\xff\xff\0"],
    "config": [b"\0" + CONFIG.encode(), b"\1experts.placement=[0,1,0]\x1e", b"\6run.top_p=0.5\x1erun.kv=f32",
               b"\0input.prompts = ['a', \"\\u00e9\"]\nbench.prompt = [1, 2]\n", b"\4",
               b"\0input.prompt = 'a\\b\"c'\n"],
    "toml": [CONFIG.encode(), b"a.b = {c = [1, [2.5, 'x']], d = 1979-05-27T07:32:00Z}\n[[t]]\nx = '''\ny'''\n",
             b"a = 0xff\nb = inf\nc = \"\\U0001F600\"\n[\"q d\"]\n"],
    "report": [b"\0{\"schema\": 4, \"complete\": true}", b"\1", b"\1\x20\0\1\1x", b"\1\x40\1\0\4null", b"\0[[[[1e9]]]]",
               edits(('"f64@cpu"', '"q8k@cpu"'), ('"f64"', '"q8k"')), edits(('"generated": []', '"generated": 0')),
               edits((', {"tokens": 4, "digest": "0000000000000004"}', ""), ('"0000000000000007"', '"0000000000000003"')),
               edits(('"generated": []', '"generated": [{"sequence": 0, "tokens": [-1], "digest": "0000000000000003"}, '
                      '{"sequence": 1, "tokens": [], "digest": "0000000000000004"}]'))],
    "tokenizer": [b"Hello, world! 12 don't\n\n", "e\u0301 \uac00\u11a8 \u4f60\u597d".encode(), b"<|im_start|>a<|im_end|>\n",
                  "\u00ab\u00e9\u00bb<think>\u0338".encode(), b"\xff"],
    "text": ["a\u0301\u0327\u0315 1\u00b2 \r\n\u2003x".encode(), "\U0001d160\U00011935\u1100\u1161\u11a7".encode(), b"I'LL we'\xc5\xbf"],
    "tokens": [struct.pack("<4H", 1, 200, 3000, 3029), b"\xff\xff\xff\xff\xff\xff", struct.pack("<3H", 226, 130, 172),
               b"\xff\xff" + struct.pack("<I", 3030)],
    "vocabulary": [b"\1t\1ab\xffma b\xffabab", b"\1t\3<|x|>\xff<|x|>a", b"\5t\4\xc3\xa9\xff\xc3\xa9", b"\0t\1a\xfft\1b\xffa"],
    "bpe": [b"\2\1\2\3\3\1\4" + b"\1\2\1\2\1", b"\1\0\0\0" + b"\0" * 20],
    "placement": [b"\0\0\7\3\1", b"\0\3\3\1\0\0\1\0\1", b"\0\2\7\3\1\5\377\0\3", b"\1\4\3\0\11", b"\2\7\3\2\1\1\0" + bytes(range(48)),
                  b"\2\x17\5\1\xff\x40\x15" + bytes(range(96, 0, -1))],
    "npy": [npy(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", 24),
            npy(2, "{'descr': '<f8', 'fortran_order': True, 'shape': (4,), }", 32),
            npy(3, "{'descr': '<i8', 'fortran_order': False, 'shape': (), }", 8),
            npy(1, "{\"shape\":(1,1,1,1,1,1,1,0),'descr':'<f2','fortran_order':False}", 0),
            npy(1, "{'descr': '<i4', 'fortran_order': False, 'shape': (2147483648, 4294967296), }", 8)],
    "blocks": [bytes([kind]) + b"\x12\x34" * 105 for kind in (0, 1, 8, 12, 13, 14, 30)],
}


def words(path, values):
    quoted = ("".join(f"\\x{b:02x}" if b < 32 or b > 126 or b in b'"\\' else chr(b) for b in v) for v in values)
    path.write_text("".join(f'"{v}"\n' for v in quoted))


def main():
    for target, inputs in INPUTS.items():
        folder = HERE / "corpus" / target
        folder.mkdir(parents=True, exist_ok=True)
        for i, data in enumerate(inputs):
            (folder / f"seed-{i}").write_bytes(data)
    names = ["general.architecture", "general.alignment", "general.name", "split.no", "split.count",
             "split.tensors.count", "qwen3moe", "qwen3moe.rope.scaling.type", "qwen3moe.expert_weights_norm",
             "tokenizer.ggml.model", "tokenizer.ggml.eot_token_id", "gpt2", "qwen2", "none", "output.weight"]
    words(HERE / "gguf.dict", [name.encode() for name in names] + [text(name) for name in names] +
          [struct.pack("<I", n) for n in range(13)] + [struct.pack("<Q", 1 << n) for n in (8, 31, 32, 60, 62, 63)])
    sections = {"run": "arms context kv generate threads seed chunk temperature top_k top_p rows bind",
                "input": "tokens prompt prompts file", "ranks": "arm shared", "experts": "placement",
                "comm": "transport deadline", "perplexity": "skip", "output": "dir logits", "model": "path",
                "bench": "prompt generate depth batch repeats warmup format"}
    keys = [f"{section}.{name}" for section, all_of in sections.items() for name in all_of.split()]
    values = ["true", "false", "inf", "nan", "1e308", "0x7fffffffffffffff", "-9223372036854775808", "\"\"\"", "'''",
              "[[", "]]", "\\u0000", "\\U0010FFFF", "1979-05-27", "07:32:00.5", "\"f64@cpu\"", "\"ranks\"", "\"strided\"",
              "\"f32\"", "{", "}", "\n", "\x1e", " = "]
    words(HERE / "config.dict", [word.encode() for word in keys + values])
    words(HERE / "report.dict", [word.encode() for word in values if word.isalnum()] + [b"null", b"[]", b"{}", b"\\u0000",
          b"0000000000000001", b"ffffffffffffffff", b"-1", b"1e400", b"9223372036854775808", b"\"q8k@cuda\"", b"\"ranks\"",
          b"\"generated\": []", b"\"tokens\": ", b"perplexity", b"\"f32\"", b"layer_digests"])
    words(HERE / "toml.dict", [word.encode() for word in values])
    marks = ["\u0301", "\u0327", "\u1161", "\u11a7", "\u11a8", "\uac00", "\U0001d15e", "\U00011935", "\u0f71",
             "\u00e9", "\u2003", "\u017f", "\u0338", "\u0344", "\u212b", "\u3099", "\U0001f600", "'ll", "\r\n", "<|im_end|>",
             "<|im_start|>", "<think>", "\u00ab\u00e9\u00bb", "\u1e9b\u0323", "\u0c3c", "\ufb2c", "\u2adc"]
    for target in ("tokenizer", "text"):
        words(HERE / f"{target}.dict", [mark.encode() for mark in marks])


if __name__ == "__main__":
    main()
