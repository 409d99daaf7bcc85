"""Stages that do nothing: run in the place of `trainables.stage_process` by benchmarks of everything around them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.tune

from trainables.stage import Report, Stage, StageResult
from trainables.stage_process import Outcome, Place, serve
from trainables.store import StageStore
from trainables.trial import TrialConfig, stages_of

PAUSE_SECONDS = 0.1  # between reports
METRICS = {f"{split}_{rate}": 0.5 for split in ("dev", "test") for rate in ("cer", "wer")}


def last_report(stage: Stage) -> Report:
    """What a finished stage has reported."""
    return Report(
        step=stage.steps,
        metrics=METRICS,
        audio_seconds=0.0,
        epochs=0.0,
        elapsed_seconds=0.0,
        accelerator_seconds=0.0,
        reported_at=time.time(),
    )


def relay_nothing(config: dict[str, Any]) -> None:
    """A trial of Tune that relays one report, without a stage, and its end."""
    (stage,) = stages_of(TrialConfig.model_validate(config["config"]))
    ray.tune.report({"position": 0, "reports": [last_report(stage)]})
    ray.tune.report({"status": "finished", "cause": None})


def main() -> None:
    store = StageStore(Path(sys.argv[1]))

    def run(stage: Stage, place: Place, report: Callable[[Report], None], leave: Callable[[], bool]) -> Outcome:
        last = last_report(stage)
        for step in range(stage.report_every, stage.steps, stage.report_every):
            report(last.with_(step=step))
            time.sleep(PAUSE_SECONDS)
        report(last)
        store.partial_folder(stage).mkdir(parents=True)
        store.commit(stage, StageResult(reports=(last,), num_parameters=0))
        return Outcome("finished")

    serve(run)


if __name__ == "__main__":
    main()
