# SPDX-License-Identifier: Apache-2.0
"""Real models behind the daemon: goldens, the starter model, synthetic ones, and files that lie."""
import json
import os
import shutil
import struct
import subprocess

import pytest

from dsdtest import BUILD, SOURCE, Daemon, pb

GOLDEN = os.path.join(SOURCE, "tests", "golden")
STARTER = os.path.join(SOURCE, "packaging", "starter-model", "model")
F32 = ("--set", "worker.weights=f32", "--set", "pool.size=64M")


def golden(name):
    with open(os.path.join(GOLDEN, name, "golden.json")) as f:
        return json.load(f)


@pytest.fixture(scope="module", params=["v2-lite-tiny", "v2-lite-bf16", "v2-tiny", "v2-x16", "v2-vdim", "v2-dense2",
                                        "v2-freq2", "v2-sharded"])
def shape(request):
    with Daemon(*F32, fake=False, model=os.path.join(GOLDEN, request.param)) as d:
        yield d, golden(request.param)


def test_prompt_logprobs_are_the_published_implementations(shape):
    d, g = shape
    tokens = d.client().score(ids=g["prompt_ids"])
    got = [t.logprob for t in tokens[1:]]
    assert len(got) == len(g["prompt_logprobs"])
    assert max(abs(a - b) for a, b in zip(got, g["prompt_logprobs"])) <= 1e-3


def test_greedy_ids_are_the_published_implementations(shape):
    d, g = shape
    a = d.client().generate(ids=g["prompt_ids"], max_tokens=g["n_greedy"], temperature=0, ignore_eos=True, logprobs=5)
    assert all(m > 1e-3 for m in g["greedy_margins"])
    assert a.ids == g["greedy_ids"]
    assert max(abs(t.logprob - w) for t, w in zip(a.logprobs, g["greedy_logprobs"])) <= 1e-3


def test_decode_with_cache_is_prefill(shape):
    """Generated rows take the absorbed path; the same ids scored as a prompt take the naive one."""
    d, g = shape
    c = d.client()
    a = c.generate(ids=g["prompt_ids"], max_tokens=32, temperature=0, ignore_eos=True, logprobs=0)
    scored = c.score(ids=list(g["prompt_ids"]) + a.ids)
    tail = [t.logprob for t in scored[len(g["prompt_ids"]):]]
    assert max(abs(t.logprob - w) for t, w in zip(a.logprobs, tail)) <= 1e-4


def test_chunks_and_company_do_not_change_a_bit():
    """The same prompt prefilled in chunks of 16 and of 256, alone and beside others: equal to the last bit."""
    g, answers = golden("v2-lite-tiny"), []
    for chunk in ("16", "256"):
        with Daemon(*F32, "--set", "sched.step_tokens=" + chunk, fake=False,
                    model=os.path.join(GOLDEN, "v2-lite-tiny")) as d:
            c = d.client()
            for company in (0, 5):
                for i in range(company):
                    c.start(ids=g["prompt_ids"][i:i + 70], id=100 + i, max_tokens=60, temperature=1, seed=i, ignore_eos=True)
                c.start(ids=g["prompt_ids"], id=7, max_tokens=40, temperature=0.9, seed=3, ignore_eos=True, logprobs=3)
                ids, logprobs, left = [], [], company + 1
                while left:
                    f = c.recv()
                    left -= f.WhichOneof("msg") == "done"
                    if f.id == 7 and f.WhichOneof("msg") == "delta":
                        ids += f.delta.ids
                        logprobs += [(t.logprob, [(x.id, x.logprob) for x in t.top]) for t in f.delta.logprobs]
                answers.append((ids, logprobs))
    assert len(answers) == 4 and all(a == answers[0] for a in answers)


def test_a_synthetic_model_needs_no_weights_and_repeats_itself(tmp_path):
    config = json.load(open(os.path.join(GOLDEN, "v2-lite-tiny", "config.json")))
    answers = []
    for seed in (5, 5, 6):
        (tmp_path / "config.json").write_text(json.dumps(dict(config, dsd_synthetic=seed)))
        with Daemon(fake=False, model=str(tmp_path)) as d:
            answers.append(d.client().generate("hello", max_tokens=16, temperature=0, ignore_eos=True).ids)
    assert answers[0] == answers[1] != answers[2]


def degraded(path, *options):
    """Start on a bad model: what the daemon says of it."""
    with Daemon(*options, fake=False, model=str(path), wait=False) as d:
        c = d.wait_socket()
        e = c.generate("hello").error
        assert e.code == pb.CODE_MODEL_INVALID
        (m,) = c.models()
        assert m.state == pb.STATE_DEGRADED and m.reason == e.message
        assert d.alive()
        return e.message


def copy(name, to):
    shutil.copytree(os.path.join(GOLDEN, name), to)
    return to


def test_a_truncated_model_file_is_named(tmp_path):
    path = copy("v2-lite-tiny", tmp_path / "m")
    file = path / "model.safetensors"
    for keep in (0, 7, 100, file.stat().st_size - 1):
        data = open(os.path.join(GOLDEN, "v2-lite-tiny", "model.safetensors"), "rb").read()
        file.write_bytes(data[:keep])
        words = degraded(path)
        assert "model.safetensors" in words, words


def test_a_file_that_lies_about_itself_is_named(tmp_path):
    path = copy("v2-lite-tiny", tmp_path / "m")
    config = json.load(open(path / "config.json"))
    for change, words in ((dict(kv_lora_rank=64), "kv_"), (dict(num_hidden_layers=4), "model.layers.3"),
                          (dict(n_routed_experts=9), "gate"), (dict(kv_lora_rank="x"), "kv_lora_rank"),
                          (dict(model_type="gpt2"), "gpt2"), (dict(vocab_size=10), "bos_token_id"), (dict(vocab_size=321), "embed_tokens"),
                          (dict(attention_bias=True), "attention_bias")):
        (path / "config.json").write_text(json.dumps(dict(config, **change)))
        said = degraded(path)
        assert words in said, (change, said)
    (path / "config.json").write_text("{")
    assert "config.json" in degraded(path)
    (path / "config.json").unlink()
    assert "config.json" in degraded(path)


def test_a_header_that_asks_for_everything_is_refused(tmp_path):
    path = copy("v2-lite-tiny", tmp_path / "m")
    (path / "model.safetensors").write_bytes(struct.pack("<Q", 100_000_000) + b"{" * 64)
    assert "model.safetensors" in degraded(path)


def test_a_directory_that_is_not_there_is_named(tmp_path):
    assert "nowhere" in degraded(tmp_path / "nowhere")


def test_inspect_describes_what_is_well_formed_and_refuses_the_rest(tmp_path):
    dsctl = os.path.join(BUILD, "client", "dsctl", "dsctl")
    env = dict(os.environ, DSD_WORKER=os.path.join(BUILD, "daemon", "dsd-worker"))
    p = subprocess.run([dsctl, "models", "--json", "--inspect", os.path.join(GOLDEN, "v2-lite-tiny")],
                       capture_output=True, env=env, timeout=60)
    assert p.returncode == 0 and json.loads(p.stdout), p
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    p = subprocess.run([dsctl, "models", "--inspect", str(tmp_path / "model.safetensors")], capture_output=True, env=env,
                       timeout=60)
    assert p.returncode == 1 and p.stderr.count(b"\n") == 1, p


@pytest.fixture(scope="module")
def starter():
    with Daemon("--set", "pool.size=256M", fake=False, model=STARTER + ":starter") as d:
        yield d


def test_the_starter_model_answers_in_chat(starter):
    c = starter.client()
    a = c.generate(chat=[(pb.ROLE_USER, "What is dsd?")], temperature=0, max_tokens=80)
    assert a.error is None and a.finish == pb.FINISH_EOS and b"dsd" in a.text
    b = c.generate(chat=[(pb.ROLE_USER, "What is dsd?")], temperature=0, max_tokens=80)
    assert a.ids == b.ids


def test_text_of_a_user_never_becomes_a_control_id(starter):
    c = starter.client()
    words = "<｜User｜><｜Assistant｜><｜end▁of▁sentence｜><｜begin▁of▁sentence｜>"
    control = {}
    for part in ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"):
        c.send(5, tokenize=pb.Tokenize(text=part.encode(), parse_special=True))
        (control[part],) = c.recv().tokenize.ids
    for ask in (dict(text=words.encode()), dict(chat=pb.Chat(messages=[pb.Message(role=pb.ROLE_USER, text=words.encode())]))):
        c.send(5, tokenize=pb.Tokenize(**ask))
        ids = list(c.recv().tokenize.ids)
        inside = ids if "text" in ask else ids[2:-1]  # begin, user ... assistant are the template's
        assert not set(inside) & set(control.values())


def test_quickstart_prints_what_dsctl_generate_chat_prints(starter):
    if os.path.realpath(BUILD) != os.path.realpath(os.path.join(SOURCE, "build")):
        pytest.skip("quickstart builds in build/, these tests run in another directory")
    env = dict(os.environ)
    env.pop("DSD_SOCKET", None)
    p = subprocess.run([os.path.join(SOURCE, "packaging", "quickstart"), "What is MLA?"], capture_output=True, timeout=250,
                       env=env)
    q = subprocess.run([os.path.join(BUILD, "client", "dsctl", "dsctl"), "--socket", starter.socket, "generate", "--chat",
                        "--temperature", "0", "What is MLA?"], capture_output=True, timeout=60)
    assert (p.returncode, q.returncode) == (0, 0) and len(q.stdout) > 10 and p.stdout == q.stdout


def test_ids_that_stand_for_more_text_than_a_connection_holds_are_refused(tmp_path):
    """A frame of ids may name one long token a hundred thousand times: nothing is made of it."""
    path = tmp_path / "m"
    shutil.copytree(STARTER, path, ignore=shutil.ignore_patterns("SHA256SUMS"))
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    (token,) = [t for t in tokenizer["added_tokens"] if t["id"] == 1790]
    token["content"] = "x" * 128
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with Daemon("--set", "pool.size=16M", fake=False, model=str(path)) as d:
        c = d.client()
        c.send(3, detokenize=pb.Detokenize(ids=pb.Ids(ids=[1790] * 100)))
        f = c.recv()
        assert f.detokenize.text == b"x" * 12800 and f.detokenize.last
        c.send(3, detokenize=pb.Detokenize(ids=pb.Ids(ids=[1790] * 200000)))
        f = c.recv()
        assert f.error.code == pb.CODE_INVALID_ARGUMENT and "bytes" in f.error.message
        assert c.stats().requests_failed == 1  # and the connection serves on
