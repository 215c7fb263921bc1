#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seed corpus of fuzz_encode beside this file. Byte 0 is the vocabulary, 16: parse control tokens."""
import os

CORPUS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'corpus', 'encode')
BYTES, V2, V3, MERGES, PARSE = 0, 1, 2, 3, 16

TEXTS = {
    'words': 'they say: the other day\n\nUser: hé? 12345 … don\'t'.encode(),
    'scripts': 'нещо 你好，世界 こんにちは・テスト 한국어 ไทย ½²³ １２３４ e\u0301'.encode(),
    'spaces': ' \t\r\n \n\n  x   \u3000\u00a0\u2028\x0b\x0c\x85 '.encode(),
    'controls': b'\x00\x01\x02ab\x03\x7f\xc2\x80z',
    'emoji': '👩\u200d👧 🇩🇪 ❤️ 🦙!'.encode(),
    'markers': '<｜User｜>a<｜begin▁of▁sentence｜></think><|EOT|><｜Assistant'.encode(),
    'added': 'Führer üüü ü'.encode(),
    'half': b'th\xc3 \xe2\x82 \xf0\x9f\xa6 \xe6\x97',
    'surrogate': b'\xed\xa0\x80\xed\xbf\xbf',
    'overlong': b'\xc0\xaf\xe0\x80\xaf\xf0\x80\x80\xaf',
    'past_unicode': b'\xf4\x90\x80\x80\xf8\x88\x80\x80\x80\xff\xfe',
    'continuation': b'\x80' * 40,
    'letters_long': b'a' * 3000,
    'stops': b'aabaabaaabaab\n\n',
}
CASES = {'%s_%d' % (name, kind): bytes([kind]) + text
         for name, text in TEXTS.items() for kind in (BYTES, V2, V3, V3 | PARSE)
         if kind in (V2, V3) or name in ('half', 'markers', 'past_unicode')}
CASES.update({
    'empty': b'',
    'no_text': bytes([V3]),
    # Pairs of letters, then of what they made; a token used before the merge that makes it again.
    'merges_nested': bytes([MERGES, 4, 0, 1, 8, 2, 1, 2, 0, 10]) + bytes([0, 1, 2] * 30),
    'merges_doubling': bytes([MERGES, 5, 0, 0, 8, 8, 9, 9, 10, 0, 0, 9]) + bytes(200),
    'merges_late': bytes([MERGES, 3, 1, 2, 0, 8, 0, 1]) + bytes([0, 1, 2, 0, 0, 1, 1, 2] * 12),
    'merges_none': bytes([MERGES, 0]) + bytes(range(50)),
    'merges_cut': bytes([MERGES, 200, 1, 2, 3]),
})

os.makedirs(CORPUS, exist_ok=True)
for name, data in CASES.items():
    with open(os.path.join(CORPUS, name), 'wb') as f:
        f.write(data)
