"""Like `misbehaving`, but stages that have steps are trained."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo

from tests.trainables.misbehaving import GRACE_SECONDS, misbehave
from trainables.loop import run_stage
from trainables.stage import Report, Stage
from trainables.stage_process import Outcome, Place, serve
from trainables.store import StageStore


def main() -> None:
    storage = Path(sys.argv[1])

    def run(stage: Stage, place: Place, report: Callable[[Report], None], leave: Callable[[], bool]) -> Outcome:
        if not stage.steps:
            return misbehave(stage, storage, place, report)
        torch.set_num_threads(1)
        run_stage(stage, StageStore(storage), report)
        return Outcome("finished")

    serve(run, grace_seconds=GRACE_SECONDS)


if __name__ == "__main__":
    main()
