"""Inference times from the ledger to the report's table: which configurations they belong to, and what is compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from study.answer import answer
from study.inference_report import (
    inference_figure,
    inference_note,
    inference_table,
    model_key,
    model_times,
    model_times_as_dicts,
    rate_metric,
)
from study.ledger import Ledger
from study.spec import StudySpec
from tests.study.builders import add_trial, dev_curve, open_study, spec_of, supervised
from trainables.config import merge
from trainables.stage import InferenceTime

WIDER = {"model": {"preset": "compact_cnn_gru", "gru_width": 256}}
H200 = "NVIDIA H200"


def timed(*seconds: float, device: str = H200) -> InferenceTime:
    return InferenceTime(
        split="dev", batch_seconds=250, device=device, utterances=41, audio_seconds=120.0, seconds=seconds
    )


@pytest.fixture
def spec(tmp_path: Path) -> StudySpec:
    arms = {
        "small": {"trial": supervised()},
        "small_longer": {"trial": supervised(80)},
        "large": {"trial": {**supervised(), **WIDER}},
    }
    return spec_of(tmp_path, arms=arms, inference_time={})


@pytest.fixture
def ledger(spec: StudySpec) -> Ledger:
    """`small` and `small_longer` have the same model, of which one was timed."""
    ledger = open_study(spec)
    for arm, cer, time in (("small", 0.4, timed(1.0, 3.0)), ("small_longer", 0.3, None), ("large", 0.2, timed(4, 4))):
        name, (stage,) = add_trial(ledger, spec, arm)
        ledger.append(stage.fingerprint(), dev_curve({40: cer}))
        ledger.end_trial(spec.study, name, "finished")
        if time:
            ledger.add_inference_time(stage.fingerprint(), time)
    return ledger


def test_a_model_that_was_timed_once_counts_for_every_arm_that_has_it(spec: StudySpec, ledger: Ledger) -> None:
    rows = model_times(spec, ledger, answer(spec, ledger).cells)
    assert [(row.cell.arm, row.seconds, row.ratio) for row in rows] == [
        ("small", 2.0, 1.0),
        ("small_longer", 2.0, 1.0),
        ("large", 4.0, 2.0),
    ]
    assert rows[0].spread == pytest.approx(math.sqrt(2))


def test_only_what_the_sweep_asks_for_is_compared(spec: StudySpec, ledger: Ledger) -> None:
    """The split and the batches may be changed between runs of a study; one model then has several times."""
    for stage in ledger.trial_stages(spec.study, "large-000"):
        for change in ({"split": "test"}, {"batch_seconds": 50}):
            ledger.add_inference_time(stage["stage"], timed(90.0, 90.0).with_(**change))
    cells = answer(spec, ledger).cells
    assert [row.ratio for row in model_times(spec, ledger, cells)] == [1.0, 1.0, 2.0]
    asked = spec.with_(inference_time=spec.inference_time and spec.inference_time.with_(split="test"))
    assert [(row.cell.arm, row.ratio) for row in model_times(asked, ledger, cells)] == [("large", 1.0)]
    assert [row.ratio for row in model_times(spec.with_(inference_time=None), ledger, cells)] == [1.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "regime",
    [
        {"kind": "pretrain_finetune", "finetune": {"corpus": {"kind": "prompts", "language": "it"}}},
        {"kind": "bl_just", "joint": {"corpus": {"kind": "prompts", "language": "it"}}},
    ],
)
def test_models_that_end_on_another_corpus_recognise_other_speech(tmp_path: Path, regime: dict[str, Any]) -> None:
    steps = {
        "finetune": {"steps": 2},
        "pretrain": {"steps": 2},
        **({"joint": {"steps": 2}} if "joint" in regime else {}),
    }
    same = {"trial": {"regime": {"kind": regime["kind"], **steps}}}
    other = {"trial": merge(same["trial"], {"regime": regime})}
    spec = spec_of(tmp_path, arms={"same": same, "also": same, "other": other})
    ledger = open_study(spec)
    for arm in spec.arms:
        add_trial(ledger, spec, arm)
    one, two, three = (model_key(trial) for trial in ledger.trials(spec.study))
    assert one == two != three


def test_devices_are_compared_apart(spec: StudySpec, ledger: Ledger) -> None:
    large = ledger.trials(spec.study)[-1]
    (stage,) = ledger.trial_stages(spec.study, large.trial)
    ledger.add_inference_time(stage["stage"], timed(9.0, 9.0, device="another"))
    rows = model_times(spec, ledger, answer(spec, ledger).cells)
    assert [(row.cell.arm, row.time.device, row.ratio) for row in rows][-1] == ("large", "another", 1.0)
    assert {row.time.device for row in rows[:-1]} == {H200}


def test_the_first_measurement_stays(spec: StudySpec, ledger: Ledger) -> None:
    (stage,) = ledger.trial_stages(spec.study, "small-000")
    ledger.add_inference_time(stage["stage"], timed(70.0, 70.0))
    assert ledger.inference_times(spec.study)[stage["stage"]] == [timed(1.0, 3.0)]


def test_a_study_without_measurements_has_no_rows(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    assert model_times(spec, open_study(spec), []) == []


def test_table_note_and_json_say_what_was_timed(spec: StudySpec, ledger: Ledger) -> None:
    rows = model_times(spec, ledger, answer(spec, ledger).cells)
    head, cells = inference_table(spec, rows)
    assert head[2] == "dev CER"
    assert cells[0] == ["small", "-", "40.0%", "2 ± 1.4", "1.00", "60", H200]
    assert "2 passes over dev (41 utterances, 2.0 min of audio)" in inference_note(rows)
    (first, *_) = json.loads(json.dumps(model_times_as_dicts(rows)))
    assert (first["arm"], first["seconds"], first["device"]) == ("small", [1.0, 3.0], H200)


def test_the_figure_has_a_dot_for_each_configuration_and_joins_the_best(spec: StudySpec, ledger: Ledger) -> None:
    drawn = inference_figure(spec, model_times(spec, ledger, answer(spec, ledger).cells))
    (panel,) = drawn.figure.axes
    assert len(panel.containers) == 3
    (front,) = [line for line in panel.lines if line.get_drawstyle() == "steps-post"]
    assert [tuple(map(float, point)) for point in front.get_xydata()] == [(2.0, 30.0), (4.0, 20.0)]
    assert [row[:3] for row in drawn.rows] == [("small", "", 2.0), ("small_longer", "", 2.0), ("large", "", 4.0)]
    assert all(len(row) == len(drawn.columns) for row in drawn.rows)


@pytest.mark.parametrize(("metric", "split", "shown"), [("dev_wer", "test", "test_wer"), ("dev_cer", "dev", "dev_cer")])
def test_the_rate_is_that_of_the_split_that_was_timed(tmp_path: Path, metric: str, split: str, shown: str) -> None:
    spec = spec_of(tmp_path, search={"trials": 1, "metric": metric}, inference_time={"split": split})
    assert rate_metric(spec) == shown
