"""What a running study tells whoever watches it."""

from __future__ import annotations

from typing import Protocol

from trainables.stage import Report, Stage


class Watcher(Protocol):
    """Told what happens while a study runs; the terminal is one."""

    def trial_started(self, trial: str) -> None:
        """The trial is about to run its first stage."""

    def reported(self, trial: str, stage: Stage, report: Report) -> None:
        """A new report of the trial's present stage is in the ledger."""

    def told(self, message: str) -> None:
        """Something that the person should know."""

    def trial_ended(self, trial: str) -> None:
        """The trial has ended; the ledger knows how."""
