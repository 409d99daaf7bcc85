"""The benchmark's commands work, on as little as possible; what they measure is not tested."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.benchmarks import starts


def test_the_ledger_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    starts.main(["ledger", "--trials", "20"])
    assert re.search(r"ms, of the last 2 of 20 .* ms, ratio \d+\.\d\d", capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.long
def test_bookkeeping_is_compared_with_bare_tune() -> None:
    """In a process of its own: Ray keeps the token of the first cluster that a process was in."""
    command = [sys.executable, "-m", "tests.benchmarks.starts", "bookkeeping", "--trials", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    bare = r"\d+ ms \(2 trials\), ratio \d+\.\d\d"
    found = rf"ours \d+ ms \(2 trials\), bare Ray Tune {bare}, with reuse_actors {bare}"
    assert re.search(found, done.stdout)
