# SPDX-License-Identifier: Apache-2.0
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from dsdtest import Daemon  # noqa: E402


@pytest.fixture(scope="module")
def fake():
    """One daemon with the fake worker for a whole file of tests that leave it as they found it."""
    with Daemon("--set", "pool.verify=always") as d:
        yield d
        assert d.alive(), d.read_log()


@pytest.fixture
def client(fake):
    c = fake.client()
    yield c
    c.close()
