"""Studies whose processes are killed at random, on real Ray; and the audit that says how they ended."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from study.audit import audit, differences
from study.chaos import KINDS
from study.ledger import Ledger
from study.spec import StudySpec, read_spec
from tests.conftest import small_trial, spanish_rows, write_corpus
from tests.study.test_end_to_end import TIMEOUT_SECONDS, start, write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.long]

KILLS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a study that `study chaos` has run twice, the second time killing."""
    folder = tmp_path_factory.mktemp("chaos")
    corpus = write_corpus(folder / "corpus", spanish_rows(16))
    train = {"steps": 40, "batch_seconds": 3, "report_every": 2, "evaluate_every": 20, "checkpoint_seconds": 0.2}
    trial = small_trial(corpus, {"kind": "pretrain_finetune", "pretrain": _without_dev(train), "finetune": train})
    rate = {"kind": "log_uniform", "low": 1e-3, "high": 1e-2}
    arms = {"arm": {"trial": trial, "space": {"regime.finetune.learning_rate": rate}}}
    sweep = write_sweep(folder / "sweep.yaml", arms)
    process = start("chaos", "--kills", str(KILLS), "--every", "1", str(sweep))
    output, _ = process.communicate(timeout=3 * TIMEOUT_SECONDS)
    assert process.returncode == 0, output
    assert f"{KILLS} kills" in output
    assert "all is there once, and as in the undisturbed study" in output
    return folder / "results" / "chaos" / "small"


def _without_dev(train: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in train.items() if name != "evaluate_every"}


def test_a_study_whose_processes_are_killed_at_random_ends_as_if_nothing_had_been(folder: Path) -> None:
    record = json.loads((folder / "chaos.json").read_text())
    assert record["problems"] == []
    assert len(record["kills"]) == KILLS
    assert {kill["what"] for kill in record["kills"]} <= set(KINDS)


# What the audit sees


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> tuple[StudySpec, Ledger, Path]:
    """The undisturbed study, to be damaged."""
    storage = tmp_path / "copy"
    shutil.copytree(folder / "undisturbed", storage)
    uri = f"mlflow.tracking_uri=sqlite:///{storage / 'mlflow.db'}"
    spec = read_spec(folder.parents[2] / "sweep.yaml", [f"storage={storage}", uri])
    return spec, Ledger.in_folder(storage), storage


Copy = tuple[StudySpec, Ledger, Path]


def change(storage: Path, statement: str) -> None:
    with sqlite3.connect(storage / "ledger.db") as db:
        assert db.execute(statement).rowcount > 0


def test_a_whole_study_has_no_problem_and_does_not_differ_from_itself(copy: Copy) -> None:
    spec, ledger, _ = copy
    assert audit(spec, ledger) == []
    assert differences(spec, ledger, ledger, determined=True) == []


def test_an_unfinished_trial_is_seen(copy: Copy) -> None:
    spec, ledger, storage = copy
    change(storage, "update trials set status = 'unfinished' where trial = 'arm-000'")
    assert "arm-000 is unfinished" in audit(spec, ledger)


def test_a_lost_point_is_seen(copy: Copy) -> None:
    spec, ledger, storage = copy
    change(storage, "delete from points where id = (select max(id) from points where metric = 'ctc')")
    assert any("the ledger and the store differ in 1 values" in problem for problem in audit(spec, ledger))


def test_another_value_is_a_difference(copy: Copy, folder: Path) -> None:
    spec, ledger, storage = copy
    change(
        storage, "update points set value = value + 1e-9 where id = (select max(id) from points where metric = 'ctc')"
    )
    whole = Ledger.in_folder(folder / "undisturbed")
    (found,) = differences(spec, ledger, whole, determined=True)
    assert "2 values differ" in found


def test_a_lost_stage_and_what_was_left_behind_are_seen(copy: Copy) -> None:
    spec, ledger, storage = copy
    (stage, *_) = sorted((storage / "stages" / "finetune").iterdir())
    stage.rename(stage.with_suffix(".partial"))
    found = "\n".join(audit(spec, ledger))
    assert "is not in the store" in found
    assert f"left behind: {stage}.partial" in found


def test_a_run_too_many_in_mlflow_and_one_that_is_lost_are_seen(copy: Copy) -> None:
    spec, ledger, storage = copy
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    client.create_run(experiment.experiment_id, tags={"study.key": "arm-000"})
    (lost,) = client.search_runs([experiment.experiment_id], "tags.`study.key` = 'arm-001'")
    client.delete_run(lost.info.run_id)
    found = "\n".join(audit(spec, ledger))
    assert "MLflow has 2 runs of arm-000" in found
    assert "MLflow has 0 runs of arm-001" in found
