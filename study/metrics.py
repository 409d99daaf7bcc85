"""A running study as metrics of Prometheus, through the exporter that Ray has on each node."""

from __future__ import annotations

import time

from ray.util.metrics import Gauge

from study.ledger import Ledger
from trainables.ray_train import GroupsState

SET_SECONDS = 5.0


class StudyMetrics:
    """Gauges named `ray_study_*`, each with the study as a tag."""

    def __init__(self, study: str, ledger: Ledger) -> None:
        self._study, self._ledger = study, ledger
        self._set_at = -SET_SECONDS
        self._trials = Gauge("study_trials", "Trials of the study by status.", tag_keys=("study", "status"))
        self._gauges = {
            name: Gauge(f"study_{name}", description, tag_keys=("study",))
            for name, description in {
                "accelerator_hours": "Held by worker groups, over all runs of the study; without GPUs, of workers.",
                "cost": "Of what worker groups held, over all runs, at resources.node_prices.",
                "accelerators_held": "By worker groups, now.",
                "accelerators_busy": "With a stage, now.",
                "worker_groups": "Starting, idle and busy ones.",
                "stages_waiting": "For a worker group.",
            }.items()
        }

    def set(self, state: GroupsState) -> None:
        """Does something every few seconds only."""
        if time.monotonic() - self._set_at < SET_SECONDS:
            return
        self._set_at = time.monotonic()
        for status, number in self._ledger.count(self._study).items():
            self._trials.set(number, {"study": self._study, "status": status})
        spent = self._ledger.spent(self._study)
        values = {
            "accelerator_hours": spent.accelerator_seconds / 3600,
            "cost": spent.cost,
            "accelerators_held": state.accelerators_held,
            "accelerators_busy": state.accelerators_busy,
            "worker_groups": state.groups,
            "stages_waiting": state.stages_waiting,
        }
        for name, value in values.items():
            self._gauges[name].set(value, {"study": self._study})
