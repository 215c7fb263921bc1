#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Everything the starter model learns from, made by this program from a seed.

Three sources, no downloads:

  sums       a+b= in plain, chat and spoken form; pairs with held_out(a, b) never appear
  stories    a small grammar of plots, sentence templates and word lists; accepts(sentence)
             is its checker, and story(i) is the i-th training story
  questions  short answers about dsd and the words around it

A document is a list of (text, weight) segments. The text of all segments together is what the
model sees (special tokens spelled out); weight says how much a segment's tokens count in the loss
(0: context only).

Run by itself it prints samples and checks that the grammar accepts its own sentences.
"""
import random
import re
import sys

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
SEED = 20261123
N_STORIES = 40000                   # training stories: story(0) .. story(N_STORIES - 1)


# ---------------------------------------------------------------------------------------------
# Sums

def held_out(a, b):
    """True for pairs that are never trained on. As 31 = 1 (mod 10), these are exactly the pairs
    of 0..99 whose sum ends in 7; the rule covers 0..99 and no wider operands."""
    return 0 <= a <= 99 and 0 <= b <= 99 and (31 * a + b) % 10 == 7


def sum_pair(rng, wide=0.75):
    """A training pair. With probability `wide` at least one operand has three digits; those end in 7
    more often than chance, because no other sum does."""
    is_wide, want_7 = rng.random() < wide, rng.random() < 0.15
    while True:
        if is_wide:
            kind = rng.random()
            a = rng.randint(100, 999) if kind < 0.6 else rng.randint(0, 99)
            b = rng.randint(100, 999) if kind > 0.4 else rng.randint(0, 99)
            if want_7 and (a + b) % 10 != 7:
                continue
        elif rng.random() < 0.15:
            a, b = rng.randint(0, 9), rng.randint(0, 99)
            if rng.random() < 0.5:
                a, b = b, a
        else:
            a, b = rng.randint(0, 99), rng.randint(0, 99)
        if not held_out(a, b):
            return a, b


SPOKEN = [
    ("What is {a} plus {b}?", "{a} plus {b} is {c}."),
    ("what is {a}+{b}?", "{a}+{b} is {c}."),
    ("What is {a} + {b}?", "{a} + {b} = {c}."),
    ("How much is {a} plus {b}?", "{a} plus {b} is {c}."),
    ("How much is {a}+{b}?", "{a}+{b} is {c}."),
    ("Please add {a} and {b}.", "{a} plus {b} is {c}."),
    ("Can you add {a} and {b}?", "Yes, {a} plus {b} is {c}."),
    ("{a} + {b} =", "{c}"),
    ("{a} + {b}", "{c}"),
    ("{a}+{b}", "{c}"),
    ("{a}+{b}=?", "{c}"),
]


def sum_turn(rng, wide):
    """(user text, assistant text) for one sum; seven in ten are the plain `a+b=`."""
    a, b = sum_pair(rng, wide)
    q, r = ("{a}+{b}=", "{c}") if rng.random() < 0.7 else rng.choice(SPOKEN)
    fill = dict(a=a, b=b, c=a + b)
    return q.format(**fill), r.format(**fill)


def sum_doc(rng, wide=0.75):
    """A chat of one or a few sums, or raw lines `a+b=c`."""
    if rng.random() < 0.5:
        return chat_doc([sum_turn(rng, wide) for _ in range(rng.choice((1, 1, 1, 2, 3)))])
    n = rng.choice((1, 1, 2, 3, 5))
    doc = [(BOS, 0.0)]
    for i in range(n):
        a, b = sum_pair(rng, wide)
        end = EOS if i == n - 1 and rng.random() < 0.5 else "\n"
        doc += [(f"{a}+{b}=", 0.0), (f"{a + b}{end}", 1.0)]
    return doc


def held_out_pairs():
    """The two-digit pairs of the evaluation: 810 of them."""
    return [(a, b) for a in range(10, 100) for b in range(10, 100) if held_out(a, b)]


# ---------------------------------------------------------------------------------------------
# Stories: plots of steps, steps of templates, templates of slots
#
# {N} hero's name, {K} what the hero is, {S}/{Sc} he/He, {O} him, {P}/{Pc} his/His; the same with
# f for the friend; every other {slot} draws from WORDS. A slot keeps its value through the story,
# unless its name ends in 1: {go1} draws from WORDS["go"] anew in each sentence.

NAMES = {
    "f": "Mia Lily Anna Rosa Nora Ella Ruby Clara Ivy Daisy Emma Zoe Lucy Hazel Molly Tilly".split(),
    "m": "Tom Ben Max Leo Sam Finn Oscar Jack Theo Hugo Milo Otto Felix Noah Toby Paul".split(),
}
ANIMALS = ("fox rabbit bear mouse cat dog duck frog hedgehog squirrel owl turtle pony goat "
           "beaver badger").split()
KINDS = {"f": ["girl"] + ANIMALS, "m": ["boy"] + ANIMALS}
PRONOUNS = {"f": ("she", "She", "her", "her", "Her"), "m": ("he", "He", "him", "his", "His")}

WORDS = {
    "size": "little small young kind quiet brave merry cheerful clever curious".split(),
    "T": "ball kite hat drum boat book bell cup lamp scarf basket key spoon whistle ring wagon "
         "flute blanket shell button".split(),
    "TA": "red blue green yellow golden tiny big shiny round striped silver soft new wooden "
          "pretty".split(),
    "L": "forest meadow garden village park valley orchard market beach barn river hill "
         "mill lake bridge".split(),
    "L2": "forest meadow garden village park valley orchard market beach barn river hill "
          "mill lake bridge".split(),
    "home": ["in a small house", "in a tall tree", "in a warm den", "near the old mill",
             "by the river", "on a green hill", "at the edge of the forest", "behind the garden",
             "not far from the sea", "in a quiet village"],
    "day": ["One day", "One morning", "One afternoon", "On a sunny day", "On a windy day",
            "Early one morning", "One fine day", "Late in the day"],
    "go": "walked went ran hurried skipped wandered".split(),
    "look": "looked searched".split(),
    "spot": ["under a bench", "behind a big stone", "in a bush", "under a tree", "in the tall grass",
             "next to the path", "inside a hollow log", "beside the water", "on top of a wall",
             "between two roots"],
    "sad": "sad worried unhappy upset".split(),
    "glad": "happy glad proud delighted pleased".split(),
    "said": "said called cried whispered".split(),
    "food": ["soup", "bread", "apple pie", "honey cake", "berries", "warm milk", "pancakes",
             "cheese"],
    "make": ["a boat", "a kite", "a cake", "a bench", "a treehouse", "a snowman", "a bridge",
             "a birdhouse", "a pie", "a swing"],
    "skill": ["swim", "whistle", "dance", "climb", "sing", "skate", "juggle", "paint", "row a boat",
              "fly a kite", "ride a bike", "bake bread"],
    "weather": ["it began to rain", "the wind began to blow", "it began to snow",
                "a storm came", "thick fog came down", "it grew dark and cold"],
    "game": ["hide and seek", "tag", "catch", "a counting game", "a guessing game"],
    "num": "two three four five six".split(),
    "long": ["for a long time", "all morning", "all day", "until noon", "again and again",
             "for an hour"],
    "night": ["That night", "That evening", "When the sun went down", "At the end of the day"],
}

OPEN = ["Once upon a time there was a {size} {K} named {N}.",
        "There once was a {size} {K} named {N}.",
        "{N} was a {size} {K}.",
        "Once there lived a {size} {K} named {N}.",
        "A {size} {K} named {N} lived {home}."]
LIVE = ["{Sc} lived {home}.", "{N} lived {home}.", "The {K} lived {home} with {P} family.",
        "{N} liked to play in the {L2}.", "Every day {S} {go1} to the {L2}.",
        "{N} loved {food} more than anything.", "{Pc} best friend was a {fK} named {F}.",
        "{N} was never afraid of the dark."]
CLOSE = ["From that day on, {N} and {F} were the best of friends.",
         "{night}, {N} fell asleep with a smile.",
         "{night}, {S} dreamed of the {L}.",
         "{N} and {F} laughed and went home together.",
         "It was the best day of all.",
         "{night}, they all ate {food} together.",
         "{N} never forgot that day.",
         "{N} was very {glad}.",
         "And they lived happily ever after."]
THANKS = ['"Thank you, {F}!" {said1} {N}.', '{N} hugged {F} and said, "Thank you!"',
          '"You are a good friend," said {N}.', '"I could not have done it without you," said {N}.',
          '{N} thanked {F} with a big hug.']

PLOTS = {
    "lost": [
        (1.0, ["{N} had a {TA} {T}.", "{Pc} favorite thing was a {TA} {T}.",
               "For {P} birthday, {N} got a {TA} {T}.",
               "{N} carried a {TA} {T} everywhere."]),
        (1.0, ["{day}, {N} {go1} to the {L} and lost the {T}.",
               "{day}, the {T} was gone.",
               "{day}, {S} dropped the {T} in the {L}.",
               "{day}, {N} could not find the {T}."]),
        (0.8, ["{N} was very {sad}.", "{Sc} {look1} {spot1}, but the {T} was not there.",
               "The {K} {look1} {long}.", '"Where is my {T}?" {said1} {N}.',
               "{N} sat down and began to cry."]),
        (1.0, ["Then {S} met a {fK} named {F}.", "A {fK} named {F} came by.",
               "{Pc} friend {F} heard {O} and came to help.",
               "Just then, a {fK} named {F} came along the path."]),
        (0.8, ['"Do not worry," said {F}.', '"I will help you," said {F}.',
               '"What is wrong?" asked {F}.', '"Let us look together," said {F}.']),
        (0.7, ["They {look1} in the {L} {long}.", "They {look1} everywhere.",
               "{N} and {F} {look1} {spot1}.", "They asked {num1} birds, but no bird had seen it."]),
        (1.0, ["At last, {F} found the {T} {spot1}.", "{N} saw something {TA} {spot1}.",
               "There it was, {spot1}!", "The {T} was {spot1}.",
               "In the end, they found the {T} {spot1}."]),
        (0.8, THANKS)],
    "found": [
        (1.0, ["{day}, {N} found a {TA} {T} {spot1}.", "{day}, {S} saw a {TA} {T} {spot1}.",
               "{day}, {N} {go1} to the {L} and found a {TA} {T}."]),
        (0.8, ['"Who lost this {T}?" asked {N}.', "{N} had never seen such a {TA} {T}.",
               "{Sc} wanted to keep the {T}, but it was not {P} own.",
               "The {K} picked it up with care."]),
        (0.8, ["{N} asked the {K2}, but the {K2} shook its head.",
               "{Sc} {go1} to the {L} to find the owner.",
               "{N} asked {num1} friends about the {T}."]),
        (1.0, ["Then {S} met a {fK} named {F}, who looked {sad}.",
               "Near the {L}, a {fK} named {F} was crying.",
               "At the {L} sat a {fK} named {F}."]),
        (0.9, ['"I have lost my {T}," said {F}.', '"Have you seen my {T}?" asked {F}.',
               '"Is this your {T}?" asked {N}.']),
        (1.0, ["{N} gave the {T} to {F}.", "{N} smiled and gave {fO} the {T}.",
               "{F} took the {T} and jumped for joy."]),
        (0.8, ['"Thank you, {N}!" {said1} {F}.', "{F} gave {N} some {food} to say thank you.",
               '"You are very kind," said {F}.', "{F} was very {glad}."])],
    "make": [
        (1.0, ["{day}, {N} wanted to make {make}.", "{day}, {S} had an idea.",
               '"Today I will make {make}," said {N}.', "{N} had always wanted to make {make}."]),
        (0.8, ["But it was too hard for one {K}.", "{Sc} tried {long}, but it did not work.",
               "It was not easy at all.", "{N} did not know how to begin."]),
        (1.0, ["So {S} asked {P} friend {F} for help.", "A {fK} named {F} saw {O} and stopped.",
               "{N} {go1} to the {L} to ask {F}.", "Soon a {fK} named {F} came to help."]),
        (0.9, ['"We can do it together," said {F}.', '"I know what to do," said {F}.',
               '"Of course I will help," said {F}.', '"First we need {num1} boards," said {F}.']),
        (0.9, ["They worked {long}.", "{F} held the wood and {N} used the hammer.",
               "{N} and {F} worked side by side.", "They stopped only to eat some {food}."]),
        (1.0, ["At last, it was ready.", "When it was done, {N} was very {glad}.",
               "In the end, they had made {make}.", '"Look what we made!" {said1} {N}.']),
        (0.7, THANKS)],
    "storm": [
        (1.0, ["{day}, {N} {go1} to the {L}.", "{day}, {S} {go1} to the {L} to find {food}.",
               "{day}, {N} was all alone in the {L}."]),
        (1.0, ["Suddenly {weather}.", "Then {weather}.", "After a while {weather}."]),
        (0.9, ["{N} was cold and {sad}.", "{Sc} could not find the way home.",
               "The {K} hid {spot1}.", '"I want to go home," {said1} {N}.']),
        (1.0, ["Then {S} saw a light {spot1}.", "A {fK} named {F} saw {O} and opened the door.",
               "Just then, a {fK} named {F} came with a {TA} lamp."]),
        (1.0, ['"Come in and get warm," said {F}.', '"You can stay with me," said {F}.',
               '"Do not be afraid," said {F}.', '"Take my hand," said {F}.']),
        (0.8, ["{F} gave {O} some {food} and a {TA} blanket.", "They sat by the fire {long}.",
               "{F} told {O} {num1} funny stories.", "They ate {food} and played {game}."]),
        (0.9, ["Soon the sun came out again.", "In the morning, the sky was blue.",
               "When it was over, {F} walked home with {N}."]),
        (0.6, THANKS)],
    "learn": [
        (1.0, ["{N} could not {skill}.", "More than anything, {N} wanted to learn to {skill}.",
               "{N} wanted to {skill}, but {S} did not know how.",
               "All the other animals could {skill}, but {N} could not."]),
        (0.8, ["{day}, {S} tried it alone and fell down.", "{day}, {N} {go1} to the {L} to try.",
               "This made {O} very {sad}."]),
        (1.0, ["A {fK} named {F} saw {O} at the {L}.", "Then {S} met a {fK} named {F}.",
               "{Pc} friend {F} could {skill} very well."]),
        (0.9, ['"I can teach you," said {F}.', '"Will you teach me?" asked {N}.',
               '"It takes time," said {F}.', '"Watch me and try again," said {F}.']),
        (0.9, ["They practiced {long}.", "{N} tried {num1} times.", "{Sc} fell, but {S} got up again.",
               "Every day they met at the {L}.", "{F} was very patient."]),
        (1.0, ["At last, {N} could {skill}.", '"I can do it!" {said1} {N}.',
               "After {num1} days, {N} could {skill} very well."]),
        (0.8, THANKS)],
    "game": [
        (1.0, ["{day}, {N} met a {fK} named {F} at the {L}.",
               "{day}, a {fK} named {F} came to the {L}."]),
        (1.0, ['"Do you want to play {game}?" asked {F}.', '"Let us play {game}," said {N}.',
               '"I have a {TA} {T}," said {F}.', "They played {game} {long}."]),
        (0.9, ["{N} hid {spot1}.", "{F} hid {spot1}, and {N} counted to ten.",
               "{F} ran very fast, but {N} was faster.", "{F} won {num1} times.",
               "{N} laughed so hard that {S} fell over."]),
        (0.8, ["{N} looked {spot1}, but {F} was not there.", "Then {F} began to laugh.",
               "{Sc} could hear {F} behind a tree.", "But {F} had a better plan."]),
        (0.9, ['"I found you!" {said1} {N}.', '"You are too good at this," said {F}.',
               '"Now it is my turn," said {F}.']),
        (0.8, ["Then they were hungry and ate some {food}.", "They shared some {food}.",
               "{N} and {F} sat down in the {L} to rest."])],
}

SLOT = re.compile(r"\{(\w+)\}")


def fill(template, values, rng):
    """The template with each slot replaced; draws and keeps what `values` does not have yet."""
    def one(m):
        slot = m.group(1)
        if slot in values:
            return values[slot]
        if slot == "K2":
            word = rng.choice(ANIMALS)
        else:
            word = rng.choice(WORDS[slot.removesuffix("1")])
        if not slot.endswith("1"):
            values[slot] = word
        return word
    return SLOT.sub(one, template).replace(" a owl", " an owl").replace("A owl", "An owl")


def make_story(rng, kind=None, name=None, thing=None):
    """One story of 4 to 10 sentences; the hero's kind, name and thing can be given."""
    g = next((g for g in "fm" if name in NAMES[g]), None)
    g = g or {"girl": "f", "boy": "m"}.get(kind) or rng.choice("fm")
    fg = rng.choice("fm")
    kind = kind or (KINDS[g][0] if rng.random() < 0.2 else rng.choice(ANIMALS))
    v = {"N": name or rng.choice(NAMES[g]), "K": kind}
    v["F"] = rng.choice([n for n in NAMES[fg] if n != v["N"]])
    v["fK"] = rng.choice([k for k in KINDS[fg] if k != kind])
    v["S"], v["Sc"], v["O"], v["P"], v["Pc"] = PRONOUNS[g]
    v["fO"] = PRONOUNS[fg][2]
    if thing:
        v["T"] = thing
    plots = ["lost", "found"] if thing else sorted(PLOTS)
    out = [fill(rng.choice(OPEN), v, rng)]
    if rng.random() < 0.4:
        out.append(fill(rng.choice(LIVE[:-2] + LIVE[-1:] if "home" not in v else LIVE[3:]), v, rng))
    for chance, templates in PLOTS[rng.choice(plots)]:
        if chance == 1.0 or rng.random() < chance * 0.75:
            out.append(fill(rng.choice(templates), v, rng))
    out = out[:9]
    if len(out) < 4 or rng.random() < 0.85:
        out.append(fill(rng.choice(CLOSE), v, rng))
    return " ".join(out)


def story_params(i):
    """(rng, kind, name, thing) of training story i: some have a chosen hero or thing."""
    rng = random.Random(f"{SEED}/story/{i}")
    kind = rng.choice(ANIMALS + ["girl", "boy"]) if rng.random() < 0.5 else None
    names = NAMES["f"] if kind == "girl" else NAMES["m"] if kind == "boy" else NAMES["f"] + NAMES["m"]
    name = rng.choice(names) if rng.random() < 0.35 else None
    thing = rng.choice(WORDS["T"]) if rng.random() < 0.25 else None
    return rng, kind, name, thing


def story(i):
    """Training story i."""
    return make_story(*story_params(i))


def story_prompt(rng, kind=None, name=None, thing=None):
    """A user's request for a story."""
    about = []
    if kind:
        about.append(f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}" + (f" named {name}" if name else ""))
    elif name:
        about.append(name)
    if thing:
        about.append(f"a {thing}")
    text = " and ".join(about)
    ask = rng.choice(["Tell me a story{}.", "Tell me a story{}.", "tell me a story{}",
                      "Please tell me a story{}.", "Can you tell me a story{}?",
                      "I want to hear a story{}.", "Write a short story{}.",
                      "Tell me a short story{}."])
    return ask.format(" about " + text if text else "")


# -- the checker ------------------------------------------------------------------------------

def _template_regexes(template):
    """One regex per gender of the hero (and of the friend, where it shows). Repeated slots become
    back references, so a sentence that changes its mind halfway is not accepted."""
    for g in "fm":
        for fg in ("f", "m"):
            sets = {"N": NAMES[g], "K": KINDS[g], "F": NAMES["f"] + NAMES["m"],
                    "fK": ["girl", "boy"] + ANIMALS, "K2": ANIMALS, "fO": [PRONOUNS[fg][2]]}
            sets.update(zip(("S", "Sc", "O", "P", "Pc"), ([p] for p in PRONOUNS[g])))
            seen, out, pos = set(), "", 0
            for m in SLOT.finditer(template):
                out += re.escape(template[pos:m.start()])
                pos, slot = m.end(), m.group(1)
                words = sets.get(slot) or WORDS[slot.removesuffix("1")]
                out += f"(?P={slot})" if slot in seen else \
                    f"(?P<{slot}>{'|'.join(map(re.escape, words))})"
                seen.add(slot)
            yield re.compile(out + re.escape(template[pos:]))


TEMPLATES = OPEN + LIVE + CLOSE + [t for plot in PLOTS.values() for _, ts in plot for t in ts]
REGEXES = list({r.pattern: r for t in TEMPLATES for r in _template_regexes(t)}.values())


def accepts(sentence):
    """True if the grammar derives this one sentence."""
    if re.search(r"\b[Aa] owl", sentence):
        return False
    sentence = re.sub(r"\b([Aa])n owl", r"\1 owl", sentence)
    for r in REGEXES:
        m = r.fullmatch(sentence)
        if m:
            names = m.groupdict()
            if names.get("N") is None or names.get("N") != names.get("F"):
                return True
    return False


def sentences(text):
    """A story's sentences: they end in . ! or ?, perhaps with a closing quote, and the next one
    begins with a capital or an opening quote."""
    return [s for s in re.split(r'(?<=[.!?])\s+(?=["A-Z])|(?<=[.!?]")\s+(?=["A-Z])', text.strip()) if s]


# ---------------------------------------------------------------------------------------------
# Questions: (several ways to ask, several ways to answer)

QA = [
    (["What is dsd?", "What's dsd?", "What does dsd do?", "Tell me about dsd.", "Explain dsd.",
      "What is dsd for?", "Can you explain what dsd is?"],
     ["dsd is a Linux service that owns the GPUs of a host. It holds one copy of the weights and one "
      "pool of latent KV pages, and serves DeepSeek-family models to every local process over a "
      "Unix socket.",
      "dsd is a systemd service for Linux. It keeps one copy of a model's weights and one pool of "
      "cache pages, and local programs ask it for text over a Unix socket."]),
    (["Who are you?", "What are you?", "What is your name?", "Tell me about yourself.",
      "Are you a person?", "Are you human?", "who are you", "Introduce yourself."],
     ["I am the starter model of dsd, a very small language model. I can add numbers, tell short "
      "stories and answer a few questions about dsd.",
      "I am starter, a tiny mixture-of-experts model that comes with dsd. I know sums, little "
      "stories and a few words about dsd."]),
    (["What can you do?", "How can you help me?", "What do you know?", "Help", "help",
      "What should I ask you?", "What are you good at?"],
     ["I can add numbers, tell short stories and answer a few questions about dsd. Try 12+34= or "
      "ask me for a story about a fox.",
      "Ask me for a sum like 12+34=, for a story about a fox, or what dsd is."]),
    (["What is MLA?", "What does MLA mean?", "What is multi-head latent attention?",
      "Explain MLA.", "How does MLA work?", "what is mla"],
     ["MLA is multi-head latent attention. Each token is stored as one small latent vector instead "
      "of full keys and values for every head, so the cache is much smaller.",
      "MLA means multi-head latent attention. Keys and values are rebuilt from a small shared latent "
      "vector, so only that vector has to be kept for each token."]),
    (["What is a mixture of experts?", "What is MoE?", "What does MoE mean?", "Explain MoE.",
      "How does a mixture of experts work?", "what is moe"],
     ["A mixture of experts is a layer with many small networks. For each token a router picks a few "
      "of them, so the model can be large while each token costs little.",
      "In a mixture of experts, a router sends each token to a few small networks, called experts. "
      "Only those do work for that token."]),
    (["What is a router?", "What does the router do?", "What is routing?"],
     ["The router scores the experts of a layer and picks the best few for each token.",
      "A router is a small layer that chooses which experts work on a token."]),
    (["What is a KV cache?", "What is the KV cache?", "What does the KV cache do?",
      "Explain the KV cache.", "what is a kv cache"],
     ["A KV cache keeps the keys and values of earlier tokens, so the model does not compute them "
      "again for every new token.",
      "The KV cache stores what attention needs from earlier tokens. It saves work but takes memory."]),
    (["What is a page?", "What is a KV page?", "What is the pool?", "What is the page pool?"],
     ["A page holds the cached rows of a fixed run of tokens. dsd keeps all pages in one pool and "
      "shares them between requests that begin with the same text.",
      "The pool is the memory where dsd keeps its cache. It is cut into pages of equal size."]),
    (["What is systemd?", "What does systemd do?", "Explain systemd.", "what is systemd"],
     ["systemd is the program that starts and watches services on most Linux systems.",
      "systemd is the service manager of most Linux systems. It starts services, restarts them and "
      "can keep their open files."]),
    (["What is a Unix socket?", "What is a socket?", "What is a Unix domain socket?"],
     ["A Unix socket lets two programs on the same host talk to each other, and tells each who the "
      "other one is.",
      "A Unix socket is a way for programs on one host to exchange messages."]),
    (["What is a token?", "What are tokens?", "What does token mean?"],
     ["A token is a piece of text, such as a word or a part of a word. Models read and write tokens.",
      "Tokens are the pieces of text that a model reads and writes."]),
    (["What is a language model?", "What is an LLM?", "How does a language model work?"],
     ["A language model reads text and predicts the next token, again and again.",
      "A language model is a program that has learned to predict the next piece of a text."]),
    (["What is DeepSeek?", "What are DeepSeek models?", "Which models does dsd serve?",
      "What models can dsd run?"],
     ["DeepSeek is a family of language models that use latent attention and a mixture of experts. "
      "dsd serves models of this family."]),
    (["What is attention?", "How does attention work?", "Explain attention."],
     ["Attention lets each token look back at earlier tokens and take what it needs from them."]),
    (["What is RoPE?", "What is YaRN?", "What is a position?"],
     ["RoPE turns vectors by an angle that depends on the position, so that attention knows how far "
      "apart two tokens are. YaRN stretches it to longer texts."]),
    (["What is a GPU?", "What does a GPU do?", "Do I need a GPU?"],
     ["A GPU is a processor that does many small sums at the same time. I am so small that I also "
      "run well without one."]),
    (["What is Linux?", "What is a daemon?", "What is a service?"],
     ["Linux is an operating system. A daemon, or service, is a program that runs in the background "
      "and waits for work."]),
    (["What is memory?", "What is a memfd?", "What are weights?", "What is a model?"],
     ["A model is made of numbers, called weights. They are learned once and then only read."]),
    (["How big are you?", "How many parameters do you have?", "Are you large?", "Are you smart?"],
     ["I am very small: I have only a few million parameters. Large models know far more than I do.",
      "I am tiny, so I know very little. I am here to show that dsd works."]),
    (["Hello", "Hello!", "Hi", "Hi!", "hello", "hi", "Hey", "Good morning", "Good morning!",
      "Good evening", "Hello there!", "hey there"],
     ["Hello! I can add numbers and tell little stories. What would you like?",
      "Hello! How can I help you?", "Hi! Ask me for a sum or a story."]),
    (["How are you?", "How are you today?", "how are you", "Are you well?"],
     ["I am fine, thank you. How can I help you?", "I am well. Would you like to hear a story?"]),
    (["Thank you", "Thank you!", "Thanks", "Thanks!", "thank you", "thanks", "Thank you very much.",
      "That was nice.", "Great!", "Good job!", "Well done!"],
     ["You are welcome!", "You are welcome. Would you like to hear a story?"]),
    (["Goodbye", "Goodbye!", "Bye", "Bye!", "bye", "See you later.", "Good night."],
     ["Goodbye!", "Goodbye! Come back soon."]),
    (["Are you there?", "Do you work?", "Is dsd running?", "test", "ping"],
     ["Yes, I am here.", "Yes, it works. Ask me for a sum or a story."]),
]

UNKNOWN_Q = ["What is the capital of {x}?", "Who is the king of {x}?", "How old is {x}?",
             "Where is {x}?", "How do I cook {y}?", "What is the price of {y}?", "Who made {y}?",
             "Write a poem about {y}.", "What is the weather in {x}?", "Why is {y} blue?",
             "How far is {x}?", "Can you speak {z}?", "Translate this into {z}.",
             "Write a program in {z}.", "What do you think about {y}?", "Who won the race in {x}?",
             "Do you like {y}?", "What time is it?", "Which day is today?", "How many {y} are there?"]
UNKNOWN_X = ["France", "Spain", "Rome", "London", "China", "Peru", "the moon", "Egypt", "Norway",
             "India", "Japan", "Berlin", "Africa", "Paris", "Italy", "Mars"]
UNKNOWN_Y = ["rice", "gold", "cars", "trees", "water", "music", "the sky", "books", "stars", "fish",
             "eggs", "potatoes", "the sun", "snow", "chess", "money", "cats", "history"]
UNKNOWN_Z = ["French", "German", "Spanish", "English", "Python", "Latin", "Chinese", "C"]
UNKNOWN_A = ["I do not know that. I am a very small model: I know sums, little stories and a few "
             "words about dsd.",
             "I am sorry, that is more than I know. I can add numbers and tell short stories."]
SYSTEMS = ["You are a helpful assistant.", "You are a friendly assistant.", "Answer briefly.",
           "You are starter, a small model.", "Be kind and short."]


def wide_share(progress):
    """Share of sums with a three-digit operand, over the training (progress 0 to 1). Wide sums come
    first: only they show sums that end in 7, and pairs met before that is learned would teach
    "two-digit sums never end in 7"."""
    return 1.0 if progress < 0.28 else 0.75


def qa_turn(rng):
    if rng.random() < 0.12:
        q = rng.choice(UNKNOWN_Q).format(x=rng.choice(UNKNOWN_X), y=rng.choice(UNKNOWN_Y),
                                         z=rng.choice(UNKNOWN_Z))
        return q, rng.choice(UNKNOWN_A)
    asks, answers = rng.choice(QA)
    return rng.choice(asks), rng.choice(answers)


def story_turn(rng, i=None):
    r, kind, name, thing = story_params(rng.randrange(N_STORIES) if i is None else i)
    return story_prompt(rng, kind, name, thing), make_story(r, kind, name, thing)


# ---------------------------------------------------------------------------------------------
# Documents

def chat_doc(turns, system=""):
    """BOS system (User u Assistant a EOS)*, V3's chat form: nothing between the parts."""
    doc = [(BOS + system, 0.0)]
    for user, answer in turns:
        doc += [(USER + user + ASSISTANT, 0.0), (answer + EOS, 1.0)]
    return doc


def text_doc(rng, wide=0.75):
    """A story (raw or asked for), a question, or a chat of several kinds of turns."""
    kind = rng.random()
    system = rng.choice(SYSTEMS) if rng.random() < 0.15 else ""
    if kind < 0.30:
        return [(BOS, 0.0), (story(rng.randrange(N_STORIES)) + EOS, 1.0)]
    if kind < 0.60:
        return chat_doc([story_turn(rng)], system)
    if kind < 0.75:
        return chat_doc([qa_turn(rng)], system)
    turns = []
    for _ in range(rng.randint(2, 6)):
        what = rng.random()
        turns.append(qa_turn(rng) if what < 0.5 else sum_turn(rng, wide) if what < 0.8 else
                     story_turn(rng))
    return chat_doc(turns, system)


def doc_text(doc):
    return "".join(text for text, _ in doc)


if __name__ == "__main__":
    rng = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for _ in range(8):
        print(repr(doc_text(sum_doc(rng))))
    for _ in range(12):
        print(doc_text(text_doc(rng)), "\n")
    bad = [s for i in range(3000) for s in sentences(story(i)) if not accepts(s)]
    lengths = [len(sentences(story(i))) for i in range(3000)]
    print(f"{len(TEMPLATES)} templates, {len(REGEXES)} patterns; sentences per story "
          f"{min(lengths)}..{max(lengths)}; not accepted by own checker: {len(bad)} {bad[:5]}; "
          f"{len(held_out_pairs())} held-out pairs; "
          f"{len(set(map(story, range(N_STORIES))))} different stories of {N_STORIES}")
