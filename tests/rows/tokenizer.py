# SPDX-License-Identifier: Apache-2.0
"""Text encodes as Hugging Face's tokenizers has it, comes back whole, and a mebibyte takes 100 ms at most.

$DSD_TOKENIZERS_PYTHON is a Python that has `tokenizers`; without one the committed vectors are used."""
import os
import re
import subprocess
import sys
import tempfile

RANDOM_TEXTS = 20000  # of random bytes, for each vocabulary
SCALE = 10            # of make_tokenizer_vectors.py: that many times the committed number of texts
MS_MAX = 100


def hugging_face():
    for python in (os.environ.get("DSD_TOKENIZERS_PYTHON"), sys.executable):
        if python and subprocess.run([python, "-c", "import tokenizers"], capture_output=True).returncode == 0:
            return python
    return None


def run(claim):
    vectors, encode = claim.need("tests/unit/unit-text-vectors", "tests/rows/encode-bytes")
    data = os.path.abspath(os.environ.get("DSD_TEST_DATA", os.path.join(claim.root, "..", "shared", "data")))
    if not os.path.isdir(data):
        raise claim.Skip("no published vocabularies in %s" % data)
    env = {"DSD_TEST_DATA": data}
    unit = os.path.join(claim.root, "tests", "unit")
    python = hugging_face()
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(unit, "data")
        if python:
            source = folder
            claim.command([python, os.path.join(unit, "make_tokenizer_vectors.py"), "--data", data, "--out", folder,
                           "--scale", str(claim.some(SCALE)), "--seed", str(claim.seed)])
        n_texts = 0
        for version in ("v2", "v3"):
            name = "tokenizer-%s.vectors" % version
            # The program opens FILE below ".".
            p = subprocess.run([vectors, version, name], cwd=source, capture_output=True, text=True, errors="replace",
                               env=dict(os.environ, **env))
            said = re.search(r": (\d+) texts, .* (\d+) wrong", p.stdout)
            claim.check(p.returncode == 0 and said and said.group(2) == "0", "%s: %s" % (name, p.stdout[-2000:] + p.stderr))
            n_texts += int(said.group(1)) if said else 0
    claim.check(n_texts >= 2000, "%d texts compared, want 2,000" % n_texts)
    status, figures, out = claim.program([encode, str(claim.some(RANDOM_TEXTS)), str(claim.seed),
                                          str(claim.some(256))], env=env)
    claim.check(status == 0, "random bytes: status %d: %s" % (status, out[-500:]))
    claim.check(len(figures) == 2, "both vocabularies were tried")
    slowest = max([float(f["ms"]) for f in figures], default=0)
    claim.check(slowest <= MS_MAX, "1 MiB of one byte took %.1f ms, want at most %d" % (slowest, MS_MAX))
    claim.figure("texts compared with " + ("Hugging Face's tokenizers" if python else "the committed vectors"), n_texts)
    claim.figure("texts of random bytes that came back", sum(int(f["texts"]) for f in figures))
    claim.figure("slowest mebibyte of one byte", "%.1f ms" % slowest)
