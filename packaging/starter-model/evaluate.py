#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures the starter model: held-out sums, stories, questions.

    python3 evaluate.py [--model model] [--sums N] [--stories N] [--print N]

Sums: greedy decoding of `a+b=` over the held-out two-digit pairs, as a chat turn (the answer ended
by the end token) and as raw text (ended by a newline or the end token). Stories: samples at
temperature 0.8 over the full distribution, half from a chat request and half from an empty text;
every sentence goes to the grammar's checker, and every whole story is looked up among the training
stories. Questions: greedy answers; one counts as known when it is an answer of make_data.QA.

Weights are the file's bf16 values, arithmetic is f32.
"""
import argparse
import random
import re

import torch

import make_data as data
from train import load_model, load_tokenizer

EOS_ID = 1


@torch.no_grad()
def generate(model, tok, prompts, max_new, temperature=0.0, seed=0, batch=270):
    """Token ids after each prompt, up to and without EOS; a (ids, ended) pair for each."""
    gen, out = torch.Generator().manual_seed(seed), []
    known = tok.get_vocab_size()
    for first in range(0, len(prompts), batch):
        ids = [tok.encode(p, add_special_tokens=False).ids for p in prompts[first:first + batch]]
        width = max(map(len, ids))
        pad = torch.tensor([width - len(i) for i in ids])
        x = torch.tensor([[2] * (width - len(i)) + i for i in ids])
        cols = torch.arange(width)
        pos = (cols - pad.unsqueeze(1)).clamp(min=0)
        seen = cols >= pad.unsqueeze(1)                             # [B, S]
        mask = (seen.unsqueeze(1) & (cols <= cols.unsqueeze(1))) | torch.eye(width, dtype=torch.bool)
        mask, cache = mask.unsqueeze(1), [[] for _ in model.layers]
        new, done = [[] for _ in ids], [False] * len(ids)
        for _ in range(max_new):
            logits = model.lm_head(model.hidden(x, pos, mask, cache)[:, -1])[:, :known]
            if temperature:
                x = torch.multinomial((logits / temperature).softmax(-1), 1, generator=gen)
            else:
                x = logits.argmax(-1, keepdim=True)
            for row, t in enumerate(x[:, 0].tolist()):
                if not done[row]:
                    done[row] = t == EOS_ID
                    if not done[row]:
                        new[row].append(t)
            if all(done):
                break
            pos = pos[:, -1:] + 1
            seen = torch.cat((seen, torch.ones(len(ids), 1, dtype=torch.bool)), 1)
            mask = seen[:, None, None, :]
        out += list(zip(new, done))
    return out


def sums(model, tok, pairs):
    """{form: share of right answers}, and a few wrong ones."""
    shares, wrong = {}, []
    for form in ("chat", "raw"):
        prompts = [(data.BOS + data.USER + f"{a}+{b}=" + data.ASSISTANT) if form == "chat" else
                   (data.BOS + f"{a}+{b}=") for a, b in pairs]
        right = 0
        for (a, b), (ids, done) in zip(pairs, generate(model, tok, prompts, 6)):
            text = tok.decode(ids, skip_special_tokens=False) + (data.EOS if done else "")
            ok = text == f"{a + b}{data.EOS}" or \
                form == "raw" and text.startswith(f"{a + b}\n")
            right += ok
            if not ok:
                wrong.append(f"{form} {a}+{b}={text!r}")
        shares[form] = right / len(pairs)
    return shares, wrong


def trained_pairs(n):
    rng = random.Random(5)
    out = []
    while len(out) < n:
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        if not data.held_out(a, b):
            out.append((a, b))
    return out


def stories(model, tok, n, seed=1, temperature=0.8):
    rng = random.Random(seed)
    prompts = []
    for i in range(n):
        if i % 2:
            prompts.append(data.BOS)
        else:
            kind = rng.choice(data.ANIMALS) if rng.random() < 0.7 else None
            thing = rng.choice(data.WORDS["T"]) if rng.random() < 0.3 else None
            prompts.append(data.BOS + data.USER + data.story_prompt(rng, kind, None, thing) +
                           data.ASSISTANT)
    out = generate(model, tok, prompts, 250, temperature, seed)
    return [tok.decode(ids, skip_special_tokens=False) for ids, _ in out], [d for _, d in out]


def main():
    ap = argparse.ArgumentParser(description="Measure the starter model.")
    ap.add_argument("--model", default="model")
    ap.add_argument("--sums", type=int, default=0, help="only N of the held-out pairs")
    ap.add_argument("--stories", type=int, default=200)
    ap.add_argument("--print", type=int, default=4, help="stories to show")
    ap.add_argument("--threads", type=int, default=2)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    model, tok = load_model(args.model), load_tokenizer(args.model)

    pairs = data.held_out_pairs()
    if args.sums:
        pairs = random.Random(3).sample(pairs, args.sums)
    for name, some in (("held-out", pairs), ("trained", trained_pairs(min(500, len(pairs))))):
        shares, wrong = sums(model, tok, some)
        print(f"sums, {len(some)} {name} two-digit pairs: " +
              ", ".join(f"{f} {100 * s:.2f} %" for f, s in shares.items()))
        if wrong:
            print("  wrong, for example:", "; ".join(wrong[:6]))

    if args.stories:
        texts, ended = stories(model, tok, args.stories)
        all_s = [s for t in texts for s in data.sentences(t)]
        bad = [s for s in all_s if not data.accepts(s)]
        train = {data.story(i) for i in range(data.N_STORIES)}
        names = set(data.NAMES["f"] + data.NAMES["m"])
        two = sum(len(names & set(re.findall(r"\w+", t))) <= 2 for t in texts)
        print(f"stories, {len(texts)} at temperature 0.8: {100 * (1 - len(bad) / len(all_s)):.2f} % of "
              f"{len(all_s)} sentences accepted; {sum(t in train for t in texts)} copied whole from "
              f"training; {len(set(texts))} different; {sum(ended)} ended by themselves; "
              f"{len(all_s) / len(texts):.1f} sentences each; {100 * two / len(texts):.0f} % keep to "
              f"one or two names")
        for s in bad[:6]:
            print("  not accepted:", s)
        for t in texts[:args.print]:
            print("  |", t)

    asks = [(q, answers) for qs, answers in data.QA for q in qs]
    asks += [("What is the capital of France?", data.UNKNOWN_A)]
    answers = [tok.decode(i) for i, _ in generate(
        model, tok, [data.BOS + data.USER + q + data.ASSISTANT for q, _ in asks], 120)]
    known = [a in right for a, (_, right) in zip(answers, asks)]
    print(f"questions: {sum(known)} of {len(asks)} answered as taught")
    shown = set()
    for (q, right), a, ok in zip(asks, answers, known):
        if not ok or right[0] not in shown:
            shown.add(right[0])
            print(f"  {'' if ok else 'OTHER '}{q} -> {a}")


if __name__ == "__main__":
    main()
