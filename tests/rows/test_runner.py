# SPDX-License-Identifier: Apache-2.0
"""tests/claims itself: it fails when a row does not hold."""
import os
import random
import subprocess
import sys

import pytest

CLAIMS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "claims")


def claims(folder, *args):
    p = subprocess.run([sys.executable, CLAIMS] + list(args), capture_output=True, text=True,
                       env=dict(os.environ, DSD_ROWS=str(folder), DSD_BUILD=str(folder)))
    return p.returncode, p.stdout + p.stderr


@pytest.mark.parametrize("body, status, words", [
    ("claim.check(True, 'x')", 0, "1 demands, 0 broken: holds"),
    ("claim.check(False, 'water is dry')", 1, "DOES NOT HOLD: water is dry"),
    ("claim.check(True, 'x'); claim.check(None, 'y'); claim.check(True, 'z')", 1, "3 demands, 1 broken"),
    ("pass", 1, "nothing was checked"),
    ("raise ValueError('broken row')", 1, "broken row"),
    ("claim.command(['false'])", 1, "ended with 1"),
    ("raise claim.Skip('no data')", 77, "skipped: no data"),
    ("claim.figure('seed', claim.seed); claim.check(claim.some(10) == 5, 'half')", 0, "seed = 9"),
])
def test_the_status_is_the_rows(tmp_path, body, status, words):
    (tmp_path / "a_row.py").write_text('"""One line.\n\nMore."""\n\n\ndef run(claim):\n    %s\n' % body)
    got, said = claims(tmp_path, "a-row", "--fraction", "0.5", "--seed", "9")
    assert got == status, said
    assert words in said


def test_report_prints_and_does_not_fail(tmp_path):
    (tmp_path / "a_row.py").write_text('"""One."""\n\n\ndef run(claim):\n    claim.check(False, "low")\n')
    assert claims(tmp_path, "a-row", "--report") == (0, claims(tmp_path, "a-row")[1])
    assert claims(tmp_path, "a-row")[0] == 1


def test_list_names_rows_and_others_are_refused(tmp_path):
    (tmp_path / "a_row.py").write_text('"""One line."""\n')
    assert claims(tmp_path, "--list") == (0, "a-row            One line.\n")
    assert claims(tmp_path, "b-row")[0] == 2
    assert claims(tmp_path, "a-row", "--fraction", "0")[0] == 2


def test_the_bar_of_a_sample_is_missed_once_in_a_thousand_and_the_whole_ones_is_the_rows():
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from starter import bar
    rng = random.Random(1)
    for n, want in ((20, 0.8), (100, 0.89)):
        assert bar(0.95, n, False) == want and bar(0.95, n, True) == 0.95
        runs = [sum(rng.random() < 0.96 for _ in range(n)) / n for _ in range(20000)]
        assert sum(x < want for x in runs) < 20 <= sum(x <= want for x in runs)
    assert bar(0.95, 10 ** 3, False) < 0.95
