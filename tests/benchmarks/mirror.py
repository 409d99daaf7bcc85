"""Whether training waits for MLflow: the same stage with no mirror, a file, a server that is gone, and one that hangs.

    python -m tests.benchmarks.mirror

Each is a whole study of one trial that reports every step; compared are the seconds from its first to its last one. The
hanging server takes connections and never answers.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study.ledger import Ledger

STUDY = "mirrored"


def sweep(steps: int) -> dict[str, Any]:
    """A report at every step: as much as the mirror can have to do."""
    train = {"steps": steps, "report_every": 1, "evaluate_every": steps}
    return {
        "study": STUDY,
        "question": "Does training wait for MLflow?",
        "arms": {"only": {"trial": {"regime": {"kind": "supervised", "train": train}}}},
        "search": {"trials": 1, "metric": "dev_cer", "sampler": {"kind": "random"}},
        "replication": {"seeds": 0},
        "convergence": {"metric": "dev_cer", "target": 0.5},
    }


def seconds(folder: Path, steps: int, *overrides: str) -> float:
    """Of the stage's steps, in a study of its own."""
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(sweep(steps)))
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    words = [sys.executable, "-m", "study.run", str(path), f"storage={folder / 'results'}", *overrides]
    subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    curve = Ledger.in_folder(folder / "results").curve(STUDY, "only-000", "ctc")
    assert len(curve) == steps
    return curve[-1].elapsed_seconds - curve[0].elapsed_seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as hanging:  # nobody accepts
        gone = "mlflow.tracking_uri=http://127.0.0.1:9"
        hangs = f"mlflow.tracking_uri=http://127.0.0.1:{hanging.getsockname()[1]}"
        ways = {"no mirror": "mlflow.enabled=false", "a file": "mlflow.enabled=true", "gone": gone, "hanging": hangs}
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, override in ways.items():
                with tempfile.TemporaryDirectory() as folder:
                    found[name].append(seconds(Path(folder), options.steps, override))
    base = statistics.median(found["no mirror"])
    for name, times in found.items():
        print(f"{name:10} {statistics.median(times):6.2f} s ({statistics.median(times) / base:.2f}x)")


if __name__ == "__main__":
    main()
