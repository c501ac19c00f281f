"""The same GRPO step in plain PyTorch, for `npm run bench -- --peer`: what bench.ts times, with nothing left out and nothing clever.

    python3 bench/peer_torch.py models/tiny --prompts 16 --group 8 --prompt-len 24 --new-tokens 48 --minibatch 64 --json

`--device cuda` runs it on a GPU, in float32 (no TF32), and takes its times when the GPU has done its work.

As most implementations do, it runs every completion's prompt on its own, samples with a key/value cache, computes the old and
the reference log-probabilities in forward passes of their own, and trains on full sequences. Needs torch (1.13 or
later) and numpy.
"""
import argparse
import json
import statistics
import struct
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def read_weights(file):
    """Tensors of a safetensors file, as float32."""
    raw = file.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    kinds = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    weights = {}
    for name, entry in json.loads(raw[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        values = np.frombuffer(raw[8 + size + begin : 8 + size + end], kinds[entry["dtype"]])
        if entry["dtype"] == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        weights[name] = torch.from_numpy(values.astype("f4")).reshape(entry["shape"])
    return weights


class Llama(nn.Module):
    """Llama's decoder over its parameters by their Hugging Face names (dots become slashes)."""

    def __init__(self, folder):
        super().__init__()
        self.config = config = json.loads((folder / "config.json").read_text())
        if config.get("architectures") != ["LlamaForCausalLM"] or config.get("rope_scaling"):
            raise SystemExit(f"{folder}: expected a LlamaForCausalLM without rope_scaling")
        weights = read_weights(folder / "model.safetensors")
        self.weights = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(w) for name, w in weights.items()})
        self.heads = config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads") or self.heads
        self.dim = config.get("head_dim") or config["hidden_size"] // self.heads
        inverse = config.get("rope_theta", 10000.0) ** (-torch.arange(0, self.dim, 2).float() / self.dim)
        angles = torch.outer(torch.arange(2048).float(), inverse)
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, -1))
        self.register_buffer("sin", torch.cat([angles.sin()] * 2, -1))

    def of(self, name):
        return self.weights[name.replace(".", "/")]

    def norm(self, x, name):
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return x * scale * self.of(name)

    def rotate(self, x, begin):
        half = self.dim // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        end = begin + x.shape[2]
        return x * self.cos[begin:end] + turned * self.sin[begin:end]

    def layer(self, i, x, begin, cache):
        linear = lambda y, name: F.linear(y, self.of(f"model.layers.{i}.{name}.weight"))
        batch, length, _ = x.shape
        heads = lambda y, count: y.view(batch, length, count, self.dim).transpose(1, 2)
        y = self.norm(x, f"model.layers.{i}.input_layernorm.weight")
        q = self.rotate(heads(linear(y, "self_attn.q_proj"), self.heads), begin)
        k = self.rotate(heads(linear(y, "self_attn.k_proj"), self.kv_heads), begin)
        v = heads(linear(y, "self_attn.v_proj"), self.kv_heads)
        if cache is not None:
            if i in cache:
                k, v = torch.cat([cache[i][0], k], 2), torch.cat([cache[i][1], v], 2)
            cache[i] = (k, v)
        repeat = self.heads // self.kv_heads
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        if hasattr(F, "scaled_dot_product_attention"):
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        else:
            scores = q @ k.transpose(-1, -2) / self.dim**0.5
            if length > 1:
                scores = scores + torch.full((length, length), -1e9, device=x.device).triu(1)
            mixed = scores.softmax(-1) @ v
        x = x + linear(mixed.transpose(1, 2).reshape(batch, length, -1), "self_attn.o_proj")
        y = self.norm(x, f"model.layers.{i}.post_attention_layernorm.weight")
        return x + linear(F.silu(linear(y, "mlp.gate_proj")) * linear(y, "mlp.up_proj"), "mlp.down_proj")

    def forward(self, tokens, begin=0, cache=None, last=False):
        embedding = self.of("model.embed_tokens.weight") if "model/embed_tokens/weight" in self.weights else None
        head = self.of("lm_head.weight") if "lm_head/weight" in self.weights else embedding
        x = F.embedding(tokens, head if embedding is None else embedding)
        for i in range(self.config["num_hidden_layers"]):
            x = self.layer(i, x, begin, cache)
        return F.linear(self.norm(x[:, -1] if last else x, "model.norm.weight"), head)


@torch.no_grad()
def sample(model, prompts, count):
    tokens, cache, new, begin = prompts, {}, prompts, 0
    for _ in range(count):
        probabilities = model(new, begin, cache, last=True).softmax(-1)
        begin += new.shape[1]
        new = torch.multinomial(probabilities, 1)
        tokens = torch.cat([tokens, new], 1)
    return tokens


def log_probs(model, tokens, prompt_len):
    logits = model(tokens)[:, prompt_len - 1 : -1]
    return logits.log_softmax(-1).gather(-1, tokens[:, prompt_len:, None]).squeeze(-1)


def now(args):
    """Seconds, when all that was begun is done."""
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def step(policy, reference, optimizer, args):
    """Seconds of sampling, log-probs (old and reference) and training."""
    times = [now(args)]
    size = (args.prompts, args.prompt_len)
    prompts = torch.randint(3, policy.config["vocab_size"], size, device=args.device)
    tokens = sample(policy, prompts.repeat_interleave(args.group, 0), args.new_tokens)
    times.append(now(args))
    with torch.no_grad():
        parts = tokens.split(args.minibatch)
        old = torch.cat([log_probs(policy, part, args.prompt_len) for part in parts])
        ref = torch.cat([log_probs(reference, part, args.prompt_len) for part in parts])
    rewards = torch.rand(args.prompts, args.group, device=args.device)
    centred = rewards - rewards.mean(1, keepdim=True)
    advantages = (centred / (rewards.std(1, keepdim=True) + 1e-8)).view(-1, 1)
    times.append(now(args))
    for rows in torch.randperm(len(tokens), device=args.device).split(args.minibatch):
        new = log_probs(policy, tokens[rows], args.prompt_len)
        ratio, d, a = (new - old[rows]).exp(), ref[rows] - new, advantages[rows]
        surrogate = torch.min(ratio * a, ratio.clamp(0.8, 1.2) * a)
        loss = (-surrogate + 0.01 * (d.exp() - d - 1)).mean(1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    times.append(now(args))
    return [b - a for a, b in zip(times, times[1:])] + [times[-1] - times[0]]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    defaults = dict(prompts=16, group=8, prompt_len=24, new_tokens=48, minibatch=64, threads=2, repeats=5)
    for name, value in defaults.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: this torch finds no GPU; use --device cpu")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    policy, reference = (Llama(args.checkpoint).to(args.device) for _ in range(2))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
    times = [step(policy, reference, optimizer, args) for _ in range(args.repeats + 1)][1:]
    names = ["rollout_s", "log_probs_s", "train_s", "step_s"]
    result = {name: statistics.median(column) for name, column in zip(names, zip(*times))}
    result["torch"] = torch.__version__
    result["device"] = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    print(json.dumps(result) if args.json else result)


main()
