#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seed corpora of fuzz_safetensors, fuzz_index, fuzz_config and fuzz_tokenizer_json beside this
file: what is good, and the published attacks on readers of model files."""
import copy
import json
import os
import struct

HERE = os.path.dirname(os.path.abspath(__file__))


def write(target, name, data):
    folder = os.path.join(HERE, "corpus", target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as f:
        f.write(data)


# ---- safetensors ----

def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def st(header, data=b"", length=None):
    if not isinstance(header, bytes):
        header = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


GOOD = {"__metadata__": {"format": "pt"}, "a": tensor("F32", [2, 2], 0, 16), "b": tensor("BF16", [3], 16, 22),
        "c": tensor("U8", [2], 22, 24), "empty": tensor("F32", [0, 5], 24, 24), "s": tensor("F32", [], 24, 28)}
ONE = json.dumps(tensor("F32", [1], 0, 4), separators=(",", ":")).encode()

for name, data in {
    "good": st(GOOD, bytes(range(28))),
    "good-padded": st(json.dumps(GOOD).encode() + b"   ", bytes(28)),
    "empty-header": st(b"{}"),
    "no-header": b"",
    "seven-bytes": bytes(7),
    "truncated-header": st(GOOD, b"")[:40],
    "truncated-data": st(GOOD, bytes(20)),
    "header-100mb": st(b"{}", length=100_000_000),
    "header-wraps": st(b"{}", length=(1 << 64) - 1),
    "header-wraps-8": st(b"{}", length=(1 << 64) - 8),
    "header-one-past": st(b"{}", length=3),
    "offset-past-file": st({"a": tensor("F32", [4], 0, 16)}, bytes(8)),
    "offset-huge": st({"a": tensor("F32", [1], 1 << 62, (1 << 62) + 4)}, bytes(4)),
    "offset-backwards": st({"a": tensor("F32", [1], 4, 0)}, bytes(4)),
    "shape-product-wraps": st({"a": tensor("F32", [1 << 32, 1 << 32], 0, 0)}),
    "experts-product-wraps": st({"experts": tensor("BF16", [1 << 31, 1 << 31, 4], 0, 16)}, bytes(16)),
    "shape-bytes-wrap": st({"a": tensor("F64", [(1 << 61) + 1], 0, 8)}, bytes(8)),
    "overlap": st({"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 4, 12)}, bytes(12)),
    "hole": st({"a": tensor("F32", [1], 0, 4), "b": tensor("F32", [1], 8, 12)}, bytes(12)),
    "data-left": st({"a": tensor("F32", [1], 0, 4)}, bytes(8)),
    "duplicate": st(b'{"a":' + ONE + b',"a":' + ONE + b"}", bytes(4)),
    "duplicate-escaped": st(b'{"a":' + ONE + b',"\\u0061":' + ONE + b"}", bytes(4)),
    "duplicate-key": st(b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "deep": st(b'{"a":' + b"[" * 4000),
    "deep-objects": st(b'{"a":' * 1000 + b"1" + b"}" * 1000),
    "negative": st(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', bytes(4)),
    "fraction": st(b'{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', bytes(4)),
    "number-past-64": st(b'{"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}}', bytes(4)),
    "nul-name": st(b'{"a\\u0000b":' + ONE + b"}", bytes(4)),
    "surrogate": st(b'{"\\ud800":' + ONE + b"}", bytes(4)),
    "surrogate-pair": st(b'{"\\ud83d\\ude80":' + ONE + b"}", bytes(4)),
    "not-utf8": st(b'{"\xc0\x80":' + ONE + b"}", bytes(4)),
    "unknown-dtype": st({"a": tensor("F4", [8], 0, 4)}, bytes(4)),
    "many": st({"t%d" % i: tensor("U8", [1], i, i + 1) for i in range(300)}, bytes(300)),
    "trailing": st(b"{}  x"),
}.items():
    write("safetensors", name, data)

# ---- model.safetensors.index.json ----

for name, data in {
    "good": {"metadata": {"total_size": 16}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}},
    "empty": {"weight_map": {}},
    "no-map": {"metadata": {}},
    "path": {"weight_map": {"a": "../1.safetensors"}},
    "absolute": {"weight_map": {"a": "/etc/passwd"}},
    "missing-file": {"weight_map": {"a": "3.safetensors"}},
    "missing-tensor": {"weight_map": {"x": "1.safetensors"}},
    "wrong-type": {"weight_map": {"a": ["1.safetensors"]}},
    "map-is-list": {"weight_map": [["a", "1.safetensors"]]},
}.items():
    write("index", name, json.dumps(data).encode())
write("index", "duplicate", b'{"weight_map":{"a":"1.safetensors","a":"2.safetensors"}}')
write("index", "deep", b'{"weight_map":' + b"[" * 2000)
write("index", "cut", b'{"weight_map":{"a":"1.saf')

# ---- config.json and generation_config.json ----

CONFIG = {
    "model_type": "deepseek_v2", "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "intermediate_size": 96,
    "moe_intermediate_size": 32, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "topk_method": "greedy", "scoring_func": "softmax",
    "norm_topk_prob": False, "routed_scaling_factor": 1.0, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512, "rope_theta": 10000, "bos_token_id": 256, "eos_token_id": 257,
    "attention_bias": False, "tie_word_embeddings": False,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 64, "beta_fast": 32,
                     "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707},
}


def config(name, **changes):
    write("config", name, b"\0" + json.dumps({**CONFIG, **changes}).encode())


config("good")
config("groups", topk_method="group_limited_greedy", n_group=4, topk_group=2, q_lora_rank=24)
config("rope-v5", rope_scaling=None, rope_parameters={"rope_type": "yarn", "factor": 4, "rope_theta": 5e4})
config("synthetic", dsd_synthetic=7)
config("dense", n_routed_experts=None)
config("eos-list", eos_token_id=[1, 2, 3])
config("eos-many", eos_token_id=list(range(20)))
config("experts-wrap", n_routed_experts=1 << 31, moe_intermediate_size=1 << 31)
config("layers-huge", num_hidden_layers=1 << 40)
config("heads-wrap", num_attention_heads=4096, num_key_value_heads=4096, qk_nope_head_dim=65536)
config("vocab-negative", vocab_size=-1)
config("vocab-minus-one", bos_token_id=-1)
config("vocab-past-64", vocab_size=1 << 70)
config("rank-text", kv_lora_rank="abc")
config("eps-huge", rms_norm_eps=1e308)
config("factor-zero", rope_scaling={"type": "yarn", "factor": 0})
config("groups-none", topk_method="group_limited_greedy", n_group=0)
config("v3", model_type="deepseek_v3")
config("fp8", quantization_config={"quant_method": "fp8"})
write("config", "deep", b"\0" + b'{"a":' * 3000)
write("config", "duplicate", b'\0{"vocab_size":320,"vocab_size":-1,"model_type":"deepseek_v2"}')
write("config", "not-utf8", b'\0{"model_type":"\xff"}')
write("config", "nan", b'\0{"model_type":"deepseek_v2","rms_norm_eps":NaN}')
write("config", "nul", b'\0{"model_type":"deepseek_v2\\u0000"}')
write("config", "cut", b"\0" + json.dumps(CONFIG).encode()[:200])
write("config", "generation", b'\1{"do_sample":true,"temperature":0.6,"top_p":0.95,"top_k":50,"eos_token_id":[1,2]}')
write("config", "generation-greedy", b'\1{"do_sample":false}')
write("config", "generation-bad", b'\1{"temperature":-1,"top_p":2}')

# ---- tokenizer.json and tokenizer_config.json ----

LET = """41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C
38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77
1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE
1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124
2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3
A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F
104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"""
LETTERS = "".join("-".join(chr(int(c, 16)) for c in r.split("-")) for r in LET.split())


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
V3 = [split(r"\p{N}{1,3}"), split("[一-龥\u3040-ゟ゠-ヿ]+"),
      split("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
            " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"), BYTES]
V2 = [split("[\r\n]"), split("\\s?[" + LETTERS + "]+"),
      split("\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"), split("\\s+$"),
      split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"), {"type": "Digits", "individual_digits": True}, BYTES]


def symbols():
    own = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    return [chr(b) if b in own else chr(256 + b - sum(o < b for o in own)) for b in range(256)]


def added(i, text, special=False, **more):
    return {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": True, "special": special, **more}


def tokenizer(name, tail=b"", pre=None, edit=None):
    vocab = {s: i for i, s in enumerate(symbols())}
    vocab.update({"ab": 260, "abc": 261, "\u0120a": 262})
    t = {"version": "1.0", "truncation": None, "padding": None,
         "added_tokens": [added(256, "<｜begin▁of▁sentence｜>", True), added(257, "<｜end▁of▁sentence｜>", True),
                          added(258, "<｜User｜>"), added(259, "<｜Assistant｜>")],
         "normalizer": {"type": "Sequence", "normalizers": []},
         "pre_tokenizer": {"type": "Sequence", "pretokenizers": copy.deepcopy(pre or V3)},
         "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                   "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
                   "merges": ["a b", "ab c", "\u0120 a"]}}
    if edit:
        edit(t)
    write("tokenizer_json", name, json.dumps(t, ensure_ascii=False, separators=(",", ":")).encode() + tail)


def setter(*path):
    *keys, last, value = path

    def edit(t):
        for k in keys:
            t = t[k]
        t[last] = value
    return edit


CFG = b'\0{"add_bos_token":true,"bos_token":{"content":"<\xef\xbd\x9cbegin\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>"}}'
tokenizer("v3")
tokenizer("v3-config", CFG)
tokenizer("v2", pre=V2)
tokenizer("pairs", edit=setter("model", "merges", [["a", "b"], ["ab", "c"]]))
tokenizer("merge-unknown", edit=setter("model", "merges", ["a b", "b c"]))
tokenizer("merge-longer", edit=setter("model", "merges", ["a" * 9000 + " b"]))
tokenizer("merge-shape", edit=setter("model", "merges", ["ab", ["a"], 7, [1, 2]]))
tokenizer("byte-token-negative", edit=setter("model", "vocab", "<0x-1>", 270))
tokenizer("values-many", edit=setter("model", "merges", [{}] * 2000))
tokenizer("id-negative", edit=setter("model", "vocab", "x", -1))
tokenizer("id-past", edit=setter("model", "vocab", "x", 300))
tokenizer("id-huge", edit=setter("model", "vocab", "x", 1 << 70))
tokenizer("id-twice", edit=setter("model", "vocab", "ac", 260))
tokenizer("symbol-unknown", edit=setter("model", "vocab", "\u4e00", 270))
tokenizer("added-twice", edit=lambda t: t["added_tokens"].append(added(258, "x")))
tokenizer("added-empty", edit=lambda t: t["added_tokens"].append(added(270, "")))
tokenizer("added-strip", edit=lambda t: t["added_tokens"].append(added(270, "x", lstrip=True)))
tokenizer("added-long", edit=lambda t: t["added_tokens"].append(added(270, "x" * 5000)))
tokenizer("normalizer-nfc", edit=setter("normalizer", {"type": "NFC"}))
tokenizer("pattern-slow", pre=[split("(a+)+$"), BYTES])
tokenizer("prefix-space", edit=setter("pre_tokenizer", "pretokenizers", 3, "add_prefix_space", True))
tokenizer("byte-fallback", edit=setter("model", "byte_fallback", True))
tokenizer("unigram", edit=setter("model", "type", "Unigram"))
tokenizer("bos-unknown", b'\0{"bos_token":"<none>"}')
tokenizer("config-broken", b'\0{"bos_token":')
write("tokenizer_json", "none", b'\0{"add_bos_token":false}')
write("tokenizer_json", "deep", b'{"pre_tokenizer":' * 1000)
write("tokenizer_json", "empty-object", b"{}")
