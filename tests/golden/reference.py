#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""DeepSeek-V2 forward pass in numpy alone, written from the formulas and from nothing else.

It reads a checkpoint directory (config.json, one or more safetensors files) with its own reader,
runs the ids stored in golden.json and compares with what transformers computed:

    reference.py                          every shape beside this file
    reference.py v2-lite-tiny v2-tiny     some shapes
    reference.py --float64 --absorbed v2-tiny
    reference.py v2-lite-tiny --dump 1 --pos 70            all activations of layer 1 at position 70
    reference.py v2-lite-tiny --dump 1 --npz /tmp/l1.npz   the same for every position, to a file
    reference.py v2-lite-tiny --dump embed|final
    reference.py v2-lite-tiny --ablate half-split-rope     what a known mistake would cost

Without --absorbed and --naive both attention forms run. Exit status 1 means a golden was missed.

Names: T tokens, D hidden_size, H heads, dn/dr/dv = qk_nope/qk_rope/v head dims, c = kv_lora_rank,
E routed experts, k experts per token, V vocabulary. Weights are stored [out, in]: y = x W^T.
"""
import argparse
import json
import math
import os
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
LATENT_EPS = 1e-6  # q_a_layernorm and kv_a_layernorm are built without eps: 1e-6 whatever rms_norm_eps is

# Mistakes that others made; the goldens must notice each one that applies to the shape.
ABLATIONS = {
    "no-mscale": "softmax scale without the YaRN mscale^2",
    "no-yarn": "plain RoPE frequencies and no mscale^2",
    "half-split-rope": "RoPE pairs (i, i+dr/2) instead of the stored (2i, 2i+1)",
    "nope-only-scale": "softmax scale from dn instead of dn+dr",
    "rms-eps-everywhere": "rms_norm_eps used in q_a_layernorm and kv_a_layernorm too",
    "kv-norm-over-rope": "kv_a_layernorm's mean taken over c+dr columns instead of c",
    "norm-topk": "expert weights renormalised to sum to 1",
    "no-routed-scaling": "routed_scaling_factor left out",
    "scaled-shared": "routed_scaling_factor applied to the shared experts too",
    "no-shared": "shared experts left out",
    "no-groups": "group limit ignored in the router",
    "group-sum2": "group score = sum of the two best instead of the best",
}


# --- files ------------------------------------------------------------------------------------------

def read_safetensors(path):
    """name -> array; BF16 is widened to float32, F32 stays."""
    with open(path, "rb") as f:
        blob = f.read()
    n = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8:8 + n])
    header.pop("__metadata__", None)
    out = {}
    for name, t in header.items():
        begin, end = t["data_offsets"]
        raw = blob[8 + n + begin:8 + n + end]
        if t["dtype"] == "BF16":
            a = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif t["dtype"] == "F32":
            a = np.frombuffer(raw, "<f4")
        else:
            raise ValueError(f"{path}: {name} has dtype {t['dtype']}, want F32 or BF16")
        out[name] = a.reshape(t["shape"])
    return out


def read_checkpoint(directory):
    """config and all tensors of a directory, sharded or not."""
    with open(os.path.join(directory, "config.json")) as f:
        config = json.load(f)
    index = os.path.join(directory, "model.safetensors.index.json")
    if not os.path.exists(index):
        return config, read_safetensors(os.path.join(directory, "model.safetensors"))
    with open(index) as f:
        weight_map = json.load(f)["weight_map"]
    shards = {s: read_safetensors(os.path.join(directory, s)) for s in sorted(set(weight_map.values()))}
    return config, {name: shards[s][name] for name, s in weight_map.items()}


# --- YaRN -------------------------------------------------------------------------------------------

def yarn_mscale(factor, m):
    return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0


def softmax_scale(config):
    """(dn+dr)^-0.5 * mscale(factor, mscale_all_dim)^2"""
    s = (config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5
    rope = config.get("rope_scaling") or {}
    if rope.get("mscale_all_dim"):
        s *= yarn_mscale(rope["factor"], rope["mscale_all_dim"]) ** 2
    return s


def rope_multiplier(config):
    """Factor on cos and sin: 1 exactly when mscale == mscale_all_dim, as in every published checkpoint."""
    rope = config.get("rope_scaling") or {}
    if not rope:
        return 1.0
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return yarn_mscale(rope["factor"], rope["mscale"]) / yarn_mscale(rope["factor"], rope["mscale_all_dim"])
    return yarn_mscale(rope["factor"], 1.0)


def inverse_frequencies(config, yarn=True):
    """[dr/2] float32; the correction range in double, the rest in float32."""
    f32 = np.float32
    dim, base = config["qk_rope_head_dim"], float(config["rope_theta"])
    exponent = np.arange(0, dim, 2, dtype=f32) / f32(dim)
    p = np.power(f32(base), exponent)
    extra = f32(1) / p
    rope = config.get("rope_scaling") if yarn else None
    if not rope:
        return extra

    def corr(rotations):
        orig = rope["original_max_position_embeddings"]
        return dim * math.log(orig / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(corr(rope.get("beta_fast", 32))), 0)
    high = min(math.ceil(corr(rope.get("beta_slow", 1))), dim - 1)
    if low == high:
        high += 0.001
    inter = f32(1) / (f32(rope["factor"]) * p)
    ramp = np.clip((np.arange(dim // 2, dtype=f32) - f32(low)) / f32(high - low), 0, 1).astype(f32)
    mask = f32(1) - ramp
    return inter * (f32(1) - mask) + extra * mask


# --- the model --------------------------------------------------------------------------------------

def rms_norm(x, weight, eps, mean_over=None):
    n = x if mean_over is None else mean_over
    variance = np.mean(n * n, axis=-1, keepdims=True)
    return weight * (x / np.sqrt(variance + x.dtype.type(eps)))


def softmax(x):
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def log_softmax(x):
    m = np.max(x, axis=-1, keepdims=True)
    return x - m - np.log(np.sum(np.exp(x - m), axis=-1, keepdims=True))


def silu(x):
    return x / (1 + np.exp(-x))


def top_stable(scores, k):
    """[..., n] -> ids of the k largest, largest first; of equal scores the lower id wins."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


class Model:
    def __init__(self, directory, dtype=np.float32, absorbed=False, ablate=None):
        self.config, tensors = read_checkpoint(directory)
        c = self.config
        if c["model_type"] != "deepseek_v2":
            raise ValueError(f"{directory}: model_type {c['model_type']}, want deepseek_v2")
        self.w = {name: t.astype(dtype) for name, t in tensors.items()}
        self.dtype, self.absorbed, self.ablate = dtype, absorbed, ablate
        self.H = c["num_attention_heads"]
        self.dn, self.dr, self.dv = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        self.c = c["kv_lora_rank"]
        self.scale = softmax_scale(c)
        if ablate in ("no-mscale", "no-yarn"):
            self.scale = (self.dn + self.dr) ** -0.5
        if ablate == "nope-only-scale":
            self.scale *= ((self.dn + self.dr) / self.dn) ** 0.5
        self.inv_freq = inverse_frequencies(c, yarn=ablate != "no-yarn")
        self.rope_mult = 1.0 if ablate == "no-yarn" else rope_multiplier(c)

    def is_moe(self, layer):
        c = self.config
        return layer >= c["first_k_dense_replace"] and layer % c.get("moe_layer_freq", 1) == 0

    def linear(self, x, name):
        return x @ self.w[name + ".weight"].T

    def rope(self, x, positions):
        """x [T, ..., dr], adjacent pairs (2i, 2i+1). The angle is a float32 product in every reference."""
        angle = (positions.astype(np.float32)[:, None] * self.inv_freq[None, :]).astype(self.dtype)
        angle = angle.reshape(angle.shape[:1] + (1,) * (x.ndim - 2) + angle.shape[1:])
        cos, sin = np.cos(angle) * self.dtype(self.rope_mult), np.sin(angle) * self.dtype(self.rope_mult)
        out = np.empty_like(x)
        if self.ablate == "half-split-rope":
            half = self.dr // 2
            a, b = x[..., :half], x[..., half:]
            out[..., :half], out[..., half:] = a * cos - b * sin, b * cos + a * sin
        else:
            a, b = x[..., 0::2], x[..., 1::2]
            out[..., 0::2], out[..., 1::2] = a * cos - b * sin, a * sin + b * cos
        return out

    def attention(self, layer, a, positions, dump):
        P = f"model.layers.{layer}.self_attn."
        T, H, dn, dr, dv, c = len(a), self.H, self.dn, self.dr, self.dv, self.c
        latent_eps = self.config["rms_norm_eps"] if self.ablate == "rms-eps-everywhere" else LATENT_EPS

        if self.config.get("q_lora_rank") is None:
            q = self.linear(a, P + "q_proj")
        else:
            qa = rms_norm(self.linear(a, P + "q_a_proj"), self.w[P + "q_a_layernorm.weight"], latent_eps)
            dump("q_a", qa)
            q = self.linear(qa, P + "q_b_proj")
        q = q.reshape(T, H, dn + dr)
        q_nope, q_pe = q[..., :dn], self.rope(q[..., dn:], positions)

        kv = self.linear(a, P + "kv_a_proj_with_mqa")  # [T, c+dr]
        mean_over = kv if self.ablate == "kv-norm-over-rope" else None
        c_kv = rms_norm(kv[:, :c], self.w[P + "kv_a_layernorm.weight"], latent_eps, mean_over)
        k_pe = self.rope(kv[:, c:], positions)  # one key head, not normalised
        dump("q_nope", q_nope), dump("q_pe", q_pe), dump("latent", c_kv), dump("k_pe", k_pe)

        W = self.w[P + "kv_b_proj.weight"].reshape(H, dn + dv, c)
        W_uk, W_uv = W[:, :dn], W[:, dn:]
        score_pe = np.einsum("ihr,jr->hij", q_pe, k_pe)
        if self.absorbed:
            ql = np.einsum("ihn,hnc->ihc", q_nope, W_uk)
            score = np.einsum("ihc,jc->hij", ql, c_kv) + score_pe
        else:
            k_nope = np.einsum("jc,hnc->jhn", c_kv, W_uk)
            score = np.einsum("ihn,jhn->hij", q_nope, k_nope) + score_pe
        score = score * self.dtype(self.scale)
        score[:, np.triu(np.ones((T, T), bool), 1)] = -np.inf
        prob = softmax(score)
        dump("attn_prob", prob.transpose(1, 0, 2))
        if self.absorbed:
            ol = np.einsum("hij,jc->ihc", prob, c_kv)
            o = np.einsum("ihc,hvc->ihv", ol, W_uv)
            dump("attn_latent", ol)
        else:
            v = np.einsum("jc,hvc->jhv", c_kv, W_uv)
            o = np.einsum("hij,jhv->ihv", prob, v)
        dump("attn_heads", o)
        return self.linear(o.reshape(T, H * dv), P + "o_proj")

    def mlp(self, x, prefix):
        return self.linear(silu(self.linear(x, prefix + "gate_proj")) * self.linear(x, prefix + "up_proj"),
                           prefix + "down_proj")

    def route(self, x, layer):
        """ids [T, k] by descending score, weights [T, k], gap [T] to the nearest other choice."""
        c, k = self.config, self.config["num_experts_per_tok"]
        scores = softmax(self.linear(x, f"model.layers.{layer}.mlp.gate"))
        gap = np.full(len(x), np.inf)
        if c["topk_method"] == "group_limited_greedy" and self.ablate != "no-groups":
            grouped = scores.reshape(len(x), c["n_group"], -1)
            group_score = grouped.max(-1)
            if self.ablate == "group-sum2":
                group_score = np.sort(grouped, -1)[..., -2:].sum(-1)
            ranked = -np.sort(-group_score, -1)
            if c["topk_group"] < c["n_group"]:
                gap = ranked[:, c["topk_group"] - 1] - ranked[:, c["topk_group"]]
            keep = np.zeros_like(group_score, bool)
            np.put_along_axis(keep, top_stable(group_score, c["topk_group"]), True, -1)
            scores = np.where(keep[..., None], grouped, 0).reshape(scores.shape)
        ids = top_stable(scores, k + 1)
        ranked = np.take_along_axis(scores, ids, -1)
        gap = np.minimum(gap, ranked[:, k - 1] - ranked[:, k])
        ids, weights = ids[:, :k], ranked[:, :k]
        if self.ablate == "norm-topk":
            weights = weights / weights.sum(-1, keepdims=True)
        if self.ablate != "no-routed-scaling":
            weights = weights * self.dtype(c["routed_scaling_factor"])
        return scores, ids, weights, gap

    def moe(self, layer, x, dump):
        P = f"model.layers.{layer}.mlp."
        scores, ids, weights, gap = self.route(x, layer)
        dump("router_scores", scores), dump("expert_ids", ids), dump("expert_weights", weights)
        routed = np.zeros_like(x)
        for slot in range(ids.shape[1]):  # descending score: the summing order
            for e in np.unique(ids[:, slot]):
                rows = ids[:, slot] == e
                routed[rows] += weights[rows, slot, None] * self.mlp(x[rows], f"{P}experts.{e}.")
        shared = self.mlp(x, P + "shared_experts.")
        if self.ablate == "scaled-shared":
            shared = shared * self.dtype(self.config["routed_scaling_factor"])
        if self.ablate == "no-shared":
            shared = shared * 0
        dump("routed", routed), dump("shared", shared)
        return routed + shared, ids, gap

    def forward(self, ids, dump=None):
        """ids [T] -> logits [T, V], {layer: expert ids [T, k]}, {layer: gap [T]}"""
        positions = np.arange(len(ids))
        eps = self.config["rms_norm_eps"]
        experts, gaps = {}, {}
        x = self.w["model.embed_tokens.weight"][np.asarray(ids)]

        def dumper(where):
            return lambda name, value: dump is not None and dump(where, name, value)

        dumper("embed")("out", x)
        for layer in range(self.config["num_hidden_layers"]):
            P, d = f"model.layers.{layer}.", dumper(str(layer))
            d("in", x)
            a = rms_norm(x, self.w[P + "input_layernorm.weight"], eps)
            d("attn_in", a)
            o = self.attention(layer, a, positions, d)
            x = x + o
            d("attn_out", o), d("after_attn", x)
            m = rms_norm(x, self.w[P + "post_attention_layernorm.weight"], eps)
            d("mlp_in", m)
            if self.is_moe(layer):
                y, experts[layer], gaps[layer] = self.moe(layer, m, d)
            else:
                y = self.mlp(m, P + "mlp.")
            x = x + y
            d("mlp_out", y), d("out", x)
        h = rms_norm(x, self.w["model.norm.weight"], eps)
        logits = self.linear(h, "lm_head")
        d = dumper("final")
        d("norm", h), d("logits", logits), d("logprobs", log_softmax(logits))
        return logits, experts, gaps


# --- comparing and dumping --------------------------------------------------------------------------

def golden_inputs(golden):
    """Every id the goldens cover as input: the prompt and all but the last greedy id."""
    return golden["prompt_ids"] + golden["greedy_ids"][:-1]


def next_logprobs(golden, logprobs):
    """logprob of the id that followed, at every position: n_prompt-1 of the prompt, then the greedy ones."""
    following = golden_inputs(golden)[1:] + golden["greedy_ids"][-1:]
    return logprobs[np.arange(len(following)), following]


def compare(golden, logits, experts, gaps):
    """The checks that README.md states. Returns figures and a list of what was missed."""
    tol = golden["tolerance"]
    lp = log_softmax(logits.astype(np.float64))
    n = golden["n_prompt"]
    want = np.array(golden["prompt_logprobs"] + golden["greedy_logprobs"])
    d_next = float(np.abs(next_logprobs(golden, lp) - want).max())
    rows = np.repeat(golden["top_positions"], golden["top_n"])
    d_top = float(np.abs(lp[rows, golden["top_ids"]] - golden["top_logprobs"]).max())
    last_logits = np.array(golden["last_logits"])
    d_last = float(np.abs(lp[n - 1] - (last_logits - golden["last_logsumexp"])).max())
    d_logits = float(np.abs(logits[n - 1] - last_logits).max())
    missed = []
    for name, d in (("next", d_next), ("top", d_top), ("last", d_last), ("logits", d_logits)):
        if not d <= tol["logprob"]:
            missed.append(f"{name} logprobs differ by {d:.3g}")
    greedy = lp[n - 1:].argmax(-1)
    for i, (got, want_id, margin) in enumerate(zip(greedy, golden["greedy_ids"], golden["greedy_margins"])):
        if got != want_id and margin > tol["margin"]:
            missed.append(f"greedy id {i}: {got}, want {want_id} (margin {margin})")
    k = golden["experts_per_token"]
    for m, layer in enumerate(golden["moe_layers"]):
        want_ids = np.array(golden["expert_ids"][m]).reshape(-1, k)
        decisive = np.array(golden["router_gaps"][m]) >= tol["router_gap"]
        bad = np.nonzero((np.sort(experts[layer], -1) != np.sort(want_ids, -1)).any(-1) & decisive)[0]
        if len(bad):
            missed.append(f"layer {layer}: experts differ at positions {bad[:8].tolist()}")
    return {"max_logprob_diff": max(d_next, d_top, d_last), "max_logit_diff": d_logits}, missed


def load_golden(directory):
    with open(os.path.join(directory, "golden.json")) as f:
        return json.load(f)


def check_shape(directory, dtype, absorbed):
    golden = load_golden(directory)
    model = Model(directory, dtype, absorbed)
    assert abs(model.scale - golden["softmax_scale"]) < 1e-9, (model.scale, golden["softmax_scale"])
    assert np.allclose(model.inv_freq, golden["inv_freq"], rtol=1e-6, atol=0)
    logits, experts, gaps = model.forward(golden_inputs(golden))
    return compare(golden, logits, experts, gaps)


def dump_layer(directory, args, dtype):
    golden = load_golden(directory)
    kept = {}

    def keep(where, name, value):
        if where == args.dump:
            kept[name] = np.array(value)

    Model(directory, dtype, args.absorbed, args.ablate).forward(golden_inputs(golden), keep)
    if not kept:
        sys.exit(f"--dump {args.dump}: want embed, final or a layer number")
    if args.npz:
        np.savez(args.npz, **kept)
        return
    pos = args.pos if args.pos is not None else golden["n_prompt"] - 1
    for name, value in kept.items():
        row = value[pos]
        print(f"{name} {list(row.shape)} position {pos}")
        for line in row.reshape(-1, row.shape[-1]):
            print("  " + " ".join(f"{v:.9g}" for v in line))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("shapes", nargs="*", help="shape directories (default: all beside this file)")
    p.add_argument("--float64", action="store_true", help="compute in float64 (RoPE angles stay float32)")
    p.add_argument("--absorbed", action="store_true", help="only the absorbed attention form")
    p.add_argument("--naive", action="store_true", help="only the naive attention form")
    p.add_argument("--dump", metavar="LAYER", help="print activations of a layer, of 'embed' or of 'final'")
    p.add_argument("--pos", type=int, help="position to print (default: the last of the prompt)")
    p.add_argument("--npz", metavar="FILE", help="write all positions to FILE instead of printing one")
    p.add_argument("--ablate", choices=sorted(ABLATIONS), help="make this mistake on purpose")
    args = p.parse_args()

    dtype = np.float64 if args.float64 else np.float32
    names = args.shapes or sorted(d for d in os.listdir(HERE) if os.path.exists(os.path.join(HERE, d, "golden.json")))
    dirs = [n if os.path.isdir(n) else os.path.join(HERE, n) for n in names]
    if args.dump is not None:
        if len(dirs) != 1:
            p.error("--dump wants one shape")
        dump_layer(dirs[0], args, dtype)
        return 0
    failed = 0
    forms = [args.absorbed] if args.absorbed != args.naive else [False, True]
    for d in dirs:
        for absorbed in forms:
            form = "absorbed" if absorbed else "naive"
            what = f"{os.path.basename(os.path.normpath(d)):14} {np.dtype(dtype).name} {form:8}"
            if args.ablate:
                golden = load_golden(d)
                logits, experts, gaps = Model(d, dtype, absorbed, args.ablate).forward(golden_inputs(golden))
                figures, missed = compare(golden, logits, experts, gaps)
            else:
                figures, missed = check_shape(d, dtype, absorbed)
            failed += bool(missed)
            print(f"{what}  max |d logprob| {figures['max_logprob_diff']:.2e}"
                  f"  max |d logit| {figures['max_logit_diff']:.2e}  {'ok' if not missed else 'MISSED'}")
            for m in missed:
                print("    " + m)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
