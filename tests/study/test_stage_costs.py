"""What stages cost, on ledgers made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from study.answer import answer
from study.ledger import Ledger, Origin
from study.spec import StudySpec
from study.stage_costs import (
    Sharing,
    StageCost,
    StageCosts,
    cost_figure,
    cost_sentences,
    cost_table,
    sharing_table,
    stage_costs,
    stage_costs_as_dict,
)
from tests.study.builders import SECONDS_OF_AUDIO_A_STEP, add_trial, open_study, pretrain_finetune, report, spec_of
from trainables.stage import Stage

STEPS = {"pretrain": 100, "semi_supervised": 50, "finetune": 40, "supervised": 40}
FINE_TUNING_SEEDS = {"regime.finetune.seed": {"kind": "grid", "choices": [1, 2]}}


def wav2vec_s() -> dict[str, Any]:
    pretrained = pretrain_finetune()["regime"]
    return {"regime": {**pretrained, "kind": "wav2vec_s", "semi_supervised": {"steps": 50}}}


def study_of(storage: Path) -> StudySpec:
    """`ours` shares its pre-training with `theirs`; `alone` has none."""
    arms = {
        "theirs": {"trial": pretrain_finetune()},
        "ours": {"trial": wav2vec_s()},
        "alone": {"trial": {"regime": {"kind": "supervised", "train": {"steps": 40}}}},
    }
    return spec_of(storage, arms=arms)


def spend(ledger: Ledger, stage: Stage, accelerator_seconds: float) -> None:
    """Reports at half of the stage's steps and at the end, which cost alike."""
    steps = STEPS[stage.kind]
    rate = accelerator_seconds / steps
    reports = [report(step, seconds_a_step=rate, dev_cer=0.5, dev_wer=0.5) for step in (steps // 2, steps)]
    ledger.append(stage.fingerprint(), reports)


def add(
    ledger: Ledger,
    spec: StudySpec,
    arm: str,
    seed: int,
    seconds: Mapping[str, float],
    origin: Origin = "replication",
    number: int = 0,
) -> Sequence[Stage]:
    """A finished trial whose stages took that accelerator time."""
    name, stages = add_trial(ledger, spec, arm, number, origin=origin, seed=seed)
    for stage in stages:
        spend(ledger, stage, seconds[stage.kind])
    ledger.end_trial(spec.study, name, "finished")
    return stages


def costs_of(spec: StudySpec, ledger: Ledger) -> StageCosts:
    return stage_costs(spec, ledger, answer(spec, ledger))


@pytest.fixture
def spec(tmp_path: Path) -> StudySpec:
    return study_of(tmp_path)


@pytest.fixture
def costs(spec: StudySpec) -> StageCosts:
    """Pre-trainings of 100 s and 200 s (seeds 1 and 2), which both arms share."""
    ledger = open_study(spec)
    for seed, pretrain in ((1, 100.0), (2, 200.0)):
        add(ledger, spec, "theirs", seed, {"pretrain": pretrain, "finetune": 40.0})
        add(ledger, spec, "ours", seed, {"pretrain": pretrain, "semi_supervised": 50.0 * seed, "finetune": 20.0})
        add(ledger, spec, "alone", seed, {"supervised": 60.0})
    return costs_of(spec, ledger)


def stage_of(costs: StageCosts, arm: str, kind: str) -> StageCost:
    (found,) = (stage for row in costs.arms if row.arm == arm for stage in row.stages if stage.kind == kind)
    return found


class TestStages:
    def test_are_in_the_order_in_which_they_run(self, costs: StageCosts) -> None:
        kinds = {arm.arm: [stage.kind for stage in arm.stages] for arm in costs.arms}
        assert kinds == {
            "theirs": ["pretrain", "finetune"],
            "ours": ["pretrain", "semi_supervised", "finetune"],
            "alone": ["supervised"],
        }

    def test_cost_what_they_spent_alone_with_each_seed(self, costs: StageCosts) -> None:
        assert stage_of(costs, "ours", "pretrain").accelerator_seconds == pytest.approx((100.0, 200.0))
        assert stage_of(costs, "ours", "semi_supervised").accelerator_seconds == pytest.approx((50.0, 100.0))
        assert stage_of(costs, "ours", "finetune").accelerator_seconds == pytest.approx((20.0, 20.0))
        audio = stage_of(costs, "ours", "semi_supervised").audio_seconds
        assert audio == pytest.approx((50 * SECONDS_OF_AUDIO_A_STEP,) * 2)

    def test_shares_are_those_of_their_trial_and_sum_to_one(self, costs: StageCosts) -> None:
        assert stage_of(costs, "ours", "pretrain").share == pytest.approx((100 / 170, 200 / 320))
        for arm in costs.arms:
            assert [math.fsum(shares) for shares in zip(*(s.share for s in arm.stages), strict=True)] == pytest.approx(
                [1.0, 1.0]
            )

    def test_are_relative_to_the_pretraining_of_the_same_trial(self, costs: StageCosts) -> None:
        """The stage takes half of the pre-training with both seeds, so that nothing varies."""
        relative = stage_of(costs, "ours", "semi_supervised").relative
        assert relative
        assert (relative.estimate, relative.low, relative.high) == pytest.approx((0.5, 0.5, 0.5))

    def test_ratios_are_geometric_means_with_students_t_on_their_logarithms(self, costs: StageCosts) -> None:
        """By hand: 0.4 and 0.2; the standard error of the logarithms is log(2) / 2, and t is 12.706."""
        relative = stage_of(costs, "theirs", "finetune").relative
        assert relative
        assert relative.estimate == pytest.approx(math.sqrt(0.4 * 0.2))
        assert relative.high
        assert math.log(relative.high / relative.estimate) == pytest.approx(12.7062 * math.log(2) / 2, rel=1e-4)
        audio = stage_of(costs, "theirs", "finetune").relative_audio
        assert audio
        assert audio.estimate == pytest.approx(0.4)

    def test_without_pretraining_have_no_ratio(self, costs: StageCosts) -> None:
        assert stage_of(costs, "alone", "supervised").relative is None
        assert stage_of(costs, "ours", "pretrain").relative is None

    def test_of_one_seed_have_ratios_without_interval(self, spec: StudySpec) -> None:
        ledger = open_study(spec)
        add(ledger, spec, "theirs", 1, {"pretrain": 100.0, "finetune": 40.0})
        relative = stage_of(costs_of(spec, ledger), "theirs", "finetune").relative
        assert relative
        assert (relative.estimate, relative.low, relative.high) == (pytest.approx(0.4), None, None)

    def test_are_those_of_the_trials_that_stand_for_the_arm(self, spec: StudySpec) -> None:
        ledger = open_study(spec)
        add(ledger, spec, "theirs", 0, {"pretrain": 7.0, "finetune": 7.0}, origin="search")
        add(ledger, spec, "theirs", 1, {"pretrain": 100.0, "finetune": 40.0})
        (arm,) = costs_of(spec, ledger).arms
        assert (arm.seeds, arm.totals) == ((1,), pytest.approx((140.0,)))


def sharing_of(costs: StageCosts, arm: str | None = None, kind: str | None = None) -> Sharing:
    (found,) = (row for row in costs.sharing if (row.arm, row.kind) == (arm, kind))
    return found


class TestSharing:
    def test_counts_a_stage_that_serves_several_trials_once(self, costs: StageCosts) -> None:
        found = sharing_of(costs, kind="pretrain")
        assert (found.trained, found.used) == (2, 4)
        assert (found.paid_seconds, found.unshared_seconds) == pytest.approx((300.0, 600.0))
        assert found.saved == pytest.approx(0.5)

    def test_of_the_study_is_the_sum_over_kinds_and_not_over_arms(self, costs: StageCosts) -> None:
        whole = sharing_of(costs)
        kinds = [row for row in costs.sharing if row.kind]
        assert whole.paid_seconds == pytest.approx(math.fsum(row.paid_seconds for row in kinds)) == pytest.approx(690.0)
        assert whole.unshared_seconds == pytest.approx(math.fsum(row.unshared_seconds for row in kinds))
        arms = [row for row in costs.sharing if row.arm]
        assert math.fsum(row.paid_seconds for row in arms) == pytest.approx(990.0)

    def test_within_an_arm_is_of_its_own_trials(self, spec: StudySpec) -> None:
        """Two fine-tunings of one pre-training."""
        ledger = open_study(spec)
        arms = {"theirs": {"trial": pretrain_finetune(), "space": FINE_TUNING_SEEDS}}
        spec = spec.with_(arms=arms)
        for number in (1, 2):
            name, stages = add_trial(
                ledger, spec, "theirs", number, origin="search", point={"regime.finetune.seed": number}
            )
            for stage in stages:
                spend(ledger, stage, {"pretrain": 100.0, "finetune": 10.0}[stage.kind])
            ledger.end_trial(spec.study, name, "finished")
        found = sharing_of(costs_of(spec, ledger), "theirs")
        assert (found.trained, found.used) == (3, 4)
        assert (found.paid_seconds, found.unshared_seconds) == pytest.approx((120.0, 220.0))

    def test_counts_trials_that_did_not_finish(self, spec: StudySpec) -> None:
        ledger = open_study(spec)
        _, stages = add_trial(ledger, spec, "theirs", 0)
        spend(ledger, stages[0], 100.0)
        found = costs_of(spec, ledger)
        assert found.arms == ()
        whole = sharing_of(found)
        assert (whole.trained, whole.used, whole.paid_seconds) == (1, 1, pytest.approx(100.0))

    @settings(max_examples=10)
    @given(seconds=st.lists(st.floats(1.0, 1e4), min_size=1, max_size=3))
    def test_never_pays_more_than_unshared(
        self, tmp_path_factory: pytest.TempPathFactory, seconds: list[float]
    ) -> None:
        spec = study_of(tmp_path_factory.mktemp("sharing"))
        ledger = open_study(spec)
        for seed, spent in enumerate(seconds, start=1):
            for arm in ("theirs", "ours"):
                add(ledger, spec, arm, seed, {"pretrain": spent, "semi_supervised": 1.0, "finetune": 2.0})
        for row in costs_of(spec, ledger).sharing:
            assert 0 <= row.paid_seconds <= row.unshared_seconds * (1 + 1e-9)
            assert row.trained <= row.used
        ledger.close()


class TestReport:
    def test_of_a_study_without_trials_is_empty(self, spec: StudySpec) -> None:
        costs = costs_of(spec, open_study(spec))
        assert costs == StageCosts((), ())
        assert cost_figure(costs) is None
        assert (cost_sentences(costs), cost_table(costs)[1], sharing_table(costs)[1]) == ([], [], [])

    def test_sentences_give_the_ratio_to_the_pretraining_and_what_sharing_saved(self, costs: StageCosts) -> None:
        sentences = cost_sentences(costs)
        assert "ours: semi_supervised takes 0.50x the accelerator time of the pre-training, 2 seeds." in sentences
        assert sentences[-1] == (
            "All trials together took 11.5 min of accelerator time; without shared stages it would have been 16.5 min "
            "(30% saved)."
        )

    def test_tables_have_a_row_for_each_stage_and_for_each_sum(self, costs: StageCosts) -> None:
        head, rows = cost_table(costs)
        assert {len(row) for row in rows} == {len(head)}
        assert rows[3] == [
            *("ours", "semi_supervised", "2", "75 s (0 s to 6.5 min)", "30%"),
            *("20.0 min", "0.50x", "0.50x"),
        ]
        head, rows = sharing_table(costs)
        assert {len(row) for row in rows} == {len(head)}
        assert [row[:2] for row in rows] == [
            ["the study", "all"],
            *(["the study", kind] for kind in ("pretrain", "semi_supervised", "finetune", "supervised")),
            *([arm, "all"] for arm in ("theirs", "ours", "alone")),
        ]
        assert rows[1][2:] == ["2", "4", "5.0 min", "10.0 min", "50%"]

    def test_figure_stacks_the_means_of_the_stages(self, costs: StageCosts) -> None:
        drawn = cost_figure(costs)
        assert drawn
        (panel,) = drawn.figure.axes
        bars = [(bar.get_x(), bar.get_width(), round(bar.get_y() + bar.get_height() / 2)) for bar in panel.patches]
        minutes = [(0, 150, 0), (150, 40, 0), (0, 150, 1), (150, 75, 1), (225, 20, 1), (0, 60, 2)]
        assert bars == [pytest.approx((start / 60, length / 60, place)) for start, length, place in minutes]
        assert panel.get_xlabel() == "accelerator time of a trial, min"

    def test_figure_tells_kinds_by_colour_and_by_hatch(self, costs: StageCosts) -> None:
        drawn = cost_figure(costs)
        assert drawn
        bars = {bar.get_label(): bar.patches[0] for bar in drawn.figure.axes[0].containers}
        assert len({bar.get_facecolor() for bar in bars.values()}) == len(bars) == 4
        assert len({bar.get_hatch() for bar in bars.values()}) == 4

    def test_points_have_a_row_for_each_stage_of_each_trial(self, costs: StageCosts) -> None:
        drawn = cost_figure(costs)
        assert drawn
        assert len(drawn.rows) == 2 * (2 + 3 + 1)
        assert ("ours", 2, "semi_supervised") in [row[:3] for row in drawn.rows]
        assert {len(row) for row in drawn.rows} == {len(drawn.columns)}

    def test_json_has_every_number_of_the_tables(self, costs: StageCosts) -> None:
        found = json.loads(json.dumps(stage_costs_as_dict(costs)))
        (ours,) = (arm for arm in found["arms"] if arm["arm"] == "ours")
        assert [stage["kind"] for stage in ours["stages"]] == ["pretrain", "semi_supervised", "finetune"]
        assert ours["stages"][1]["relative"]["estimate"] == pytest.approx(0.5)
        assert found["sharing"][1]["saved"] == pytest.approx(0.5)
        assert found["sentences"] == cost_sentences(costs)
