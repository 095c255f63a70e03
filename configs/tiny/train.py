#!/usr/bin/env python3
"""Trains the small Qwen3-MoE of this folder on plain text, one work a file.

Writes to --out: model.safetensors (best on the validation play; matrices bf16, norms and router f32),
tokenizer.json, log.json. Owns the model's definition in PyTorch, which evaluate.py uses too. Every expert
is computed for every token and the unchosen ones are multiplied by zero: here that is faster than sorting.
"""

import argparse
import concurrent.futures
import functools
import hashlib
import json
import math
import random
import time
import tomllib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).resolve().parent
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# The qwen2 pre-tokenizer's pattern: it must be this one, since the GGUF says `tokenizer.ggml.pre = qwen2`.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


@functools.lru_cache
def rope_tables(head_dim, theta, length, device):
    half = head_dim // 2
    rate = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), rate)
    return angle.cos().float().to(device), angle.sin().float().to(device)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Attention(nn.Module):
    def __init__(self, m):
        super().__init__()
        d, self.hd = m["hidden_size"], m["head_dim"]
        self.heads, self.kv = m["num_attention_heads"], m["num_key_value_heads"]
        self.q_proj = nn.Linear(d, self.heads * self.hd, bias=False)
        self.k_proj = nn.Linear(d, self.kv * self.hd, bias=False)
        self.v_proj = nn.Linear(d, self.kv * self.hd, bias=False)
        self.o_proj = nn.Linear(self.heads * self.hd, d, bias=False)
        self.q_norm = Norm(self.hd, m["rms_norm_eps"])
        self.k_norm = Norm(self.hd, m["rms_norm_eps"])

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q = rotate(self.q_norm(self.q_proj(x).view(b, t, self.heads, self.hd)).transpose(1, 2), cos, sin)
        k = rotate(self.k_norm(self.k_proj(x).view(b, t, self.kv, self.hd)).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(b, t, self.kv, self.hd).transpose(1, 2)
        k = k.repeat_interleave(self.heads // self.kv, 1)
        v = v.repeat_interleave(self.heads // self.kv, 1)
        a = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        return self.o_proj(a.transpose(1, 2).reshape(b, t, -1))


class Experts(nn.Module):
    def __init__(self, m):
        super().__init__()
        d, f, n = m["hidden_size"], m["moe_intermediate_size"], m["num_experts"]
        self.n, self.k, self.f = n, m["num_experts_per_tok"], f
        self.router = nn.Parameter(torch.empty(n, d))
        self.gate = nn.Parameter(torch.empty(n, f, d))
        self.up = nn.Parameter(torch.empty(n, f, d))
        self.down = nn.Parameter(torch.empty(n, d, f))

    def route(self, x):
        """Probabilities [T, n], chosen experts [T, k], their weights with sum 1 [T, k]; all in f32."""
        with torch.autocast(x.device.type, enabled=False):
            p = F.softmax(x.float() @ self.router.float().T, -1)
        w, index = p.topk(self.k, -1)
        return p, index, w / w.sum(-1, keepdim=True)

    def forward(self, x):
        shape, x = x.shape, x.reshape(-1, x.shape[-1])
        p, index, w = self.route(x)
        weight = torch.zeros_like(p).scatter(1, index, w)
        h = F.silu(F.linear(x, self.gate.flatten(0, 1))) * F.linear(x, self.up.flatten(0, 1))
        h = (h.view(-1, self.n, self.f) * weight.to(h.dtype).unsqueeze(-1)).flatten(1)
        y = F.linear(h, self.down.permute(1, 0, 2).flatten(1))
        share = torch.zeros_like(p).scatter(1, index, 1.0 / self.k).mean(0)
        balance = self.n * (share.detach() * p.mean(0)).sum()  # 1 where all experts get the same
        return y.view(shape), balance, share.detach()


class Layer(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.attention_norm = Norm(m["hidden_size"], m["rms_norm_eps"])
        self.attention = Attention(m)
        self.expert_norm = Norm(m["hidden_size"], m["rms_norm_eps"])
        self.experts = Experts(m)


class Qwen3MoE(nn.Module):
    def __init__(self, m, dropout=0.0):
        super().__init__()
        self.m, self.p = m, dropout
        self.embedding = nn.Parameter(torch.empty(m["vocab_size"], m["hidden_size"]))
        self.layers = nn.ModuleList(Layer(m) for _ in range(m["num_hidden_layers"]))
        self.norm = Norm(m["hidden_size"], m["rms_norm_eps"])
        self.head = nn.Parameter(torch.empty(m["vocab_size"], m["hidden_size"]))
        joins = 2 * m["num_hidden_layers"]
        for name, w in self.named_parameters():
            if w.dim() > 1:
                joined = name.endswith(("o_proj.weight", "down"))
                nn.init.normal_(w, std=0.02 / math.sqrt(joins) if joined else 0.02)

    def forward(self, ids, watch=None):
        """Logits, balance loss, shares [layers, n]; watch(layer, experts, input) sees each."""
        cos, sin = rope_tables(self.m["head_dim"], self.m["rope_theta"], ids.shape[1], ids.device)
        x = F.dropout(F.embedding(ids, self.embedding).float(), self.p, self.training)
        balance, shares = 0.0, []
        for i, layer in enumerate(self.layers):
            x = x + F.dropout(
                layer.attention(layer.attention_norm(x), cos, sin).float(), self.p, self.training
            )
            y = layer.expert_norm(x)
            if watch:
                watch(i, layer.experts, y)
            y, b, share = layer.experts(y)
            x = x + F.dropout(y.float(), self.p, self.training)
            balance, shares = balance + b / len(self.layers), shares + [share]
        return F.linear(self.norm(x), self.head), balance, torch.stack(shares)


def train_tokenizer(texts, size):
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size - len(SPECIAL), initial_alphabet=alphabet, show_progress=False),
    )
    t.add_special_tokens(SPECIAL)  # after the merges, as in Qwen's own vocabulary
    if t.get_vocab_size() != size:
        raise SystemExit(f"the text gives {t.get_vocab_size()} tokens, expected {size}")
    return t


def epoch_stream(tokenizer_json, texts, data, seed):
    """All works in random order with <|endoftext|> between; some tokenised with merges skipped at random."""
    from tokenizers import Tokenizer

    plain, rough = Tokenizer.from_str(tokenizer_json), Tokenizer.from_str(tokenizer_json)
    if data["bpe_dropout"] > 0:
        rough.model.dropout = data["bpe_dropout"]
    rng = random.Random(seed)
    works = rng.sample(texts, len(texts))
    use_rough = [data["bpe_dropout"] > 0 and rng.random() < data["retokenised"] for _ in works]
    end = plain.token_to_id(SPECIAL[0])
    encoded = {}
    for rough_one, t in ((False, plain), (True, rough)):
        chosen = [i for i, r in enumerate(use_rough) if r == rough_one]
        encoded.update(zip(chosen, t.encode_batch([works[i] for i in chosen])))
    return torch.tensor([id for i in range(len(works)) for id in [end, *encoded[i].ids]] + [end])


def window_length(train, done):
    return [length for start, length in train["windows"] if done >= start][-1]


@torch.no_grad()
def perplexity(model, ids, window=512, batch=16):
    """exp of the mean loss of the predictions made at positions window/2 .. window-2 of whole windows."""
    model.eval()
    rows = ids[: len(ids) // window * window].view(-1, window)
    total, count = 0.0, 0
    for part in rows.split(batch):
        logits = model(part)[0][:, window // 2 : -1].float()
        goal = part[:, window // 2 + 1 :]
        total += F.cross_entropy(logits.flatten(0, 1), goal.flatten(), reduction="sum").item()
        count += goal.numel()
    model.train()
    return math.exp(total / count), count


def save_weights(path, weights):
    from safetensors.torch import save_file

    def f32(name, w):
        return w.dim() == 1 or name.endswith("router")

    save_file(
        {
            n: w.detach().to("cpu", torch.float32 if f32(n, w) else torch.bfloat16).contiguous()
            for n, w in weights.items()
        },
        path,
    )


class Average:
    """Running mean of the weights, kept beside them; `model` holds it and is only evaluated."""

    def __init__(self, model, m, decay):
        self.model, self.decay = Qwen3MoE(m).to(model.embedding.device), decay
        self.model.load_state_dict(model.state_dict())

    @torch.no_grad()
    def update(self, model, step):
        keep = min(self.decay, (1 + step) / (10 + step))  # early means forget the random start
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - keep)


def optimiser(model, t):
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": t["weight_decay"]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = next(model.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=t["learning_rate"], betas=tuple(t["betas"]), fused=fused)


def rate(t, done):
    if done < t["warmup"]:
        return t["learning_rate"] * done / t["warmup"]
    x = (done - t["warmup"]) / (1 - t["warmup"])
    return t["learning_rate"] * (t["final_rate"] + (1 - t["final_rate"]) * 0.5 * (1 + math.cos(math.pi * x)))


def train(args, s, log):
    device = torch.device(args.device)
    t, m, data = s["train"], s["model"], s["data"]
    torch.manual_seed(t["seed"])
    files = sorted(p for p in args.text.glob("*.txt"))
    text = {p.name: p.read_bytes().decode("utf-8") for p in files}
    log["text"] = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    works = [w for n, w in text.items() if n not in (data["heldout"], data["validation"])]
    tokenizer = train_tokenizer(works, m["vocab_size"])
    tokenizer.save(str(args.out / "tokenizer.json"))
    source = tokenizer.to_str()

    def encode(n):
        return torch.tensor(tokenizer.encode(text[n]).ids, device=device)

    valid, heldout = encode(data["validation"]), encode(data["heldout"])

    model = Qwen3MoE(m, t["dropout"]).to(device)
    mean = Average(model, m, t["average"])
    opt = optimiser(model, t)
    log["parameters"] = sum(p.numel() for p in model.parameters())
    log["epochs"], best, step, start = [], math.inf, 0, time.monotonic()
    pool = concurrent.futures.ThreadPoolExecutor(4)
    streams = [
        pool.submit(epoch_stream, source, works, data, 1000 * t["seed"] + e) for e in range(t["epochs"])
    ]
    for epoch, stream in enumerate(streams):
        ids = stream.result()
        log.setdefault("tokens_per_epoch", len(ids))
        done_epochs = epoch / t["epochs"]
        window = window_length(t, done_epochs)
        shift = random.Random(1000 * t["seed"] + epoch).randrange(window)
        n = (len(ids) - shift - 1) // window
        rows = ids[shift : shift + n * window].view(n, window)[torch.randperm(n)].to(device)
        loss_sum, shares_sum, steps = torch.zeros((), device=device), 0.0, 0
        batches = rows.split(max(1, t["tokens_per_step"] // window))
        for i, batch in enumerate(batches):
            for group in opt.param_groups:
                group["lr"] = rate(t, (epoch + (i + 1) / len(batches)) / t["epochs"])
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits, balance, shares = model(batch)
            logits = logits[:, :-1].float()
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            z = logits.logsumexp(-1).square().mean()
            (loss + t["balance"] * balance + t["z_loss"] * z).backward()
            nn.utils.clip_grad_norm_(model.parameters(), t["clip"])
            opt.step()
            opt.zero_grad(set_to_none=True)
            mean.update(model, step)
            loss_sum, shares_sum, steps, step = (
                loss_sum + loss.detach(),
                shares_sum + shares,
                steps + 1,
                step + 1,
            )
            if args.steps and step >= args.steps:
                break
        ppl, _ = perplexity(mean.model, valid)
        shares = shares_sum / steps
        row = {
            "epoch": epoch + 1,
            "step": step,
            "window": window,
            "train_loss": round(loss_sum.item() / steps, 4),
            "validation_perplexity": round(ppl, 3),
            "share_min": round(shares.min().item(), 4),
            "share_max": round(shares.max().item(), 4),
            "seconds": round(time.monotonic() - start, 1),
        }
        log["epochs"].append(row)
        print(json.dumps(row), flush=True)
        if ppl < best:
            best = ppl
            save_weights(args.out / "model.safetensors", mean.model.state_dict())
        late = args.minutes and time.monotonic() - start > 60 * args.minutes
        if late or ppl > 1.1 * best or (args.steps and step >= args.steps):
            break
    for f in streams:
        f.cancel()
    return tokenizer, mean.model, valid, heldout


@torch.no_grad()
def sample(model, tokenizer, prompt, count, device, seed=0):
    model.eval()
    g = torch.Generator(device).manual_seed(seed)
    ids = torch.tensor([tokenizer.encode(prompt).ids], device=device)
    for _ in range(count):
        top = (model(ids)[0][0, -1].float() / 0.8).topk(40)
        pick = torch.multinomial(F.softmax(top.values, -1), 1, generator=g)
        ids = torch.cat((ids, top.indices[pick].view(1, 1)), 1)
    return tokenizer.decode(ids[0].tolist())


def read_settings(path, changes):
    s = tomllib.loads(path.read_text())
    for change in changes:  # group.key=VALUE in TOML syntax
        key, value = change.split("=", 1)
        group, name = key.split(".")
        if name not in s[group]:
            raise SystemExit(f"unknown setting {key}")
        s[group][name] = tomllib.loads(f"v = {value}")["v"]
    return s


def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("--text", type=Path, required=True, help="folder of .txt files, one work a file")
    a.add_argument("--out", type=Path, required=True)
    a.add_argument("--settings", type=Path, default=HERE / "settings.toml")
    a.add_argument("--set", action="append", default=[], metavar="GROUP.KEY=VALUE")
    a.add_argument("--minutes", type=float, default=0, help="stop after the epoch that passes this; 0: never")
    a.add_argument("--steps", type=int, default=0, help="stop after this many steps; 0: never")
    a.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = a.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    s = read_settings(args.settings, args.set)
    log = {"settings": s, "torch": torch.__version__, "device": args.device}
    tokenizer, model, valid, heldout = train(args, s, log)
    from safetensors.torch import load_file

    model.load_state_dict({n: w.float() for n, w in load_file(args.out / "model.safetensors").items()})
    log["validation_perplexity"], _ = perplexity(model, valid)
    log["validation_perplexity_2048"], _ = perplexity(model, valid, 2048, 4)
    log["heldout_perplexity"], log["heldout_scored"] = perplexity(model, heldout)
    log["sample"] = sample(model, tokenizer, "ROMEO\t", 160, args.device)
    (args.out / "log.json").write_text(json.dumps(log, indent=1))
    print(
        json.dumps({k: v for k, v in log.items() if "perplexity" in k}), log["sample"], sep="\n", flush=True
    )


if __name__ == "__main__":
    main()
