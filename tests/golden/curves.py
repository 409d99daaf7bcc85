"""The learning curves of 64 configurations, each trained to its end, on embedded Spanish speech.

    study run tests/golden/curves.yaml storage=STORAGE
    python -m tests.golden.curves STORAGE

writes `curves.json` again: the trials in the order in which they were proposed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from study.ledger import Ledger, Trial
from trainables.stage import StageResult
from trainables.store import StageStore

STUDY = "curves"
FILE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class RecordedCurve:
    """A trial; the lists hold an entry for each of its evaluations on dev."""

    trial: str
    point: dict[str, float]
    num_parameters: int  # backbone and CTC head
    step: list[int]
    accelerator_seconds: list[float]  # since the trial's start
    dev_cer: list[float]
    dev_wer: list[float]


def recorded() -> list[RecordedCurve]:
    return [RecordedCurve(**row) for row in json.loads(FILE.read_text(encoding="utf-8"))]


def record(ledger: Ledger, store: StageStore, trial: Trial) -> RecordedCurve:
    (stage,) = ledger.trial_stages(STUDY, trial.trial)
    result = store.named_folder(stage["kind"], stage["name"]) / "result.json"
    points = {metric: ledger.curve(STUDY, trial.trial, metric) for metric in ("dev_cer", "dev_wer")}
    return RecordedCurve(
        trial=trial.trial,
        point=trial.point,
        num_parameters=StageResult.model_validate_json(result.read_text()).num_parameters,
        step=[point.step for point in points["dev_cer"]],
        accelerator_seconds=[round(point.accelerator_seconds, 2) for point in points["dev_cer"]],
        dev_cer=[round(point.value, 4) for point in points["dev_cer"]],
        dev_wer=[round(point.value, 4) for point in points["dev_wer"]],
    )


def main(storage: Path) -> None:
    ledger, store = Ledger.in_folder(storage), StageStore(storage)
    finished = [trial for trial in ledger.trials(STUDY) if trial.status == "finished"]
    lines = [json.dumps(asdict(record(ledger, store, trial))) for trial in finished]
    FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    print(f"{len(lines)} curves in {FILE}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
