#!/usr/bin/env python3
"""Files and command lines as people bring them: what is the same model runs with the same bits, what is not is
named, and what cannot be trusted is warned of in every report.

Independent of: how a model is computed. Settings by themselves: tests/unit/test_settings.c; end tokens:
tests/unit/test_end_tokens.c.
"""
import json
import os
import re
import struct
import subprocess
import unittest

import check_schema
import gguf_random
import moe
from gguf_layout import put_together, take_apart

SEED = moe.random_seed()
SHAPE = dict(layers=2, hidden=256, heads=2, kv_heads=1, expert_width=256, vocab=384, experts=4, top_k=2, types="Q4_K_M")
MODEL = moe.model(SEED, tokenizer=True, context=64, **SHAPE)
A = "qwen3moe."
TOKENS = list(range(5, 17))
NUL = gguf_random.byte_symbols()[1].index(0)  # the token that is one zero byte


def read(path):
    with open(path, "rb") as file:
        return file.read()


SCHEMA = json.loads(read(os.path.join(moe.SOURCE, "docs", "inspect.schema.json")))
KEYS, TENSORS = take_apart(read(MODEL))


def written(keys=None, tensors=None):
    path = moe.fresh(".gguf")
    with open(path, "wb") as file:
        file.write(put_together(KEYS if keys is None else keys, TENSORS if tensors is None else tensors))
    return path


def key(name, type_, value):
    return gguf_random._key(name, type_, value)


def without(*names):
    return [k for k in KEYS if not any(k[8:].startswith(name.encode()) for name in names)]


def changed(name, change):
    """The tensors, with the data of one of them changed."""
    return [[n, d, t, change(b) if n == name else b] for n, d, t, b in TENSORS]


def words(**sets):
    keys = {"model.path": MODEL, "input.tokens": TOKENS, "run.arms": ["q8k@cpu"], "run.threads": 1}
    keys |= {k.replace("__", "."): v for k, v in sets.items()}
    return {k: v for k, v in keys.items() if v is not None}


def attempt(ranks=1, command=None, out=None, **sets):
    return moe.attempt(words(**sets), ranks, command=command, out=out or moe.fresh(), alone=ranks == 1)


def report(ranks=1, command=None, **sets):
    outcome = attempt(ranks, command, **sets)
    assert outcome.code == 0, outcome.err
    return outcome.report()


def inspected(path, **sets):
    done = moe.attempt({"model.path": path, "output.format": "json"} | sets, command="inspect", alone=True)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    wrong = list(check_schema.faults(found, SCHEMA, SCHEMA))
    assert not wrong, wrong
    return found


class SameModel(unittest.TestCase):
    """Other bytes, the same model: the same digest."""

    def digest(self, path, **sets):
        found = report(model__path=path, **sets)
        return found["arms"][0]["digest"], found["warnings"]

    def test_fused_queries_keys_and_values(self):
        plain = self.digest(MODEL)
        tensors, fused = [], {}
        for name, dims, type_, data in TENSORS:
            layer, _, part = name.rpartition(".attn_")
            if part not in ("q.weight", "k.weight", "v.weight"):
                tensors.append([name, dims, type_, data])
                continue
            rows = gguf_random.BLOCK[type_][1] * dims[0] // gguf_random.BLOCK[type_][0] * dims[1]
            fused.setdefault(layer, []).append((part, dims[1], type_, data[:rows]))
        types = {layer: {part[2] for part in parts} for layer, parts in fused.items()}
        for layer, parts in fused.items():
            if len(types[layer]) > 1:  # attn_v has more bits here: not to be fused
                for part, rows, type_, data in parts:
                    tensors.append([f"{layer}.attn_{part}", [SHAPE["hidden"], rows], type_, data])
                continue
            parts.sort(key=lambda part: "qkv".index(part[0][0]))
            tensors.append([f"{layer}.attn_qkv.weight", [SHAPE["hidden"], sum(part[1] for part in parts)],
                            parts[0][2], b"".join(part[3] for part in parts)])
        whole = [t for t in tensors if "attn_qkv" in t[0]]
        self.assertTrue(whole, "no layer whose three types are one")
        path = written(tensors=tensors)
        self.assertEqual(self.digest(path), plain)
        self.assertEqual(report(3, model__path=path)["arms"][0]["digest"], plain[0])
        twice = [t for t in TENSORS if t[0] not in (x[0] for x in tensors) and "attn_k." in t[0]]
        outcome = attempt(model__path=written(tensors=tensors + twice))
        self.assertRegex(outcome.err, r"attn_qkv\.weight and blk\.\d\.attn_k\.weight: expected one of them")
        short = [[n, [d[0], d[1] - 1], t, b] if "attn_qkv" in n else [n, d, t, b] for n, d, t, b in tensors]
        self.assertRegex(attempt(model__path=written(tensors=short)).err, r"attn_qkv\.weight: expected shape \[256, ")

    def test_what_a_saver_adds(self):
        more = [key(A + "expert_weights_scale", gguf_random.FLOAT32, 0.0), key(A + "expert_weights_norm", gguf_random.BOOL, False),
                key(A + "expert_gating_func", gguf_random.U32, 0), key(A + "pooling_type", gguf_random.U32, 2**32 - 1),
                key(A + "attn_logit_softcapping", gguf_random.FLOAT32, 50.0),
                key(A + "deepstack_mapping", gguf_random.ARRAY, (gguf_random.I32, [-1] * 512)),
                key("tokenizer.ggml.eot_token_id", gguf_random.U32, 2**32 - 1),
                key("tokenizer.ggml.eom_token_id", gguf_random.I32, -1)]
        self.assertEqual(self.digest(written(KEYS + more)), self.digest(MODEL))

    def test_ids_need_no_tokenizer(self):
        for change in ([key("tokenizer.ggml.pre", gguf_random.STRING, "default")], [], [key("tokenizer.ggml.pre", gguf_random.I32, 3)]):
            path = written(without("tokenizer.ggml.pre") + change)
            self.assertEqual(self.digest(path), self.digest(MODEL))
        refusal = attempt(model__path=path, input__tokens=None, input__prompt="The")
        self.assertNotEqual(refusal.code, 0)
        self.assertIn("tokenizer.ggml.pre", refusal.err)
        found = report(command="generate", model__path=path, run__generate=3)
        self.assertIsNone(found["arms"][0]["generated"][0]["text"])
        self.assertEqual([w for w in found["warnings"] if "text is left out" in w and "tokenizer.ggml.pre" in w], found["warnings"])
        self.assertIn("run.stop", attempt(command="generate", model__path=path, run__generate=3, run__stop="x").err)

    def test_an_embedding_of_more_rows_than_tokens(self):
        """They can be chosen, and stand for no text."""
        path = moe.model(SEED, tokenizer=300, context=8192, **SHAPE)
        keys = dict(command="generate", model__path=path, run__generate=7000, run__temperature=1e4, run__ignore_eos=True)
        one, stopped = (report(**keys, **sets)["arms"][0]["generated"][0] for sets in ({}, {"run__stop": "no such text"}))
        self.assertEqual(one, stopped)
        beyond, zeros = sum(t >= 300 for t in one["tokens"]), one["tokens"].count(NUL)
        self.assertGreater(beyond, 0)
        self.assertGreater(zeros, 0)
        self.assertGreaterEqual(one["text"].count("\ufffd"), beyond + zeros)  # bytes that are no UTF-8 are repaired to it, too
        self.assertGreater(len(one["text"]), 1000)  # no NUL ends it

    def test_a_vocabulary_of_more_tokens_than_rows(self):
        path = moe.model(SEED, tokenizer=400, context=64, **SHAPE)
        self.assertIn("expected at most the embedding's 384 tokens, found 400",
                      attempt(model__path=path, input__tokens=None, input__prompt="The").err)
        found = report(command="generate", model__path=path, run__generate=3)
        self.assertIsNone(found["arms"][0]["generated"][0]["text"])
        self.assertIn("text is left out", str(found["warnings"]))
        self.assertIn("run.stop", attempt(command="generate", model__path=path, run__generate=3, run__stop="x").err)


class Warnings(unittest.TestCase):
    def warned(self, path, ranks, *parts, **sets):
        outcome = attempt(ranks, model__path=path, **sets)
        self.assertEqual(outcome.code, 0, outcome.err)
        found = outcome.report()["warnings"]
        self.assertEqual(len(found), len(parts), found)
        for part, text in zip(parts, found):
            self.assertRegex(text, part)
            self.assertEqual(outcome.err.count("warning: " + text), 1, outcome.err)
            self.assertIn("warning " + text[:200], outcome.out)
        return outcome

    def test_unknown_settings(self):
        path = written(KEYS + [key(A + "router.noise", gguf_random.FLOAT32, 0.5), key(A + "rope.scale_cubic", gguf_random.U32, 2)])
        self.warned(path, 3, r"router\.noise = 0\.5: no setting", r"rope\.scale_cubic = 2")
        bench = attempt(command="bench", model__path=path, input__tokens=None, bench__prompt=[2], bench__generate=[2],
                        bench__repeats=1, bench__format="json")
        self.assertRegex("".join(json.loads(bench.out)["warnings"]), "router.noise.*scale_cubic")

    def test_tensors_of_zeros(self):
        name = "blk.1.ffn_up_exps.weight"  # of four experts, on three ranks
        size = len(dict((n, b) for n, _, _, b in TENSORS)[name])
        for change, pattern in ((lambda b: bytes(len(b)), r"ffn_up_exps\.weight is all zeros"),
                                (lambda b: b[:size // 4] + bytes(size // 4) + b[size // 2:],
                                 rf"ffn_up_exps\.weight has {size // 4} bytes of zeros.*at byte \d+: was the file"),
                                (lambda b: b[:100] + bytes(3 * 4096) + b[100 + 3 * 4096:], r"has (8192|12288) bytes of zeros")):
            path = written(tensors=changed(name, change))
            one, three = (self.warned(path, ranks, pattern).report()["warnings"] for ranks in (1, 3))
            self.assertEqual(one, three)
        self.warned(written(tensors=changed("output_norm.weight", lambda b: bytes(len(b)))), 1, r"output_norm\.weight is all zeros",
                    )

    def test_logits_that_are_all_equal_agree_with_nothing(self):
        path = written(tensors=changed("output_norm.weight", lambda b: bytes(len(b))))
        found = self.warned(path, 1, "output_norm", "f32@cpu: all logits are equal at 12 of 12 positions", "f64@cpu: all logits",
                            run__arms=["f64@cpu", "f32@cpu"]).report()
        self.assertEqual(found["pairs"][0]["logits"]["top1_agreement"], 0)


class Stops(unittest.TestCase):
    """What ends a sequence, from what it would be without."""
    @classmethod
    def setUpClass(cls):
        cls.free = report(command="generate", run__generate=12, run__ignore_eos=True)["arms"][0]["generated"][0]

    def stopped(self, path=MODEL, ranks=1, **sets):
        return report(ranks, command="generate", model__path=path, run__generate=12, **sets)["arms"][0]["generated"][0]

    def test_nothing_else_ends_it(self):
        self.assertEqual((len(self.free["tokens"]), self.free["stopped_by"]), (12, "run.generate"))

    def test_by_id_of_run_stop(self):
        wanted = self.free["tokens"][4]
        first = self.free["tokens"].index(wanted)
        for stop in (wanted, [2, wanted]):
            found = self.stopped(run__stop=stop, run__ignore_eos=True)
            self.assertEqual(found["tokens"], self.free["tokens"][:first + 1])
            self.assertEqual(found["stopped_by"], f"run.stop {wanted}")
        self.assertIn("below the vocabulary", attempt(command="generate", run__generate=2, run__stop=[384]).err)

    def test_by_a_text_over_token_borders(self):
        text = self.free["text"]
        ascii_runs = [m for m in re.finditer(r"[ -~]{3,}", text)]
        if not ascii_runs:
            self.skipTest(f"{text!r} holds nothing that can be typed")
        wanted = ascii_runs[0].group()[:3]
        found = self.stopped(ranks=3, run__stop=wanted, run__ignore_eos=True)
        self.assertEqual(found["stopped_by"], f'run.stop "{wanted}"')
        self.assertIn(wanted, found["text"])
        self.assertTrue(text.startswith(found["text"]))
        self.assertNotIn(wanted, text[:text.index(wanted) + 2])

    def test_by_keys_and_lists_of_other_writers(self):
        wanted = self.free["tokens"][2]
        first = self.free["tokens"].index(wanted)
        for name, value in (("eot_token_id", (gguf_random.U32, wanted)), ("fim_sep_token_id", (gguf_random.U32, wanted)),
                            ("eos_token_ids", (gguf_random.ARRAY, (gguf_random.I32, [1, wanted])))):
            path = written(KEYS + [key("tokenizer.ggml." + name, *value)])
            found = self.stopped(path)
            if first + 1 < len(found["tokens"]):
                self.fail(f"{name}: {found}")
            self.assertTrue(found["stopped_by"].startswith("end token "), found)
            self.assertEqual(self.stopped(path, run__ignore_eos=True)["tokens"], self.free["tokens"])


class Inspect(unittest.TestCase):
    def test_a_good_file(self):
        found = inspected(MODEL)
        self.assertEqual((found["refusals"], found["warnings"]), ([], []))
        self.assertEqual([t["name"] for t in found["tensors"]], [t[0] for t in TENSORS])
        self.assertEqual([e["text"] for e in found["tokenizer"]["ends"]], ["<|endoftext|>", "<|im_end|>"])
        self.assertEqual(found["ranks"][0]["experts"], 4)

    def refused(self, path, *parts, **sets):
        found = inspected(path, **sets)
        self.assertEqual(len(found["refusals"]), len(parts), found["refusals"])
        for part in parts:
            self.assertTrue(any(re.search(part, text) for text in found["refusals"]), (part, found["refusals"]))
        text = moe.attempt({"model.path": path} | sets, command="inspect", alone=True)
        self.assertEqual(text.code, 0, text.err)
        self.assertEqual(len(re.findall("(?m)^refused ", text.out)), len(parts))
        self.assertIn(f"for {len(parts)} reason", text.out)
        return found

    def test_every_reason_of_a_file_that_a_run_would_refuse(self):
        strange = [[n, d, 19 if n == "blk.0.attn_k.weight" else t, b] for n, d, t, b in TENSORS if n != "blk.1.ffn_norm.weight"]
        strange.append(["blk.1.attn_k.bias", [128], 0, bytes(512)])
        found = self.refused(written(KEYS + [key(A + "attention.causal", gguf_random.BOOL, True)], strange),
                             "IQ1_S", r"ffn_norm\.weight is missing; there is blk\.1\.attn_k\.bias", r"attn_k\.bias does not belong")
        self.assertEqual([t["type"] for t in found["tensors"] if t["name"] == "blk.0.attn_k.weight"], ["IQ1_S"])
        self.refused(written(without(A + "expert_count") + [key(A + "logit_scale", gguf_random.FLOAT32, 2.0),
                                                            key(A + "rope.scaling.type", gguf_random.STRING, "yarn")]),
                     "expert_count", "logit_scale.*found 2", "scaling.type.*yarn")
        self.refused(written([key("general.architecture", gguf_random.STRING, "grok")] + without("general.architecture")), "grok")

    def test_warnings_of_a_file_that_a_run_would_refuse(self):
        found = self.refused(written(KEYS + [key(A + "router.noise", gguf_random.FLOAT32, 0.5)],
                                     [t for t in TENSORS if t[0] != "blk.1.ffn_norm.weight"]), "ffn_norm")
        self.assertRegex("".join(found["warnings"]), r"router\.noise = 0\.5")

    def test_a_file_cut_short(self):
        path = written()
        os.truncate(path, len(read(path)) - 300)
        self.refused(path, "file is .* needs")
        self.assertNotEqual(attempt(model__path=path).code, 0)

    def test_a_set_with_a_file_missing(self):
        path = moe.model(SEED, split=3, context=64, **SHAPE)
        os.remove(path.replace("00001-of", "00002-of"))
        found = inspected(path)
        self.assertEqual([f["path"] is None for f in found["files"]], [False, True, False])
        self.assertTrue(any("00002-of" in text and "missing" in text for text in found["refusals"]))


class CommandLine(unittest.TestCase):
    def test_options_with_their_values(self):
        folder, config = moe.fresh(), moe.fresh(".toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f'model.path = "{MODEL}"\ninput.tokens = 7\nrun.threads = 1\n')
        done = subprocess.run([moe.PROGRAM, f"--config={config}", "--set=run.arms=[f32@cpu, q8k@cpu]", f"--out={folder}"],
                              capture_output=True, text=True, timeout=moe.LIMIT)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(os.path.join(folder, "report.json"), encoding="utf-8") as file:
            self.assertEqual([arm["name"] for arm in json.load(file)["arms"]], ["f32@cpu", "q8k@cpu"])
        for words_of in (["compare", folder, folder], ["--version"], ["bench", "--help"]):
            done = moe.finish(moe.start(moe.under_mpirun([(3, [moe.PROGRAM, *words_of])])))
            alone = subprocess.run([moe.PROGRAM, *words_of], capture_output=True, text=True, timeout=moe.LIMIT)
            self.assertEqual((done.code, done.out), (alone.returncode, alone.stdout))

    def test_errors_about_an_input_name_it(self):
        path = moe.fresh(".txt")
        with open(path, "wb") as file:
            file.write(b"caf\xe9")
        for sets, pattern in (({"input__file": path}, rf"input\.file {path}: text is not valid UTF-8"),
                              ({"input__prompts": ["a", "the fox " * 40]}, r"sequence 1 of the input: \d+ tokens"),
                              ({"input__prompts": ["a", "b", "the fox " * 9], "run__context": 8}, r"sequence 2 of the input: \d+ tokens"),
                              ({"input__file": "/dev/null"}, "input.file /dev/null")):
            outcome = attempt(input__tokens=None, **sets)
            self.assertNotEqual(outcome.code, 0)
            self.assertRegex(outcome.err, pattern)


if __name__ == "__main__":
    moe.main()
