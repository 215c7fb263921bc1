# SPDX-License-Identifier: Apache-2.0
"""dsctl bench: its rows, what it counts, and what it says of shapes that do not fit."""
import json
import os
import subprocess

import pytest

from dsdtest import BUILD, SOURCE

DSCTL = os.path.join(BUILD, "client", "dsctl", "dsctl")


def bench(*args, code=0):
    p = subprocess.run([DSCTL, "bench", *map(str, args)], capture_output=True, timeout=120,
                       env=dict(os.environ, DSD_WORKER=os.path.join(BUILD, "daemon", "dsd-worker")))
    assert p.returncode == code, p
    return p


TINY = os.path.join(SOURCE, "tests", "golden", "v2-lite-tiny", "config.json")


def test_bench_has_its_rows_and_their_limits():
    p = bench("--json", "--shape", TINY, "--quant", "q8", "--prompt", 70, "--gen", 4, "--context", "100,40",
              "--parallel", "1,3", "--threads", 1, "--price-per-hour", "1.5")
    assert p.stderr == b""
    out = json.loads(p.stdout)
    assert out["machine"]["threads"] == 1
    for key in "read_gbps", "int8_gops", "bf16_gflops":
        assert out["machine"][key] > 0
    assert (out["model"]["layers"], out["model"]["layers_built"]) == (3, 3)
    assert [r["name"] for r in out["rows"]] == ["prefill-70", "decode-1", "decode-1@100", "decode-1@40",
                                                "decode-3", "decode-3@100", "decode-3@40"]
    for r in out["rows"]:
        assert "extrapolated" not in r and r["ttft_ms"] > 0 and r["memory_bytes"] > 0
        assert r["share_of_limit"] > 0 and r["share_of_limit"] == pytest.approx(r["tokens_per_s"] / r["limit_tokens_per_s"])
        floats = r["ops_per_token"] - r["ops_int8_per_token"]
        slowest = max(r["bytes_per_token"] / r["read_gbps"],
                      r["ops_int8_per_token"] / r["int8_gops"] + floats / r["bf16_gflops"]) * 1e-9
        assert r["limit_tokens_per_s"] == pytest.approx(1 / slowest)
        assert r["price_per_million_tokens"] == pytest.approx(1.5 / 3600 / r["tokens_per_s"] * 1e6)


def test_bench_counts_what_a_token_takes():
    out = json.loads(bench("--json", "--shape", TINY, "--quant", "f32", "--prompt", 6, "--gen", 4, "--context", 100,
                           "--parallel", "1,2").stdout)
    rows = {r["name"]: r for r in out["rows"]}
    hidden, heads, rank, rope, nope, v, vocab = 64, 4, 32, 16, 16, 16, 320
    dense, expert, router = 3 * 64 * hidden, 3 * 32 * hidden, 8 * hidden
    kv_b = heads * (nope + v) * rank
    layers = 3 * (heads * (nope + rope) * hidden + (rank + rope) * hidden + kv_b + hidden * heads * v)
    mlp = dense + 2 * (router + (2 + 2) * expert)
    absorbed, naive = heads * (2 * rank + rope), heads * (nope + rope + v)

    def decode(seen):
        return 2 * (layers + mlp + vocab * hidden + 3 * absorbed * seen)

    assert rows["decode-1"]["ops_per_token"] == pytest.approx(decode(2.5))
    assert rows["decode-2@100"]["ops_per_token"] == pytest.approx(decode(102.5))
    assert rows["prefill-6"]["ops_per_token"] == pytest.approx(2 * (layers + mlp + vocab * hidden / 6 + 3 * naive * 3.5))
    # All weights but experts are shared by the streams; of 8 experts a token uses 2, two tokens as many as they chose.
    one, two = (rows[name]["experts_per_layer"] for name in ("decode-1", "decode-2@100"))
    assert one == 2 and 2 <= two <= 4 and (two * 2 * 4).is_integer()  # the mean of two layers and four steps
    # Columns are kept in panels of 32: of kv_a 64 for 48, of each value matrix 32 for 16, of the router 32 for 8.
    row = 3 * (rank + rope) * 4
    padding = 3 * (16 * hidden + heads * 16 * rank) + 2 * 24 * hidden
    once = 4 * (vocab * hidden + layers + padding + dense + 2 * (router + 2 * expert))
    norms = 4 * (3 * (2 * hidden + rank) + hidden)

    def total(streams, experts, seen):
        return (once + norms + 2 * 4 * experts * expert) / streams + 4 * hidden + row * (seen + 1)

    assert rows["decode-1"]["bytes_per_token"] == pytest.approx(total(1, one, 2.5))
    assert rows["decode-2@100"]["bytes_per_token"] == pytest.approx(total(2, two, 102.5))


@pytest.mark.parametrize("quant,default", [("f32", "f32"), ("q8", "bf16")])
def test_bench_counts_what_the_entry_chosen_takes(quant, default):
    """A row of the tiny shape is 32 + 16 numbers in each of 3 layers; in int8 the latent, one scale, and the rope in bf16."""
    row = {"f32": 4 * 48, "bf16": 2 * 48, "int8": 32 + 4 + 2 * 16}
    args = ("--json", "--shape", TINY, "--quant", quant, "--prompt", 70, "--gen", 4, "--context", 100, "--parallel", 1)
    outs = {entry: json.loads(bench(*args, *more).stdout)
            for entry, more in [(e, ("--entry", e)) for e in row] + [("", ())]}
    assert outs[""]["entry"] == default
    base = outs["bf16"]
    for entry, out in outs.items():
        entry = entry or default
        assert out["entry"] == entry and out["model"]["kv_bytes_per_token"] == 3 * row[entry]
        assert [r["name"] for r in out["rows"]] == [r["name"] for r in base["rows"]]
        # What a token of each row reads and writes of the cache: four tokens from 0 or 100 on see 2.5 or 102.5 in
        # the mean; of a prompt, each sees on average what its one step of 70 reads, once, and writes.
        for r, b, rows in zip(out["rows"], base["rows"], (2, 3.5, 103.5)):
            assert r["bytes_per_token"] - b["bytes_per_token"] == pytest.approx(3 * rows * (row[entry] - row["bf16"]), abs=1e-6)
            assert r["ops_per_token"] == pytest.approx(b["ops_per_token"])
            # Attention of generated tokens multiplies int8 latents of 32 as such, for scores and values of 4 heads.
            in_int8 = 2 * 3 * 4 * 2 * 32 * (rows - 1) if entry == "int8" and r["name"] != "prefill-70" else 0
            assert r["ops_int8_per_token"] - b["ops_int8_per_token"] == pytest.approx(in_int8)
            assert r["limit_tokens_per_s"] <= r["read_gbps"] * 1e9 / r["bytes_per_token"] * (1 + 1e-9)


def test_bench_builds_the_layers_that_fit(tmp_path):
    with open(TINY) as f:
        config = json.load(f)
    config.update(hidden_size=512, moe_intermediate_size=128, num_hidden_layers=8)
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps(config))
    args = ("--json", "--shape", shape, "--quant", "f32", "--prompt", 8, "--gen", 2, "--context", 0, "--parallel", 1)
    whole, part = (json.loads(bench(*args, *more).stdout) for more in ((), ("--memory", 730)))
    assert whole["model"]["layers_built"] == 8 and not any("extrapolated" in r for r in whole["rows"])
    assert part["model"]["layers"] == 8 and 2 <= part["model"]["layers_built"] < 8
    assert part["model"]["weight_bytes"] < whole["model"]["weight_bytes"]
    assert all(r["extrapolated"] is True for r in part["rows"])
    for a, b in zip(whole["rows"], part["rows"]):
        assert (a["name"], a["bytes_per_token"], a["ops_per_token"]) == (b["name"], b["bytes_per_token"], b["ops_per_token"])
    assert b"there is room for" in bench(*args, "--memory", 702, code=1).stderr


def test_bench_compares_precisions():
    out = json.loads(bench("--json", "--quality", "--shape", os.path.join(SOURCE, "packaging/starter-model/model")).stdout)
    assert out["rows"] == [] and out["machine"]["read_gbps"] > 0
    assert [x["entry"] for x in out["quality"]] == ["bf16", "bf16", "bf16", "int8"]
    q = {x["weights"]: x for x in out["quality"]}
    assert list(q) == ["bf16", "q8", "q4", "f32"] and all(x["tokens"] == 256 for x in q.values())
    assert 0 < q["f32"]["kl"] < q["q4"]["kl"] and q["f32"]["top1"] > 0.9  # over int8 entries
    assert 0 <= q["bf16"]["kl"] < q["q8"]["kl"] < q["q4"]["kl"] < 0.05
    assert 1 >= q["bf16"]["top1"] >= q["q8"]["top1"] >= q["q4"]["top1"] > 0.8
    assert q["bf16"]["weight_bytes"] > q["q8"]["weight_bytes"] > q["q4"]["weight_bytes"]


@pytest.mark.parametrize("args,code,sentence", [
    (("--quant", "q5"), 2, b"--quant: got 'q5', want f32, bf16, q8 or q4"),
    (("--entry", "auto"), 2, b"--entry: got 'auto', want f32, bf16 or int8"),
    (("--parallel", "1,,2"), 2, b"--parallel: got '', want a whole number from 1 to 1024"),
    (("--shape", TINY, "--context", "4096"), 1, b"want at most the 256 that the model takes"),
    (("--shape", "no-such-model"), 1, b"want deepseek-v2-lite, deepseek-v2, deepseek-v3, a config.json"),
])
def test_bench_says_what_it_wants(args, code, sentence):
    p = bench(*args, code=code)
    assert sentence in p.stderr and p.stdout == b""
