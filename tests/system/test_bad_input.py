#!/usr/bin/env python3
"""Bad input, end to end on one rank and on three: each ends soon, with one line that names the rank and what is
wrong, and leaves no report that looks whole. Never a crash, a hang or a huge allocation."""
import concurrent.futures
import os
import random
import re
import shutil
import struct
import subprocess
import unittest
import unittest.mock

import moe
from gguf_layout import Layout

RUN_FAILED, ASKED_WRONG = 1, 2  # exit codes, docs/running.md
LIMIT = 30.0           # seconds that a run may take to refuse its input
SEED = moe.random_seed()
MISSING = moe.fresh()  # a folder that nobody makes
SMALL = dict(layers=1, hidden=256, heads=2, kv_heads=1, expert_width=256, vocab=384, experts=3, top_k=2)
MODEL = moe.model(SEED, tokenizer=True, context=64, **SMALL)
WORDLESS = moe.model(SEED, context=64, **SMALL)
SPLIT = moe.model(SEED, context=64, split=3, **SMALL)
NAN, INFINITY = b"\x00\x7e", b"\x00\x7c"  # f16


def read(path):
    with open(path, "rb") as file:
        return bytearray(file.read())


DATA = read(MODEL)
PLACES = Layout(DATA)
A = "qwen3moe."


def put(at, kind, value):
    """An edit that writes one number (or bytes, kind "") at a place."""
    def edit(data):
        raw = value if kind == "" else struct.pack("<" + kind, value)
        data[at:at + len(raw)] = raw
        return data
    return edit


def key(name, kind, value):
    return put(PLACES.keys[name]["value"], kind, value)


def tensor(name, field, kind, value, more=0):
    return put(PLACES.tensors[name][field] + more, kind, value)


def renamed(places, old, new):
    """A name takes another one's text, of the same length."""
    assert len(old) == len(new)
    return put(places[old]["start"] + 8, "", new.encode())


def without(place, counter):
    """Cuts a key or a tensor's line out of the header, which moves what follows: tensors' data must stay aligned."""
    def edit(data):
        cut = data[:place["start"]] + data[place["end"]:PLACES.header]
        cut[counter:counter + 8] = struct.pack("<Q", struct.unpack_from("<Q", data, counter)[0] - 1)
        start = (PLACES.header + 31) // 32 * 32
        return cut + b"\0" * (-len(cut) % 32) + data[start:]
    return edit


def with_key(name, type_, kind, value):
    """One key more, the first; tensors' data must stay aligned."""
    def edit(data):
        text = name.encode()
        own = struct.pack("<Q", len(text)) + text + struct.pack("<I" + kind, type_, value)
        grown = data[:24] + own + data[24:PLACES.header]
        grown[N_KEYS:N_KEYS + 8] = struct.pack("<Q", len(PLACES.keys) + 1)
        start = (PLACES.header + 31) // 32 * 32
        return grown + b"\0" * (-len(grown) % 32) + data[start:]
    return edit


def truncated(size):
    return lambda data: data[:size]


GATE, ROUTER = "blk.0.ffn_gate_exps.weight", "blk.0.ffn_gate_inp.weight"
LAST_EXPERT = 2 * 256 * 144 + 5 * 144  # of GATE: row 5 of the expert that the last of three ranks owns
N_TENSORS, N_KEYS = 8, 16
U32, I32, F32, BOOL = 4, 5, 6, 7  # types of keys

# what is wrong: (the edit, what the fault must name besides the file)
FILES = {
    "another magic": (put(0, "", b"GGML"), "GGUF"),
    "version 1": (put(4, "I", 1), "version 2 or 3, found 1"),
    "version 4": (put(4, "I", 4), "version 2 or 3, found 4"),
    "big endian": (put(4, "I", 3 << 24), "big-endian"),
    "an empty file": (truncated(0), "empty"),
    "three bytes": (truncated(3), "magic"),
    "half a header": (truncated(PLACES.header // 2), "key|tensor"),
    "half the data": (truncated((PLACES.header + len(DATA)) // 2), "tensor"),
    "2^60 tensors": (put(N_TENSORS, "Q", 1 << 60), "tensor count"),
    "one tensor too many": (put(N_TENSORS, "Q", len(PLACES.tensors) + 1), "tensor"),
    "no tensors": (put(N_TENSORS, "Q", 0), "tensor"),
    "2^63 keys": (put(N_KEYS, "Q", 1 << 63), "key count"),
    "one key too few": (put(N_KEYS, "Q", len(PLACES.keys) - 1), "tensor"),
    "a name of 2^62 bytes": (put(PLACES.keys["general.name"]["start"], "Q", 1 << 62), "key 2"),
    "a name of no bytes": (put(PLACES.keys["general.name"]["start"], "Q", 0), "key 2"),
    "a value of 2^40 bytes": (key("general.name", "Q", 1 << 40), "general.name"),
    "a value of an unknown type": (put(PLACES.keys["general.name"]["type"], "I", 77), "general.name"),
    "an array of arrays": (key("tokenizer.ggml.tokens", "I", 9), "tokenizer.ggml.tokens"),
    "2^61 tokens": (put(PLACES.keys["tokenizer.ggml.tokens"]["count"], "Q", 1 << 61), "tokenizer.ggml.tokens"),
    "a key twice": (renamed(PLACES.keys, A + "rope.freq_base", A + "context_length"), "context_length"),
    "a size that is a float": (put(PLACES.keys[A + "block_count"]["type"], "I", 6), "block_count"),
    "another architecture": (key("general.architecture", "", struct.pack("<Q", 8) + b"qwen2moe"), "qwen2moe"),
    "no expert_count": (without(PLACES.keys[A + "expert_count"], N_KEYS), "expert_count"),
    "no layers": (key(A + "block_count", "I", 0), "block_count"),
    "2^32 - 1 layers": (key(A + "block_count", "I", 0xFFFFFFFF), "block_count"),
    "a layer that is not there": (key(A + "block_count", "I", 2), r"blk\.1\."),
    "another hidden size": (key(A + "embedding_length", "I", 512), "token_embd|attn_norm"),
    "more experts than the stacks hold": (key(A + "expert_count", "I", 60000), "ffn_gate_inp|exps"),
    "more experts to a token than there are": (key(A + "expert_used_count", "I", 4), "expert_used_count"),
    "no heads": (key(A + "attention.head_count", "I", 0), "head_count"),
    "heads that cannot be shared": (key(A + "attention.head_count_kv", "I", 3), "key/value heads|head_count_kv"),
    "an odd head": (key(A + "attention.key_length", "I", 63), "key_length"),
    "epsilon NaN": (key(A + "attention.layer_norm_rms_epsilon", "f", float("nan")), "layer_norm_rms_epsilon"),
    "RoPE base 0": (key(A + "rope.freq_base", "f", 0.0), "rope.freq_base"),
    "a shared expert": (with_key(A + "expert_shared_count", U32, "I", 1), "expert_shared_count.*only 0.*found 1"),
    "a dense layer": (with_key(A + "leading_dense_block_count", U32, "I", 2), "leading_dense.*only 0.*found 2"),
    "another gate": (with_key(A + "expert_gating_func", U32, "I", 2), "expert_gating_func.*only 1.*found 2"),
    "weights of slots that are not normed": (with_key(A + "expert_weights_norm", BOOL, "B", 0), "expert_weights_norm"),
    "weights of slots that are scaled": (with_key(A + "expert_weights_scale", F32, "f", 2.5), "weights_scale.*2.5"),
    "less than no shared experts": (with_key(A + "expert_shared_count", I32, "i", -1), "expert_shared_count"),
    "a tensor twice": (renamed(PLACES.tensors, "blk.0.attn_k.weight", "blk.0.attn_q.weight"), r"blk\.0\.attn_q"),
    "a tensor missing": (without(PLACES.tensors["output_norm.weight"], N_TENSORS), "output_norm"),
    "a tensor of another model": (renamed(PLACES.tensors, "blk.0.attn_q.weight", "blk.0.attn_z.weight"), "attn_[qz]"),
    "no dimensions": (tensor(GATE, "n_dims", "I", 0), "ffn_gate_exps"),
    "2^31 dimensions": (tensor(GATE, "n_dims", "I", 1 << 31), "ffn_gate_exps"),
    "dimensions that overflow": (tensor(GATE, "dims", "", struct.pack("<3Q", *[1 << 40] * 3)),
                                 "ffn_gate_exps"),
    "a dimension of 0": (tensor(GATE, "dims", "Q", 0, 8), "ffn_gate_exps"),
    "a dimension of 2^63": (tensor(GATE, "dims", "Q", 1 << 63, 8), "ffn_gate_exps"),
    "rows of no whole block": (tensor(GATE, "dims", "Q", 128), "ffn_gate_exps"),
    "swapped dimensions": (tensor(ROUTER, "dims", "", struct.pack("<2Q", 3, 256)), "ffn_gate_inp"),
    "a type that is not computed with": (tensor(GATE, "type", "I", 19), "IQ1_S"),
    "an unknown type": (tensor(GATE, "type", "I", 9999), "type 9999"),
    "an offset beyond the file": (tensor(GATE, "offset", "Q", len(DATA) // 32 * 32), "ffn_gate_exps"),
    "an offset that overflows": (tensor(GATE, "offset", "Q", (1 << 64) - 32), "ffn_gate_exps"),
    "an offset between blocks": (tensor(GATE, "offset", "Q", 33), "ffn_gate_exps"),
    "tensors that overlap": (tensor("output_norm.weight", "offset", "Q", 0), "overlap"),
    "a NaN scale of the last rank's expert": (tensor(GATE, "data", "", NAN, LAST_EXPERT), "ffn_gate_exps"),
    "an infinite minimum of an expert": (tensor(GATE, "data", "", INFINITY, 2), "ffn_gate_exps"),
    "a NaN in the router": (tensor(ROUTER, "data", "f", float("nan"), 40), "ffn_gate_inp"),
    "an infinity in a norm": (tensor("output_norm.weight", "data", "f", float("inf"), 4), "output_norm"),
    "a window": (with_key(A + "attention.sliding_window", U32, "I", 4096), "sliding_window.*found 4096"),
    "positions that are scaled": (with_key(A + "rope.scale_linear", F32, "f", 4.0), "scale_linear.*only 1.*found 4"),
    "a token twice": (put(PLACES.keys["tokenizer.ggml.tokens"]["first"], "", struct.pack("<Q", 1) + b'"'), "tokens"),
    "an end token that is none": (key("tokenizer.ggml.eos_token_id", "I", 1 << 20), "eos_token_id"),
    "another tokenizer": (key("tokenizer.ggml.pre", "", struct.pack("<Q", 5) + b"qwen9"), "tokenizer.ggml.pre"),
}


# Faults that only text shows.
OF_TEXT = {"a token twice", "an end token that is none", "another tokenizer"}


def forked(work, items):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(work, items))


def on_three_and_some_on_one(cases):
    """Three ranks take each case; one rank alone, for which less can go wrong, another third of them each time."""
    cases = list(cases)
    return [(case, 3) for case in cases] + [(case, 1) for case in cases[SEED % 3::3]]


class BadInput(unittest.TestCase):
    def refused(self, outcome, pattern, ranks=1, lines=1, code=RUN_FAILED):
        """One fault of one rank, that names what `pattern` says; its exit code; no signal; no report; in time."""
        self.assertIsNotNone(outcome.code, f"no end in {LIMIT} s\n{outcome.err}")
        self.assertEqual(outcome.code, code, f"{outcome.out}\n{outcome.err}")
        self.assertNotRegex(outcome.err, r"Sanitizer|received signal|on signal \d|Segmentation|Aborted")
        faults = outcome.faults()
        text = "\n".join(faults)
        self.assertRegex(text, rf"^rank [0-{ranks - 1}] \([^)]+\): [\w/.]+:\d+: ", outcome.err)
        for part in [pattern] if isinstance(pattern, str) else pattern:
            self.assertRegex(text, part)
        self.assertLessEqual(len(faults), lines, text)
        self.assertLess(max(map(len, faults)), 1000)
        if outcome.folder:
            self.assertFalse(os.path.exists(os.path.join(outcome.folder, "report.json")))

    def attempt(self, sets, ranks=1, **rest):
        keys = {"model.path": MODEL, "input.tokens": [1, 2, 3], "run.arms": ["q8k@cpu"], "run.threads": 1} | sets
        keys = {name: value for name, value in keys.items() if value is not None}
        # mpirun takes two seconds to end after a lone rank that failed
        return moe.attempt(keys, ranks, limit=LIMIT, **({"out": moe.fresh(), "alone": ranks == 1} | rest))

    # ---- the control ----

    def test_good_input_is_not_refused(self):
        for ranks, sets in ((1, {}), (3, {}), (3, {"model.path": SPLIT}), (1, {"run.context": 64}),
                            (1, {"run.generate": 61}), (1, {"run.chunk": 2_000_000_000})):
            with self.subTest(ranks=ranks, **sets):
                outcome = self.attempt(sets, ranks)
                self.assertEqual(outcome.code, 0, outcome.err)
                self.assertEqual(outcome.faults(), [])
                self.assertTrue(outcome.report()["complete"])

    def test_settings_of_a_model_that_change_nothing(self):
        for name, type_, kind, value in (("expert_shared_count", U32, "I", 0), ("expert_gating_func", U32, "I", 1),
                                         ("leading_dense_block_count", U32, "I", 0), ("expert_weights_norm", BOOL, "B", 1),
                                         ("expert_weights_scale", F32, "f", 1.0)):
            with self.subTest(name):
                path = moe.fresh(".gguf")
                with open(path, "wb") as file:
                    file.write(with_key(A + name, type_, kind, value)(bytearray(DATA)))
                outcome = self.attempt({"model.path": path})
                self.assertEqual(outcome.code, 0, outcome.err)

    # ---- files that lie ----

    def test_files(self):
        def one(item):
            (name, (edit, _)), ranks = item
            path = moe.fresh(".gguf")
            with open(path, "wb") as file:
                file.write(edit(bytearray(DATA)))
            text = {"input.tokens": None, "input.prompt": "a"} if name in OF_TEXT else {}
            return path, self.attempt({"model.path": path} | text, ranks)

        cases = on_three_and_some_on_one(FILES.items())
        for ((name, (_, pattern)), ranks), (path, outcome) in zip(cases, forked(one, cases)):
            with self.subTest(name, ranks=ranks):
                self.refused(outcome, [re.escape(path), pattern], ranks)
                os.remove(path)

    def test_split_files(self):
        folder = moe.fresh()

        def fresh_set():
            shutil.rmtree(folder, ignore_errors=True)
            os.mkdir(folder)
            stem = SPLIT[:-len("-00001-of-00003.gguf")]
            names = [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
            for i, name in enumerate(names):
                shutil.copy(f"{stem}-0000{i + 1}-of-00003.gguf", os.path.join(folder, name))
            return [os.path.join(folder, name) for name in names]

        for name, change, pattern in (("the second missing", lambda p: os.remove(p[1]), "00002"),
                                      ("the third cut short", lambda p: os.truncate(p[2], 5000), "00003"),
                                      ("the second twice", lambda p: shutil.copy(p[1], p[2]), "00003")):
            for ranks in (1, 3):
                with self.subTest(name, ranks=ranks):
                    paths = fresh_set()
                    change(paths)
                    self.refused(self.attempt({"model.path": paths[0]}, ranks), pattern, ranks)

    def test_what_is_no_file(self):
        pipe = moe.fresh()
        os.mkfifo(pipe)
        for path, pattern in ((os.path.join(moe.FOLDER, "none.gguf"), "No such file"), (moe.FOLDER, "directory"),
                              ("/dev/zero", "regular file"), (pipe, "regular file")):
            for ranks in (1, 3):
                with self.subTest(path, ranks=ranks):
                    self.refused(self.attempt({"model.path": path}, ranks), [re.escape(path), pattern], ranks)
                    if path != moe.FOLDER:
                        text = {"input.tokens": None, "input.file": path}
                        self.refused(self.attempt(text, ranks), ["input.file " + re.escape(path), pattern], ranks)

    def test_random_damage(self):
        """Bytes of the header changed at random: an answer or a fault, in time and without a signal."""
        rng = random.Random(SEED)

        def one(seed):
            own, data = random.Random(seed), bytearray(DATA)
            for _ in range(own.randint(1, 4)):
                data[own.randrange(PLACES.header)] = own.choice((0, 1, 0x7F, 0x80, 0xFF, own.randrange(256)))
            path = moe.fresh(".gguf")
            with open(path, "wb") as file:
                file.write(data)
            line = moe.words(sets={"model.path": path, "input.tokens": [1, 2], "run.arms": ["q8k@cpu"], "run.threads": 1})
            outcome = moe.finish(moe.start(line), LIMIT)
            os.remove(path)
            return outcome

        seeds = [rng.randrange(1 << 30) for _ in range(60)]
        refused = 0
        for seed, outcome in zip(seeds, forked(one, seeds)):
            with self.subTest(seed=seed):
                self.assertIn(outcome.code, (0, 1), outcome.err)
                self.assertEqual(len(outcome.faults()), outcome.code, outcome.err)
                refused += outcome.code
        self.assertGreater(refused, 10)

    def test_text_that_a_terminal_would_obey(self):
        """A file's own words stay words: in faults, in inspect and at the head of bench."""
        def named(name, key="general.name"):
            path = moe.fresh(".gguf")
            with open(path, "wb") as file:
                file.write(without(PLACES.keys[key], N_KEYS)(bytearray(DATA)))
            places, data = Layout(read(path)), read(path)
            text = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<IQ", 8, len(name)) + name
            grown = data[:24] + text + data[24:places.header]
            grown[N_KEYS:N_KEYS + 8] = struct.pack("<Q", len(PLACES.keys))
            with open(path, "wb") as file:
                file.write(grown + b"\0" * (-len(grown) % 32) + data[(places.header + 31) // 32 * 32:])
            return path

        evil = b"a\x1b]0;b\x07\nrank 9 (x): \xc2\x9bc"
        for command, sets in (("inspect", {}), ("bench", {"bench.prompt": [2], "bench.generate": [], "bench.repeats": 1}),
                              ("parity", {})):
            with self.subTest(command):
                outcome = self.attempt({"model.path": named(evil)} | sets, command=command, out=None)
                self.assertEqual(outcome.code, 0, outcome.err)
                self.assertNotRegex(outcome.out, "[\x00-\x08\x0b-\x1f\x7f-\x9f]")
                self.assertNotRegex(outcome.out, "(?m)^rank 9")
        outcome = self.attempt({"model.path": named(evil, "general.architecture")})
        self.refused(outcome, r"found \"a\?]0;b\?\?rank 9 \(x\): \?c\"")
        self.assertNotRegex(outcome.err.splitlines()[0], "[\x00-\x1f\x7f-\x9f]")

    # ---- settings ----

    SETTINGS = {
        "an unknown key": ({"run.chunks": 3}, ["run.chunks", 'did you mean "run.chunk"']),
        "a key without its section": ({"placement": "strided"}, ['did you mean "experts.placement"']),
        "a value of another type": ({"run.chunk": "many"}, ["run.chunk", "many"]),
        "a value out of range": ({"run.chunk": -1}, ["run.chunk", "-1"]),
        "an unknown path": ({"run.arms": ["q9k@cpu"]}, ["run.arms", "q9k"]),
        "an unknown backend": ({"run.arms": ["q8k@gpu"]}, ["run.arms", "gpu"]),
        "an arm that is nowhere built": ({"run.arms": ["f64@cuda"]}, ["f64@cuda"]),
        "no arms": ({"run.arms": []}, ["run.arms"]),
        "a row that is not here": ({"run.rows": "sve9"}, ["run.rows", "sve9"]),
        "a rank that computes what is shared and is not there":
            ({"run.arms": ["ranks"], "ranks.arm": ["q8k@cpu"], "ranks.shared_ranks": [3]}, ["ranks.shared_ranks", "found 3"]),
        "a backend that no rank has": ({"run.arms": ["ranks"], "ranks.arm": ["q8k@cpu"], "ranks.shared": "q8k@cuda"},
                                       ["ranks.shared", "cuda"]),
        "a mixed job that is not run": ({"ranks.arm": ["q8k@cpu"]}, ["ranks.arm", "run.arms"]),
        "more arms than ranks": ({"run.arms": ["ranks"], "ranks.arm": ["q8k@cpu"] * 4}, ["ranks.arm", "found 4"]),
        "a context that no model has": ({"run.context": 65}, ["run.context", "65", "64"]),
        "ranks without arms": ({"run.arms": ["ranks"]}, ["ranks.arm"]),
        "no model": ({"model.path": None}, ["model.path"]),
        "no input": ({"input.tokens": None}, ["input.tokens"]),
        "an empty input": ({"input.tokens": []}, ["input|token"]),
        "a token beyond the vocabulary": ({"input.tokens": [1, 384]}, ["token 1", "384"]),
        "a negative token": ({"input.tokens": [1, -1]}, ["-1"]),
        "a token of 2^40": ({"input.tokens": [1 << 40]}, ["input.tokens"]),
        "text without a tokenizer": ({"input.tokens": None, "input.prompt": "a", "model.path": WORDLESS}, ["input.prompt is", "tokenizer"]),
        "texts without a tokenizer": ({"input.tokens": None, "input.prompts": ["a"], "model.path": WORDLESS},
                                      ["input.prompts is", "tokenizer"]),
        "a missing text": ({"input.tokens": None, "input.file": f"{MISSING}/text"}, [f"{MISSING}/text"]),
        "an empty prompt": ({"input.tokens": None, "input.prompts": ["a", ""]}, ["token|prompt"]),
        "an input longer than run.context": ({"run.context": 2}, ["run.context", "3"]),
        "an input longer than the model's context": ({"input.tokens": [1] * 65}, ["65", "64"]),
        "more to write than the context holds": ({"run.generate": 62}, ["65", "64"]),
        "a placement of other length": ({"experts.placement": [0, 0]}, ["experts.placement", "3"]),
        "a placement on a rank that is not there": ({"experts.placement": [0, 7, 0]}, ["experts.placement", "7"]),
    }

    def test_settings(self):
        cases = on_three_and_some_on_one(self.SETTINGS)
        outcomes = forked(lambda case: self.attempt(self.SETTINGS[case[0]][0], case[1]), cases)
        for (name, ranks), outcome in zip(cases, outcomes):
            with self.subTest(name, ranks=ranks):
                self.refused(outcome, self.SETTINGS[name][1], ranks,
                             code=RUN_FAILED if name == "a missing text" else ASKED_WRONG)

    def test_settings_of_several_ranks(self):
        for name, sets, ranks, pattern in (
                ("more ranks than experts", {}, 4, "4 ranks.*3 experts"),
                ("a rank without experts", {"experts.placement": [0, 0, 2]}, 3, ["experts.placement", "rank 1"]),
                ("a transport for one rank", {"comm.transport": "self"}, 3, ["comm.transport", "self"])):
            with self.subTest(name):
                self.refused(self.attempt(sets, ranks), pattern, ranks, code=ASKED_WRONG)

    def test_nothing_to_write(self):
        self.refused(self.attempt({"output.logits": True}, 3, out=None), ["output.logits", "output.dir"], 3,
                     code=ASKED_WRONG)
        self.refused(self.attempt({}, 3, command="generate"), "run.generate", 3, code=ASKED_WRONG)

    def test_fewer_threads_than_asked_for(self):
        with unittest.mock.patch.dict(os.environ, OMP_THREAD_LIMIT="1"):
            for command, ranks in (("bench", 1), ("parity", 1), ("generate", 2), ("inspect", 1)):
                with self.subTest(command, ranks=ranks):
                    outcome = self.attempt({"run.threads": 2}, ranks, command=command)
                    self.refused(outcome, "run.threads: expected 2, OpenMP gives 1", ranks, code=ASKED_WRONG)
            self.assertEqual(self.attempt({}).code, 0)

    def test_config_files(self):
        for text, pattern in (("[run]\nchunk = \n", ":2: "), ("[run]\nchunk = 3\nchunck = 4\n", ":3: .*chunck.*run.chunk"),
                              ("model.path = 3\n", "model.path"), ("a" * 70000, "TOML"), ("[run]\n\xff = 1\n", "(?i)utf-8")):
            path = moe.fresh(".toml")
            with open(path, "w", encoding="latin-1") as file:
                file.write(text)
            for ranks in (1, 3):
                with self.subTest(text[:20], ranks=ranks):
                    self.refused(self.attempt({"model.path": MODEL}, ranks, config=path), [re.escape(path), pattern], ranks,
                                 code=ASKED_WRONG)
        self.refused(self.attempt({}, config=f"{MISSING}/run.toml"), f"{MISSING}/run.toml", code=ASKED_WRONG)

    def test_command_lines(self):
        """Refused before MPI starts, so by each process on its own."""
        for line, pattern in ((["--confg", "a"], "--confg"), (["parody"], "parody.*parity"), (["--set"], "--set"),
                              (["parity", "generate"], "generate"), (["inspect", "a.gguf"], "model.path"),
                              (["--config", "a", "--config", "b"], "--config")):
            with self.subTest(line):
                outcome = moe.finish(moe.start([moe.PROGRAM, *line]), LIMIT)
                self.assertEqual(outcome.code, ASKED_WRONG)
                self.assertEqual(len(outcome.faults()), 1)
                self.assertRegex(outcome.faults()[0], pattern)
        self.refused(moe.finish(moe.start(moe.under_mpirun([(3, [moe.PROGRAM, "--set", "run.chunk"])])), LIMIT),
                     "run.chunk.*KEY=VALUE", 3, code=ASKED_WRONG)

    # ---- ranks that differ ----

    def differing(self, change, sets=({}, {}), weights=False):
        """Rank 0 and rank 1 run in folders of their own with the same names in them; change(folder) is of rank 1's."""
        parts, folders = [], [moe.fresh(), moe.fresh()]
        for folder, own in zip(folders, sets):
            os.mkdir(folder)
            shutil.copy(MODEL, os.path.join(folder, "m.gguf"))
            with open(os.path.join(folder, "text"), "w") as file:
                file.write("the fox")
            keys = {"model.path": "m.gguf", "input.file": "text", "run.arms": ["q8k@cpu"], "run.threads": 1} | own
            parts.append((1, moe.words(sets=keys, out=os.path.join(folders[0], "out"))))
        change(folders[1])
        line = moe.under_mpirun(parts)
        for folder, at in zip(reversed(folders), reversed([i for i, word in enumerate(line) if word == "-np"])):
            line[at:at] = ["-wdir", folder]
        outcome = moe.finish(moe.start(line), LIMIT, os.path.join(folders[0], "out"))
        return outcome

    def test_ranks_that_see_different_things(self):
        def edit(at, raw):
            def change(folder):
                with open(os.path.join(folder, "m.gguf"), "r+b") as file:
                    file.seek(at)
                    file.write(raw)
            return change

        def rewrite(folder):
            with open(os.path.join(folder, "text"), "w") as file:
                file.write("the dog")

        nothing = lambda folder: None
        self.assertEqual(self.differing(nothing).code, 0)
        rope, embedding = PLACES.keys[A + "rope.freq_base"]["value"], PLACES.tensors["token_embd.weight"]["data"]
        cases = {
            "configs": (nothing, ({}, {"run.seed": 1}), "configuration.*rank 1 .*differs"),
            "headers": (edit(rope, struct.pack("<f", 5e5)), ({}, {}), "header.*rank 1 .*differs"),
            "weights": (edit(embedding + 20, bytes([DATA[embedding + 20] ^ 1])), ({}, {}), "tensors.*rank 1 .*differs"),
            "texts": (rewrite, ({}, {}), "tokens.*rank 1 .*differs"),
            "a file that only one has": (lambda folder: os.remove(os.path.join(folder, "m.gguf")), ({}, {}),
                                         r"^rank 1 .*m\.gguf.*No such file"),
            "a file that is bad on one": (edit(0, b"GGML"), ({}, {}), r"^rank 1 .*m\.gguf.*GGUF"),
            "a config that is bad on one": (nothing, ({}, {"run.chunk": -1}), "^rank 1 .*run.chunk"),
        }
        for name, (change, sets, pattern) in cases.items():
            with self.subTest(name):
                self.refused(self.differing(change, sets), pattern, 2,
                             code=ASKED_WRONG if name in ("configs", "texts", "a config that is bad on one") else RUN_FAILED)

    # ---- nowhere to write ----

    def test_folders_that_cannot_be_written(self):
        file = moe.fresh()
        with open(file, "w") as out:
            out.write("a file")
        for name, folder in (("a file", file), ("below a file", os.path.join(file, "out")), ("below /proc", "/proc/moe/out")):
            for ranks in (1, 3):
                with self.subTest(name, ranks=ranks):
                    self.refused(self.attempt({}, ranks, out=folder), re.escape(os.path.dirname(folder) or folder), ranks)
        if os.geteuid():
            folder = moe.fresh()
            os.mkdir(folder, 0o500)
            self.refused(self.attempt({}, out=folder), re.escape(folder))

    def check_remains(self, folder, before):
        """After a fault the folder holds what stood there before, or no report.json; and nothing half-written."""
        left = {name: read(os.path.join(folder, name)) for name in os.listdir(folder)}
        self.assertFalse([name for name in left if name.endswith(".tmp")], left.keys())
        if "report.json" in left:
            self.assertEqual(left, before, "a report stands beside files of another run")
        for name in set(left) - set(before):
            self.fail(f"{name} of a run that failed")

    LONG = {"run.arms": ["q8k@cpu", "f32@cpu", "f64@cpu"], "input.tokens": [1, 2, 3, 4] * 16}

    def test_limit_of_a_files_size(self):
        """The files of rank 0 may grow to 12,000 bytes: enough for a start of each, for all of layers.csv."""
        for sets in ({}, {"output.logits": True}):
            folder = moe.fresh()
            keys = {"model.path": MODEL, "run.threads": 1} | self.LONG | sets
            line = moe.under_mpirun([(1, ["prlimit", "--fsize=12000", *moe.words(out=folder, sets=keys)])])
            with self.subTest(**sets):
                self.refused(moe.finish(moe.start(line), LIMIT, folder), [re.escape(folder), "large"])
                self.check_remains(folder, {})

    @unittest.skipUnless(os.geteuid() == 0, "a small disk needs the right to mount one")
    def test_full_disk(self):
        disk = moe.fresh()
        os.mkdir(disk)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", disk], stderr=subprocess.DEVNULL).returncode:
            self.skipTest("a small disk needs the right to mount one")
        try:
            for ranks, sets, free in ((1, {}, 4096), (3, {}, 16384), (3, {"output.logits": True}, 65536)):
                with self.subTest(ranks=ranks, free=free, **sets):
                    self.check_full_disk(disk, ranks, sets, free)
        finally:
            subprocess.run(["umount", disk], check=True)

    def check_full_disk(self, disk, ranks, sets, free):
        """A short report fits; then a long one does not, in the same folder and in a new one."""
        folder, other, ballast = (os.path.join(disk, name) for name in ("out", "other", "ballast"))
        outcome = self.attempt({}, 1, out=folder)
        self.assertEqual(outcome.code, 0, outcome.err)
        before = {name: read(os.path.join(folder, name)) for name in os.listdir(folder)}
        with open(ballast, "wb") as file:
            file.write(b"x" * (shutil.disk_usage(disk).free - free))
        for at, was in ((folder, before), (other, {})):
            outcome = self.attempt(self.LONG | sets, ranks, out=at)
            outcome.folder = None  # what is left is looked at below
            self.refused(outcome, [re.escape(at), "space"], ranks)
            self.check_remains(at, was)
        for path in (folder, other):
            shutil.rmtree(path)
        os.remove(ballast)

    def test_standard_output_that_is_full(self):
        keys = {"model.path": MODEL, "input.tokens": [1, 2, 3], "run.arms": ["q8k@cpu"], "run.threads": 1}
        with open("/dev/full", "wb") as full:
            process = subprocess.run(moe.words(sets=keys), stdout=full, stderr=subprocess.PIPE, timeout=LIMIT)
        self.assertEqual(process.returncode, 1)
        self.assertRegex(process.stderr.decode(), r"rank 0 .*standard output")


if __name__ == "__main__":
    moe.main()
