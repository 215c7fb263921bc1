#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seed corpora of fuzz_image, fuzz_ini, fuzz_channel_result, fuzz_adopt and fuzz_packed beside this file."""
import os
import random
import struct

HERE = os.path.dirname(os.path.abspath(__file__))


def write(target, name, data):
    path = os.path.join(HERE, 'corpus', target)
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, name), 'wb') as f:
        f.write(data)


def ini():
    """Configuration files: good ones, and one for each way to be refused."""
    many = b''.join(b'[model.m%d]\npath = /m\n' % i for i in range(17))
    for name, data in {
        'empty': b'',
        'plain': b'[sched]\nslots = 4\nstep_tokens=512\n[pool]\nsize = 3G\nentry = bf16\n',
        'model': b'[model.a.b]\npath = /m/a:b\nshare = 0.25\n[model.c]\npath=x\n',
        'comment': b'# c\n; d\n[log]\nlevel = debug ; why\n',
        'no_section': b'slots = 4\n',
        'unknown': b'[sched]\nnone = 1\n',
        'range': b'[sched]\nslots = 257\n',
        'word': b'[pool]\nentry = q4\n',
        'overflow': b'[pool]\nsize = 18446744073709551615T\n',
        'bom': b'\xef\xbb\xbf[log]\nlevel=info\n',
        'zero': b'[log]\nlevel=in\0fo\n',
        'crlf': b'[log]\r\nlevel = info\r\n',
        'open_section': b'[log\nlevel=info',
        'long_line': b'[model.a]\npath = /' + b'x' * 400 + b'=y\n',
        'long_section': b'[model.' + b'n' * 70 + b']\npath = /x\n',
        'continued': b'[sched]\nslots = 3\n  4\n',
        'equals': b'[model.a]\npath = a=b=c\n',
        'many': many,
        'dots': b'[model...]\npath = x\n',
        'nan': b'[model.a]\nshare = nan\n',
        'mask': b'[worker]\ncpu_mask = 4294967295\nthreads = 0\ncontext=1048576\nweights=f32\n',
        'binary': bytes(range(1, 256)),
        'colon': b'[conn]\nmax: 5\nmax_per_uid: 1\n',
    }.items():
        write('ini', name, data)


def change(where, width, how, value):
    return struct.pack('<HBBI', where, width, how, value & 0xffffffff)


def image():
    """Lists of changes to a good image; fuzz_image.c says how they are read."""
    rng = random.Random(1)
    write('image', 'empty', b'')
    write('image', 'good', b'\x01')
    write('image', 'raw_zero', b'\x00' + bytes(500))
    write('image', 'raw_magic', b'\x00dsdimage' + struct.pack('<IIQ', 1, 0, 600) + bytes(600))
    for word in range(3, 84, 4):
        write('image', f'set_word_{word:02}', b'\x01' + change(word, 2, 0, 0xffffffff))
    for i, v in enumerate((0, 1, 7, 0x7fffffff, 0x10000000)):
        write('image', f'sections_{i}', b'\x01' + b''.join(change(q, 3, 1, v) for q in range(30, 43)))
        write('image', f'body_{i}',
              b'\x01' + b''.join(change(rng.randrange(65536), 2 | 4, 0, v) for _ in range(6)))
    write('image', 'near_max', b'\x01' + change(38, 3 | 8, 0, -8))
    write('image', 'odd_offset', b'\x01' + change(34, 3, 1, 1))
    write('image', 'layers', b'\x01' + change(24, 2, 0, 3))


def adopt():
    """Lists of changes to a good pool; fuzz_adopt.c says how they are read."""
    rng = random.Random(1)
    mac, chains, data = 1, 2, 4
    words = {  # of four bytes
        'version': 2, 'header_bytes': 3, 'record_bytes': 4, 'page_tokens': 5, 'n_pages': 6, 'entry': 7, 'geometry': 8,
        'attempts': 9, 'stride': 10, 'token_bytes': 12, 'adopted_usec': 14, 'boot_id': 16, 'model': 20, 'pad': 28}
    fields = {
        'magic': 0, 'generation': 2, 'state': 4, 'flags': 5, 'page': 6, 'geometry': 7, 'domain': 8, 'model': 12,
        'parent': 16, 'chain': 20, 'first_pos': 24, 'n_tokens': 25, 'ids': 26, 'tag': 90, 'n_prompt': 94, 'pad': 95}
    write('adopt', 'empty', b'')
    write('adopt', 'good', b'\0')
    for name, at in words.items():
        write('adopt', 'header_' + name, bytes([mac]) + change(at, 2, 1, 1))
    write('adopt', 'header_mac', b'\0' + change(1023, 2, 2, 1))
    write('adopt', 'worn', bytes([mac]) + change(words['attempts'], 2, 0, 2))
    for i, (name, at) in enumerate(fields.items()):
        write('adopt', 'record_' + name, bytes([mac | chains]) + change(1024 + 128 * (i % 4) + at, 2, 1, 1))
    write('adopt', 'generation_max', b'\0' + change(512 + 1, 3 | 8, 0, 0xffffffff))
    write('adopt', 'id_past_vocabulary', bytes([chains]) + change(1024 + fields['ids'], 2, 0, 1000))
    write('adopt', 'first_pos_past_all', bytes([chains]) + change(1024 + fields['first_pos'], 2, 0, 0xffffffc0))
    write('adopt', 'content', b'\0' + b''.join(change(512 * p + 7, 3 | data, 2, 1) for p in range(6)))
    write('adopt', 'raw_record', bytes([4, 0, 2]) + struct.pack('<Q', 0x3167707064736430) + rng.randbytes(504))
    write('adopt', 'zeros', bytes([4, 0, 2]) + bytes(3072))
    write('adopt', 'raw_header', bytes([4 | mac, 0, 0]) + b'dsdpool1' + bytes(4088))
    write('adopt', 'raw_random', bytes([4, 0, 2]) + rng.randbytes(3072))


def post(*flags):
    return bytes([0, len(flags) - 1, *flags])


def answer(*tokens):
    return bytes([1, 0, *tokens])


def poke(at, value):
    """A word of the next result: its header has 24 bytes, then its rows."""
    return bytes([3]) + struct.pack('<HI', at, value)


def tail(n):
    return bytes([4]) + struct.pack('<I', n)


def scribble(at, data):
    return bytes([2]) + struct.pack('<IB', at, len(data)) + data


def channel_result():
    """Programs of a hostile worker; fuzz_channel_result.c says how they are read."""
    rng = random.Random(1)
    take = bytes([5])
    one = post(1) + answer(7)
    row = 24
    for name, data in {
        'empty': b'',
        'take_none': take,
        'one': one + take,
        'three': (post(0, 2, 1) + answer(7, 8) + take) * 3,
        'deep': post(1, 1) * 5 + answer(1, 2) * 4 + take,
        'unasked': answer() + take,
        'numbers': post(1) + bytes([1, 7]) + take,
        'tail_back': post(1) + tail(0xffffffff) + take,
        'tail_far': post(1) + tail(2) + take,
        'seq': one + poke(0, 2) + take,
        'status': one + poke(8, 9) + take,
        'rows': one + poke(12, 8) + take,
        'rows_huge': one + poke(12, 0xffffffff) + take,
        'slot': post(1, 1) + answer(7, 7) + poke(row, 1) + take,
        'position': one + poke(row + 4, 255) + take,
        'bad_token': one + poke(row + 8, 300) + take,
        'nan': one + poke(row + 12, 0x7fc00000) + take,
        'inf': one + poke(row + 12, 0xff800000) + take,
        'n_top': one + poke(row + 16, 21) + take,
        'top_id': one + poke(row + 16, 1) + poke(row + 24, 999) + take,
        'scribble_header': scribble(0, b'\xff' * 250) + one + take,
        'scribble_steps': post(1, 1) + scribble(36864, b'\xa5' * 200) + answer(7, 7) + take,
    }.items():
        write('channel_result', name, data)
    for i in range(6):
        write('channel_result', f'random_{i}', rng.randbytes(200))


def packed():
    """Files as they are, and changes to good ones; fuzz_packed.c says how they are read."""
    def header(data_bytes, version=1, magic=b'dsdpack\0', n_hashes=1):
        return magic + struct.pack('<IIQ', version, 0, data_bytes) + bytes(32 + 32 + 16 + 8 * n_hashes)

    def raw(head, n):
        return b'\0' + head + bytes(max(0, n - len(head)))

    def good(where, value, data=b'0123456789abcdef' * 8):
        return b'\1' + data + struct.pack('<II', where, value)
    chunk = 4 << 20
    for name, data in {
        'empty': b'',
        'no_file': b'\0',
        'good': good(4095, 0),
        'one_byte': b'\1x' + struct.pack('<II', 4095, 0),
        'padding': good(3000, 7),
        'magic': good(0, 1),
        'version': good(8, 1),
        'size_more': good(16, 1),
        'size_less': good(16, 0xffffffff),
        'size_high': good(20, 1),
        'plan': good(24, 1),
        'content': good(56, 1),
        'mac': good(88, 1),
        'hash': good(104, 1),
        'first': good(4096, 1),
        'last': good(4096 + 127, 1),
        'header_alone': raw(header(64), 0),
        'cut_header': raw(header(64)[:60], 0),
        'cut_hashes': raw(header(chunk + 1, n_hashes=1), 0),
        'zeros': raw(header(64), 4096 + 64),
        'no_data': raw(header(0), 4096),
        'most': raw(header(1 << 42), 5000),
        'past_most': raw(header((1 << 42) + 1), 5000),
        'near_max': raw(header((1 << 64) - 4096), 4096),
        'wraps': raw(header((1 << 64) - 1), 4095),
        'old': raw(header(64, version=0), 4160),
    }.items():
        write('packed', name, data)


if __name__ == '__main__':
    ini()
    image()
    channel_result()
    adopt()
    packed()
