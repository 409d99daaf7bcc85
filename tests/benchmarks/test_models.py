"""The benchmark's command works, on as little as possible; what it measures is not tested."""

from __future__ import annotations

import subprocess
import sys

import pytest

RECURRENT = [sys.executable, "-m", "tests.benchmarks.recurrent", "--models", "compact_cnn_gru", "--rounds", "1"]
COMMAND = [sys.executable, "-m", "tests.benchmarks.models", "--presets", "w2v2_tiny"]
SMALL = ["--seconds", "4", "--batch-seconds", "8", "--rounds", "1"]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("task", ["inference"])
def test_it_compares_each_task(task: str) -> None:
    done = subprocess.run([*COMMAND, *SMALL, "--tasks", task], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(task)
    assert done.stdout.count("ratio") == 2


def test_it_compares_recurrent_layers() -> None:
    done = subprocess.run(RECURRENT, capture_output=True, text=True, check=True)
    assert done.stdout.count("times faster") == 4
