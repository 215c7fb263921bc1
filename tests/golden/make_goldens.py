#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the tiny random checkpoints of this folder and their goldens. Run by hand; the results are committed.

    python3 -m venv venv && venv/bin/pip install transformers==5.23.0 torch==2.15.0 safetensors==0.8.0 numpy==2.4.6
    venv/bin/python tests/golden/make_goldens.py              all shapes
    venv/bin/python tests/golden/make_goldens.py v2-tiny      one shape
    venv/bin/python tests/golden/make_goldens.py --check      write nothing: make them again and compare

The goldens come from transformers' own deepseek_v2, reading the very files that are committed, in float32
on the CPU with eager attention and eager experts. Why exactly this version is believed:

- Until pull request #47435 native deepseek_v2 left the YaRN factor mscale(factor, mscale_all_dim)^2 out of
  the softmax scale, so its V2 logits were wrong from position 1 on. In the source of 5.23.0 (read in
  modeling_deepseek_v2.py) DeepseekV2Attention.__init__ ends in
      self.scaling = yarn_apply_mscale(config.rope_parameters, self.qk_head_dim ** (-0.5))
  and yarn_apply_mscale multiplies by that factor twice.
- That is not taken on trust. Before a golden is made, check_softmax_scale() compares every layer's
  self_attn.scaling, and the scale that the attention function really received, with
  (dn+dr)^-0.5 * (0.1 * mscale_all_dim * ln(factor) + 1)^2; and the golden records that dropping the factor
  changes nothing at position 0 (softmax over one key) and a lot later on (`sensitivity`).
- reference.py, written from the formulas alone, agrees with it in float32 and in float64 on every shape; a
  golden that it misses is not written.

What native deepseek_v2 does not do, all of it without effect on a published V2 checkpoint: it ignores
moe_layer_freq (v2-freq2 below swaps the layers by hand), and it ignores norm_topk_prob (false everywhere).

Weights are drawn by numpy, one stream per tensor seeded by the shape's seed and the tensor's name. Their
sizes are chosen so that the output is neither flat nor one-hot, attention picks few keys, and the router is
decisive. The prompt's seed is the first one for which every greedy margin and every router gap is wide
(MIN_MARGIN, MIN_GAP): an implementation that is right in float32 then has no excuse at any position.
"""
import argparse
import json
import math
import os
import sys
import tempfile
import zlib

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import reference  # noqa: E402

TRANSFORMERS_VERSION = "5.23.0"
HERE = reference.HERE

VOCAB = 320                # 256 bytes, begin, end, and some ids that no text reaches
BOS, EOS = 256, 257
N_GREEDY = 32
TOP_N = 5
MIN_MARGIN = 0.05          # of every greedy choice, in logprob
MIN_GAP = 1e-4             # of every expert choice, in softmax score
MIN_SENSITIVITY = 1e-2     # a mistake that applies to a shape moves some logprob by more than this
TOLERANCE = {"logprob": 1e-3, "margin": 1e-3, "router_gap": 1e-5}


# --- the shapes -------------------------------------------------------------------------------------

def yarn(mscale, original=64):
    return {"type": "yarn", "factor": 4, "original_max_position_embeddings": original, "beta_fast": 32,
            "beta_slow": 1, "mscale": mscale, "mscale_all_dim": mscale}


COMMON = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "hidden_act": "silu",
    "vocab_size": VOCAB, "bos_token_id": BOS, "eos_token_id": EOS, "tie_word_embeddings": False,
    "attention_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256, "rope_theta": 10000, "rope_scaling": yarn(0.707),
    "q_lora_rank": None, "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 1, "topk_group": 1,
    "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False,
    "routed_scaling_factor": 1.0, "use_cache": True,
}


def geometry(D, L, H, c, dn, dr, dv, E, k, shared, I, I0, **more):
    return dict(COMMON, hidden_size=D, num_hidden_layers=L, num_attention_heads=H, num_key_value_heads=H,
                kv_lora_rank=c, qk_nope_head_dim=dn, qk_rope_head_dim=dr, v_head_dim=dv, n_routed_experts=E,
                num_experts_per_tok=k, n_shared_experts=shared, moe_intermediate_size=I,
                intermediate_size=I0, **more)


LITE = geometry(64, 3, 4, 32, 16, 16, 16, 8, 2, 2, 32, 64)
GROUPED = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}

SHAPES = {
    # name: config, file dtype, and what differs from the defaults in make_weights() and below
    "v2-lite-tiny": dict(config=LITE, dtype="F32", seed=1, n_prompt=200),
    "v2-lite-bf16": dict(config=LITE, dtype="BF16", seed=1, n_prompt=200),
    "v2-tiny": dict(
        config=geometry(32, 3, 4, 32, 16, 8, 16, 12, 3, 2, 16, 48, q_lora_rank=24, **GROUPED,
                        routed_scaling_factor=2.0) | {"rope_scaling": yarn(1.0)},
        dtype="BF16", seed=2, n_prompt=150),
    "v2-x16": dict(
        config=geometry(32, 2, 2, 32, 16, 8, 16, 8, 3, 1, 16, 32, q_lora_rank=16, **GROUPED)
        | {"routed_scaling_factor": 16.0},
        dtype="BF16", seed=3, n_prompt=150, gains={"expert_down": 0.25}),
    "v2-vdim": dict(
        config=geometry(48, 2, 3, 32, 24, 8, 32, 6, 2, 1, 16, 48) | {"rms_norm_eps": 1e-5},
        dtype="BF16", seed=4, n_prompt=150, gains={"latent": 0.02}),
    "v2-dense2": dict(
        config=geometry(32, 4, 2, 32, 16, 8, 16, 6, 2, 1, 16, 32) | {"first_k_dense_replace": 2},
        dtype="BF16", seed=5, n_prompt=150),
    "v2-freq2": dict(
        config=geometry(32, 3, 2, 32, 16, 8, 16, 8, 2, 1, 16, 48) | {"moe_layer_freq": 2},
        dtype="BF16", seed=6, n_prompt=150),
    "v2-sharded": dict(
        config=geometry(32, 2, 4, 32, 16, 8, 16, 6, 2, 1, 16, 48),
        dtype="BF16", seed=7, n_prompt=150, shards=2),
}

def blind_to(config):
    """Mistakes that a shape cannot see, because it does not use what they break."""
    grouped = config["topk_method"] == "group_limited_greedy"
    return {name for name, blind in {
        "rms-eps-everywhere": config["rms_norm_eps"] == reference.LATENT_EPS,
        "no-routed-scaling": config["routed_scaling_factor"] == 1.0,
        "scaled-shared": config["routed_scaling_factor"] == 1.0,
        "no-groups": not grouped, "group-sum2": not grouped,
    }.items() if blind}


# --- weights ----------------------------------------------------------------------------------------

GAINS = {"query": 1.4, "key": 1.4, "value": 1.0, "attn_out": 1.5, "latent": 1.0, "gate": 1.2, "up": 1.2,
         "dense_down": 1.5, "expert_down": 1.5, "shared_down": 1.0, "router": 2.0, "head": 3.6}


def make_weights(shape):
    """name -> float32 array under the published names, rounded to bf16 where the shape says so."""
    c, g = shape["config"], GAINS | shape.get("gains", {})
    D, H, rank = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    dn, dr, dv = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    out = {}

    def stream(name):
        return np.random.default_rng([shape["seed"], zlib.crc32(name.encode())])

    def matrix(name, rows, cols, gain, row_gain=None):
        a = stream(name).standard_normal((rows, cols)) * (gain / math.sqrt(cols))
        out[name + ".weight"] = a if row_gain is None else a * row_gain[:, None]

    def norm(name, n):
        out[name + ".weight"] = stream(name).uniform(0.6, 1.4, n)

    def mlp(name, width, down):
        matrix(name + ".gate_proj", width, D, g["gate"])
        matrix(name + ".up_proj", width, D, g["up"])
        matrix(name + ".down_proj", D, width, down)

    matrix("model.embed_tokens", VOCAB, D, math.sqrt(D))
    for layer in range(c["num_hidden_layers"]):
        P = f"model.layers.{layer}."
        norm(P + "input_layernorm", D)
        if c["q_lora_rank"] is None:
            matrix(P + "self_attn.q_proj", H * (dn + dr), D, g["query"])
        else:
            matrix(P + "self_attn.q_a_proj", c["q_lora_rank"], D, g["latent"])
            norm(P + "self_attn.q_a_layernorm", c["q_lora_rank"])
            matrix(P + "self_attn.q_b_proj", H * (dn + dr), c["q_lora_rank"], g["query"])
        matrix(P + "self_attn.kv_a_proj_with_mqa", rank + dr, D, 1.0,
               np.r_[np.full(rank, g["latent"]), np.full(dr, g["key"])])
        norm(P + "self_attn.kv_a_layernorm", rank)
        matrix(P + "self_attn.kv_b_proj", H * (dn + dv), rank, 1.0,
               np.tile(np.r_[np.full(dn, g["key"]), np.full(dv, g["value"])], H))
        matrix(P + "self_attn.o_proj", D, H * dv, g["attn_out"])
        norm(P + "post_attention_layernorm", D)
        if is_moe(c, layer):
            matrix(P + "mlp.gate", c["n_routed_experts"], D, g["router"])
            for e in range(c["n_routed_experts"]):
                mlp(f"{P}mlp.experts.{e}", c["moe_intermediate_size"], g["expert_down"])
            mlp(P + "mlp.shared_experts", c["n_shared_experts"] * c["moe_intermediate_size"], g["shared_down"])
        else:
            mlp(P + "mlp", c["intermediate_size"], g["dense_down"])
    norm("model.norm", D)
    matrix("lm_head", VOCAB, D, g["head"])
    return {name: a.astype(np.float32) for name, a in out.items()}


def is_moe(config, layer):
    return layer >= config["first_k_dense_replace"] and layer % config["moe_layer_freq"] == 0


def write_checkpoint(directory, shape):
    import torch
    from safetensors.torch import save_file
    os.makedirs(directory, exist_ok=True)
    dtype = {"F32": torch.float32, "BF16": torch.bfloat16}[shape["dtype"]]
    config = dict(shape["config"], torch_dtype=str(dtype).removeprefix("torch."))
    with open(os.path.join(directory, "config.json"), "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")

    def save(part, file):
        path = os.path.join(directory, file)
        save_file(part, path, {"format": "pt"})
        os.chmod(path, 0o644)  # save_file leaves 0600

    tensors = {n: torch.from_numpy(a).to(dtype) for n, a in make_weights(shape).items()}
    n_shards = shape.get("shards", 1)
    if n_shards == 1:
        save(tensors, "model.safetensors")
        return
    # Cut in the middle of the bytes, so that one layer's tensors lie in both files.
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    shards, at = [{} for _ in range(n_shards)], 0
    for name, t in tensors.items():
        shards[min(at * n_shards // total, n_shards - 1)][name] = t
        at += t.numel() * t.element_size()
    weight_map = {}
    for i, part in enumerate(shards):
        name = f"model-{i + 1:05d}-of-{n_shards:06d}.safetensors"
        save(part, name)
        weight_map |= {t: name for t in part}
    with open(os.path.join(directory, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, f, indent=1)
        f.write("\n")


# --- transformers -----------------------------------------------------------------------------------

class Hf:
    """The pinned transformers model over a directory, and what it was seen to compute."""

    def __init__(self, directory, config):
        import torch
        from transformers import DeepseekV2ForCausalLM
        from transformers.models.deepseek_v2 import modeling_deepseek_v2 as native
        self.torch, self.native, self.config = torch, native, config

        class Freq(DeepseekV2ForCausalLM):
            """Native code ignores moe_layer_freq; the published remote code honours it like this."""
            def __init__(self, hf_config):
                super().__init__(hf_config)
                for i, layer in enumerate(self.model.layers):
                    if not is_moe(config, i) and i >= config["first_k_dense_replace"]:
                        layer.mlp = native.DeepseekV2MLP(hf_config)

        cls = DeepseekV2ForCausalLM if config["moe_layer_freq"] == 1 else Freq
        self.model, info = cls.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager",
                                               experts_implementation="eager", output_loading_info=True)
        assert not any(info.values()), info
        assert all(p.dtype == torch.float32 for p in self.model.parameters())
        self.model.eval()
        self.layers = self.model.model.layers
        self.routed = {}
        for i, layer in enumerate(self.layers):
            if is_moe(config, i):
                layer.mlp.gate.register_forward_hook(lambda _m, _in, out, i=i: self.routed.__setitem__(i, out))
        assert set(self.moe_layers()) == {i for i, l in enumerate(self.layers) if hasattr(l.mlp, "gate")}

    def moe_layers(self):
        return [i for i in range(self.config["num_hidden_layers"]) if is_moe(self.config, i)]

    def logits(self, ids, past=None, use_cache=False):
        with self.torch.no_grad():
            out = self.model(input_ids=self.torch.tensor([list(ids)]), past_key_values=past, use_cache=use_cache)
        return out.logits[0].numpy(), out.past_key_values

    def check_softmax_scale(self):
        """The reason for the pin: the scale must carry mscale^2, as stored and as used."""
        c, rope = self.config, self.config["rope_scaling"]
        plain = (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) ** -0.5
        mscale = 0.1 * rope["mscale_all_dim"] * math.log(rope["factor"]) + 1.0
        want = plain * mscale * mscale
        for layer in self.layers:
            assert abs(layer.self_attn.scaling - want) < 1e-12, (layer.self_attn.scaling, want)
        assert {abs(s - want) < 1e-12 for s in self.scales_in_use()} == {True}
        assert abs(reference.softmax_scale(c) - want) < 1e-12 and want > 1.1 * plain
        rotary = self.model.model.rotary_emb
        assert np.allclose(rotary.inv_freq.numpy(), reference.inverse_frequencies(c), rtol=3e-7, atol=0)
        assert rotary.attention_scaling == reference.rope_multiplier(c) == 1.0
        return {"plain": plain, "mscale": mscale, "scale": want}

    def scales_in_use(self):
        """The scaling argument of every call of the attention function."""
        eager, seen = self.native.eager_attention_forward, []

        def spy(*args, scaling, **kw):
            seen.append(scaling)
            return eager(*args, scaling=scaling, **kw)

        self.native.eager_attention_forward = spy
        try:
            self.logits([BOS, 1, 2])
        finally:
            self.native.eager_attention_forward = eager
        assert len(seen) == len(self.layers)
        return seen

    def with_plain_scale(self, ids):
        c = self.config
        kept = [layer.self_attn.scaling for layer in self.layers]
        for layer in self.layers:
            layer.self_attn.scaling = (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) ** -0.5
        logits, _ = self.logits(ids)
        for layer, s in zip(self.layers, kept):
            layer.self_attn.scaling = s
        return logits

    def greedy(self, prompt):
        logits, past = self.logits(prompt, use_cache=True)
        ids, rows = [], [logits[-1]]
        for _ in range(N_GREEDY):
            ids.append(int(rows[-1].argmax()))
            if len(ids) < N_GREEDY:
                row, past = self.logits(ids[-1:], past, use_cache=True)
                rows.append(row[-1])
        return ids

    def decode_diff(self, ids, full_logprobs):
        """Largest difference between prefilling all ids and decoding them one by one after 16."""
        logits, past = self.logits(ids[:16], use_cache=True)
        rows = [logits]
        for i in ids[16:]:
            row, past = self.logits([i], past, use_cache=True)
            rows.append(row)
        return float(np.abs(reference.log_softmax(np.concatenate(rows).astype(np.float64)) - full_logprobs).max())

    def experts(self):
        """{layer: (ids [T, k] by descending score, gap [T])} of the last forward."""
        torch, c, out = self.torch, self.config, {}
        for layer, (router_logits, weights, chosen) in self.routed.items():
            s = router_logits.softmax(-1, dtype=torch.float32)
            by_score = s.gather(1, chosen)
            order = by_score.argsort(-1, descending=True)
            ids = chosen.gather(1, order)
            assert torch.allclose(weights, by_score * c["routed_scaling_factor"])
            gap = torch.full((len(s),), math.inf)
            if c["topk_method"] == "group_limited_greedy":
                g = s.view(len(s), c["n_group"], -1)
                best, rank = g.max(-1).values.sort(-1, descending=True)
                gap = best[:, c["topk_group"] - 1] - best[:, c["topk_group"]]
                s = g.clone()
                s.scatter_(1, rank[:, c["topk_group"]:, None].expand(-1, -1, g.shape[2]), 0.0)
                s = s.view(len(s), -1)
            ranked = s.sort(-1, descending=True).values
            k = c["num_experts_per_tok"]
            gap = torch.minimum(gap, ranked[:, k - 1] - ranked[:, k])
            assert torch.equal(s.gather(1, ids), ranked[:, :k])
            out[layer] = ids.numpy(), gap.numpy()
        return out


# --- goldens ----------------------------------------------------------------------------------------

def make_prompt(seed, n):
    """BOS, then random ids with repeated spans, so that attention has something to find."""
    rng = np.random.default_rng([seed, 99])
    usable = [i for i in range(VOCAB) if i not in (BOS, EOS)]
    ids = [BOS]
    while len(ids) < n:
        if len(ids) > 12 and rng.random() < 0.3:
            start, length = int(rng.integers(1, len(ids) - 8)), int(rng.integers(3, 9))
            ids += ids[start:start + length]
        else:
            ids.append(int(rng.choice(usable)))
    return ids[:n]


def top_positions(n):
    """Beginning, around every 64-token page boundary, every 16th, end."""
    near = {p + d for p in range(0, n + N_GREEDY, 64) for d in (-1, 0, 1)} | {2, n - 2, n - 1, n, n + N_GREEDY - 2}
    return sorted(p for p in near | set(range(0, n, 16)) if 0 <= p <= n + N_GREEDY - 2)


def try_prompt(hf, seed, n):
    """(ids, greedy, full logits, experts) if this prompt leaves no close call, else a reason."""
    prompt = make_prompt(seed, n)
    greedy = hf.greedy(prompt)
    logits, _ = hf.logits(prompt + greedy[:-1])
    if EOS in greedy or BOS in greedy:
        return None, "greedy ends or begins"
    if len(set(greedy)) < N_GREEDY // 2:
        return None, "greedy loops"
    ranked = np.sort(logits[n - 1:], -1)
    if (ranked[:, -1] - ranked[:, -2]).min() < MIN_MARGIN:
        return None, "close greedy margin"
    assert logits[n - 1:].argmax(-1).tolist() == greedy
    experts = hf.experts()
    if min(gap.min() for _, gap in experts.values()) < MIN_GAP:
        return None, "close router gap"
    return (prompt, greedy, logits, experts), None


def sensitivity(hf, directory, prompt, greedy, lp):
    """Largest |d logprob| of the id that followed, over all positions, when something is changed."""
    inputs, ids = prompt + greedy[:-1], {"prompt_ids": prompt, "greedy_ids": greedy}
    late = len(prompt) - 32
    swapped = list(inputs)
    swapped[3], swapped[4] = swapped[4], swapped[3]
    lps = reference.log_softmax(hf.logits(swapped)[0].astype(np.float64))
    base = reference.next_logprobs(ids, lp)
    out = {f"swap-ids-3-4-seen-from-{late}-on": float(np.abs(reference.next_logprobs(ids, lps) - base)[late:].max())}
    plain = reference.log_softmax(hf.with_plain_scale(inputs).astype(np.float64))
    assert np.abs(plain - lp)[0].max() < 1e-6, "position 0 attends to one key: no scale can matter"
    out["no-mscale-in-transformers"] = float(np.abs(reference.next_logprobs(ids, plain) - base).max())
    for name in sorted(set(reference.ABLATIONS) - blind_to(hf.config)):
        logits, _, _ = reference.Model(directory, np.float32, ablate=name).forward(inputs)
        d = np.abs(reference.next_logprobs(ids, reference.log_softmax(logits.astype(np.float64))) - base)
        out[name] = float(d.max())
    weak = {k: v for k, v in out.items() if v < MIN_SENSITIVITY}
    assert not weak, f"these would go unnoticed: {weak}"
    return out


def rounded(a, digits):
    return [float(f"{float(x):.{digits}f}") for x in np.ravel(a)]


def make_golden(directory, name, shape):
    import torch
    import transformers
    config, n = shape["config"], shape["n_prompt"]
    hf = Hf(directory, config)
    scale = hf.check_softmax_scale()
    for seed in range(1, 500):
        found, why = try_prompt(hf, seed, n)
        if found:
            break
    else:
        sys.exit(f"{name}: no prompt without close calls, last: {why}")
    prompt, greedy, logits, experts = found
    inputs = prompt + greedy[:-1]
    lp = reference.log_softmax(logits.astype(np.float64))
    decode_diff = hf.decode_diff(inputs, lp)
    assert decode_diff < 1e-4, decode_diff
    following = reference.next_logprobs({"prompt_ids": prompt, "greedy_ids": greedy}, lp)
    ranked = np.sort(lp, -1)
    at = top_positions(n)
    top = np.argsort(-lp, -1, kind="stable")[:, :TOP_N]
    golden = {
        "format": 1, "shape": name, "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0], "prompt_seed": seed, "tolerance": TOLERANCE,
        "softmax_scale": scale["scale"], "softmax_scale_without_mscale": scale["plain"],
        "inv_freq": [float(f"{x:.9g}") for x in hf.model.model.rotary_emb.inv_freq.tolist()],
        "n_prompt": n, "prompt_ids": prompt, "prompt_logprobs": rounded(following[:n - 1], 6),
        "n_greedy": N_GREEDY, "greedy_ids": greedy, "greedy_logprobs": rounded(following[n - 1:], 6),
        "greedy_margins": rounded((ranked[:, -1] - ranked[:, -2])[n - 1:], 5),
        "top_n": TOP_N, "top_positions": at, "top_ids": top[at].ravel().tolist(),
        "top_logprobs": rounded(np.take_along_axis(lp, top, -1)[at], 6),
        "last_logits": rounded(logits[n - 1], 6),
        "last_logsumexp": float(f"{logits[n - 1][0] - lp[n - 1][0]:.6f}"),
        "experts_per_token": config["num_experts_per_tok"], "moe_layers": hf.moe_layers(),
        "expert_ids": [experts[l][0].ravel().tolist() for l in hf.moe_layers()],
        "router_gaps": [[float(f"{g:.2g}") for g in experts[l][1]] for l in hf.moe_layers()],
        "decode_vs_prefill": float(f"{decode_diff:.2g}"),
    }
    golden["sensitivity"] = {k: float(f"{v:.3g}") for k, v in
                             sensitivity(hf, directory, prompt, greedy, lp).items()}
    figures = {}
    for dtype in (np.float32, np.float64):
        for absorbed in (False, True):
            got, ref_experts, gaps = reference.Model(directory, dtype, absorbed).forward(inputs)
            fig, missed = reference.compare(golden, got, ref_experts, gaps)
            assert not missed, (name, dtype, absorbed, missed)
            form = f"{np.dtype(dtype).name}-{'absorbed' if absorbed else 'naive'}"
            figures[form] = float(f"{fig['max_logprob_diff']:.2g}")
    golden["reference_diff"] = figures
    top1 = np.exp(ranked[:, -1])
    golden["top1_probability"] = {"p10": round(float(np.quantile(top1, .1)), 3),
                                  "p50": round(float(np.median(top1)), 3),
                                  "p90": round(float(np.quantile(top1, .9)), 3)}
    return golden


def write_golden(directory, golden):
    """One key per line: small, and a change is readable as a diff."""
    with open(os.path.join(directory, "golden.json"), "w") as f:
        lines = [f'"{k}":{json.dumps(v, separators=(",", ":"))}' for k, v in golden.items()]
        f.write("{\n" + ",\n".join(lines) + "\n}\n")


def check(directory, committed, name):
    """A second run on another machine may differ in the last digits of float32 sums, not in more."""
    for f in sorted(os.listdir(directory)):
        if f != "golden.json":
            with open(os.path.join(directory, f), "rb") as a, open(os.path.join(committed, f), "rb") as b:
                assert a.read() == b.read(), f"{name}/{f} is not what this script makes"
    new, old = reference.load_golden(directory), reference.load_golden(committed)
    for key in ("prompt_ids", "greedy_ids", "expert_ids", "top_ids", "top_positions", "moe_layers"):
        assert new[key] == old[key], f"{name}: {key}"
    for key in ("prompt_logprobs", "greedy_logprobs", "top_logprobs", "last_logits"):
        d = float(np.abs(np.array(new[key]) - old[key]).max())
        assert d < 5e-5, f"{name}: {key} differs by {d}"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("shapes", nargs="*", metavar="SHAPE", help=", ".join(SHAPES))
    p.add_argument("--check", action="store_true", help="compare with what is committed, write nothing")
    args = p.parse_args()
    unknown = set(args.shapes) - set(SHAPES)
    if unknown:
        p.error(f"no shape {', '.join(sorted(unknown))}; there are {', '.join(SHAPES)}")

    import torch
    import transformers
    if transformers.__version__ != TRANSFORMERS_VERSION:
        sys.exit(f"transformers {transformers.__version__}, want exactly {TRANSFORMERS_VERSION}: see the top of this file")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    for name in args.shapes or SHAPES:
        with tempfile.TemporaryDirectory() as tmp:
            directory = tmp if args.check else os.path.join(HERE, name)
            write_checkpoint(directory, SHAPES[name])
            golden = make_golden(directory, name, SHAPES[name])
            write_golden(directory, golden)
            if args.check:
                check(directory, os.path.join(HERE, name), name)
        size = sum(os.path.getsize(os.path.join(HERE, name, f)) for f in os.listdir(os.path.join(HERE, name)))
        print(f"{name:14} {size / 1e3:6.0f} kB  prompt seed {golden['prompt_seed']}"
              f"  top-1 {golden['top1_probability']}"
              f"  decode/prefill {golden['decode_vs_prefill']}  reference {golden['reference_diff']}", flush=True)
        print("    " + "  ".join(f"{k} {v}" for k, v in golden["sensitivity"].items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
