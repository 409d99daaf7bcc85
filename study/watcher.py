"""What a running study tells whoever watches it."""

from __future__ import annotations

from trainables.stage import Report, Stage


class Watcher:
    """Told what happens while a study runs; heeds nothing of it. The terminal is one, and so is the webhook."""

    def trial_started(self, trial: str) -> None:
        """The trial is about to run its first stage."""

    def reported(self, trial: str, stage: Stage, report: Report) -> None:
        """A new report of the trial's present stage is in the ledger."""

    def told(self, message: str) -> None:
        """Something that the person should know."""

    def trial_ended(self, trial: str) -> None:
        """The trial has ended; the ledger knows how."""


class Watchers(Watcher):
    """Several of them."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def trial_started(self, trial: str) -> None:
        for watcher in self._watchers:
            watcher.trial_started(trial)

    def reported(self, trial: str, stage: Stage, report: Report) -> None:
        for watcher in self._watchers:
            watcher.reported(trial, stage, report)

    def told(self, message: str) -> None:
        for watcher in self._watchers:
            watcher.told(message)

    def trial_ended(self, trial: str) -> None:
        for watcher in self._watchers:
            watcher.trial_ended(trial)
