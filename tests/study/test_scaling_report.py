"""A study that asks for scaling laws: what its sweep may say, and what its report says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from study.answer import answer, answer_as_dict
from study.ledger import Ledger, Origin
from study.report import write_report
from study.scaling import Interval, Measurement, PowerLaw, fit
from study.scaling_report import scaling_table
from study.scaling_result import ScalingResult
from study.spec import StudySpec, read_spec
from tests.study.builders import (
    LEARNING_RATE,
    add_trial,
    dev_curve,
    open_study,
    report,
    spec_of,
    supervised,
    write_sweep,
)
from trainables.settings_file import SettingsError

pytestmark = pytest.mark.usefixtures("no_pdf")

STEPS = "regime.train.steps"
SIZES = (100, 300, 1000, 3000, 10000)


def settings(**scaling: Any) -> dict[str, Any]:
    """Both arms have a grid of updates."""
    space = {STEPS: {"kind": "grid", "choices": list(SIZES)}}
    return {
        "arms": {
            "slow": {"trial": supervised(), "space": space},
            "fast": {"trial": supervised(augment_speed=False), "space": space},
        },
        "scaling": {"size": STEPS, "predict_at": [40000], **scaling},
    }


def add_run(
    ledger: Ledger,
    spec: StudySpec,
    arm: str,
    number: int,
    steps: int,
    seed: int,
    wer: float,
    *,
    origin: Origin = "search",
    **point: Any,
) -> None:
    """A finished trial of so many updates, with this dev WER at its end."""
    name, stages = add_trial(ledger, spec, arm, number, origin=origin, point={STEPS: steps, **point}, seed=seed)
    ledger.append(stages[-1].fingerprint(), dev_curve({10: 0.9, steps: wer**2}))
    ledger.end_trial(spec.study, name, "finished")


def curve(arm: str, size: float) -> float:
    """The laws cross where 0.12 + 0.6 x^-0.5 is 0.2 + 0.4 x^-0.9 (x in hundreds of updates), at about 3830."""
    x = size / 100
    return 0.12 + 0.6 * x**-0.5 if arm == "slow" else 0.2 + 0.4 * x**-0.9


def fill(spec: StudySpec, sizes: tuple[int, ...] = SIZES, seeds: int = 3) -> Ledger:
    ledger, rng = open_study(spec), np.random.default_rng(0)
    for arm in spec.arms:
        for number, steps in enumerate(sizes):
            for seed in range(seeds):
                wer = curve(arm, steps) * math.exp(0.02 * rng.standard_normal())
                add_run(ledger, spec, arm, number * 10 + seed, steps, seed, wer)
    return ledger


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> StudySpec:
    return spec_of(tmp_path_factory.mktemp("scaling"), **settings())


@pytest.fixture(scope="module")
def ledger(spec: StudySpec) -> Ledger:
    return fill(spec)


@pytest.fixture(scope="module")
def found(spec: StudySpec, ledger: Ledger) -> ScalingResult:
    scaling = answer(spec, ledger).scaling
    assert scaling is not None
    return scaling


class TestSpec:
    def refused(self, tmp_path: Path, **changes: Any) -> str:
        with pytest.raises(SettingsError) as error:
            read_spec(write_sweep(tmp_path / "sweep.yaml", **changes))
        return "\n".join(error.value.errors)

    def test_a_study_has_no_scaling_laws_by_default(self, tmp_path: Path) -> None:
        assert spec_of(tmp_path).scaling is None

    def test_it_is_read_from_a_file(self, tmp_path: Path) -> None:
        read = read_spec(write_sweep(tmp_path / "sweep.yaml", **settings(arms=["fast"])))
        assert read.scaled_arms == ("fast",)
        assert StudySpec.model_validate(read.model_dump(mode="json")) == read

    def test_a_size_that_the_trial_does_not_have_is_refused_with_the_one_that_is_meant(self, tmp_path: Path) -> None:
        message = self.refused(tmp_path, **settings(size="regime.train.step"))
        assert "scaling.size" in message
        assert STEPS in message

    def test_a_size_that_an_arm_does_not_vary_is_refused(self, tmp_path: Path) -> None:
        message = self.refused(tmp_path, **settings(size="corpus.labelled_minutes"))
        assert "scaling.size" in message
        assert "arm 'slow'" in message
        assert "not in its space" in message

    def test_an_arm_that_is_not_scaled_needs_no_sizes(self, tmp_path: Path) -> None:
        changes = settings(arms=["fast"])
        changes["arms"]["slow"]["space"] = {}
        assert read_spec(write_sweep(tmp_path / "sweep.yaml", **changes)).scaled_arms == ("fast",)

    def test_sizes_that_are_no_numbers_are_refused(self, tmp_path: Path) -> None:
        changes = settings(size="regime.train.augment_speed")
        for arm in changes["arms"].values():
            arm["space"] = {"regime.train.augment_speed": {"kind": "grid", "choices": [True, False]}}
        assert "sizes are positive numbers" in self.refused(tmp_path, **changes)

    def test_sizes_beyond_the_corpus_are_refused(self, tmp_path: Path) -> None:
        """They would be its own size again: the same stages, counted as another size."""
        changes = settings(size="corpus.labelled_minutes")
        for arm in changes["arms"].values():
            arm["space"] = {"corpus.labelled_minutes": {"kind": "grid", "choices": [1, 3, 600]}}
        message = self.refused(tmp_path, **changes)
        assert "'corpus.labelled_minutes' can be 600, and the corpus has" in message
        for arm in changes["arms"].values():
            arm["space"]["corpus.labelled_minutes"]["choices"].pop()
        assert read_spec(write_sweep(tmp_path / "sweep.yaml", **changes)).scaling

    def test_an_unknown_arm_is_refused(self, tmp_path: Path) -> None:
        assert "scaling.arms names 'fsat'" in self.refused(tmp_path, **settings(arms=["fsat"]))

    def test_a_metric_that_trials_will_lack_is_refused(self, tmp_path: Path) -> None:
        assert "scaling.metric" in self.refused(tmp_path, **settings(metric="dev_wer_lm"))


def test_the_law_is_the_fit_of_the_finished_trials(spec: StudySpec, ledger: Ledger, found: ScalingResult) -> None:
    for arm in found.arms:
        finals = [(t, ledger.final(t.study, t.trial)) for t in ledger.trials(spec.study) if t.arm == arm.arm]
        measured = [Measurement(t.point[STEPS], final["dev_wer"], t.seed) for t, final in finals]
        assert arm.found is not None
        assert arm.found.law.parameters == pytest.approx(fit(measured, PowerLaw()).parameters)


def test_sentences_give_exponent_asymptote_prediction_and_break_even(spec: StudySpec, ledger: Ledger) -> None:
    slow, fast, crossing = answer(spec, ledger).sentences[-3:]
    assert slow.startswith("slow: dev WER falls as steps^-0.")
    assert "95 % interval" in slow
    assert "towards" in slow
    assert "At 40,000 steps it would be" in slow
    assert fast.startswith("fast: dev WER falls as steps^-")
    assert crossing.endswith("slow has a lower dev WER than fast.")


def test_the_break_even_interval_holds_the_true_crossing(found: ScalingResult) -> None:
    grid = np.geomspace(1000, 100_000, 100_000)
    gap = np.array([curve("slow", x) - curve("fast", x) for x in grid])
    true = grid[np.flatnonzero(np.diff(np.sign(gap)))[-1]]
    (crossing,) = found.crossings
    assert crossing.at is not None
    assert crossing.better_above == "slow"
    assert (crossing.at.low or 0) <= true <= (crossing.at.high or math.inf)


def test_json_has_law_predictions_and_measurements(spec: StudySpec, ledger: Ledger) -> None:
    scaling = json.loads(json.dumps(answer_as_dict(answer(spec, ledger))))["scaling"]
    slow = scaling["arms"][0]
    assert len(slow["measurements"]) == 3 * len(SIZES)
    assert slow["law"]["alpha"]["low"] <= slow["law"]["alpha"]["estimate"] <= slow["law"]["alpha"]["high"]
    (prediction,) = slow["law"]["predictions"]
    assert prediction["new_run"]["low"] < prediction["mean"]["low"] < prediction["mean"]["high"]
    assert set(slow["held_out"]) == {"PowerLaw", "NoAsymptote"}
    assert scaling["crossings"][0]["baseline"] == "slow"


def test_the_report_has_the_figure_and_the_table(spec: StudySpec, ledger: Ledger) -> None:
    page = write_report(spec, ledger)
    text = page.read_text(encoding="utf-8")
    assert "Scaling with steps" in text
    assert "asymptote" in text
    with Image.open(page.parent / "scaling.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 10


def test_few_sizes_are_answered_with_what_to_run_next(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, **settings())
    ledger = fill(spec, sizes=(100, 1000), seeds=1)
    found = answer(spec, ledger)
    assert found.scaling is not None
    assert "no scaling law of the dev WER can be told: 2 size(s) over 1.0 decades" in found.sentences[-2]
    assert "run size 316, 3,160 and 10,000, or 10, 31.6 and 316 next" in found.sentences[-2]
    assert "second seed" in found.sentences[-2]
    assert found.scaling.crossings == []
    assert "not identifiable" in scaling_table(found.scaling)[1][0][-1]
    assert (write_report(spec, ledger).parent / "scaling.png").exists()


def test_a_study_without_finished_trials_has_a_report(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, **settings())
    ledger = open_study(spec)
    assert "no run has finished" in answer(spec, ledger).sentences[-1]
    assert not (write_report(spec, ledger).parent / "scaling.png").exists()


def test_of_trials_of_one_size_and_seed_the_best_counts_and_replications_count(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, **settings())
    ledger = open_study(spec)
    add_run(ledger, spec, "slow", 0, 100, 0, 0.6)
    add_run(ledger, spec, "slow", 1, 100, 0, 0.5, **{LEARNING_RATE: 2e-3})
    add_run(ledger, spec, "slow", 1, 100, 7, 0.55, origin="replication", **{LEARNING_RATE: 2e-3})
    scaling = answer(spec, ledger).scaling
    assert scaling is not None
    measured = [(m.size, m.seed, round(m.value, 6)) for m in scaling.arms[0].measurements]
    assert measured == [(100, 0, 0.5), (100, 7, 0.55)]


def test_parameters_are_taken_from_the_ledger(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, **settings(size="parameters"))
    ledger = open_study(spec)
    name, stages = add_trial(ledger, spec, "slow", 0, point={STEPS: 100})
    reports = dev_curve({10: 0.9, 100: 0.25})
    ledger.append(stages[-1].fingerprint(), [reports[0], reports[1].model_copy(update={"parameters": 1234})])
    ledger.end_trial(spec.study, name, "finished")
    scaling = answer(spec, ledger).scaling
    assert scaling is not None
    assert [(m.size, m.value) for m in scaling.arms[0].measurements] == [(1234.0, 0.5)]


SECONDS = "regime.train.batch_seconds"


def joint_settings(**scaling: Any) -> dict[str, Any]:
    changes = settings(form="joint", second=SECONDS, predict_at=[40000], **scaling)
    for arm in changes["arms"].values():
        arm["space"][SECONDS] = {"kind": "grid", "choices": [10, 30, 100, 300, 1000]}
    return changes


def fill_joint(spec: StudySpec, pairs: list[tuple[int, int]]) -> Ledger:
    """0.1 + 0.3 N^-0.5 + 0.2 D^-0.4 (N in hundreds of updates, D in tens of seconds), with 1 % of noise."""
    ledger, rng = open_study(spec), np.random.default_rng(0)
    for number, (steps, seconds) in enumerate(pairs):
        for seed in range(3):
            wer = 0.1 + 0.3 * (steps / 100) ** -0.5 + 0.2 * (seconds / 10) ** -0.4
            wer *= math.exp(0.01 * rng.standard_normal())
            add_run(ledger, spec, "slow", number * 10 + seed, steps, seed, wer, **{SECONDS: seconds})
    return ledger


def test_a_joint_law_tells_what_each_size_brings(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, **joint_settings(arms=["slow"]))
    ledger = fill_joint(spec, [(steps, seconds) for steps in SIZES for seconds in (10, 30, 100, 300, 1000)])
    found = answer(spec, ledger)
    assert found.scaling is not None
    (arm,) = found.scaling.arms
    assert arm.found is not None
    for name, true in (("alpha", 0.5), ("beta", 0.4), ("E", 0.1)):
        interval = arm.found.parameter(name)
        assert interval.low <= true <= interval.high, name
    assert arm.reference == 1000
    assert "dev WER falls as steps^-0.5" in found.sentences[-1]
    assert f"and batch seconds^-{arm.found.parameter('beta').estimate:.2f}" in found.sentences[-1]
    assert "At 40,000 steps and 1,000 batch seconds it would be" in found.sentences[-1]
    head, (row,) = scaling_table(found.scaling)
    assert len(head) == len(row)
    assert head[4] == "exponent of batch seconds"
    assert (write_report(spec, ledger).parent / "scaling.png").exists()


def test_two_sizes_that_only_grow_together_cannot_be_told_apart(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, **joint_settings(arms=["slow"]))
    ledger = fill_joint(spec, list(zip(SIZES, (10, 30, 100, 300, 1000), strict=True)))
    assert "both sizes grow together" in answer(spec, ledger).sentences[-1]


def test_a_second_size_goes_with_the_joint_form_alone(tmp_path: Path) -> None:
    refused = TestSpec().refused
    assert "scaling.second is the other size of form: joint" in refused(tmp_path, **settings(second=SECONDS))
    assert "scaling.second" in refused(tmp_path, **settings(form="joint"))
    assert "not in its space" in refused(tmp_path, **settings(form="joint", second=SECONDS))


def test_hours_that_are_heard_again_count_for_less(tmp_path: Path) -> None:
    """A trial of n updates has n / 10 epochs here; the law is one of D' = U (1 + 15 (1 - e^(-R / 15)))."""
    spec = spec_of(tmp_path, **settings(form="repetition", arms=["slow"], predict_at=[300000]))
    ledger, rng = open_study(spec), np.random.default_rng(1)
    for number, steps in enumerate(SIZES):
        effective = steps * (1 + 15 * (1 - math.exp(-(steps / 10 - 1) / 15)))
        for seed in range(3):
            wer = (0.1 + 2.0 * effective**-0.3) * math.exp(0.005 * rng.standard_normal())
            add_run(ledger, spec, "slow", number * 10 + seed, steps, seed, wer)
    found = answer(spec, ledger)
    assert found.scaling is not None
    (arm,) = found.scaling.arms
    assert arm.found is not None
    assert arm.found.parameter("alpha").low <= 0.3 <= arm.found.parameter("alpha").high
    once = arm.found.mean_at(300_000)
    assert once.low <= 0.1 + 2.0 * 300_000**-0.3 <= once.high
    assert "repeated hours counted as Muennighoff et al. do (R* = 15)" in found.sentences[-1]
    assert "At 300,000 steps, seen once, it would be" in found.sentences[-1]


def test_updates_to_the_target_have_a_law_where_all_runs_reached_it(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, **settings(metric="updates_to_target", arms=["slow"], predict_at=[40000]))
    ledger = fill_reaching(spec)
    found = answer(spec, ledger)
    assert found.scaling is not None
    (arm,) = found.scaling.arms
    first = arm.measurements[0]
    assert (first.size, first.seed) == (100, 0)
    assert found.sentences[-1].startswith("slow: updates to target falls as steps^-")
    assert "%" not in found.sentences[-1].replace("95 %", "")
    assert (write_report(spec, ledger).parent / "scaling.png").exists()


def test_a_training_loss_has_a_law_of_its_last_values(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, **settings(metric="ctc", arms=["slow"], predict_at=[40000]))
    ledger, rng = open_study(spec), np.random.default_rng(0)
    for number, steps in enumerate(SIZES):
        for seed in range(3):
            name, (stage,) = add_trial(ledger, spec, "slow", number * 10 + seed, point={STEPS: steps}, seed=seed)
            last = (1.0 + 20 * steps**-0.5) * math.exp(0.01 * rng.standard_normal())
            ledger.append(stage.fingerprint(), [report(1, ctc=9.0), report(steps, ctc=last, dev_cer=0.5)])
            ledger.end_trial(spec.study, name, "finished")
    found = answer(spec, ledger)
    assert found.scaling is not None
    (arm,) = found.scaling.arms
    assert arm.found is not None
    assert arm.found.parameter("alpha").low <= 0.5 <= arm.found.parameter("alpha").high
    assert found.sentences[-1].startswith("slow: ctc falls as steps^-0.")
    assert "towards 1" in found.sentences[-1] or "towards 0.9" in found.sentences[-1]


def test_runs_that_did_not_reach_the_target_forbid_a_law_of_the_others(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, **settings(metric="updates_to_target", arms=["slow"]))
    ledger = fill_reaching(spec)
    add_run(ledger, spec, "slow", 99, 10000, 9, 0.95)
    assert "1 of 16 runs did not reach the target" in answer(spec, ledger).sentences[-1]


def test_a_run_that_did_not_reach_the_target_does_not_count_beside_one_of_its_size_and_seed(tmp_path: Path) -> None:
    """As of a bad learning rate of the search."""
    spec = spec_of(tmp_path, **settings(metric="updates_to_target", arms=["slow"]))
    ledger = fill_reaching(spec)
    for number, steps in enumerate(SIZES):
        add_run(ledger, spec, "slow", 900 + number, steps, 0, 0.95, **{LEARNING_RATE: 1.0})
    assert answer(spec, ledger).sentences[-1].startswith("slow: updates to target falls as steps^-")


def test_seeds_that_heard_their_speech_about_equally_often_are_one_size(tmp_path: Path) -> None:
    """How many seconds a batch has depends on the seed, and so do the epochs of so many updates."""
    spec = spec_of(tmp_path, **settings(form="repetition", arms=["slow"]))
    ledger, rng = open_study(spec), np.random.default_rng(1)
    for number, steps in enumerate(SIZES):
        for seed in range(3):
            name, (stage,) = add_trial(ledger, spec, "slow", number * 10 + seed, point={STEPS: steps}, seed=seed)
            wer = (0.1 + 2.0 * steps**-0.3) * math.exp(0.005 * rng.standard_normal())
            last = report(steps, dev_wer=wer, dev_cer=wer)
            ledger.append(stage.fingerprint(), [last.model_copy(update={"epochs": steps / 10 * (1 + 1e-3 * seed)})])
            ledger.end_trial(spec.study, name, "finished")
    found = answer(spec, ledger).scaling
    assert found is not None
    (arm,) = found.arms
    assert arm.refused is None
    assert {(m.size, round(m.second, 6)) for m in arm.measurements} == {(s, round(s * 0.1001, 6)) for s in SIZES}


def test_numbers_of_an_interval_have_digits_of_their_own(found: ScalingResult) -> None:
    spent = replace(found, metric="updates_to_target")
    assert spent.interval_text(Interval(900.0, 620.4, 1234.4)) == "900 (620-1,234)"


def fill_reaching(spec: StudySpec) -> Ledger:
    """Runs that come down in a straight line; the larger the size, the sooner they are at the target of 50 % CER."""
    ledger, rng = open_study(spec), np.random.default_rng(0)
    for number, steps in enumerate(SIZES):
        for seed in range(3):
            crossing = (15 + 200 * steps**-0.3) * math.exp(0.01 * rng.standard_normal())
            point = {STEPS: steps}
            name, stages = add_trial(ledger, spec, "slow", number * 10 + seed, point=point, seed=seed)
            ledger.append(stages[-1].fingerprint(), dev_curve({5: 0.9, round(2 * crossing) - 5: 0.1}))
            ledger.end_trial(spec.study, name, "finished")
    return ledger
