"""From curves whose crossings are known to the sentence that answers the question."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from pydantic import ValidationError

from study.answer import AXES, Front, answer, answer_as_dict, arm_result
from study.ledger import Ledger, Origin
from study.spec import StudySpec
from study.statistics import Mean, mean_of
from study.survival import Duration, ratio_of_restricted_means, restricted_mean
from study.wording import goal_text, metric_name, objective_name, objective_text, probability_text
from tests.study.builders import (
    LEARNING_RATE,
    SECONDS_OF_AUDIO_A_STEP,
    add_trial,
    crossing_at,
    dev_curve,
    open_study,
    pretrain_finetune,
    report,
    run_trial,
    spec_of,
    supervised,
)

NEVER = {10: 0.9, 30: 0.6}


def replicate(
    ledger: Ledger,
    spec: StudySpec,
    arm: str,
    crossings: Sequence[float | None],
    *,
    number: int = 0,
    first_seed: int = 1,
    **cost: float,
) -> None:
    """A replication for each crossing, in steps; None: never."""
    for seed, step in enumerate(crossings, start=first_seed):
        curve = NEVER if step is None else crossing_at(step)
        run_trial(
            ledger, spec, arm, number, origin="replication", seed=seed, curve=curve, rate=1e-3 * (number + 1), **cost
        )


def welch(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of geometric means and its interval, by scipy."""
    interval = scipy.stats.ttest_ind(np.log(ours), np.log(theirs), equal_var=False).confidence_interval(0.95)
    ratio = scipy.stats.gmean(ours) / scipy.stats.gmean(theirs)
    return float(ratio), float(np.exp(interval.low)), float(np.exp(interval.high))


class TestSentences:
    def test_a_significant_difference_says_who_is_faster_and_by_how_much(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        replicate(ledger, spec, "slow", [20, 21, 22], seconds_a_step=2.0)
        replicate(ledger, spec, "fast", [20, 21, 22], seconds_a_step=0.5)
        estimate, low, high = welch([10, 10.5, 11], [40, 42, 44])
        assert estimate == pytest.approx(0.25)
        assert answer(spec, ledger).sentences == [
            "fast converges faster than slow: to a dev CER of 50%, pre-training included, fast needs 0.25x the "
            f"accelerator time of slow (95 % interval {low:.2f}-{high:.2f}, 3 and 3 seeds)."
        ]

    def test_a_slower_arm_is_called_slower(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        replicate(ledger, spec, "slow", [20, 21, 22])
        replicate(ledger, spec, "fast", [20, 21, 22], seconds_a_step=3.0)
        (sentence,) = answer(spec, ledger).sentences
        assert sentence.startswith("fast converges slower than slow: ")
        assert "fast needs 3.00x the accelerator time of slow" in sentence

    def test_an_interval_that_holds_one_is_no_difference(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        replicate(ledger, spec, "slow", [20, 23, 26])
        replicate(ledger, spec, "fast", [19, 22, 26])
        (sentence,) = answer(spec, ledger).sentences
        estimate, low, high = welch([19, 22, 26], [20, 23, 26])
        assert low < 1 < high
        assert sentence.startswith("No significant difference between fast and slow: ")
        assert f"fast needs {estimate:.2f}x" in sentence
        assert f"(95 % interval {low:.2f}-{high:.2f}, 3 and 3 seeds)" in sentence

    @pytest.mark.parametrize("arm", ["slow", "fast"])
    def test_where_a_seed_does_not_reach_the_target_the_ratio_is_of_restricted_means(
        self, tmp_path: Path, arm: str
    ) -> None:
        """Every curve ends at 30 s: a restricted mean is the mean of what was spent up to there."""
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        for name in ("slow", "fast"):
            replicate(ledger, spec, name, [20, None, 22] if name == arm else [20, 21, 22])
        found = answer(spec, ledger)
        (sentence,) = found.sentences
        estimate = (24 / 21) if arm == "fast" else (21 / 24)
        reached = "2 of 3 and 3 of 3" if arm == "fast" else "3 of 3 and 2 of 3"
        assert sentence.startswith(
            "No significant difference between fast and slow: to a dev CER of 50%, pre-training included, fast needs "
            f"{estimate:.2f}x the accelerator time of slow (95 % interval "
        )
        assert sentence.endswith(
            f", 3 and 3 seeds). Not all seeds reached it ({reached}): this is the ratio of restricted means, of what "
            "is spent of the first 30 s until the target."
        )
        ratios = found.comparisons[0].ratios.values()
        assert [ratio.estimate for ratio in ratios if ratio] == pytest.approx([estimate] * len(AXES))

    def test_an_arm_that_never_reaches_it_can_be_significantly_slower(self, tmp_path: Path) -> None:
        """Of the first 60 s, fast needs 10, 10.5 and 11; slow is still above the target."""
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        replicate(ledger, spec, "slow", [None, None, None], seconds_a_step=2.0)
        replicate(ledger, spec, "fast", [20, 21, 22], seconds_a_step=0.5)
        (sentence,) = answer(spec, ledger).sentences
        margin = float(scipy.stats.t.ppf(0.975, 2)) * (0.5 / np.sqrt(3)) / 10.5
        interval = [10.5 / 60 * np.exp(sign * margin) for sign in (-1, 1)]
        assert sentence == (
            "fast converges faster than slow: to a dev CER of 50%, pre-training included, fast needs 0.17x the "
            f"accelerator time of slow (95 % interval {interval[0]:.2f}-{interval[1]:.2f}, 3 and 3 seeds). Not all "
            "seeds reached it (3 of 3 and 0 of 3): this is the ratio of restricted means, of what is spent of the "
            "first 60 s until the target."
        )

    def test_where_no_seed_reaches_the_target_there_is_no_ratio(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        for name in ("slow", "fast"):
            replicate(ledger, spec, name, [None, None])
        found = answer(spec, ledger)
        (sentence,) = found.sentences
        assert sentence.startswith("No ratio can be given: slow reached a dev CER of 50% with 0 of 2 seed(s); final")
        assert found.comparisons[0].ratios == dict.fromkeys(AXES)
        assert found.comparisons[0].p_values == dict.fromkeys(AXES)

    def test_what_one_comparison_would_claim_several_may_not(self, tmp_path: Path) -> None:
        """Holm's method: the p-value of one arm is twice as large beside another arm that does not differ."""
        costs = {"slow": [25, 26.5, 28], "fast": [22, 23, 24.5], "same": [25, 26, 28.5]}
        for several in (False, True):
            names = list(costs) if several else ["slow", "fast"]
            arms = {name: {"trial": supervised(steps=30 + place)} for place, name in enumerate(names)}
            spec = spec_of(tmp_path / str(several), arms=arms)
            ledger = open_study(spec)
            for name in names:
                replicate(ledger, spec, name, costs[name])
            found = answer(spec, ledger)
            p_value = scipy.stats.ttest_ind(np.log(costs["fast"]), np.log(costs["slow"]), equal_var=False).pvalue
            assert 0.025 < p_value < 0.05
            if several:
                assert found.sentences[0].startswith("No significant difference between fast and slow: ")
                assert (
                    f"3 and 3 seeds, p = {2 * p_value:.2g} by Holm's method over 2 comparisons)." in found.sentences[0]
                )
                assert found.sentences[1].startswith("No significant difference between same and slow: ")
            else:
                assert found.sentences[0].startswith("fast converges faster than slow: ")

    @pytest.mark.parametrize("missing", ["slow", "fast"])
    def test_an_arm_without_a_finished_trial_forbids_an_answer(self, tmp_path: Path, missing: str) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        for arm in ("slow", "fast"):
            statuses = ("failed", "unfinished") if arm == missing else ("finished", "finished")
            for number, status in enumerate(statuses):
                run_trial(ledger, spec, arm, number, curve=crossing_at(20), rate=1e-3 + number * 1e-4, status=status)  # type: ignore[arg-type]
        assert answer(spec, ledger).sentences == [f"No answer: no trial of {missing} has finished."]

    def test_a_study_that_has_just_begun_has_no_answer(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        assert answer(spec, open_study(spec)).sentences == ["No answer: no trial of slow has finished."]

    def test_without_fresh_seeds_there_is_no_interval(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path, replication={"seeds": 0})
        ledger = open_study(spec)
        for arm, step in (("slow", 30), ("fast", 20)):
            run_trial(ledger, spec, arm, 0, curve=crossing_at(step))
            run_trial(ledger, spec, arm, 1, curve=NEVER, rate=2e-3)
        found = answer(spec, ledger)
        (sentence,) = found.sentences
        assert sentence.startswith("No interval can be given: it needs two fresh seeds of each arm. ")
        assert "slow reached a dev CER of 50% with 1 of 1 seed(s); final dev CER 50.0%." in sentence
        assert "fast reached a dev CER of 50% with 1 of 1 seed(s); final dev CER 10.0%." in sentence
        assert [arm.fresh_seeds for arm in found.arms] == [False, False]

    def test_one_fresh_seed_is_not_enough(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        replicate(ledger, spec, "slow", [20, 21])
        replicate(ledger, spec, "fast", [20])
        assert answer(spec, ledger).sentences[0].startswith("No interval can be given: ")

    def test_a_single_arm_is_described(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path, arms={"only": {"trial": supervised()}})
        ledger = open_study(spec)
        assert answer(spec, ledger).sentences == ["No trial of only has finished."]
        replicate(ledger, spec, "only", [20, None])
        assert answer(spec, ledger).sentences == [
            "only reached a dev CER of 50% with 1 of 2 seed(s); final dev CER 10.0%, 60.0%."
        ]

    def test_every_other_arm_is_compared_with_the_first(self, tmp_path: Path) -> None:
        arms = {name: {"trial": supervised(steps=steps)} for name, steps in (("a", 30), ("b", 31), ("c", 32))}
        spec = spec_of(tmp_path, arms=arms)
        ledger = open_study(spec)
        for cost, name in enumerate(arms, start=1):
            replicate(ledger, spec, name, [20, 21, 22], seconds_a_step=float(cost))
        found = answer(spec, ledger)
        assert [(c.arm.arm, c.baseline.arm) for c in found.comparisons] == [("b", "a"), ("c", "a")]
        ratios = [c.ratios["accelerator_seconds"] for c in found.comparisons]
        assert [ratio.estimate for ratio in ratios if ratio] == [pytest.approx(2.0), pytest.approx(3.0)]
        assert len(found.sentences) == 2


class TestArms:
    def test_cost_on_every_axis(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        replicate(ledger, spec, "slow", [20, 25], seconds_a_step=2.0)
        arm = arm_result(spec, ledger, "slow")
        assert arm.spent["step"] == [pytest.approx(20), pytest.approx(25)]
        assert arm.spent["audio_seconds"] == [pytest.approx(s * SECONDS_OF_AUDIO_A_STEP) for s in (20, 25)]
        assert arm.spent["accelerator_seconds"] == [pytest.approx(40), pytest.approx(50)]
        assert arm.reached == 2

    def test_pretraining_is_part_of_the_cost(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path, arms={"one": {"trial": pretrain_finetune()}})
        ledger = open_study(spec)
        name, (pretraining, finetuning) = add_trial(ledger, spec, "one")
        ledger.append(pretraining.fingerprint(), [report(100, seconds_a_step=3.0, loss=1.0)])
        ledger.append(finetuning.fingerprint(), dev_curve(crossing_at(20)))
        ledger.end_trial("race", name, "finished")
        arm = arm_result(spec, ledger, "one")
        assert arm.spent["step"] == [pytest.approx(100 + 20)]
        assert arm.spent["accelerator_seconds"] == [pytest.approx(300 + 20)]
        assert arm.spent["audio_seconds"] == [pytest.approx(120 * SECONDS_OF_AUDIO_A_STEP)]

    def test_the_search_metric_chooses_and_the_convergence_metric_is_measured(self, tmp_path: Path) -> None:
        spec = spec_of(
            tmp_path,
            search={"trials": 2, "metric": "dev_wer"},
            convergence={"metric": "dev_cer", "target": 0.5},
            replication={"seeds": 0},
        )
        ledger = open_study(spec)
        finals = {0: {"dev_cer": 0.1, "dev_wer": 0.9}, 1: {"dev_cer": 0.4, "dev_wer": 0.5}}
        for number, final in finals.items():
            name, (stage,) = add_trial(ledger, spec, "slow", number, point={"regime.train.steps": 40 + number})
            ledger.append(stage.fingerprint(), [report(40, **final)])
            ledger.end_trial("race", name, "finished")
        arm = arm_result(spec, ledger, "slow")
        assert [trial.trial for trial in arm.trials] == ["slow-001"]
        assert arm.final == [0.4]

    def test_replications_stand_for_the_arm_and_failed_ones_do_not(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        run_trial(ledger, spec, "slow", curve=crossing_at(19))
        replicate(ledger, spec, "slow", [20, 21])
        run_trial(ledger, spec, "slow", origin="replication", seed=3, curve=NEVER, status="failed", cause="x")
        arm = arm_result(spec, ledger, "slow")
        assert [trial.trial for trial in arm.trials] == ["slow-000-seed1", "slow-000-seed2"]
        assert arm.fresh_seeds

    def test_of_several_configurations_the_one_that_is_best_on_average_stands(self, tmp_path: Path) -> None:
        """Finals: 10 % and 50 % against 20 % and 20 %."""
        spec = spec_of(tmp_path, replication={"top": 2, "seeds": 2})
        ledger = open_study(spec)
        replicate(ledger, spec, "slow", [20, 30], number=0)
        replicate(ledger, spec, "slow", [10 + 8 / 0.7] * 2, number=1)
        arm = arm_result(spec, ledger, "slow")
        assert [trial.trial for trial in arm.trials] == ["slow-001-seed1", "slow-001-seed2"]
        assert arm.final == [pytest.approx(0.2)] * 2

    def test_configurations_are_never_mixed(self, tmp_path: Path) -> None:
        """More search trials on a finished study can bring another winner; both then have replications."""
        spec = spec_of(tmp_path, replication={"top": 1, "seeds": 2})
        ledger = open_study(spec)
        replicate(ledger, spec, "slow", [28, 29], number=0)
        replicate(ledger, spec, "slow", [20, 21], number=4)
        arm = arm_result(spec, ledger, "slow")
        assert [trial.trial for trial in arm.trials] == ["slow-004-seed1", "slow-004-seed2"]


class TestAsData:
    def test_is_json_with_numbers(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        replicate(ledger, spec, "slow", [20, 21, 22])
        replicate(ledger, spec, "fast", [20, None])
        found: dict[str, Any] = json.loads(json.dumps(answer_as_dict(answer(spec, ledger))))
        slow, fast = found["arms"]
        assert (slow["arm"], slow["fresh_seeds"]) == ("slow", True)
        assert slow["trials"] == ["slow-000-seed1", "slow-000-seed2", "slow-000-seed3"]
        assert slow["spent"]["step"] == [pytest.approx(s) for s in (20, 21, 22)]
        assert fast["spent"]["step"] == [pytest.approx(20), None]
        assert fast["final"] == [pytest.approx(0.1), pytest.approx(0.6)]
        fast_until, slow_until = ([Duration(20, True), Duration(30, False)], [Duration(s, True) for s in (20, 21, 22)])
        ratio = ratio_of_restricted_means(fast_until, slow_until, 30)
        assert ratio is not None
        expected = {name: pytest.approx(value) for name, value in asdict(ratio).items()}
        assert found["ratios"] == [
            {
                "arm": "fast",
                "baseline": "slow",
                **dict.fromkeys(AXES, expected),
                "p_values": dict.fromkeys(AXES, expected["p_value"]),
            }
        ]
        assert found["ratios_without_pretraining"] == []
        assert found["answer"] == answer(spec, ledger).sentences

    def test_ratios_have_estimate_and_interval(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        replicate(ledger, spec, "slow", [20, 21, 22])
        replicate(ledger, spec, "fast", [24, 25, 26])
        (ratio,) = answer_as_dict(answer(spec, ledger))["ratios"]
        estimate, low, high = welch([24, 25, 26], [20, 21, 22])
        for axis in AXES:
            assert ratio[axis] == {
                "estimate": pytest.approx(estimate),
                "low": pytest.approx(low),
                "high": pytest.approx(high),
                "p_value": pytest.approx(ratio["p_values"][axis]),
            }


class TestTargets:
    def test_each_arm_at_each_target(self, tmp_path: Path) -> None:
        """The best final value is 10 %: 1.2 times that is a target of 12 %."""
        convergence = {"metric": "dev_cer", "target": 0.5, "further_targets": [0.7], "relative_targets": [1.2, 5.0]}
        spec = spec_of(tmp_path, convergence=convergence)
        ledger = open_study(spec)
        replicate(ledger, spec, "slow", [20, None, 22])
        replicate(ledger, spec, "fast", [20, 20, 20], seconds_a_step=0.5)
        rows = [row for row in answer(spec, ledger).targets if row.axis == "accelerator_seconds"]
        assert [(row.target, row.arm, row.reached) for row in rows] == [
            (0.5, "slow", 2),
            (0.5, "fast", 3),
            (0.7, "slow", 3),
            (0.7, "fast", 3),
            (pytest.approx(0.12), "slow", 1),
            (pytest.approx(0.12), "fast", 3),
        ]
        slow, fast = rows[:2]
        assert (slow.baseline, slow.ratio, slow.log_rank, slow.horizon) == (None, None, None, 30)
        assert slow.mean == restricted_mean([Duration(20, True), Duration(30, False), Duration(22, True)], 30)
        assert (fast.baseline, fast.horizon) == ("slow", 30)
        assert fast.mean.estimate == pytest.approx(10)
        assert fast.ratio is not None
        assert fast.ratio.estimate == pytest.approx(10 / 24)
        assert fast.log_rank == pytest.approx(0.1)

    def test_the_best_trial_reaches_what_it_came_down_to(self, tmp_path: Path) -> None:
        convergence = {"metric": "dev_cer", "target": 0.5, "relative_targets": [1.0]}
        spec = spec_of(tmp_path, convergence=convergence)
        ledger = open_study(spec)
        for seed in (1, 2):
            run_trial(ledger, spec, "slow", origin="replication", seed=seed, curve={10: 0.9, 30: 1 / 3})
        rows = [row for row in answer(spec, ledger).targets if row.axis == "step"]
        assert [row.reached for row in rows] == [2, 2]

    def test_a_target_is_named_as_it_was_given(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path, convergence={"metric": "dev_wer", "target": 0.035})
        assert goal_text(spec) == "dev WER of 3.5%"

    def test_before_any_trial_has_finished_there_are_none(self, tmp_path: Path) -> None:
        convergence = {"metric": "dev_cer", "target": 0.5, "relative_targets": [1.2]}
        spec = spec_of(tmp_path, convergence=convergence)
        found = answer(spec, open_study(spec))
        assert (found.targets, found.whole_curves) == ([], [])

    @pytest.mark.parametrize(
        "wrong",
        [
            {"further_targets": [0.5]},
            {"further_targets": [0.3, 0.3]},
            {"further_targets": [1.0]},
            {"further_targets": [0.0]},
            {"relative_targets": [0.9]},
            {"relative_targets": [1.1, 1.1]},
        ],
    )
    def test_what_cannot_be_a_target_is_refused(self, tmp_path: Path, wrong: dict[str, list[float]]) -> None:
        with pytest.raises(ValidationError, match="convergence"):
            spec_of(tmp_path, convergence={"metric": "dev_cer", "target": 0.5, **wrong})


def test_curves_without_common_updates_are_not_compared_as_a_whole(tmp_path: Path) -> None:
    """Pre-training goes before the first evaluation of one, when the other has ended."""
    spec = spec_of(tmp_path)
    ledger = open_study(spec)
    run_trial(ledger, spec, "slow", curve={10: 0.9, 30: 0.6})
    run_trial(ledger, spec, "fast", curve={35: 0.4, 40: 0.3})
    assert answer(spec, ledger).whole_curves == []


def test_a_configuration_with_more_replications_stands_before_one_that_lost_its_own(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, replication={"top": 2, "seeds": 3})
    ledger = open_study(spec)
    for seed in (1, 2, 3):
        run_trial(ledger, spec, "slow", origin="replication", seed=seed, curve={10: 0.9, 30: 0.202})
    run_trial(ledger, spec, "slow", 1, origin="replication", seed=1, curve={10: 0.9, 30: 0.199})
    assert [trial.number for trial in answer(spec, ledger).arms[0].trials] == [0, 0, 0]


def test_whole_curves_are_compared_over_the_updates_that_all_trials_have(tmp_path: Path) -> None:
    """From 0.9 at 10 in a straight line to 0.1 or 0.6 at 30: halves of the sums."""
    spec = spec_of(tmp_path)
    ledger = open_study(spec)
    replicate(ledger, spec, "slow", [None])
    replicate(ledger, spec, "fast", [20])
    slow, fast = answer(spec, ledger).whole_curves
    assert (slow.until, fast.until) == (30, 30)
    assert slow.mean_linear.estimate == pytest.approx(0.75)
    assert fast.mean_linear.estimate == pytest.approx(0.5)
    assert fast.tau is None  # two evaluations


def spec_with_costs(storage: Path, *also: str) -> StudySpec:
    return spec_of(storage, search={"trials": 3, "metric": "dev_wer", "also_minimise": also})


def start(ledger: Ledger, spec: StudySpec, number: int, *, seed: int | None = None, **final: float) -> str:
    """An unfinished trial of `slow` that has measured these; a replication when a seed is given. Takes 40 s."""
    origin: Origin = "search" if seed is None else "replication"
    point = {LEARNING_RATE: 1e-3 * (number + 1)}
    name, (stage,) = add_trial(ledger, spec, "slow", number, origin=origin, point=point, seed=seed)
    ledger.append(stage.fingerprint(), [report(40, dev_cer=0.1, **final)])
    return name


def finish(ledger: Ledger, spec: StudySpec, number: int, *, seed: int | None = None, **final: float) -> None:
    ledger.end_trial(spec.study, start(ledger, spec, number, seed=seed, **final), "finished")


def front_of(spec: StudySpec, ledger: Ledger) -> Front:
    found = answer(spec, ledger).front
    assert found is not None
    return found


class TestFront:
    def test_a_study_of_one_objective_has_none(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        replicate(ledger, spec, "slow", [20, 21])
        found = answer(spec, ledger)
        assert found.front is None
        assert answer_as_dict(found)["front"] is None

    def test_a_sentence_tells_what_it_spans(self, tmp_path: Path) -> None:
        spec = spec_with_costs(tmp_path, "parameters")
        ledger = open_study(spec)
        for number, (rate, parameters) in enumerate([(0.2, 3e6), (0.5, 1e6), (0.6, 2e6)]):
            finish(ledger, spec, number, dev_wer=rate, parameters=parameters)
        assert answer(spec, ledger).sentences[-1] == (
            "On the Pareto front are 2 of 3 configurations: dev WER 20.0% to 50.0%, parameters 1,000,000 to 3,000,000."
        )

    def test_before_a_trial_has_finished_it_is_empty(self, tmp_path: Path) -> None:
        spec = spec_with_costs(tmp_path, "parameters")
        assert front_of(spec, open_study(spec)) == Front(("dev_wer", "parameters"), [], [])

    def test_holds_what_no_other_configuration_beats(self, tmp_path: Path) -> None:
        spec = spec_with_costs(tmp_path, "parameters", "real_time_factor")
        ledger = open_study(spec)
        finish(ledger, spec, 0, dev_wer=0.4, parameters=1e6, real_time_factor=0.1)
        finish(ledger, spec, 1, dev_wer=0.2, parameters=4e6, real_time_factor=0.2)
        finish(ledger, spec, 2, dev_wer=0.3, parameters=5e6, real_time_factor=0.3)
        finish(ledger, spec, 3, dev_wer=0.3, parameters=6e6, real_time_factor=0.1)
        found = front_of(spec, ledger)
        assert [c.on_front for c in found.candidates] == [True, True, False, True]
        assert [c.point[LEARNING_RATE] for c in found.best] == pytest.approx([2e-3, 4e-3, 1e-3])
        assert found.best[0].means == {
            "dev_wer": Mean(0.2, None, None),
            "parameters": Mean(4e6, None, None),
            "real_time_factor": Mean(0.2, None, None),
        }

    def test_the_cost_of_training_is_that_of_the_whole_trial(self, tmp_path: Path) -> None:
        spec = spec_with_costs(tmp_path, "accelerator_hours")
        ledger = open_study(spec)
        finish(ledger, spec, 0, dev_wer=0.4)
        (candidate,) = front_of(spec, ledger).candidates
        assert candidate.values["accelerator_hours"] == [pytest.approx(40 / 3600)]

    def test_what_did_not_finish_or_did_not_measure_all_has_no_part_in_it(self, tmp_path: Path) -> None:
        spec = spec_with_costs(tmp_path, "parameters")
        ledger = open_study(spec)
        finish(ledger, spec, 0, dev_wer=0.4, parameters=2e6)
        start(ledger, spec, 1, dev_wer=0.1, parameters=1e6)
        ledger.end_trial(spec.study, start(ledger, spec, 2, dev_wer=0.1, parameters=1e6), "stopped", "no hope")
        ledger.end_trial(spec.study, start(ledger, spec, 3, dev_wer=0.1, parameters=1e6), "failed", "lost")
        finish(ledger, spec, 4, dev_wer=0.1)
        found = front_of(spec, ledger)
        assert [(c.trials[0].trial, c.on_front) for c in found.candidates] == [("slow-000", True)]
        assert len(found.hypervolume) == 1

    def test_the_mean_over_seeds_decides(self, tmp_path: Path) -> None:
        """The first configuration was lucky once: its mean is below 29 % where all three draws take that seed."""
        spec = spec_with_costs(tmp_path, "parameters")
        ledger = open_study(spec)
        finish(ledger, spec, 0, dev_wer=0.2, parameters=1e6)
        finish(ledger, spec, 1, dev_wer=0.29, parameters=1e6)
        for seed in (1, 2):
            finish(ledger, spec, 0, seed=seed, dev_wer=0.5, parameters=1e6)
            finish(ledger, spec, 1, seed=seed, dev_wer=0.29, parameters=1e6)
        lucky, steady = front_of(spec, ledger).candidates
        assert (lucky.on_front, steady.on_front) == (False, True)
        assert lucky.means["dev_wer"] == mean_of([0.2, 0.5, 0.5])
        assert lucky.probability == pytest.approx(1 / 27, abs=0.02)
        assert steady.probability == pytest.approx(26 / 27, abs=0.02)

    def test_with_one_seed_each_no_probability_is_known(self, tmp_path: Path) -> None:
        spec = spec_with_costs(tmp_path, "parameters")
        ledger = open_study(spec)
        finish(ledger, spec, 0, dev_wer=0.2, parameters=1e6)
        finish(ledger, spec, 1, dev_wer=0.3, parameters=1e6)
        assert [c.probability for c in front_of(spec, ledger).candidates] == [None, None]

    def test_the_hypervolume_grows_in_the_order_in_which_trials_of_the_search_ended(self, tmp_path: Path) -> None:
        """Up to a WER of 0.4 + 0.02 and 4 + 0.3 parameters: 10 % of the ranges beyond the worst."""
        spec = spec_with_costs(tmp_path, "parameters")
        ledger = open_study(spec)
        finals = [(0.2, 4.0), (0.3, 1.0), (0.4, 2.0)]
        names = [start(ledger, spec, n, dev_wer=wer, parameters=size) for n, (wer, size) in enumerate(finals)]
        for number in (2, 0, 1):
            ledger.end_trial(spec.study, names[number], "finished")
        finish(ledger, spec, 1, seed=1, dev_wer=0.1, parameters=0.5)
        third, first, both = 0.02 * 2.3, 0.22 * 0.3, 0.02 * 0.3
        second, alone = 0.12 * 3.3, 0.1 * 0.3
        assert front_of(spec, ledger).hypervolume == pytest.approx([third, third + first - both, second + alone])

    def test_as_data(self, tmp_path: Path) -> None:
        spec = spec_with_costs(tmp_path, "parameters")
        ledger = open_study(spec)
        finish(ledger, spec, 0, dev_wer=0.2, parameters=1e6)
        assert json.loads(json.dumps(answer_as_dict(answer(spec, ledger))))["front"] == {
            "objectives": ["dev_wer", "parameters"],
            "configurations": [
                {
                    "arm": "slow",
                    "point": {LEARNING_RATE: 1e-3},
                    "trials": ["slow-000"],
                    "objectives": {
                        "dev_wer": {"estimate": 0.2, "low": None, "high": None},
                        "parameters": {"estimate": 1e6, "low": None, "high": None},
                    },
                    "on_front": True,
                    "probability": None,
                }
            ],
            "hypervolume": [pytest.approx(0.02 * 1e5)],
        }


def test_a_configuration_that_was_proposed_again_with_the_same_seed_counts_once(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    ledger = open_study(spec)
    for number in (0, 1):
        run_trial(ledger, spec, "slow", number, curve=crossing_at(20), rate=1e-3)
    run_trial(ledger, spec, "slow", 0, origin="replication", seed=1, curve=crossing_at(20), rate=1e-3)
    (cell,) = answer(spec, ledger).cells
    assert [trial.trial for trial in cell.trials] == ["slow-000", "slow-000-seed1"]


def test_objectives_have_names_and_values_for_people() -> None:
    names = ("dev_wer_lm", "parameters", "real_time_factor", "accelerator_hours")
    assert [objective_name(name) for name in names] == [
        "dev WER + LM",
        "parameters",
        "real time factor",
        "accelerator hours",
    ]
    assert objective_text("dev_wer", Mean(0.312, 0.298, 0.326)) == "31.2% (29.8-32.6)"
    assert objective_text("parameters", Mean(94_371_712.0, 94_371_712.0, 94_371_712.0)) == "94,371,712"
    assert objective_text("real_time_factor", Mean(0.01234, None, None)) == "0.0123"
    assert objective_text("real_time_factor", Mean(0.01234, -0.5, 0.5678)) == "0.0123 (0-0.568)"
    assert objective_text("accelerator_hours", Mean(1.5, 1.4999999, 1.5000001)) == "1.5"
    assert [probability_text(p) for p in (0.876, None)] == ["88%", "unknown"]


def test_metrics_have_names_for_people() -> None:
    assert [metric_name(metric) for metric in ("dev_cer", "test_wer")] == ["dev CER", "test WER"]


class TestPretrainingLeftOut:
    @pytest.fixture
    def spec(self, tmp_path: Path) -> StudySpec:
        """`fast` has 100 updates of pre-training, of two seconds each, before those that count on their own."""
        return spec_of(tmp_path, arms={"slow": {"trial": supervised()}, "fast": {"trial": pretrain_finetune()}})

    @pytest.fixture
    def ledger(self, spec: StudySpec) -> Ledger:
        ledger = open_study(spec)
        for arm, crossings in (("slow", (24, 26, 28)), ("fast", (20, 21, 22))):
            for seed, step in enumerate(crossings, start=1):
                name, stages = add_trial(ledger, spec, arm, origin="replication", seed=seed)
                if len(stages) == 2:
                    ledger.append(stages[0].fingerprint(), [report(100, seconds_a_step=2.0, contrastive=1.0)])
                ledger.append(stages[-1].fingerprint(), dev_curve(crossing_at(step)))
                ledger.end_trial(spec.study, name, "finished")
        return ledger

    def test_the_ratio_is_that_of_the_later_stages(self, spec: StudySpec, ledger: Ledger) -> None:
        found = answer(spec, ledger)
        (included,), (left_out,) = found.comparisons, found.without_pretraining
        for comparison, updates, seconds in ((included, 100, 200), (left_out, 0, 0)):
            for axis, before in (("step", updates), ("accelerator_seconds", seconds)):
                ratio = comparison.ratios[axis]
                assert ratio is not None
                expected = welch([before + 20, before + 21, before + 22], [24, 26, 28])
                assert (ratio.estimate, ratio.low, ratio.high) == pytest.approx(expected)

    def test_the_sentence_says_both(self, spec: StudySpec, ledger: Ledger) -> None:
        (sentence,) = answer(spec, ledger).sentences
        assert "to a dev CER of 50%, pre-training included, fast needs 8.5" in sentence
        estimate, low, high = welch([20, 21, 22], [24, 26, 28])
        assert sentence.endswith(f" With pre-training left out, it is {estimate:.2f}x ({low:.2f}-{high:.2f}).")

    def test_a_study_without_pretraining_does_not_speak_of_it(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        for arm in ("slow", "fast"):
            replicate(ledger, spec, arm, [20, 21])
        found = answer(spec, ledger)
        assert found.without_pretraining == []
        assert "left out" not in found.sentences[0]
