"""`python -m trainables FILE`: a trial, or a stored stage, without Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import SMALL_MODEL, bl_just, pretrain_finetune, small_trial, spanish_rows, write_corpus
from tests.trainables.builders import corpus_of
from tests.trainables.test_loop import run, weights, without_times
from tests.trainables.test_resume import assert_same_weights
from trainables.__main__ import main
from trainables.stage import Stage
from trainables.store import StageStore
from trainables.trial import TrialConfig, stages_of

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}

PROGRAM = """
import runpy, sys
try:
    runpy.run_module("trainables", run_name="__main__", alter_sys=True)
finally:
    assert not {"ray", "mlflow", "optuna"} & set(sys.modules)
"""


def write(path: Path, trial: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(trial), encoding="utf-8")
    return path


def stages(trial: dict[str, Any]) -> list[Stage]:
    return list(stages_of(TrialConfig.model_validate(trial)))


@pytest.fixture(scope="module")
def trial(small_corpus: Path) -> dict[str, Any]:
    return small_trial(small_corpus, pretrain_finetune(3))


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory, trial: dict[str, Any]) -> StageStore:
    """The trial's stages as `run_stage` trains them."""
    store = StageStore(tmp_path_factory.mktemp("loop"))
    for stage in stages(trial):
        run(stage, store)
    return store


def assert_same_results(trial: dict[str, Any], one: StageStore, other: StageStore) -> None:
    for stage in stages(trial):
        expected, found = one.result(stage), other.result(stage)
        assert expected
        assert found
        assert without_times(list(found.reports)) == without_times(list(expected.reports))
        assert_same_weights(stage, one, other)


def test_a_trial_trains_as_in_the_loop_to_the_last_bit_and_needs_neither_ray_nor_mlflow_nor_optuna(
    trial: dict[str, Any], loop: StageStore, tmp_path: Path
) -> None:
    path = write(tmp_path / "trial.yaml", trial)
    command = [sys.executable, "-c", PROGRAM, str(path), "--storage", str(tmp_path), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ONE_THREAD)
    assert_same_results(trial, loop, StageStore(tmp_path))
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines if "/3 " in line] == [
        [kind, f"{step}/3"] for kind in ("pretrain", "finetune") for step in (1, 2, 3)
    ]
    assert [line for line in lines if "/3 " not in line] == [
        f"{stage.kind}: {StageStore(tmp_path).folder(stage)}" for stage in stages(trial)
    ]


def test_a_stored_stage_trains_with_what_it_starts_from(
    trial: dict[str, Any], loop: StageStore, tmp_path: Path
) -> None:
    """The file that the finished fine-tuning left; its pre-training runs before it."""
    path = loop.folder(stages(trial)[-1]) / "stage.json"
    assert main([str(path), "--storage", str(tmp_path), "--device", "cpu"]) == 0
    assert_same_results(trial, loop, StageStore(tmp_path))


def test_a_stored_stage_whose_corpus_has_changed_since_is_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = spanish_rows(16)
    trial = small_trial(write_corpus(tmp_path / "corpus", rows), {"kind": "supervised", "train": {"steps": 1}})
    (stage,), store = stages(trial), StageStore(tmp_path / "first")
    run(stage, store)
    write_corpus(tmp_path / "corpus", [{**rows[0], "text": "otra frase"}, *rows[1:]])
    assert main([str(store.folder(stage) / "stage.json"), "--storage", str(tmp_path / "second")]) == 3
    assert f"the corpus of {stage.name()} is not the one that it was planned with" in capsys.readouterr().err
    assert StageStore(tmp_path / "second").result(stage) is None


def test_two_processes_of_torchrun_train_as_one(small_corpus: Path, tmp_path: Path) -> None:
    """Measured: losses differ by 2e-7 of themselves."""
    trial = small_trial(small_corpus, bl_just(5))
    path, alone, together = (
        write(tmp_path / "trial.yaml", trial),
        StageStore(tmp_path / "1"),
        StageStore(tmp_path / "2"),
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    module = ["-m", "trainables", str(path), "--storage", str(together.root), "--device", "cpu"]
    done = subprocess.run([*torchrun, *module], capture_output=True, text=True, check=True, env=ONE_THREAD)
    for stage in stages(trial):
        expected, found = run(stage, alone), together.result(stage)
        assert found
        for one, two in zip(expected, found.reports, strict=True):
            assert two.metrics == pytest.approx(one.metrics, rel=1e-4, abs=1e-6)
        assert weights(stage, together).keys() == weights(stage, alone).keys()
    assert [line.split()[1] for line in done.stdout.splitlines() if "/5 " in line] == 2 * [
        f"{n}/5" for n in range(1, 6)
    ]


def test_overrides_change_the_trial(small_corpus: Path, trial: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "trial.yaml", trial)
    overrides = ["regime.finetune.steps=1", "regime.pretrain.steps=2"]
    assert main([str(path), *overrides, "--storage", str(tmp_path), "--device", "cpu"]) == 0
    changed = small_trial(small_corpus, pretrain_finetune(1))
    changed["regime"]["pretrain"]["steps"] = 2
    results = [StageStore(tmp_path).result(stage) for stage in stages(changed)]
    assert [result and result.last.step for result in results] == [2, 1]


TEXT = f"""\
model: {json.dumps(SMALL_MODEL)}
corpus: {{kind: folder, root: ROOT}}
regime:
  kind: supervised
  train: {{steps: 3, learning_rate: 1e-3}}
seed: 0
"""


@pytest.mark.parametrize(
    ("change", "errors"),
    [
        (("steps: 3", "stepps: 3"), ["5:11: regime.train.stepps: unknown field 'stepps'; did you mean 'steps'?"]),
        (("1e-3", "-1"), ["5:21: regime.train.learning_rate: input should be greater than 0, got -1"]),
        (("kind: supervised", "kind: superwised"), ["4:3: regime.kind: unknown kind 'superwised'"]),
        (("ROOT", "/absent"), ["2:1: corpus: /absent/manifest.tsv: no such file"]),
        (("steps: 3, ", ""), ["5:3: regime.train: give either steps or epochs"]),
        (("seed: 0", "seed: -1\nsteps: 3"), ["6:1: seed: ", "7:1: steps: unknown field 'steps'"]),
        (("regime:", "regime: {"), ["5:8: not valid YAML: "]),
        ((TEXT, "- a list\n"), ["1:1: must be a mapping"]),
        ((TEXT, "data_fingerprint: ab\nkind: pretrain\n"), ["1:1: "]),
    ],
)
def test_bad_settings_are_named_with_line_and_column_and_nothing_is_trained(
    small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], errors: list[str]
) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text(TEXT.replace(*change).replace("ROOT", str(small_corpus)))
    assert main([str(path), "--storage", str(tmp_path / "storage")]) == 2
    lines = capsys.readouterr().err.splitlines()
    for error in errors:
        assert [line for line in lines if line.startswith(f"{path}:{error}")], lines
    assert len(lines) == len(errors) or "data_fingerprint" in change[1], lines
    assert not (tmp_path / "storage").exists()


def test_a_wrong_override_and_a_missing_file_are_bad_settings_too(
    small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text(TEXT.replace("ROOT", str(small_corpus)))
    assert main([str(path), "regime.train.learning_rate=fast"]) == 2
    assert main([str(tmp_path / "absent.yaml")]) == 2
    override, absent = capsys.readouterr().err.splitlines()
    assert override.startswith("command line (regime.train.learning_rate=fast): regime.train.learning_rate: ")
    assert absent.startswith(f"{tmp_path / 'absent.yaml'}: cannot be read: ")


def test_diverged_training_is_exit_code_3_with_the_reason(
    small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    regime = {"kind": "supervised", "train": {"steps": 10, "batch_seconds": 6, "learning_rate": 1e30}}
    path = write(tmp_path / "trial.yaml", small_trial(small_corpus, regime))
    assert main([str(path), "--storage", str(tmp_path), "--device", "cpu"]) == 3
    assert "diverged at step 10 of 10" in capsys.readouterr().err


def test_a_recording_that_cannot_be_decoded_is_exit_code_3_with_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_corpus(tmp_path / "corpus", spanish_rows(16))
    recording = corpus_of(root).train[0].path
    recording.write_bytes(recording.read_bytes()[:40])
    path = write(tmp_path / "trial.yaml", small_trial(root, {"kind": "supervised", "train": {"steps": 10}}))
    assert main([str(path), "--storage", str(tmp_path), "--device", "cpu"]) == 3
    assert capsys.readouterr().err.startswith(f"{recording}: cannot be decoded as audio")
