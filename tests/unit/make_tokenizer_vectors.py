#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes what Hugging Face's `tokenizers` makes of many texts, for tests/unit/text_vectors.c.

Run by hand, the output is committed:
    python3 make_tokenizer_vectors.py --data ../../../shared/data --out data
A larger set with another seed is checked with `unit-text-vectors v3 FILE`:
    python3 make_tokenizer_vectors.py --data ../../../shared/data --out /tmp --scale 50 --seed 7

A .vectors file has one JSON value a line: first an object that says how it was made, then arrays of a text and
its ids. The texts have no character that is unassigned in Unicode 14, because libraries of different
Unicode versions cut differently around those that were assigned later. A .chats file has conversations
rendered by the published templates and encoded as one string: a list of roles and texts, whether a
generation prompt follows, and the ids.
"""
import argparse
import json
import pathlib
import random
import unicodedata

import jinja2
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

# DeepSeek-V2
V2_LETTERS = """41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F
386 388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA
1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B
1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4
1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F
2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F
A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3
104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"""

# as DeepSeek-V2-Lite-Chat has it
V2_TEMPLATE = """{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'User: ' + m['content'] +
'\n\n' }}{% elif m['role'] == 'assistant' %}{{ 'Assistant: ' + m['content'] + eos_token }}{% else %}{{
m['content'] + '\n\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

# Blocks to draw words from: (first, last) code points.
BLOCKS = [
    (0x21, 0x7E), (0x61, 0x7A), (0x41, 0x5A), (0xA1, 0xFF), (0x100, 0x17F), (0x180, 0x24F),
    (0x250, 0x2AF), (0x2B0, 0x2FF), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x500, 0x52F),
    (0x531, 0x58F), (0x591, 0x5F4), (0x600, 0x6FF), (0x700, 0x74F), (0x780, 0x7B1), (0x7C0, 0x7FA),
    (0x900, 0x97F), (0x980, 0x9FE), (0xA01, 0xA76), (0xA81, 0xAFF), (0xB01, 0xB77), (0xB82, 0xBFA),
    (0xC00, 0xC7F), (0xC80, 0xCF2), (0xD00, 0xD7F), (0xD81, 0xDF4), (0xE01, 0xE5B), (0xE81, 0xEDF),
    (0xF00, 0xFDA), (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137C),
    (0x13A0, 0x13FD), (0x1400, 0x167F), (0x1680, 0x169C), (0x16A0, 0x16F8), (0x1780, 0x17F9),
    (0x1800, 0x18AA), (0x1900, 0x194F), (0x1D00, 0x1DBF), (0x1E00, 0x1EFF), (0x1F00, 0x1FFE),
    (0x2000, 0x206F), (0x2070, 0x20BF), (0x20D0, 0x20F0), (0x2100, 0x214F), (0x2150, 0x218B),
    (0x2190, 0x23FF), (0x2460, 0x24FF), (0x2500, 0x27BF), (0x2800, 0x28FF), (0x2C00, 0x2DFF),
    (0x2E00, 0x2E5D), (0x2E80, 0x2FD5), (0x3000, 0x303F), (0x3041, 0x309F), (0x30A0, 0x30FF),
    (0x3105, 0x318E), (0x3200, 0x33FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0x4E00, 0x5200),
    (0xA000, 0xA4C6), (0xA500, 0xA62B), (0xA640, 0xA6F7), (0xA720, 0xA7CA), (0xAC00, 0xD7A3),
    (0xE000, 0xE0FF), (0xF900, 0xFAD9), (0xFB00, 0xFDFF), (0xFE00, 0xFE6B), (0xFF01, 0xFFEE),
    (0x10000, 0x100FA), (0x10280, 0x1031F), (0x10400, 0x104FB), (0x10900, 0x1091F),
    (0x11000, 0x1104D), (0x12000, 0x12399), (0x13000, 0x1342E), (0x1B000, 0x1B122),
    (0x1D100, 0x1D1E8), (0x1D400, 0x1D7FF), (0x1E900, 0x1E95F), (0x1EE00, 0x1EEF1),
    (0x1F000, 0x1F0F5), (0x1F100, 0x1F1FF), (0x1F300, 0x1F64F), (0x1F680, 0x1F6FC),
    (0x1F900, 0x1F9FF), (0x20000, 0x2A6DF), (0xE0020, 0xE007F), (0x0, 0x1F), (0x7F, 0x9F),
]

SENTENCES = """The kettle was still warm when she came back from the garden.
I can't believe they've already sold 1,250 tickets; we'd hoped for 900!
Der Zug nach Köln fährt heute leider erst um 17:45 Uhr ab.
Où est passée la clé que j'avais laissée près de la fenêtre ?
¿Cuántos años tenía tu abuela cuando llegó a España?
A reunião começou às nove, mas ninguém trouxe as anotações.
Domani andremo al mare, così potrai vedere le barche.
De fiets stond tegen de muur en was nat van de regen.
Vi drack kaffe på altanen och såg båtarna glida förbi.
Det er lenge siden vi har hatt så mye snø på fjellet.
Jeg købte rugbrød, smør og æbler på vej hjem.
Sumuinen järvi näytti aamulla täysin tyyneltä.
Homme sõidame õega vanaema juurde külla.
Rīt no rīta mēs dosimies uz tirgu pēc sēnēm.
Šiandien labai šilta, todėl eisime prie ežero.
Wczoraj kupiłem żółtą łódkę i dwie świeże gruszki.
Příliš dlouho jsme čekali na ten večerní autobus.
Deti kŕmia ďatľa a líšku pri starej chate.
A szomszéd kutyája egész éjjel ugatott a holdra.
Mâine dimineață plecăm la țară cu toți verișorii.
Утром мы пили чай и слушали, как шумит дождь.
Учора ввечері їжак знову прийшов до нашого ґанку.
Децата играят на двора, докато баба меси хляб.
Јуче смо шетали поред реке и јели џем од шљива.
Το καράβι φεύγει στις οκτώ από το παλιό λιμάνι.
Dün akşam İzmir'de ılık bir rüzgâr esiyordu.
Bakıda yağış yağanda küçələr boş qalır.
הילדים שיחקו בחצר עד שירד הערב.
وصل القطار متأخرًا، فشربنا الشاي في المحطة.
امروز هوا سرد است و کوه‌ها پر از برف‌اند.
آج شام کو ہم سب دریا کے کنارے جائیں گے۔
आज सुबह बाज़ार में ताज़े आम बहुत सस्ते थे।
সকালে বৃষ্টি হয়েছিল, এখন আকাশ পরিষ্কার।
காலையில் தோட்டத்தில் ஒரு சிறிய பறவை பாடியது.
నిన్న రాత్రి చెరువు దగ్గర చాలా చల్లగా ఉంది.
ಇಂದು ಮಳೆ ಬಂದರೆ ನಾವು ಮನೆಯಲ್ಲೇ ಇರುತ್ತೇವೆ.
രാവിലെ പുഴയിൽ നല്ല ഒഴുക്കുണ്ടായിരുന്നു.
ગઈ કાલે અમે નદી કિનારે ફરવા ગયા હતા.
ਅੱਜ ਖੇਤ ਵਿੱਚ ਬਹੁਤ ਧੁੱਪ ਸੀ।
අද උදේ වත්තේ මල් ගොඩක් පිපිලා තිබුණා.
เมื่อเช้านี้ฝนตกหนักมาก เราเลยอยู่บ้าน
ມື້ນີ້ອາກາດເຢັນສະບາຍດີ
ព្រឹកនេះខ្ញុំទៅផ្សារទិញត្រី។
ဒီမနက် ရာသီဥတု အရမ်းသာယာတယ်။
དེ་རིང་གནམ་གཤིས་བཟང་པོ་འདུག
დღეს დილით ბაზარში ახალი პური ვიყიდე.
Այսօր առավոտյան շուկայից թարմ հաց գնեցի։
ዛሬ ጠዋት ገበያ ሄጄ ቡና ገዛሁ።
Leo asubuhi nilikwenda sokoni kununua samaki na ndizi.
Hôm nay trời mưa to nên chúng tôi ở nhà nấu phở.
Kahapon, naglakad kami sa tabing-dagat hanggang gabi.
Kemarin sore kami memancing di danau dekat desa.
今天早上的雾很大，我们晚了20分钟才出发。
昨天買的蘋果放在廚房的桌子上，請隨便吃。
今朝は霧が深くて、電車が30分も遅れました。
コーヒーとパンを買って、公園のベンチで食べた。
오늘 아침에 시장에서 싱싱한 딸기를 샀어요.
Өнөөдөр салхитай тул гэртээ номоо уншина.
Бүгін таңертең біз өзенге балық аулауға бардық.
Hodiaŭ matene la birdoj kantis sub la fenestro.
Heddiw roedd hi'n niwlog iawn ar y mynydd.
Inniu bhí an fharraige ciúin agus an spéir gorm.
Í dag var kalt en bjart, og fjöllin sáust vel.
Illum filgħodu mort is-suq biex nixtri l-ħobż.
""".splitlines()

SNIPPETS = [
    "for (size_t i = 0; i < n; i++)\n\tsum += a[i] * b[i];\n",
    "def area(r):\n    return 3.14159 * r ** 2\n\n\nprint(area(2))\n",
    "fn main() {\n    let xs: Vec<u32> = (1..=10).collect();\n    println!(\"{:?}\", xs);\n}\n",
    "SELECT name, COUNT(*) FROM users WHERE age >= 21 GROUP BY name ORDER BY 2 DESC;",
    "{\"id\": 17, \"tags\": [\"a\", \"b\\n\"], \"ok\": true, \"x\": -1.5e-07}",
    "<div class=\"row\">\n  <a href='/x?y=1&amp;z=2'>caf&eacute;</a>\n</div>\n<!-- end -->",
    "https://example.org/path/to/file_v2.0.tar.gz?sig=AbC%20dEf#part-3",
    "2031-04-09T08:15:30.123Z ERROR [worker-7] 0x7ffd3a: code=-22 (EINVAL)\r\n",
    "# Title\n\n* item **one**\n* item `two`\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
    "$ grep -rn 'foo\\|bar' src/ | awk -F: '{print $1}' | sort -u > out.txt\n",
    "\\begin{align}\n  E &= mc^2 \\\\\n  \\alpha_{i,j} &= \\sum_k \\beta_k\n\\end{align}\n",
    "if x != None and (y <= 3 or not z):\n        pass   \n    # indented\t\n",
    "#include <stdio.h>\n#define MAX(a,b) ((a)>(b)?(a):(b))\n\nint main(void){return 0;}\n",
    "const f = async (x) => { await g(`${x}!`); return x ?? 'none'; };\n",
    "From: a@b.example\r\nTo: c@d.example\r\nSubject: =?utf-8?Q?Gr=C3=BC=C3=9Fe?=\r\n\r\nHi,\r\n",
    "A1:B2=SUM($C$3:C10)*1.19%  ;;;  [x]  {y}  <z>  ~w~  ^v^  __u__",
    "@@ -12,7 +12,9 @@ void f(void)\n-\told();\n+\tnew_one();\n+\n }\n",
    "ACGTACGTTAGC-NNNN-ACGT 5'->3'; pH 7.4; 25 °C; 10⁻³ mol·L⁻¹; ½ cup; №5; §8.2; 100€/£/¥",
    "I'm you're he's WE'LL they'd I'VE 'tis rock'n'roll O'Brien's “quoted” ‘single’ «guillemets»",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪🇯🇵 ❤️‍🔥 1️⃣ 🏴󠁧󠁢󠁳󠁣󠁴󠁿 ✅✅✅ (╯°□°)╯︵ ┻━┻",
    "......!!!!!!??????,,,,;;;;::::----====____****////\\\\\\\\||||&&&&%%%%$$$$####@@@@~~~~^^^^````",
]

MARKERS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜place▁holder▁no▁7｜>",
           "<｜place▁holder▁no▁77｜>", "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜User｜>", "<｜Assistant｜>",
           "<|EOT|>", "<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "<｜User", "<|EOT", "｜>", "<｜place▁holder▁no▁",
           "ü", "ø", "À", "Á", "ÿ", "þ"]
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n", "\n ", "\u00A0", "\u3000", "\u2028",
          "\u2003", "\x85", "\x0b", "\x0c", "\u200b", "\u1680", "\r", "    "]
SIGNS = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + ["...", "…", "—", "«", "»", "、", "。", "，", "～", "「",
                                                        "。\n", "!\n\n", "·", "×", "€", "→", "♪", "︵", "゛", "・"]
DIGITS = ["0123456789", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "０１２３４５６７８９", "²³¹½¼", "①②③Ⅳⅷ", "〇一二三", "𝟘𝟙𝟚", "๐๑๒๓"]


def assigned(first, last):
    out = []
    for c in range(first, last + 1):
        if 0xD800 <= c < 0xE000 or unicodedata.category(chr(c)) == "Cn":
            continue
        out.append(chr(c))
    return out


class Texts:
    """Draws texts from a seed; every kind in turn."""

    def __init__(self, seed, tokens):
        self.r = random.Random(seed)
        self.blocks = [assigned(*b) for b in BLOCKS]
        self.tokens = tokens
        self.kinds = [self.script, self.script, self.script, self.mixed, self.of_tokens, self.of_tokens,
                      self.spaces, self.numbers, self.real, self.code, self.markers, self.soup]

    def word(self, block):
        return "".join(self.r.choice(block) for _ in range(self.r.randint(1, 7)))

    def space(self):
        return " " if self.r.random() < 0.6 else self.r.choice(SPACES)

    def number(self):
        digits = self.r.choice(DIGITS) if self.r.random() < 0.4 else DIGITS[0]
        return "".join(self.r.choice(digits) for _ in range(self.r.randint(1, 9)))

    def script(self):
        block = self.r.choice(self.blocks)
        parts = []
        for _ in range(self.r.randint(1, 5)):
            parts += [self.word(block), self.space() if self.r.random() < 0.7 else ""]
            if self.r.random() < 0.3:
                parts.append(self.r.choice(SIGNS))
            if self.r.random() < 0.1:
                parts.append(self.number())
        return "".join(parts)

    def mixed(self):
        return "".join(self.word(self.r.choice(self.blocks)) + self.r.choice(["", " ", self.r.choice(SIGNS)])
                       for _ in range(self.r.randint(2, 4)))

    def of_tokens(self):
        return "".join(self.r.choice(self.tokens) for _ in range(self.r.randint(2, 10)))

    def spaces(self):
        return "".join(self.r.choice([self.r.choice(SPACES), self.r.choice(SPACES), self.r.choice(SIGNS),
                                      self.r.choice("aé日1ü")]) for _ in range(self.r.randint(1, 10)))

    def numbers(self):
        return "".join(self.number() + self.r.choice(["", " ", ".", ",", "-", "x", "年"])
                       for _ in range(self.r.randint(1, 4)))

    def cut(self, text, longest):
        n = self.r.randint(1, min(longest, len(text)))
        at = self.r.randint(0, len(text) - n)
        return text[at:at + n]

    def real(self):
        text = self.r.choice(SENTENCES)
        return text if self.r.random() < 0.3 else self.cut(text, 40)

    def code(self):
        return self.cut(self.r.choice(SNIPPETS), 45)

    def markers(self):
        return "".join(self.r.choice([self.r.choice(MARKERS), self.r.choice(MARKERS), self.r.choice(SPACES),
                                      self.r.choice(SENTENCES).split()[0]]) for _ in range(self.r.randint(1, 5)))

    def soup(self):
        return "".join(self.r.choice(self.r.choice(self.blocks)) for _ in range(self.r.randint(1, 14)))

    def draw(self, n):
        texts = dict.fromkeys(SENTENCES + SNIPPETS)
        while len(texts) < n:
            texts[self.kinds[len(texts) % len(self.kinds)]()] = None
        return list(texts)


def read_gguf(path):
    """The key-value part of a GGUF file."""
    data = path.read_bytes()
    at = 8

    def number(size):
        nonlocal at
        at += size
        return int.from_bytes(data[at - size:at], "little")

    def value(kind):
        nonlocal at
        if kind != 8:
            return number((1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)[kind])
        size = number(8)
        at += size
        return data[at - size:at].decode()

    number(8)
    keys = {}
    for _ in range(number(8)):
        key = value(8)
        kind = number(4)
        if kind == 9:
            kind = number(4)
            keys[key] = [value(kind) for _ in range(number(8))]
        else:
            keys[key] = value(kind)
    return keys


def tokenizer_v2(data):
    """The GGUF's vocabulary behind the pre-tokeniser of DeepSeek-V2."""
    keys = read_gguf(data / "vocab-deepseek-llm/vocab.gguf")
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    vocab = {t: i for i, t in enumerate(tokens)}
    merges = [tuple(m.split(" ")) for m in keys["tokenizer.ggml.merges"]]
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    letters = "".join("-".join(chr(int(x, 16)) for x in r.split("-")) for r in V2_LETTERS.split())
    patterns = ["[\r\n]", f"\\s?[{letters}]+", "\\s?[!-/:-~！-／：-～‘-‟　-。]+", "\\s+$", "[一-龥ࠀ-一가-퟿]+"]
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns] +
        [pre_tokenizers.Digits(individual_digits=True),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    for i, kind in enumerate(kinds):
        if kind in (3, 4) and not tokens[i].startswith("[PAD"):
            tok.add_tokens([AddedToken(tokens[i], normalized=False, special=kind == 3)])
    return tok


def ordinary_tokens(tok):
    """Texts of the base vocabulary that are whole characters."""
    texts = (tok.decode([i]) for i in range(3, 100000))
    return [t for t in texts if t and "\ufffd" not in t and
            all(unicodedata.category(c) != "Cn" for c in t)]


def chats(tok, template, texts, seed):
    """Conversations of any order of roles, and what the template and the tokenizer make of them."""
    r = random.Random(seed)
    render = jinja2.Environment().from_string(template).render
    texts = [t for t in texts if "<" not in t]
    for _ in range(60):
        messages = [{"role": r.choice(["system", "user", "user", "assistant"]),
                     "content": r.choice([r.choice(texts), r.choice(texts), "\n", ""])}
                    for _ in range(r.randint(1, 5))]
        prompt = r.random() < 0.6
        text = render(messages=messages, add_generation_prompt=prompt,
                      bos_token="<｜begin▁of▁sentence｜>", eos_token="<｜end▁of▁sentence｜>")
        ids = tok.encode(text, add_special_tokens=False).ids
        yield [[[m["role"], m["content"]] for m in messages], prompt, ids]


def together(tok, first):
    """32-bit FNV-1a of a bit map over all characters: whether one makes a single piece with @first. The
    characters are those whose place in the explicit ranges of the patterns decides."""
    bits = bytearray(0x110000 // 8)
    for c in range(0x110000):
        if not 0xD800 <= c < 0xE000 and len(tok.pre_tokenizer.pre_tokenize_str(first + chr(c))) == 1:
            bits[c // 8] |= 1 << c % 8
    h = 0x811C9DC5
    for b in bits:
        h = (h ^ b) * 0x01000193 & 0xFFFFFFFF
    return h


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=pathlib.Path, required=True, help="directory of the published test data")
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--scale", type=float, default=1, help="how many times the committed number of texts")
    a = p.parse_args()
    v3 = a.data / "tokenizer-deepseek-v3"
    v3_template = json.loads((v3 / "tokenizer_config.json").read_text())["chat_template"]
    kinds = {
        "v3": (Tokenizer.from_file(str(v3 / "tokenizer.json")), 2200, v3_template, "一"),
        "v2": (tokenizer_v2(a.data), 800, V2_TEMPLATE, "é!一"),
    }
    for name, (tok, n, template, firsts) in kinds.items():
        texts = Texts(a.seed, ordinary_tokens(tok)).draw(int(n * a.scale))
        with open(a.out / f"tokenizer-{name}.vectors", "w", encoding="utf-8", newline="\n") as f:
            made = {"vocabulary": name, "library": f"tokenizers {tokenizers.__version__}", "seed": a.seed,
                    "texts": len(texts), "together": {c: together(tok, c) for c in firsts}}
            f.write(json.dumps(made, ensure_ascii=False) + "\n")
            for text in texts:
                ids = tok.encode(text, add_special_tokens=False).ids
                f.write(json.dumps([text] + ids, ensure_ascii=False, separators=(",", ":")) + "\n")
        with open(a.out / f"tokenizer-{name}.chats", "w", encoding="utf-8", newline="\n") as f:
            for chat in chats(tok, template, texts, a.seed):
                f.write(json.dumps(chat, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
