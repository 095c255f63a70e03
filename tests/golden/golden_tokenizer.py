#!/usr/bin/env python3
"""Compares the tokenizer with Hugging Face `tokenizers` on generated text, and writes the golden cases.

The vocabulary is Qwen's: `qwen.tiktoken` of the PyPI package `dashscope`. Needs `dashscope`, `tokenizers` and
`gguf`.

  golden_tokenizer.py check --program build/test_tokenizer [--count N] [--seed S]
  golden_tokenizer.py write --folder tests/golden/tokenizer [--seed S]

`check` prints a count for each category and every mismatch, and exits with 1 where there is one.
"""
import argparse
import base64
import importlib.metadata
import importlib.util
import json
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import unicodedata

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from golden_tokenizer_texts import (CATEGORIES, CONTROL, OVERLAPPING, SPACES, UNASSIGNED, USER, contractions,
                                    controls, library, line_runs, long_word, mixed, numbers, recent, spaces)

PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
REDUCED_RANKS, REDUCED_CASES, WORD_CASES, BATCH = 3000, 640, 240, 2000
SPLIT = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False)
NORMAL, CONTROL_TYPE, USER_TYPE = 1, 3, 4

# ---- vocabulary ----


def load_ranks():
    folder = pathlib.Path(importlib.util.find_spec("dashscope").origin).parent
    lines = (folder / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    ranks = [base64.b64decode(line.split()[0]) for line in lines if line]
    assert all(int(line.split()[1]) == i for i, line in enumerate(lines) if line)
    return ranks


def byte_alphabet():
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {**{b: chr(b) for b in visible}, **{b: chr(0x100 + i) for i, b in enumerate(hidden)}}


def split_token(rank_of, token):
    """The two parts that merge last when only lower ranks than the token's own may merge."""
    limit = rank_of[token]
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        rank, i = min((rank_of.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1))
        if rank >= limit:
            raise ValueError(f"rank {limit} does not come from two tokens")
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


class Vocabulary:

    def __init__(self, ranks, extra_user=()):
        alphabet = byte_alphabet()
        write = lambda raw: "".join(alphabet[b] for b in raw)
        rank_of = {token: i for i, token in enumerate(ranks)}
        self.normal = [write(token) for token in ranks]
        self.merges = [tuple(map(write, split_token(rank_of, token))) for token in ranks if len(token) > 1]
        self.special = [(text, CONTROL_TYPE) for text in CONTROL]
        self.special += [(text, USER_TYPE) for text in [*USER, *extra_user]]

    def tokens(self):
        return self.normal + [text for text, _ in self.special]

    def hugging_face(self):
        vocabulary = {text: i for i, text in enumerate(self.normal)}
        tokenizer = Tokenizer(
            models.BPE(vocab=vocabulary, merges=self.merges, fuse_unk=False, byte_fallback=False))
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [SPLIT, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_tokens(
            [AddedToken(text, normalized=False, special=kind == CONTROL_TYPE) for text, kind in self.special])
        for i, (text, _) in enumerate(self.special):
            assert tokenizer.token_to_id(text) == len(self.normal) + i
        return tokenizer

    def write_gguf(self, path):
        writer = gguf.GGUFWriter(path, "qwen3moe")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(self.tokens())
        writer.add_token_types([NORMAL] * len(self.normal) + [kind for _, kind in self.special])
        writer.add_token_merges([" ".join(pair) for pair in self.merges])
        writer.add_eos_token_id(self.tokens().index("<|im_end|>"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def word_ends(text):
    """Where the reference's words end in the text as it is, in bytes."""
    ends, at = [], 0
    for word, _ in SPLIT.pre_tokenize_str(text):
        at += len(word.encode())
        ends.append(at)
    return ends


# ---- our side ----


def read_array(answer, at, size):
    count, = struct.unpack_from("<I", answer, at)
    end = at + 4 + size * count
    return answer[at + 4:end], end


def run_ours(program, path, texts):
    """(ids, decoded bytes, ends of words) for each text."""
    raw = [text.encode() for text in texts]
    feed = b"".join(struct.pack("<I", len(t)) + t for t in raw)
    answer = subprocess.run([program, "--ids", path], input=feed, stdout=subprocess.PIPE, check=True).stdout
    out, at = [], 0
    for _ in raw:
        ids, at = read_array(answer, at, 4)
        decoded, at = read_array(answer, at, 1)
        ends, at = read_array(answer, at, 4)
        out.append((memoryview(ids).cast("i").tolist(), decoded, memoryview(ends).cast("I").tolist()))
    assert at == len(answer)
    return out


def normal_form(tokenizer, specials, text):
    """NFC of each part between special tokens, by the reference."""
    out, at = [], 0
    while at < len(text):
        found = [(i, -len(s)) for s in specials if (i := text.find(s, at)) >= 0]
        begin, minus = min(found, default=(len(text), 0))
        out += [tokenizer.normalizer.normalize_str(text[at:begin]), text[begin:begin - minus]]
        at = begin - minus
    return "".join(out)


def check_batch(tokenizer, vocabulary, program, path, batch):
    bad = 0
    specials = [text for text, _ in vocabulary.special]
    wanted = tokenizer.encode_batch([text for _, text in batch], add_special_tokens=False)
    found = run_ours(program, path, [text for _, text in batch])
    for (name, text), want, (ids, decoded, ends) in zip(batch, wanted, found):
        form = normal_form(tokenizer, specials, text)
        words = word_ends(text)
        if ids != want.ids or decoded != form.encode() or ends != words:
            bad += 1
            print(
                f"MISMATCH {name} {ascii(text)}\n  expected {want.ids}\n  found    {ids}"
                f"\n  NFC      {ascii(form)}"
                f"\n  decoded  {decoded}\n  words    {words}\n  found    {ends}")
    return bad


def check(arguments):
    bad = total = 0
    for title, vocabulary in (("whole", Vocabulary(load_ranks())),
                              ("reduced", Vocabulary(load_ranks()[:REDUCED_RANKS], OVERLAPPING))):
        tokenizer = vocabulary.hugging_face()
        r = random.Random(arguments.seed)
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/vocabulary.gguf"
            vocabulary.write_gguf(path)
            left = arguments.count if title == "whole" else arguments.count // 4
            total += left
            counts = dict.fromkeys((f.__name__ for f in CATEGORIES), 0)
            while left:
                batch = [(f.__name__, f(r))
                         for f in (CATEGORIES[i % len(CATEGORIES)] for i in range(min(left, BATCH)))]
                for name, _ in batch:
                    counts[name] += 1
                left -= len(batch)
                bad += check_batch(tokenizer, vocabulary, arguments.program, path, batch)
        print(f"{title} vocabulary, {len(vocabulary.tokens())} tokens:",
              ", ".join(f"{k} {v}" for k, v in counts.items()))
    print(f"{total} texts, {bad} mismatches")
    return bad > 0


# ---- golden cases ----

README = """Golden cases of the tokenizer
=============================

`vocabulary.gguf` holds only the keys of a tokenizer: the first {ranks} ranks of `qwen.tiktoken` (package
`dashscope` {dashscope}), whose merges are among themselves, Qwen3's special tokens, and {overlapping} more that overlap
them. Qwen's vocabulary and `dashscope` are under the Apache License 2.0.

`cases.json` is a list of `[text, ids]` or `[text, ids, decoded]`: ids by Hugging Face `tokenizers` {tokenizers} with
the same vocabulary and Qwen2's settings; `decoded`, the normal form (NFC of each part between special tokens)
that decoding gives back, stands where it is not the text.

`words.json` is a list of `[text, ends]`: where the pre-tokenizer's words end in the text as it is, in bytes.

All texts are generated: seed {seed}, Python {python}, Unicode {unicode} for the choice of characters. Written by
`gguf` {gguf} and

    python tests/golden/golden_tokenizer.py write --folder tests/golden/tokenizer --seed {seed}
"""


def class_edges():
    """Ends of the ranges of letters and numbers that the reference knows and this Python does not."""
    text = "\x01".join(c for c in UNASSIGNED if c > "\x7f")
    known = [
        word for word, _ in pre_tokenizers.Split(Regex(r"[\p{L}\p{N}]"), "isolated").pre_tokenize_str(text)
        if len(word) == 1 and word != "\x01"
    ]
    return [c for c in known if chr(ord(c) - 1) not in known or chr(ord(c) + 1) not in known]


def word_texts(r):
    texts = [f"!{c}b" for c in class_edges()] + [f"x{c}{c}{c}y\n{c}" for c in SPACES]
    makers = (spaces, line_runs, contractions, numbers, recent, controls, mixed)
    return texts + [makers[i % len(makers)](r)[:16] for i in range(WORD_CASES - len(texts))]


def dump(path, cases):
    lines = ",\n".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases)
    path.write_text(f"[\n{lines}\n]\n")


def write(arguments):
    folder = pathlib.Path(arguments.folder)
    vocabulary = Vocabulary(load_ranks()[:REDUCED_RANKS], OVERLAPPING)
    tokenizer = vocabulary.hugging_face()
    specials = [text for text, _ in vocabulary.special]
    r = random.Random(arguments.seed)
    makers = [f for f in CATEGORIES if f not in (library, long_word)]  # no text of others, no long one
    texts = ["", *(makers[i % len(makers)](r)[:36] for i in range(REDUCED_CASES - 1))]
    vocabulary.write_gguf(folder / "vocabulary.gguf")
    cases = []
    for text in texts:
        form = normal_form(tokenizer, specials, text)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        cases.append([text, ids] if form == text else [text, ids, form])
    dump(folder / "cases.json", cases)
    dump(folder / "words.json", [[text, word_ends(text)] for text in word_texts(r)])
    version = importlib.metadata.version
    (folder / "README.md").write_text(
        README.format(ranks=REDUCED_RANKS,
                      overlapping=len(OVERLAPPING),
                      seed=arguments.seed,
                      dashscope=version("dashscope"),
                      tokenizers=version("tokenizers"),
                      gguf=version("gguf"),
                      python=sys.version.split()[0],
                      unicode=unicodedata.unidata_version))
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("check")
    one.add_argument("--program", required=True)
    one.add_argument("--count", type=int, default=24000)
    one.add_argument("--seed", type=int, default=1)
    one.set_defaults(run=check)
    two = commands.add_parser("write")
    two.add_argument("--folder", required=True)
    two.add_argument("--seed", type=int, default=1)
    two.set_defaults(run=write)
    arguments = parser.parse_args()
    sys.exit(arguments.run(arguments))


if __name__ == "__main__":
    main()
