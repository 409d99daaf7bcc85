"""A study's results as tables, for notebooks: `study.open("quickstart").curves()`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.answer import Answer, answer
from study.ledger import CurvePoint, Ledger, Trial
from study.spec import StudySpec

if TYPE_CHECKING:
    import pandas as pd

HEAD = ("trial", "arm", "seed", "origin")  # columns of every table
COSTS = ("step", "audio_seconds", "elapsed_seconds", "accelerator_seconds")


class Study:
    """A study that has run, or is running: each call reads the ledger as it is then."""

    def __init__(self, name: str, storage: Path) -> None:
        """Raises LedgerError, naming the known ones, when there is no such study in the storage folder."""
        self.name, self._storage = name, storage.absolute()
        self._ledger = Ledger.existing(self._storage)
        self._ledger.study(name)

    @property
    def spec(self) -> StudySpec:
        """The sweep of its latest run."""
        return self._ledger.spec(self.name, self._storage)

    def trials(self) -> pd.DataFrame:
        """A row for each trial: arm, seed, status, what was searched, its final metrics, and its costs."""
        import pandas as pd

        rows = [self._trial_row(trial) for trial in self._ledger.trials(self.name)]
        return pd.DataFrame(rows) if rows else pd.DataFrame(columns=[*HEAD, "status", "cause"])

    def curves(self, metric: str | None = None) -> pd.DataFrame:
        """A row for each value of each metric (or of one) of each trial, over all its stages.

        `step`, `audio_seconds`, `elapsed_seconds` and `accelerator_seconds` count from the start of the trial's first
        stage, as in the report; they are as spent, on the `device` of each row or the ones before.
        """
        import pandas as pd

        rows = [
            {**_head(trial), "stage": p.kind, "metric": p.metric, "value": p.value, **_costs(p)}
            | {"epochs": p.epochs, "device": p.device}
            for trial in self._ledger.trials(self.name)
            for p in self._ledger.curve(self.name, trial.trial, metric)
        ]
        return pd.DataFrame(rows, columns=[*HEAD, "stage", "metric", "value", *COSTS, "epochs", "device"])

    def answer(self) -> Answer:
        """What the report says, as numbers: `.sentences`, `.arms`, `.comparisons`, `.targets`, `.scaling` ..."""
        return answer(self.spec, self._ledger)

    def _trial_row(self, trial: Trial) -> dict[str, Any]:
        curve = self._ledger.curve(self.name, trial.trial)
        spent = _costs(curve[-1]) if curve else {}
        final = self._ledger.final(self.name, trial.trial)
        return {**_head(trial), "status": trial.status, "cause": trial.cause, **trial.point, **final, **spent}


def _head(trial: Trial) -> dict[str, Any]:
    return {name: getattr(trial, name) for name in HEAD}


def _costs(point: CurvePoint) -> dict[str, float]:
    return {name: getattr(point, name) for name in COSTS}
