"""One arm with 24 seeds on embedded Spanish speech: real curves and errors of arms that do not differ.

    python -m study.run tests/golden/seeds.yaml storage=/tmp/seeds
    python -m tests.golden.seeds /tmp/seeds

writes `seeds.json`: of each seed, step and dev CER of each evaluation, and the errors and lengths in words of each
utterance of dev.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path

from study.ledger import Ledger
from study.trained import trained_folder

STUDY = "seeds"
FILE = Path(__file__).with_suffix(".json")


def main(storage: Path) -> None:
    with closing(Ledger.in_folder(storage)) as ledger:
        seeds = [_of_trial(ledger, storage, trial.trial) for trial in ledger.trials(STUDY)]
    FILE.write_text(json.dumps(seeds).replace("}, {", "},\n{") + "\n", encoding="utf-8")


def _of_trial(ledger: Ledger, storage: Path, trial: str) -> dict[str, list[object]]:
    path = trained_folder(ledger, storage, f"{STUDY}/{trial}") / "hypotheses-dev.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return {
        "curve": [[p.step, round(p.value, 5)] for p in ledger.curve(STUDY, trial, "dev_cer")],
        "errors": [row["errors"] for row in rows],
        "words": [row["words"] for row in rows],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
