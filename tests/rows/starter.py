# SPDX-License-Identifier: Apache-2.0
"""The starter model, through the daemon: held-out sums, stories, questions.

Sums are asked as `a+b=` in a chat, greedily; right is the number, ended by the end token or a newline.
Stories are sampled at temperature 0.8, half from a request and half from nothing. At fraction 1 both have to
reach 95 %. A smaller run has at least 20 of each and a bar for so many: what a model that is right 96 times of a
hundred misses in less than one run of a thousand. A story counts as one there, however many sentences it has,
because its sentences are not independent."""
import math
import os
import sys

SUMS_MIN = 0.95
SENTENCES_MIN = 0.95
TRUE_SHARE = 0.96  # of a model that must not fail by the luck of a small sample
KNOWN_MIN = 0.9  # of the questions it was taught; those of MUST all
MUST = ("What is dsd?", "What is MLA?")
STORIES = 200
LEAST = 20
AT_ONCE = 16  # requests in flight


def bar(full, n, whole):
    """The share that a sample of n has to reach."""
    if whole:
        return full
    missed = 0
    for k in range(n + 1):
        missed += math.comb(n, k) * TRUE_SHARE ** k * (1 - TRUE_SHARE) ** (n - k)  # at most k are right
        if missed >= 0.001:
            return min(full, k / n)
    return full


def together(claim, client, requests):
    """Answers of many requests, AT_ONCE in flight: (ids, text, finish) in their order."""
    from dsdtest import Choice
    waiting, running, done = list(enumerate(requests, 1)), {}, {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            i, r = waiting.pop(0)
            running[i] = Choice()
            client.start(id=i, **r)
        f = client.recv()
        kind = f.WhichOneof("msg")
        if kind == "delta":
            running[f.id].add(f.delta)
        elif kind in ("done", "error"):
            claim.check(kind == "done", "request %d: %s" % (f.id, f))
            done[f.id] = running.pop(f.id)
    return [done[i] for i in sorted(done)]


def run(claim):
    claim.need("daemon/dsd", "daemon/dsd-worker")
    folder = os.path.join(claim.root, "packaging", "starter-model")
    if not os.path.exists(os.path.join(folder, "model", "model.safetensors")):
        raise claim.Skip("packaging/starter-model/model has no weights")
    sys.path.insert(0, folder)
    import make_data as data
    from dsdtest import Daemon, pb
    pairs = claim.rng.sample(data.held_out_pairs(), claim.some(len(data.held_out_pairs()), LEAST))
    claim.check(all((31 * a + b) % 10 == 7 for a, b in pairs), "the pairs are the held-out ones")
    with Daemon(fake=False, model=os.path.join(folder, "model")) as d:
        c = d.client(timeout=300)
        answers = together(claim, c, [dict(chat=[(pb.ROLE_USER, "%d+%d=" % p)], temperature=0, max_tokens=8)
                                      for p in pairs])
        wrong = []
        for (a, b), got in zip(pairs, answers):
            words = got.text.decode("utf-8", "replace")
            ended = got.finish == pb.FINISH_EOS or "\n" in words
            if not (ended and words.split("\n")[0] == str(a + b)):
                wrong.append("%d+%d=%s" % (a, b, words[:20]))
        requests = []
        for i in range(claim.some(STORIES, LEAST)):
            sampling = dict(temperature=0.8, top_p=1, top_k=0, max_tokens=250, seed=claim.seed * 1000 + i)
            if i % 2:
                requests.append(dict(ids=[0], **sampling))  # the begin token alone
            else:
                kind = claim.rng.choice(data.ANIMALS) if claim.rng.random() < 0.7 else None
                thing = claim.rng.choice(data.WORDS["T"]) if claim.rng.random() < 0.3 else None
                requests.append(dict(chat=[(pb.ROLE_USER, data.story_prompt(claim.rng, kind, None, thing))], **sampling))
        texts = [a.text.decode("utf-8", "replace") for a in together(claim, c, requests)]
        asks = [qs[0] for qs, _ in data.QA]
        asks = list(MUST) + [q for q in claim.rng.sample(asks, claim.some(len(asks))) if q not in MUST]
        said = together(claim, c, [dict(chat=[(pb.ROLE_USER, q)], temperature=0, max_tokens=120) for q in asks])
    known, unknown = 0, []
    for q, a in zip(asks, said):
        words = a.text.decode("utf-8", "replace")
        right = any(q in qs and words in ws for qs, ws in data.QA)
        known += right
        unknown += [] if right else [q]
        claim.say("  %s %s -> %s" % ("as taught:" if right else "otherwise:", q, words))
    sentences = [s for t in texts for s in data.sentences(t)]
    bad = [s for s in sentences if not data.accepts(s)]
    train = {data.story(i) for i in range(data.N_STORIES)}
    copied = sum(t.strip() in train for t in texts)
    sums, accepted = 1 - len(wrong) / len(pairs), 1 - len(bad) / max(1, len(sentences))
    claim.figure("held-out sums right", "%.2f %% of %d" % (100 * sums, len(pairs)))
    if wrong:
        claim.say("  for example: " + "; ".join(wrong[:6]))
    claim.figure("sentences accepted", "%.2f %% of %d in %d stories" % (100 * accepted, len(sentences), len(texts)))
    for s in bad[:4]:
        claim.say("  not accepted: " + s)
    claim.figure("stories copied whole from training", copied)
    claim.figure("questions answered as taught", "%d of %d" % (known, len(asks)))
    sums_bar, sentences_bar = (bar(full, n, claim.fraction == 1) for full, n in
                               ((SUMS_MIN, len(pairs)), (SENTENCES_MIN, len(texts))))
    claim.figure("bars of so many", "sums %.1f %%, sentences %.1f %%" % (100 * sums_bar, 100 * sentences_bar))
    claim.check(sums >= sums_bar, "sums: %.2f %%, want %.1f" % (100 * sums, 100 * sums_bar))
    claim.check(sentences and accepted >= sentences_bar, "sentences: %.2f %%, want %.1f" % (100 * accepted, 100 * sentences_bar))
    claim.check(not set(MUST) & set(unknown) and known >= KNOWN_MIN * len(asks), "answered otherwise: %s" % unknown)
    claim.check(copied == 0, "%d stories are copies" % copied)
