#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seed corpus of fuzz_batch_request beside this file: lines of `dsctl batch`."""
import json
import os

CORPUS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'corpus', 'batch_request')
FULL = {'id': 'a', 'prompt': 'x\0ß', 'suffix': 's', 'model': 'm', 'stop': ['a', ''], 'logit_bias': {'1': -100, '2': 0.5},
        'priority': 'batch', 'max_tokens': 1, 'min_tokens': 0, 'temperature': 0.5, 'top_k': 5, 'top_p': 1, 'min_p': 0,
        'seed': 2**64 - 1, 'repetition_penalty': 1.5, 'presence_penalty': -1, 'frequency_penalty': 1e-9, 'n': 2,
        'logprobs': 20, 'deadline_ms': 1, 'ignore_eos': True, 'echo': False, 'parse_special': True}
CASES = {
    'full': json.dumps(FULL),
    'messages': json.dumps({'id': 7, 'messages': [{'role': r, 'content': r} for r in ('system', 'user', 'assistant')]}),
    'ids': json.dumps({'ids': [0, 1, 2**32 - 1], 'stop': 'one'}),
    'two_prompts': '{"prompt":"x","ids":[]}', 'no_prompt': '{}', 'same_key_twice': '{"prompt":"a","prompt":"b"}',
    'messages_twice': '{"messages":[{"role":"user","content":"a"}],"messages":[{"role":"user","content":"b"}]}',
    'negative': '{"prompt":"x","max_tokens":-1}', 'too_large': '{"prompt":"x","seed":18446744073709551616}',
    'not_finite': '{"prompt":"x","temperature":1e999}', 'nan': '{"prompt":"x","temperature":NaN}',
    'null': '{"prompt":null}', 'nul': '{"prompt":"x"}\0', 'model_nul': '{"prompt":"x","model":"a\\u0000b"}',
    'surrogate': '{"prompt":"\\ud800"}', 'pair': '{"prompt":"\\ud83e\\udd99"}', 'deep': '[' * 40 + ']' * 40,
    'half': '{"prompt":"x', 'tail': '{"prompt":"x"} 1', 'number': '7', 'string': '"x"', 'empty': '', 'space': '  ',
    'comment': '{"prompt":"x" /* y */}', 'single': "{'prompt':'x'}", 'long_key': json.dumps({'k' * 300: 1}),
}

os.makedirs(CORPUS, exist_ok=True)
for name, text in CASES.items():
    with open(os.path.join(CORPUS, name), 'wb') as f:
        f.write(text.encode())
with open(os.path.join(CORPUS, 'not_utf8'), 'wb') as f:
    f.write(b'{"prompt":"\xff\xc0\xaf"}')
