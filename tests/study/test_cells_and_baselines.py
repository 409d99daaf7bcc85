"""Results of arms and of configurations with intervals, baselines that arms name, and the weights that a stage kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from pydantic import ValidationError

from study.answer import answer, answer_as_dict
from study.report import write_report
from study.statistics import Mean, mean_of
from study.wording import rate_text
from tests.study.builders import add_trial, dev_curve, open_study, report, run_trial, spec_of, supervised

pytestmark = pytest.mark.usefixtures("no_pdf")

RATE = 1e-3


def four_arms(**baselines: str) -> dict[str, Any]:
    arms: dict[str, Any] = {name: {"trial": supervised()} for name in ("a", "b", "c", "d")}
    for arm, baseline in baselines.items():
        arms[arm]["baseline"] = baseline
    return arms


class TestMeans:
    def test_the_interval_is_scipy_s(self) -> None:
        values = [0.31, 0.36, 0.29, 0.33]
        mean = mean_of(values)
        interval = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (mean.estimate, mean.low, mean.high) == pytest.approx((np.mean(values), interval.low, interval.high))

    def test_one_value_has_no_interval(self) -> None:
        assert mean_of([0.4]) == Mean(0.4, None, None)

    def test_no_rate_is_shown_below_zero(self) -> None:
        assert rate_text(Mean(0.5, -0.1, 1.1)) == "50.0% (0.0-110.0)"
        assert rate_text(Mean(0.5, None, None)) == "50.0%"
        assert rate_text(None) == ""

    def test_an_arm_s_results_are_means_over_its_fresh_seeds(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        run_trial(ledger, spec, "slow", curve={30: 0.2})  # of the search: flattered by chance
        for seed, cer in ((1, 0.3), (2, 0.4), (3, 0.5)):
            run_trial(ledger, spec, "slow", origin="replication", seed=seed, curve={10: 0.9, 30: cer})
        slow, fast = answer(spec, ledger).arms
        expected = mean_of([0.3, 0.4, 0.5])
        assert slow.rates["dev_cer"] == slow.rates["test_cer"] == expected
        assert fast.rates == {}
        assert answer_as_dict(answer(spec, ledger))["arms"][0]["rates"]["dev_cer"]["low"] == expected.low


class TestCells:
    def test_each_configuration_has_its_mean_over_seeds(self, tmp_path: Path) -> None:
        """The seed may be searched: trials that differ in it alone are one configuration."""
        space = {
            "regime.train.steps": {"kind": "grid", "choices": [40, 80]},
            "seed": {"kind": "grid", "choices": [0, 1]},
        }
        spec = spec_of(tmp_path, arms={"one": {"trial": supervised(), "space": space}})
        ledger = open_study(spec)
        for number, (steps, seed, cer) in enumerate([(40, 0, 0.6), (40, 1, 0.4), (80, 0, 0.3), (80, 1, 0.1)]):
            name, (stage,) = add_trial(ledger, spec, "one", number, point={"regime.train.steps": steps, "seed": seed})
            ledger.append(stage.fingerprint(), dev_curve({10: 0.9, 30: cer}))
            ledger.end_trial(spec.study, name, "finished", None)
        cells = answer(spec, ledger).cells
        assert [(c.point, len(c.trials)) for c in cells] == [
            ({"regime.train.steps": 40}, 2),
            ({"regime.train.steps": 80}, 2),
        ]
        assert [c.rates["dev_cer"] for c in cells] == [mean_of([0.6, 0.4]), mean_of([0.3, 0.1])]
        page = write_report(spec, ledger).read_text(encoding="utf-8")
        assert "Results of each configuration" in page
        assert "steps=80" in page
        assert json.dumps(answer_as_dict(answer(spec, ledger)))


class TestBaselines:
    def test_without_one_all_arms_are_compared_with_the_first(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path, arms=four_arms())
        assert spec.comparisons() == [("b", "a"), ("c", "a"), ("d", "a")]

    def test_where_arms_name_one_these_comparisons_alone_are_made(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path, arms=four_arms(b="a", d="c"))
        found = answer(spec, open_study(spec)).comparisons
        assert [(c.arm.arm, c.baseline.arm) for c in found] == spec.comparisons() == [("b", "a"), ("d", "c")]

    @pytest.mark.parametrize("baseline", ["b", "nobody"])
    def test_a_baseline_is_another_arm(self, tmp_path: Path, baseline: str) -> None:
        with pytest.raises(ValidationError, match=f"baseline of arm 'b' must be another arm, got '{baseline}'"):
            spec_of(tmp_path, arms=four_arms(b=baseline))


def test_the_results_of_a_trial_are_those_of_the_weights_that_it_kept(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    ledger = open_study(spec)
    name, (stage,) = add_trial(ledger, spec, "slow", point={"regime.train.learning_rate": RATE})
    last = {"dev_cer": 0.5, "dev_wer": 0.9, "test_wer": 0.85}
    kept = {"kept_step": 20.0, "kept_dev_cer": 0.4, "kept_dev_wer": 0.8}
    ledger.append(stage.fingerprint(), [report(20, dev_cer=0.4, dev_wer=0.8), report(40, **last, **kept)])
    ledger.end_trial(spec.study, name, "finished", None)
    final = ledger.final(spec.study, name)
    assert (final["dev_cer"], final["dev_wer"], final["test_wer"]) == (0.4, 0.8, 0.85)
    assert [point.value for point in ledger.curve(spec.study, name, "dev_cer")] == [0.4, 0.5]
