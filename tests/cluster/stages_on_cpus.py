"""Training on the CPU of whichever node, for nodes whose GPUs are not there: run in the place of `stage_process`.

Supervised stages begin to train when there is a file `go` in the storage; what ran where is in its `ran.jsonl`.
`python -m tests.cluster.stages_on_cpus STORAGE THREADS DEVICE`
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch._dynamo

from trainables.loop import run_stage
from trainables.stage import Report, Stage
from trainables.stage_process import Outcome, Place, serve
from trainables.store import StageStore


@dataclass(frozen=True)
class Ran:
    """A stage that began."""

    kind: str
    device: str  # that it should train on
    node_type: str


def ran(storage: Path) -> list[Ran]:
    """All that began, in order."""
    path = storage / "ran.jsonl"
    return [Ran(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    storage, device = Path(sys.argv[1]), sys.argv[3]
    torch.set_num_threads(1)

    def run(stage: Stage, place: Place, report: Callable[[Report], None], leave: Callable[[], bool]) -> Outcome:
        with (storage / "ran.jsonl").open("a") as stream:
            stream.write(json.dumps(asdict(Ran(stage.kind, device, os.environ["RAY_NODE_TYPE_NAME"]))) + "\n")
        while stage.kind == "supervised" and not (storage / "go").exists():
            time.sleep(0.05)
        run_stage(stage, StageStore(storage), report)
        return Outcome("finished")

    serve(run)


if __name__ == "__main__":
    main()
