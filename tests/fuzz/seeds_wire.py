#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seed corpora of fuzz_frame, fuzz_request, fuzz_client and fuzz_resume beside this file."""
import os
import struct

HERE = os.path.dirname(os.path.abspath(__file__))


def varint(v):
    out = b""
    while True:
        out += bytes([v & 0x7F | (0x80 if v > 0x7F else 0)])
        v >>= 7
        if not v:
            return out


def num(field, v):
    return varint(field << 3) + varint(v & (1 << 64) - 1)


def f32(field, v):
    return varint(field << 3 | 5) + struct.pack("<f", v)


def data(field, b):
    return varint(field << 3 | 2) + varint(len(b)) + b


def packed(field, ids):
    return data(field, b"".join(varint(i) for i in ids))


def frame(b):
    return struct.pack("<I", len(b)) + b


SAMPLING = (num(1, 64) + num(2, 0) + f32(3, 0.8) + num(4, 40) + f32(5, 0.95) + f32(6, 0.05) + num(7, 7)
            + f32(8, 1.1) + f32(9, -2) + f32(10, 2) + data(11, num(1, 5) + f32(2, -100))
            + data(12, b"\n\n") + num(13, 1) + num(14, 2) + num(15, 20) + num(16, 1))

CLIENT = {
    "hello": num(1, 1) + data(2, num(1, 1) + data(2, b"dsctl")),
    "generate_text": num(1, 2) + data(3, data(2, b"Once upon a time")),
    "generate_all": num(1, 3) + data(3, data(1, b"tiny") + data(2, b"x") + data(5, SAMPLING) + num(6, 3)
                                     + data(7, b"end") + num(8, 1) + num(10, 1000) + num(11, 1)),
    "generate_chat": num(1, 4) + data(3, data(3, data(1, num(1, 1) + data(2, b"be brief"))
                                              + data(1, num(1, 2) + data(2, b"caf\xc3\xa9?")))),
    "generate_ids": num(1, 5) + data(3, data(4, packed(1, [0, 1, 1048575]))),
    "generate_resume": num(1, 6) + data(3, data(2, b"x") + data(9, packed(1, [4, 5]) + num(2, 2**64 - 1)
                                                                + data(3, bytes(range(16))))),
    "generate_fd": num(1, 6) + data(3, data(12, num(1, 2) + num(2, 64 << 20)) + data(7, b"end")),
    "score_fd": num(1, 7) + data(4, data(6, num(1, 1) + num(2, 1))),
    "tokenize_fd": num(1, 8) + data(5, data(6, num(1, 3) + num(2, (64 << 20) + 1))),
    "generate_session": num(1, 6) + data(3, data(2, b"x") + num(13, 2**64 - 1)),
    "session_open": num(1, 6) + data(12, data(1, b"tiny") + num(2, 3600000)),
    "session_fork": num(1, 6) + data(13, num(1, 2**64 - 1)),
    "session_close": num(1, 6) + data(14, num(1, 1)),
    "score": num(1, 7) + data(4, data(2, b"abc") + num(4, 3) + num(5, 0)),
    "tokenize": num(1, 8) + data(5, data(2, b"\xff\x00a") + num(4, 1) + num(5, 1)),
    "detokenize": num(1, 9) + data(6, data(2, packed(1, [3, 2, 1])) + num(3, 1)),
    "cancel": num(1, 10) + data(7, num(1, 2)),
    "models": num(1, 11) + data(8, b""),
    "stats": num(1, 12) + data(9, b""),
    "list": num(1, 13) + data(10, b""),
    "cancel_request": num(1, 14) + data(11, num(1, 77)),
    "publish_text": num(1, 15) + data(20, data(1, b"system") + data(2, b"tiny") + data(3, b"be brief" * 20)),
    "publish_chat": num(1, 16) + data(20, data(1, b"x" * 63) + data(4, data(1, num(1, 1) + data(2, b"be brief")))),
    "publish_ids": num(1, 17) + data(20, data(1, b"ids") + data(5, packed(1, list(range(70))))),
    "publish_long_name": num(1, 18) + data(20, data(1, b"x" * 64) + data(3, b"y")),
    "unpublish": num(1, 19) + data(21, data(1, b"system") + data(2, b"tiny")),
    "evict": num(1, 20) + data(22, b""),
    "load": num(1, 21) + data(23, data(1, b"/models/tiny") + data(2, b"tiny")),
    "unload": num(1, 22) + data(24, data(1, b"tiny")),
    "reload": num(1, 23) + data(25, data(1, b"tiny") + num(2, 1)),
    "drain": num(1, 24) + data(26, num(2, 1)),
    "below_range": num(1, 1) + data(3, data(2, b"x") + data(5, f32(3, -1))),
    "above_range": num(1, 1) + data(3, data(2, b"x") + data(5, num(14, 65))),
    "nan": num(1, 1) + data(3, data(2, b"x") + data(5, f32(3, float("nan")))),
    "infinity": num(1, 1) + data(3, data(2, b"x") + data(5, f32(3, float("inf")))),
    "unknown_enum": num(1, 1) + data(3, data(2, b"x") + num(6, 99)),
    "negative_enum": num(1, 1) + data(3, data(2, b"x") + num(6, -1)),
    "id_past_vocab": num(1, 1) + data(3, data(4, packed(1, [1048576, 2**32 - 1]))),
    "seventeen_stops": num(1, 1) + data(3, data(5, data(12, b"s") * 17)),
    "not_utf8": num(1, 1) + data(3, data(1, b"\xc0\xaf")),
    "nul_in_string": num(1, 1) + data(3, data(1, b"a\0b")),
    "two_of_a_oneof": num(1, 1) + data(3, data(2, b"x") + data(3, b"") + data(2, b"y")),
    "same_message_twice": num(1, 1) + data(3, data(5, num(1, 5))) + data(3, data(5, num(2, 6))),
    "crowd": num(1, 1) + data(3, data(3, data(1, num(1, 2) + data(2, b"a")) * 400)),
    "crowd_of_unknown": num(1, 1) + num(100, 1) * 500,
    "unpacked_ids": num(1, 1) + data(3, data(4, num(1, 5) * 40)),
    "no_id": data(2, num(1, 1)),
    "no_message": num(1, 1),
    "length_past_end": num(1, 1) + b"\x1a\xff\x01a",
    "group": num(1, 1) + b"\x1b\x1c",
    "long_varint": b"\x08" + b"\xff" * 10 + b"\x01",
    "field_zero": b"\x00\x01",
    "unknown_field": num(1, 1) + data(8, num(77, 1)) + data(900, b"later"),
}

TOKEN = num(1, 9) + f32(2, -1.5) + data(3, num(1, 4) + f32(2, -0.25)) * 20
REQUEST = (num(1, 77) + num(2, 2**32 - 1) + num(3, 4242) + data(4, b"tiny") + num(5, 4)
           + b"".join(num(i, i) for i in range(6, 11)))
SERVER = {
    "hello": num(1, 1) + data(2, num(1, 1) + data(2, b"0.1.0") + num(3, 2) + num(4, 1 << 20)),
    "started": num(1, 2) + data(3, num(1, 77) + num(2, 7) + data(3, bytes(32)) + num(4, 5) + data(5, b"tiny")),
    "delta": num(1, 2) + data(4, num(1, 0) + packed(2, [1, 2]) + data(3, b"caf\xc3\xa9") + data(4, TOKEN)),
    "finish": num(1, 2) + data(4, num(1, 1) + num(5, 1)),
    "delta_of_last_choice": num(1, 2) + data(4, num(1, 63) + data(3, b"x")),
    "delta_of_huge_choice": num(1, 2) + data(4, num(1, 2**32 - 1) + data(3, b"x")),
    "done": num(1, 2) + data(5, data(1, num(1, 5) + num(2, 0) + num(3, 2) + num(4, 9))),
    "score_part": num(1, 3) + data(6, data(1, num(1, 0)) + data(1, TOKEN) * 3 + num(2, 0)),
    "score_last": num(1, 3) + data(6, data(1, TOKEN) + num(2, 1)),
    "tokenize": num(1, 4) + data(7, packed(1, list(range(40))) + num(2, 1)),
    "detokenize": num(1, 5) + data(8, data(1, b"a\0b") + num(2, 1)),
    "models": num(1, 6) + data(9, data(1, data(1, b"tiny") + num(2, 3) + data(3, b"why") + data(4, bytes(32))
                                       + data(5, b"deepseek_v2") + num(8, 10**9) + f32(15, 0.5)) * 2),
    "stats": num(1, 7) + data(10, num(1, 5) + num(2, 2) + data(3, b"0.1.0") + data(4, b"uring")
                              + b"".join(num(i, i) for i in range(5, 13))
                              + data(13, data(1, b"tiny") + b"".join(num(i, i) for i in range(2, 15)))),
    "list_part": num(1, 8) + data(12, data(1, REQUEST) * 2 + data(1, REQUEST + num(11, 3)) + num(2, 0)),
    "list_last": num(1, 8) + data(12, num(2, 1)),
    "ack": num(1, 9) + data(13, b""),
    "ack_count": num(1, 10) + data(13, num(1, 2**64 - 1)),
    "progress": num(1, 13) + data(14, data(1, b"packing") + f32(2, 0.25)),
    "progress_of_a_question": num(1, 8) + data(14, data(1, b"packing") + f32(2, 0.25)),
    "ack_of_a_question": num(1, 8) + data(13, num(1, 1)),
    "error": num(1, 2) + data(11, num(1, 4) + data(2, b"pool: got 0, want 3") + num(3, 250)),
    "error_of_all": num(1, 0) + data(11, num(1, 11) + data(2, b"not a frame")),
    "later_message": num(1, 2) + data(100, num(1, 1)),
    "wrong_kind": num(1, 6) + data(5, data(1, num(1, 5) + num(2, 0) + num(3, 2))),
    "nobodys": num(1, 999) + data(4, data(3, b"x")),
}


def write(target, name, b):
    folder = os.path.join(HERE, "corpus", target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as f:
        f.write(b)


for name, body in CLIENT.items():
    write("request", name, body)
for name in ("hello", "generate_all", "below_range", "crowd", "length_past_end"):
    write("frame", "client_" + name, frame(CLIENT[name]))
for name, body in SERVER.items():
    write("client", name, frame(SERVER["hello"]) + frame(body))
write("frame", "dialogue", b"".join(map(frame, CLIENT.values())))
write("frame", "answers", b"".join(map(frame, SERVER.values())))
write("frame", "half_header", b"\x05\x00")
write("frame", "half_frame", frame(CLIENT["hello"])[:-3])
write("frame", "too_large", struct.pack("<I", (1 << 20) + 1) + bytes(16))
write("frame", "empty", frame(b""))
write("frame", "garbage", bytes((i * 73 + 5) & 255 for i in range(200)))
write("client", "generate", b"".join(frame(SERVER[n]) for n in ("hello", "started", "delta", "finish", "done")))
write("client", "everything", b"".join(map(frame, (v for k, v in SERVER.items() if k != "error_of_all"))))
write("client", "too_large", frame(SERVER["hello"]) + struct.pack("<I", (1 << 20) + 1))
write("client", "half_frame", frame(SERVER["hello"]) + frame(SERVER["delta"])[:-1])


def lives(*connections):
    """What one connection after the other is sent; the last one has the rest of the input."""
    *cut, last = connections
    return b"".join(struct.pack("<H", len(c)) + c for c in cut) + last


def again(id, body):
    return frame(num(1, id) + body)


HELLO = frame(SERVER["hello"])
STARTED, DELTA, FINISH = (SERVER[k][len(num(1, 2)):] for k in ("started", "delta", "finish"))
DONE = data(5, data(1, num(1, 5) + num(2, 0) + num(3, 2)))
RETRY = data(11, num(1, 5) + data(2, b"the worker went away"))
BEGUN = HELLO + again(2, STARTED) + again(2, DELTA)
REST = HELLO + b"".join(again(i, STARTED) + again(i, DELTA) + again(i, FINISH) + again(i, DONE) for i in (8, 9))
write("resume", "goes_on", lives(BEGUN, REST, b"", b""))
write("resume", "goes_on_after_two_losses", lives(BEGUN, REST[:len(REST) // 2], REST, b""))
write("resume", "cut_within_a_frame", lives(BEGUN[:-3], REST, b"", b""))
write("resume", "before_hello", lives(b"", BEGUN, b"", REST))
write("resume", "retryable", lives(BEGUN + again(2, RETRY), REST, b"", b""))
write("resume", "retryable_again", lives(BEGUN + again(2, RETRY) + again(8, RETRY) + again(9, RETRY), REST, b"", b""))
write("resume", "another_seed", lives(BEGUN, HELLO + again(8, data(3, num(1, 78) + num(2, 8) + data(3, bytes(32)) + num(4, 5) + data(5, b"tiny"))), b"", b""))
write("resume", "refused", lives(BEGUN, HELLO + again(8, data(11, num(1, 3) + data(2, b"another model"))), b"", b""))
write("resume", "only_done_was_lost", lives(BEGUN + again(2, FINISH) + again(2, data(4, num(5, 1))), HELLO, b"", b""))
write("resume", "score_in_parts", lives(HELLO + frame(SERVER["score_part"]), HELLO + frame(SERVER["score_part"])
                                        + frame(SERVER["score_last"]), b"", b""))
write("resume", "another_score", lives(HELLO + frame(SERVER["score_part"]), HELLO + frame(SERVER["score_last"]), b"", b""))
write("resume", "everything_twice", lives(HELLO + b"".join(frame(v) for k, v in SERVER.items() if k != "error_of_all"),
                                          HELLO + b"".join(frame(v) for k, v in SERVER.items()), b"", b""))
