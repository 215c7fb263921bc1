#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains the starter model from scratch on a CPU and writes it as a Hugging Face model folder.

    python3 train.py --out model --work DIR [--minutes 55] [--resume]

DIR keeps the tokenizer's training text, the checkpoint (every few minutes) and a log. --resume goes
on from the checkpoint. The learning rate follows the wall clock, so --minutes is what the machine
is given, however fast it is. --check compares the written folder with transformers and ends.

The model is deepseek_v2: latent attention (MLA) with YaRN, and DeepSeekMoE with greedy softmax
routing. It is written for short sequences on few cores: tokens are sorted by expert and each expert
runs one matmul; several short documents share a row, kept apart by the attention mask, and each
counts its positions from 0, as when it is served.
"""
import argparse
import hashlib
import json
import math
import os
import random
import shutil
import tempfile
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import make_data as data

CONFIG = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "vocab_size": 2048,
    "hidden_size": 192,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "max_position_embeddings": 8192,
    "rope_theta": 10000,
    "rope_scaling": {"type": "yarn", "factor": 8, "original_max_position_embeddings": 1024,
                     "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707},
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "aux_loss_alpha": 0.01,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "use_cache": True,
    "torch_dtype": "bfloat16",
}
GENERATION_CONFIG = {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1,
                     "do_sample": True, "temperature": 0.6, "top_p": 0.95}


# ---------------------------------------------------------------------------------------------
# Tokenizer, in the form of DeepSeek-V3's tokenizer.json

SPLITS = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
    " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]
FIRST = [data.BOS, data.EOS, "<｜▁pad▁｜>"]
LAST = ["<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", data.USER, data.ASSISTANT, "<|EOT|>",
        "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>",
        "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>", "<｜tool▁sep｜>"]
CHAT_TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "chat_template.jinja")


def make_tokenizer(folder):
    """Learns the merges and writes tokenizer.json and tokenizer_config.json. Digits are left out of
    the text the merges come from, so every digit stays its own token."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(p), "isolated") for p in SPLITS] +
        [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    rng = random.Random(data.SEED)
    texts = []
    for _ in range(12000):
        for text, _ in data.text_doc(rng):
            for special in FIRST + LAST:
                text = text.replace(special, "")
            texts.append("".join(c for c in text if not c.isdigit()))
    tok.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"] - len(LAST) - 16, min_frequency=2, special_tokens=FIRST,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    bpe = json.loads(tok.to_str())["model"]
    vocab = bpe["vocab"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in bpe["merges"]]

    def added(i, content, special, normalized):
        return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": normalized, "special": special}
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    out = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(i, t, True, False) for i, t in enumerate(FIRST)] +
                        [added(len(vocab) + i, t, t == "<|EOT|>", True) for i, t in enumerate(LAST)],
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
            for p in SPLITS] + [dict(level, add_prefix_space=False, use_regex=False)]},
        "post_processor": dict(level, trim_offsets=False),
        "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False, "vocab": vocab, "merges": merges},
    }
    write_json(folder, "tokenizer.json", out)

    def named(content):
        return {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": True,
                "rstrip": False, "single_word": False}
    write_json(folder, "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "bos_token": named(data.BOS),
        "clean_up_tokenization_spaces": False, "eos_token": named(data.EOS), "legacy": True,
        "model_max_length": CONFIG["max_position_embeddings"], "pad_token": named(data.EOS),
        "sp_model_kwargs": {}, "unk_token": None, "tokenizer_class": "LlamaTokenizerFast",
        "chat_template": open(CHAT_TEMPLATE, encoding="utf-8").read()})


def load_tokenizer(folder):
    from tokenizers import Tokenizer
    return Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


def write_json(folder, name, value):
    path = os.path.join(folder, name)
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")
    os.replace(path + ".tmp", path)


# ---------------------------------------------------------------------------------------------
# Model

def yarn(cfg):
    """(inv_freq [dr/2], softmax scale); the scale carries mscale squared."""
    s, dim, base = cfg["rope_scaling"], cfg["qk_rope_head_dim"], cfg["rope_theta"]

    def corr(n):
        return dim * math.log(s["original_max_position_embeddings"] / (n * 2 * math.pi)) / (
            2 * math.log(base))
    low, high = max(math.floor(corr(s["beta_fast"])), 0), min(math.ceil(corr(s["beta_slow"])), dim - 1)
    p = base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low or 0.001)).clamp(0, 1)
    inv_freq = ramp / (s["factor"] * p) + (1 - ramp) / p
    mscale = 0.1 * s["mscale_all_dim"] * math.log(s["factor"]) + 1
    return inv_freq, (cfg["qk_nope_head_dim"] + dim) ** -0.5 * mscale ** 2


def rotate(x, cos, sin):
    """RoPE over adjacent pairs; x [B, H, T, dr], cos and sin [B, 1, T, dr/2]."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class Norm(nn.Module):
    def __init__(self, n, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(n)), eps

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, c, scale):
        super().__init__()
        self.h, self.c, self.scale = c["num_attention_heads"], c["kv_lora_rank"], scale
        self.dn, self.dr, self.dv = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        d = c["hidden_size"]
        self.q_proj = nn.Linear(d, self.h * (self.dn + self.dr), False)
        self.kv_a_proj_with_mqa = nn.Linear(d, self.c + self.dr, False)
        self.kv_a_layernorm = Norm(self.c)
        self.kv_b_proj = nn.Linear(self.c, self.h * (self.dn + self.dv), False)
        self.o_proj = nn.Linear(self.h * self.dv, d, False)

    def forward(self, x, cos, sin, mask, cache):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.h, -1).transpose(1, 2)
        q = torch.cat((q[..., :self.dn], rotate(q[..., self.dn:], cos, sin)), -1)
        latent, k_pe = self.kv_a_proj_with_mqa(x).split((self.c, self.dr), -1)
        latent, k_pe = self.kv_a_layernorm(latent), rotate(k_pe.unsqueeze(1), cos, sin)
        if cache is not None:
            if cache:
                latent, k_pe = torch.cat((cache[0], latent), 1), torch.cat((cache[1], k_pe), 2)
            cache[:] = latent, k_pe
        kv = self.kv_b_proj(latent).view(b, latent.shape[1], self.h, -1).transpose(1, 2)
        k = torch.cat((kv[..., :self.dn], k_pe.expand(-1, self.h, -1, -1)), -1)
        o = F.scaled_dot_product_attention(q, k, kv[..., self.dn:], mask, scale=self.scale)
        return self.o_proj(o.transpose(1, 2).reshape(b, t, -1))


class MLP(nn.Module):
    def __init__(self, d, i):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(d, i, False), nn.Linear(d, i, False)
        self.down_proj = nn.Linear(i, d, False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoE(nn.Module):
    """Experts are kept stacked ([E, out, in]) and split by name when the model is written."""

    def __init__(self, c):
        super().__init__()
        d, i, self.e, self.k = (c["hidden_size"], c["moe_intermediate_size"],
                                c["n_routed_experts"], c["num_experts_per_tok"])
        self.gate = nn.Linear(d, self.e, False)
        self.experts = nn.ParameterDict({"gate_proj": torch.empty(self.e, i, d),
                                         "up_proj": torch.empty(self.e, i, d),
                                         "down_proj": torch.empty(self.e, d, i)})
        self.shared_experts = MLP(d, i * c["n_shared_experts"])
        self.balance = None

    def forward(self, x):
        shape, x = x.shape, x.flatten(0, -2)
        p = self.gate(x).softmax(-1)
        w, chosen = p.topk(self.k, -1)
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=self.e)
        token = order // self.k
        if self.training:           # switch-style balance loss: share of tokens times mean probability
            self.balance = self.e * (counts / order.numel() * p.mean(0)).sum()
        out, g, u, dn = [], *(self.experts[n] for n in ("gate_proj", "up_proj", "down_proj"))
        for e, part in enumerate(x[token].split(counts.tolist())):
            out.append((F.silu(part @ g[e].T) * (part @ u[e].T)) @ dn[e].T)
        y = torch.cat(out) * w.flatten()[order].unsqueeze(-1)
        return (self.shared_experts(x).index_add(0, token, y)).view(shape)


class Layer(nn.Module):
    def __init__(self, c, l, scale):
        super().__init__()
        d = c["hidden_size"]
        self.input_layernorm, self.post_attention_layernorm = Norm(d), Norm(d)
        self.self_attn = Attention(c, scale)
        self.mlp = MLP(d, c["intermediate_size"]) if l < c["first_k_dense_replace"] else MoE(c)

    def forward(self, x, cos, sin, mask, cache):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(nn.Module):
    def __init__(self, c=CONFIG):
        super().__init__()
        inv_freq, scale = yarn(c)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c, l, scale) for l in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"])
        self.lm_head = nn.Linear(c["hidden_size"], c["vocab_size"], False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                std = 0.02 if "embed" in name or "lm_head" in name else 0.7 * p.shape[-1] ** -0.5
                if "o_proj" in name or "down_proj" in name:
                    std /= math.sqrt(2 * c["num_hidden_layers"])
                nn.init.normal_(p, std=std)

    def hidden(self, ids, pos, mask, cache=None):
        """Final normalised states. ids and pos [B, T]; mask [B, 1, T, S], True where seen; cache:
        one list per layer, filled here."""
        angle = (pos.unsqueeze(-1) * self.inv_freq).unsqueeze(1)
        cos, sin = angle.cos(), angle.sin()
        x = self.embed_tokens(ids)
        for l, layer in enumerate(self.layers):
            x = layer(x, cos, sin, mask, None if cache is None else cache[l])
        return self.norm(x)

    def forward(self, ids):
        """Logits of whole sequences that start at position 0."""
        t = ids.shape[1]
        return self.lm_head(self.hidden(ids, torch.arange(t).expand_as(ids),
                                        torch.ones(t, t, dtype=torch.bool).tril()))


def checkpoint_names(model):
    """{published tensor name: tensor}, experts apart."""
    out = {}
    for name, p in model.state_dict().items():
        name = name if name.startswith("lm_head") else "model." + name
        if ".experts." in name:
            head, kind = name.rsplit(".", 1)
            out.update({f"{head}.{e}.{kind}.weight": p[e] for e in range(len(p))})
        else:
            out[name] = p
    return out


def write_model(model, folder):
    """Writes config, generation config and bf16 weights; the weights appear in one step."""
    from safetensors.torch import save_file
    write_json(folder, "config.json", CONFIG)
    write_json(folder, "generation_config.json", GENERATION_CONFIG)
    path = os.path.join(folder, "model.safetensors")
    save_file({n: p.detach().to(torch.bfloat16).contiguous() for n, p in
               checkpoint_names(model).items()}, path + ".tmp", metadata={"format": "pt"})
    os.chmod(path + ".tmp", 0o644)
    os.replace(path + ".tmp", path)


def write_sums(folder):
    """SHA256SUMS of what the folder holds: dsd refuses a folder that is not as it says."""
    names = sorted(n for n in os.listdir(folder) if n.endswith((".json", ".safetensors")))
    with open(os.path.join(folder, "SHA256SUMS"), "w", encoding="ascii") as out:
        for name in names:
            with open(os.path.join(folder, name), "rb") as f:
                out.write("%s  %s\n" % (hashlib.sha256(f.read()).hexdigest(), name))


def load_model(folder):
    """The written model, in f32."""
    from safetensors.torch import load_file
    model = Model(json.load(open(os.path.join(folder, "config.json"))))
    weights = load_file(os.path.join(folder, "model.safetensors"))
    with torch.no_grad():
        for name, p in checkpoint_names(model).items():
            p.copy_(weights.pop(name))
    assert not weights, f"unknown tensors: {sorted(weights)}"
    return model.eval()


def check(folder):
    """Largest difference of log-probabilities against transformers, both in f32."""
    import inspect
    from transformers import DeepseekV2ForCausalLM
    from transformers.models.deepseek_v2 import modeling_deepseek_v2
    assert "yarn_apply_mscale" in inspect.getsource(modeling_deepseek_v2), \
        "this transformers lacks the YaRN softmax correction for deepseek_v2"
    theirs = DeepseekV2ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager").eval()
    tok, rng = load_tokenizer(folder), random.Random(7)
    ids = []
    while len(ids) < 512:
        ids += tok.encode(data.doc_text(data.text_doc(rng))).ids
    ids = torch.tensor([ids[:512]])
    with torch.no_grad():
        a, b = load_model(folder)(ids).log_softmax(-1), theirs(ids).logits.log_softmax(-1)
    print(f"against transformers, f32, 512 positions: max |d logprob| {(a - b).abs().max():.2e}, "
          f"same argmax {(a.argmax(-1) == b.argmax(-1)).float().mean():.4f}")
    return (a - b).abs().max().item()


# ---------------------------------------------------------------------------------------------
# Batches

class Packer:
    """Fills rows of `length` tokens with whole documents (the last one of a row may be cut)."""

    def __init__(self, tok, make, length, pad):
        self.tok, self.make, self.length, self.pad = tok, make, length, pad

    def document(self):
        ids, weights = [], []
        for text, weight in self.make():
            piece = self.tok.encode(text, add_special_tokens=False).ids
            ids += piece
            weights += [weight] * len(piece)
        return ids, weights

    def batch(self, rows):
        """ids, pos [B, T]; targets, weights [B, T] (of the next token); mask [B, 1, T, T]."""
        n = self.length + 1
        ids = torch.full((rows, n), self.pad)
        weights, doc, pos = torch.zeros(rows, n), torch.full((rows, n), -1), torch.zeros_like(ids)
        for r in range(rows):
            at = d = 0
            while at < n - 8:
                i, w = self.document()
                i, w = i[:n - at], w[:n - at]
                end = at + len(i)
                ids[r, at:end], weights[r, at:end] = torch.tensor(i), torch.tensor(w)
                doc[r, at:end], pos[r, at:end] = d, torch.arange(len(i))
                at, d = end, d + 1
        doc = doc[:, :-1]
        mask = (doc.unsqueeze(2) == doc.unsqueeze(1)).tril().unsqueeze(1)
        return ids[:, :-1], pos[:, :-1], ids[:, 1:], weights[:, 1:], mask


def loss_of(model, batch, alpha):
    """Weighted mean cross-entropy plus the balance loss; logits only where a target counts."""
    ids, pos, target, weight, mask = batch
    h, at = model.hidden(ids, pos, mask), weight > 0
    ce = F.cross_entropy(model.lm_head(h[at]), target[at], reduction="none")
    ce = (ce * weight[at]).sum() / weight[at].sum()
    balance = [l.mlp.balance for l in model.layers if isinstance(l.mlp, MoE)]
    return ce + alpha * torch.stack(balance).mean(), ce.item(), torch.stack(balance).mean().item()


# ---------------------------------------------------------------------------------------------
# Muon for the matrices of the layers, AdamW for the rest

class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by five Newton-Schulz steps. Stacked experts go as a batch."""

    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr, momentum=0.95, weight_decay=0.02))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            same = {}
            for p in group["params"]:
                same.setdefault(p.shape[-2:], []).append(p)
            for shape, ps in same.items():
                out = []
                for p in ps:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    m.lerp_(p.grad, 1 - group["momentum"])
                    out.append(p.grad.lerp(m, group["momentum"]).reshape(-1, *shape))
                x = torch.cat(out)
                if shape[0] > shape[1]:
                    x = x.mT
                x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
                for _ in range(5):
                    a = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                if shape[0] > shape[1]:
                    x = x.mT
                x = x * max(1, shape[0] / shape[1]) ** 0.5
                for p, u in zip(ps, x.split([o.shape[0] for o in out])):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(u.view_as(p), alpha=group["lr"])


def optimizers(model):
    hidden = [p for n, p in model.layers.named_parameters() if p.dim() > 1 and ".gate.weight" not in n]
    ids = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [Muon(hidden, 0.02),
            torch.optim.AdamW([{"params": [p for p in rest if p.dim() > 1]},
                               {"params": [p for p in rest if p.dim() == 1], "weight_decay": 0.0}],
                              lr=4e-3, betas=(0.9, 0.95), weight_decay=0.01)]


def lr_factor(progress, step):
    """Warm up, hold, then fall to zero over the last 45 % of the time."""
    return min(1.0, (step + 1) / 40, max(0.0, (1 - progress) / 0.45))


def train(rank, args):
    """One of args.procs processes: each has its own documents, gradients are averaged. Two processes
    of one thread lose less than one of two threads when others use the machine too."""
    torch.set_num_threads(1)
    torch.manual_seed(data.SEED)
    dist.init_process_group("gloo", init_method=f"file://{args.meet}", rank=rank, world_size=args.procs)
    tok, model = load_tokenizer(args.out), Model()
    opts = optimizers(model)
    params = list(model.parameters())
    base = [[g["lr"] for g in o.param_groups] for o in opts]
    ckpt, spent, step, tokens = os.path.join(args.work, "checkpoint.pt"), 0.0, 0, 0
    if args.resume and os.path.exists(ckpt):
        s = torch.load(ckpt, weights_only=False)
        model.load_state_dict(s["model"])
        for o, so in zip(opts, s["opts"]):
            o.load_state_dict(so)
        spent, step, tokens = s["spent"], s["step"], s["tokens"]
    rng = random.Random(f"{data.SEED}/{rank}/{step}")
    progress = spent / (60 * args.minutes)
    pad = tok.token_to_id("<｜▁pad▁｜>")
    sums = Packer(tok, lambda: data.sum_doc(rng, data.wide_share(progress)), 128, pad)
    text = Packer(tok, lambda: data.text_doc(rng, data.wide_share(progress)), 256, pad)
    long = Packer(tok, lambda: data.text_doc(rng, data.wide_share(progress)), 512, pad)
    log = open(os.path.join(args.work, "train.log"), "a", buffering=1)
    model.train()

    def save():
        if rank == 0:
            torch.save(dict(model=model.state_dict(), opts=[o.state_dict() for o in opts],
                            spent=spent, step=step, tokens=tokens), ckpt + ".tmp")
            os.replace(ckpt + ".tmp", ckpt)
            write_model(model, args.out)

    start, saved = time.time() - spent, spent
    while progress < 1.0:
        for o, lrs in zip(opts, base):
            for g, lr in zip(o.param_groups, lrs):
                g["lr"] = lr * lr_factor(progress, step)
        # Sums are most of the tokens until they are learned; then the time goes to text.
        n_sums, n_text = (32, 8) if progress < 0.35 else (8, 10)
        n_sums, n_text = n_sums // args.procs, n_text // args.procs
        batches = [sums.batch(n_sums),
                   long.batch((n_text + 1) // 2) if step % 8 == 7 else text.batch(n_text)]
        shared = [time.time() - start, 0.0]
        for b in batches:
            loss, ce, balance = loss_of(model, b, CONFIG["aux_loss_alpha"])
            loss.backward()
            shared += [ce, balance]
            shared[1] += b[0].numel()
        flat = torch.cat([p.grad.flatten() for p in params] + [torch.tensor(shared)])
        dist.all_reduce(flat)
        flat /= args.procs
        for p, g in zip(params, flat.split([p.numel() for p in params] + [len(shared)])):
            p.grad.copy_(g.view_as(p))
        spent, n, ce_sums, _, ce_text, balance = flat[-len(shared):].tolist()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        for o in opts:
            o.step()
        model.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + round(n * args.procs)
        progress = min(1.0, spent / (60 * args.minutes))
        if step % 20 == 0 and rank == 0:
            log.write(f"{time.strftime('%H:%M:%S')} step {step} tokens {tokens} minutes {spent / 60:.1f}"
                      f" sums {ce_sums:.4f} text {ce_text:.4f} balance {balance:.3f}"
                      f" tok/s {tokens / spent:.0f}\n")
        if spent - saved > 120:
            save()
            saved = spent
    save()
    dist.barrier()


def main():
    ap = argparse.ArgumentParser(description="Train the starter model.")
    ap.add_argument("--out", default="model", help="model folder to write")
    ap.add_argument("--work", required=True, help="folder for the checkpoint and the log")
    ap.add_argument("--minutes", type=float, default=55, help="training time")
    ap.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    ap.add_argument("--check", action="store_true", help="only compare --out with transformers")
    ap.add_argument("--procs", type=int, default=2, help="processes, of one thread each")
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)
    os.makedirs(args.work, exist_ok=True)
    if not args.check:
        kept = os.path.join(args.work, "tokenizer.json")
        if not (args.resume and os.path.exists(kept)):
            make_tokenizer(args.out)
            shutil.copy(os.path.join(args.out, "tokenizer.json"), kept)
        else:
            shutil.copy(kept, os.path.join(args.out, "tokenizer.json"))
        with tempfile.TemporaryDirectory() as meet:
            args.meet = os.path.join(meet, "meet")
            torch.multiprocessing.spawn(train, (args,), args.procs)
        write_sums(args.out)
    check(args.out)


if __name__ == "__main__":
    main()
