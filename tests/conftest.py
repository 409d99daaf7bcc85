"""What tests share: small real corpora, and small trials on them."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from trainables.data.corpus import PROMPTS

Row = dict[str, str]

# A loaded machine must not fail a test.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def write_corpus(root: Path, rows: list[Row]) -> Path:
    """Write a corpus folder with the given manifest rows; their audio is copied from the Spanish prompts."""
    (root / "audio").mkdir(parents=True, exist_ok=True)
    for row in rows:
        shutil.copy(PROMPTS / "es" / row["path"], root / row["path"])
    with (root / "manifest.tsv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), delimiter="\t", quoting=csv.QUOTE_NONE)
        writer.writeheader()
        writer.writerows(rows)
    return root


def spanish_rows(count: int, *, longest_seconds: float = 3.0) -> list[Row]:
    """The first `count` Spanish prompts of at most that length, every eighth in dev and every eighth in test."""
    with (PROMPTS / "es" / "manifest.tsv").open(encoding="utf-8", newline="") as stream:
        rows = [
            row
            for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            if row["has_digits"] == "0" and float(row["duration_seconds"]) <= longest_seconds
        ]
    names = ("id", "path", "duration_seconds", "text")
    splits = ("dev", "test", *["train"] * 6)
    return [{**{n: row[n] for n in names}, "split": splits[i % 8]} for i, row in enumerate(rows[:count])]


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 short real utterances: 30 train, 5 dev, 5 test."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), spanish_rows(40))


SMALL_MODEL: dict[str, Any] = {
    "kind": "compact_cnn_gru",
    "mel_bins": 20,
    "cnn_width": 16,
    "cnn_layers": 1,
    "gru_width": 12,
    "quantiser": {"codebooks": 2, "entries": 8, "dim": 16},
}

SMALL_TRANSFORMER: dict[str, Any] = {
    "kind": "transformer",
    "extractor": {"kind": "wave", "channels": 8, "compact": True},
    "width": 32,
    "heads": 2,
    "layers": 2,
    "squeeze": 2,
    "position_kernel": 15,
    "position_groups": 4,
    "quantiser": {"entries": 8, "dim": 16},
}


def pretrain_finetune(steps: int = 4, **finetune: Any) -> dict[str, Any]:
    return {
        "kind": "pretrain_finetune",
        "pretrain": {"steps": steps, "batch_seconds": 6, "report_every": 1},
        "finetune": {"steps": steps, "batch_seconds": 6, "report_every": 1, "evaluate_every": 2, **finetune},
    }


def bl_just(steps: int = 4, **joint: Any) -> dict[str, Any]:
    return {
        "kind": "bl_just",
        "joint": {"steps": steps, "batch_seconds": 6, "report_every": 1, "evaluate_every": 2, **joint},
        "finetune": {"steps": steps, "batch_seconds": 6, "report_every": 1, "evaluate_every": 2},
    }


def small_trial(corpus: Path, regime: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A trial that trains in a second or two."""
    return {"corpus": {"kind": "folder", "root": str(corpus)}, "model": SMALL_MODEL, "regime": regime, **changes}


LONG = {"test_golden_regimes.py"}  # begun last, they would keep one of several workers busy for minutes

# Apart from the others: they start processes by the dozen.
START_RAY = {
    "test_end_to_end.py",
    "test_study_in_object_storage.py",
    "test_sharing.py",
    "test_worker_groups.py",
    "test_probe.py",
    "test_starts.py",
    "test_chaos.py",
    "test_doctor.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first. Tests that start Ray get the mark by which `make test` runs them last."""
    items.sort(key=lambda item: item.path.name not in LONG)
    for item in items:
        if item.path.name in START_RAY:
            item.add_marker(pytest.mark.ray)
