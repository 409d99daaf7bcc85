"""`study compare`: settings, environments, error rates and durations of two studies side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from study.compare import StudyComparison, compare
from study.database import LedgerError
from study.ledger import Ledger
from study.provenance import environment
from study.run import main
from study.significance import Scored, paired_bootstrap
from study.spec import StudySpec
from study.statistics import holm, ratio_of_means
from tests.study.builders import LEARNING_RATE, crossing_at, open_study, run_trial, spec_of, supervised
from tests.study.test_differences import SEEDS, WORDS, finish, heard
from trainables.settings_file import SettingsError

SEARCH = {"trials": 1, "metric": "dev_cer", "sampler": {"kind": "random"}}
SPACE = {LEARNING_RATE: {"kind": "log_uniform", "low": 1e-4, "high": 1e-2}}


def study_of(storage: Path, study: str, steps: Mapping[str, int], **changes: Any) -> StudySpec:
    """An arm for each name, with so many updates."""
    arms = {name: {"trial": supervised(steps=count), "space": SPACE} for name, count in steps.items()}
    return spec_of(storage, study=study, arms=arms, **{"search": SEARCH, **changes})


def compared(storage: Path) -> StudyComparison:
    return compare(Ledger.in_folder(storage), storage, "one", "two")


def open_both(storage: Path, ours: StudySpec, theirs: StudySpec) -> Ledger:
    open_study(ours)
    return open_study(theirs)


class TestSettings:
    def test_each_that_differs_has_a_row_with_both_values_and_no_other(self, tmp_path: Path) -> None:
        ours = study_of(tmp_path, "one", {"a": 40, "b": 40})
        theirs = study_of(tmp_path, "two", {"a": 50, "b": 40}, convergence={"metric": "dev_cer", "target": 0.4})
        open_both(tmp_path, ours, theirs)
        found = {row.path: (row.a, row.b) for row in compared(tmp_path).settings}
        assert found == {"convergence.target": (0.5, 0.4), "arms.a.trial.regime.train.steps": (40, 50)}

    def test_a_default_that_is_written_out_is_no_difference(self, tmp_path: Path) -> None:
        ours = study_of(tmp_path, "one", {"a": 40})
        theirs = study_of(tmp_path, "two", {"a": 40}, trial={"seed": 0, "outputs": {"kind": "characters"}})
        open_both(tmp_path, ours, theirs)
        assert compared(tmp_path).settings == []

    def test_what_one_study_does_not_set_is_one_row(self, tmp_path: Path) -> None:
        ours = study_of(tmp_path, "one", {"a": 40})
        open_both(tmp_path, ours, study_of(tmp_path, "two", {"a": 40, "b": 40}, early_stopping={"kind": "median"}))
        found = {row.path: (row.a, row.b) for row in compared(tmp_path).settings}
        assert set(found) == {"early_stopping", "arms.b"}
        assert found["early_stopping"][0] is None

    def test_passwords_are_not_shown(self, tmp_path: Path) -> None:
        ours = study_of(tmp_path, "one", {"a": 40}, mlflow={"tracking_uri": "http://me:s3cret@here"})
        open_both(tmp_path, ours, study_of(tmp_path, "two", {"a": 40}))
        (row,) = compared(tmp_path).settings
        assert row.path == "mlflow.tracking_uri"
        assert "s3cret" not in str(row)


class TestEnvironments:
    def test_versions_that_differ_are_listed(self, tmp_path: Path) -> None:
        ledger = open_both(tmp_path, *(study_of(tmp_path, name, {"a": 40}) for name in ("one", "two")))
        assert compared(tmp_path).environment == []
        changed = environment(study_of(tmp_path, "two", {"a": 40}))
        torch = changed["versions"]["torch"]
        changed["versions"]["torch"] = "9.9"
        ledger.open_study("two", ledger.study("two")["spec"], changed)
        (row,) = compared(tmp_path).environment
        assert (row.path, row.a, row.b) == ("versions.torch", torch, "9.9")

    def test_data_that_differ_are_a_warning_that_names_the_part(self, tmp_path: Path) -> None:
        ledger = open_both(tmp_path, *(study_of(tmp_path, name, {"a": 40}) for name in ("one", "two")))
        assert compared(tmp_path).warnings == []
        changed = environment(study_of(tmp_path, "two", {"a": 40}))
        ((corpus, parts),) = changed["data"].items()
        ledger.open_study("two", ledger.study("two")["spec"], {**changed, "data": {corpus: {**parts, "dev": "0" * 64}}})
        assert compared(tmp_path).warnings == [f"The data differ: dev of {corpus} had other utterances."]

    def test_a_corpus_that_one_study_reads_is_a_warning(self, tmp_path: Path) -> None:
        theirs = study_of(tmp_path, "two", {"a": 40}, trial={"corpus": {"kind": "prompts", "language": "it"}})
        open_both(tmp_path, study_of(tmp_path, "one", {"a": 40}), theirs)
        warnings = compared(tmp_path).warnings
        assert [warning[:27] for warning in warnings] == ["The data differ: only one r", "The data differ: only two r"]


def scored(wrong: int, seed: int) -> Scored:
    """Words of the hypotheses as the builder makes them, counted here."""
    hypotheses = heard(wrong, seed)
    errors = [sum(a != b for a, b in zip(h.hypothesis.split(), WORDS, strict=True)) for h in hypotheses]
    return Scored([h.id for h in hypotheses], np.array(errors), np.full(len(hypotheses), len(WORDS)))


class TestRates:
    def fill(self, storage: Path, prefix: str = "u") -> None:
        """Of `plain`, both studies have two seeds: about 5 words of 10 are wrong in one, and 1 in two."""
        for name, steps, wrong in (("one", 40, 5), ("two", 50, 1)):
            spec = study_of(storage, name, {"plain": steps})
            ledger = open_study(spec)
            for seed in SEEDS:
                dev = heard(wrong, seed, prefix=prefix if name == "two" else "u")
                finish(spec, ledger, "plain", seed, {"supervised": {"dev": dev}})

    def test_the_difference_is_b_less_a_by_the_paired_bootstrap(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        (rate,) = [rate for rate in compared(tmp_path).rates if rate.metric == "dev_wer"]
        expected = paired_bootstrap(
            [scored(1, seed) for seed in SEEDS],
            [scored(5, seed) for seed in SEEDS],
            [h.speaker for h in heard(1)],
        )
        assert rate.difference is not None
        assert rate.difference.difference == expected
        assert (rate.verdict, expected.estimate < 0) == ("better", True)
        assert rate.b.estimate - rate.a.estimate == pytest.approx(expected.estimate)

    def test_of_other_utterances_it_says_why_there_is_none(self, tmp_path: Path) -> None:
        self.fill(tmp_path, prefix="v")
        for rate in compared(tmp_path).rates:
            assert rate.difference is not None
            assert rate.difference.difference is None
            assert rate.verdict == "cannot be compared: utterance 1 is v00 in result 1 and u00 in result 3"

    def test_where_hypotheses_are_gone_the_rates_still_stand_side_by_side(self, tmp_path: Path) -> None:
        for name, steps, cer in (("one", 40, 20), ("two", 50, 25)):
            spec = study_of(tmp_path, name, {"a": steps})
            run_trial(open_study(spec), spec, "a", curve=crossing_at(cer))
        rates = {rate.metric: rate for rate in compared(tmp_path).rates}
        assert rates["dev_cer"].a.estimate == pytest.approx(crossing_at(20)[30])
        assert rates["dev_cer"].b.estimate == pytest.approx(crossing_at(25)[30])
        assert {rate.verdict for rate in rates.values()} == {"cannot be compared: no hypotheses are left"}


class TestDurations:
    def fill(self, storage: Path, **of_two: Any) -> None:
        """Two seeds each: to 50 % one takes 20 and 22 updates, two 28 and 26."""
        for name, steps, crossings, changes in (("one", 40, (20, 22), {}), ("two", 50, (28, 26), of_two)):
            spec = study_of(storage, name, {"a": steps}, **changes)
            ledger = open_study(spec)
            for seed, step in zip(SEEDS, crossings, strict=True):
                run_trial(ledger, spec, "a", origin="replication", seed=seed, curve=crossing_at(step))

    def test_the_ratio_is_that_of_b_to_a_by_welch(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        found = compared(tmp_path)
        expected = ratio_of_means([28, 26], [20, 22])
        steps = found.ratios[0]
        assert expected is not None
        assert steps.ratio is not None
        assert (steps.arm, steps.target, steps.axis, steps.reached) == ("a", 0.5, "step", ("2 of 2", "2 of 2"))
        assert steps.ratio.estimate == pytest.approx(expected.estimate)
        assert (steps.ratio.low, steps.ratio.high) == pytest.approx((expected.low, expected.high))
        assert [r.p_value for r in found.ratios] == holm([r.ratio.p_value for r in found.ratios if r.ratio])

    def test_a_target_that_both_have_is_enough(self, tmp_path: Path) -> None:
        self.fill(tmp_path, convergence={"metric": "dev_cer", "target": 0.3, "further_targets": [0.5]})
        assert {row.target for row in compared(tmp_path).ratios} == {0.5}

    def test_without_a_common_target_it_says_so(self, tmp_path: Path) -> None:
        self.fill(tmp_path, convergence={"metric": "dev_cer", "target": 0.3})
        found = compared(tmp_path)
        assert found.ratios == []
        assert found.no_ratios.startswith("The studies have no target in common (A: 50%; B: 30%)")

    def test_with_other_metrics_it_says_so(self, tmp_path: Path) -> None:
        self.fill(tmp_path, convergence={"metric": "dev_wer", "target": 0.5})
        found = compared(tmp_path)
        assert found.ratios == []
        assert "A measures convergence by dev_cer, B by dev_wer" in found.no_ratios


class TestPairing:
    def test_arms_of_the_same_name_are_compared_and_the_others_named(self, tmp_path: Path) -> None:
        ours, theirs = study_of(tmp_path, "one", {"a": 40, "b": 41}), study_of(tmp_path, "two", {"c": 42, "b": 43})
        open_both(tmp_path, ours, theirs)
        found = compared(tmp_path)
        assert [(a.arm, b.arm) for a, b in found.arms] == [("b", "b")]
        assert found.pairing == "Compared by name: b. In one study only: a, c."

    def test_without_common_names_the_best_arms_are_compared(self, tmp_path: Path) -> None:
        ours, theirs = study_of(tmp_path, "one", {"a": 40, "b": 41}), study_of(tmp_path, "two", {"c": 42, "d": 43})
        ledger = open_both(tmp_path, ours, theirs)
        for spec, arm, step in ((ours, "a", 28), (ours, "b", 20), (theirs, "c", 22), (theirs, "d", 25)):
            run_trial(ledger, spec, arm, curve=crossing_at(step))  # the earlier the crossing, the lower the end
        found = compared(tmp_path)
        assert [(a.arm, b.arm) for a, b in found.arms] == [("b", "c")]
        assert found.pairing.startswith("No arms have the same name: the best of A, b,")
        assert {rate.arm for rate in found.rates} == {"b / c"}
        steps = {row.path: (row.a, row.b) for row in found.settings}["best_arm.trial.regime.train.steps"]
        assert steps == (41, 42)

    def test_without_finished_trials_no_arms_are_compared(self, tmp_path: Path) -> None:
        open_both(tmp_path, study_of(tmp_path, "one", {"a": 40}), study_of(tmp_path, "two", {"b": 40}))
        found = compared(tmp_path)
        assert (found.arms, found.rates, found.ratios) == ([], [], [])
        assert "no arms are compared" in found.pairing


class TestCommand:
    def fill(self, storage: Path) -> None:
        TestDurations().fill(storage)

    def test_for_people(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.fill(tmp_path)
        assert main(["compare", "one", "two", "--storage", str(tmp_path)]) == 0
        shown = capsys.readouterr().out
        assert "A is one, B is two. Compared by name: a." in shown
        assert "arms.a.trial.regime.train.steps" in shown
        assert str(tmp_path / "reports" / "one-vs-two" / "report.html") in shown

    def test_for_programs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.fill(tmp_path)
        assert main(["compare", "one", "two", "--json", "--storage", str(tmp_path)]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["studies"] == ["one", "two"]
        assert found["settings"] == [{"path": "arms.a.trial.regime.train.steps", "a": 40, "b": 50}]
        assert found["ratios"][0]["ratio"]["estimate"] == pytest.approx((28 * 26 / (20 * 22)) ** 0.5)
        assert Path(found["report"]).is_file()

    def test_the_figure_has_the_curves_of_both(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.fill(tmp_path)
        assert main(["compare", "one", "two", "--storage", str(tmp_path)]) == 0
        folder = tmp_path / "reports" / "one-vs-two"
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert all(f">{study}: a (2 seeds)</text>" in page for study in ("one", "two"))
        table = pd.read_csv(folder / "convergence.csv")
        curves = table[(table.metric == "dev CER") & (table["x is"] == "updates (all stages)")]
        for study, crossings in (("one", (20, 22)), ("two", (28, 26))):
            end = 50 * sum(crossing_at(step)[30] for step in crossings)
            assert curves[curves.arm == f"{study}: a"]["metric, %"].tolist() == pytest.approx([90, end])

    def test_without_trials_it_shows_settings(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        open_both(tmp_path, study_of(tmp_path, "one", {"a": 40}), study_of(tmp_path, "two", {"b": 50}))
        assert main(["compare", "one", "two", "--storage", str(tmp_path)]) == 0
        assert "Settings that differ" in capsys.readouterr().out

    def test_the_same_study_twice_is_an_error(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        open_both(tmp_path, study_of(tmp_path, "one", {"a": 40}), study_of(tmp_path, "two", {"a": 40}))
        with pytest.raises(SettingsError, match="takes two different studies, got 'one' twice; there are: one, two"):
            compare(Ledger.in_folder(tmp_path), tmp_path, "one", "one")
        assert main(["compare", "one", "one", "--storage", str(tmp_path)]) == 2
        assert not (tmp_path / "reports").exists()

    def test_an_unknown_study_is_an_error_that_names_the_known(self, tmp_path: Path) -> None:
        open_study(study_of(tmp_path, "one", {"a": 40}))
        with pytest.raises(LedgerError, match=r"no study 'two' in .*; known: one"):
            compared(tmp_path)
