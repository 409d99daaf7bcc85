"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from study import figure_files
from study.run import main

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """The exit code of a command, what it printed, and what it printed as errors."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def no_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without their figures' PDF files, which take more time than all others together."""
    monkeypatch.delitem(figure_files.BESIDE_SVG, "pdf")
