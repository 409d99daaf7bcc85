"""Studies: what we want to know, and what we learnt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from study.notebook import Study


def open(name: str, storage: Path | str = "results") -> Study:
    """A study that has run, or is running, for notebooks. Raises LedgerError."""
    from study.notebook import Study

    return Study(name, Path(storage))
