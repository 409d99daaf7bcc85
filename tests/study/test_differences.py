"""Differences between arms in the report: from the hypotheses of finished trials to a table and to JSON."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from study.answer import answer
from study.differences import ArmDifference, difference_cells, differences, missing_trials
from study.ledger import Ledger
from study.report import write_report
from study.spec import StudySpec
from study.statistics import holm
from tests.study.builders import add_trial, open_study, report, spec_of, supervised
from tests.study.conftest import Call
from trainables.evaluate import write_hypotheses
from trainables.scoring import Hypothesis, error_rates
from trainables.stage import StageResult
from trainables.store import StageStore

pytestmark = pytest.mark.usefixtures("no_pdf")

WORDS = ["uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve", "diez"]
SPEAKERS = ("ana", "eva", "leo", "pau")
SEEDS = (1, 2)
Heard = dict[str, list[Hypothesis]]  # split -> hypotheses


def heard(wrong: int, seed: int = 0, prefix: str = "u", speakers: tuple[str, ...] = SPEAKERS) -> list[Hypothesis]:
    """24 utterances of ten words, with about so many words wrong in each; which ones differs with the seed."""
    found = []
    for place in range(24):
        errors = {(place + seed + 3 * n) % 10 for n in range(wrong + (place + seed) % 2)}
        words = ["x" if n in errors else word for n, word in enumerate(WORDS)]
        speaker = speakers[place % len(speakers)] if speakers else ""
        found.append(Hypothesis(f"{prefix}{place:02d}", " ".join(WORDS), " ".join(words), 4.0, speaker))
    return found


def arms_of(**arms: dict[str, Any]) -> dict[str, Any]:
    return {name: {"trial": trial} for name, trial in arms.items()}


def finish(spec: StudySpec, ledger: Ledger, arm: str, seed: int, found: Mapping[str, Heard]) -> str:
    """Record a finished replication, with the hypotheses of each kind of stage, and their rates."""
    name, stages = add_trial(ledger, spec, arm, origin="replication", seed=seed)
    store = StageStore(spec.storage)
    for stage in stages:
        folder = store.partial_folder(stage)
        folder.mkdir(parents=True)
        rates = {}
        for split, hypotheses in found[stage.kind].items():
            write_hypotheses(folder / f"hypotheses-{split}.jsonl", hypotheses)
            ending = "_lm" if stage.kind == "decode" else ""
            rates |= {f"{split}_{rate}{ending}": value for rate, value in error_rates(hypotheses).items()}
        ledger.append(stage.fingerprint(), [report(10, **rates)])
        store.commit(stage, StageResult(reports=(), num_parameters=1))
    ledger.end_trial(spec.study, name, "finished")
    return name


class Study:
    """Three arms with two seeds each: the baseline, one that is better, and one that is like the baseline."""

    def __init__(self, storage: Path, speakers: tuple[str, ...] = SPEAKERS) -> None:
        self.spec = spec_of(
            storage, arms=arms_of(plain=supervised(40), better=supervised(41), alike=supervised(42)), search=_SEARCH
        )
        self.ledger = open_study(self.spec)
        self.heard = {
            (arm, seed): {"dev": heard(wrong, seed + shift, speakers=speakers), "test": heard(wrong, seed + shift + 5)}
            for arm, wrong, shift in (("plain", 5, 0), ("better", 1, 0), ("alike", 5, 1))
            for seed in SEEDS
        }
        for (arm, seed), found in self.heard.items():
            finish(self.spec, self.ledger, arm, seed, {"supervised": found})

    def rows(self) -> list[ArmDifference]:
        return differences(self.spec, self.ledger, answer(self.spec, self.ledger))

    def file(self, arm: str, seed: int, split: str) -> Path:
        (stage,) = self.ledger.trial_stages(self.spec.study, f"{arm}-000-seed{seed}")
        return StageStore(self.spec.storage).named_folder(stage["kind"], stage["name"]) / f"hypotheses-{split}.jsonl"


_SEARCH = {"trials": 1, "metric": "dev_cer", "sampler": {"kind": "random"}}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path / "results")


class TestRows:
    def test_each_arm_against_its_baseline_with_each_rate(self, study: Study) -> None:
        metrics = ["dev_wer", "dev_cer", "test_wer", "test_cer"]
        expected = [(arm, "plain", metric) for arm in ("better", "alike") for metric in metrics]
        assert [(row.arm, row.baseline, row.metric) for row in study.rows()] == expected

    def test_the_difference_is_that_of_the_mean_error_rates(self, study: Study) -> None:
        for row in study.rows():
            split, rate = row.metric.split("_")
            means = [
                sum(error_rates(study.heard[arm, seed][split])[rate] for seed in SEEDS) / len(SEEDS)
                for arm in (row.arm, row.baseline)
            ]
            assert row.difference is not None
            assert row.difference.estimate == pytest.approx(means[0] - means[1])
            assert row.difference.low <= row.difference.estimate <= row.difference.high

    def test_verdicts(self, study: Study) -> None:
        verdicts = {row.arm: row.verdict for row in study.rows() if row.metric == "dev_wer"}
        assert verdicts == {"better": "better", "alike": "no significant difference"}

    def test_the_other_way_round_it_is_worse(self, study: Study) -> None:
        arms = dict(reversed(study.spec.arms.items()))
        turned = study.spec.with_(arms={"better": arms["better"], "plain": arms["plain"]})
        (row, *_) = differences(turned, study.ledger, answer(turned, study.ledger))
        assert (row.arm, row.baseline, row.verdict) == ("plain", "better", "worse")

    def test_p_values_are_corrected_over_all_rows(self, study: Study) -> None:
        rows = study.rows()
        assert [row.p_value for row in rows] == holm([row.difference.p_value for row in rows if row.difference])

    def test_counts(self, study: Study) -> None:
        row = study.rows()[0]
        assert (row.seeds, row.utterances, row.speakers, row.missing, row.problem) == ((2, 2), 24, 4, (), "")

    def test_unknown_speakers(self, tmp_path: Path) -> None:
        row = Study(tmp_path / "results", speakers=()).rows()[0]
        assert (row.speakers, difference_cells(row)[-1]) == (0, "unknown")
        assert row.difference is not None

    def test_the_row_as_text(self, study: Study) -> None:
        row = study.rows()[0]
        assert row.difference is not None
        low, high = 100 * row.difference.low, 100 * row.difference.high
        assert difference_cells(row) == [
            "better / plain",
            "dev WER",
            f"-40.0 ({low:+.1f} to {high:+.1f})",
            "< 0.001" if row.p_value and row.p_value < 0.001 else f"{row.p_value:.3f}",
            "better",
            "2 and 2",
            "24",
            "4",
        ]

    def test_one_arm_has_no_differences(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path / "results", arms=arms_of(plain=supervised()), search=_SEARCH)
        ledger = open_study(spec)
        finish(spec, ledger, "plain", 1, {"supervised": {"dev": heard(3)}})
        assert differences(spec, ledger, answer(spec, ledger)) == []

    def test_a_split_that_was_not_measured_has_no_row(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path / "results", arms=arms_of(a=supervised(40), b=supervised(41)), search=_SEARCH)
        ledger = open_study(spec)
        for arm in ("a", "b"):
            finish(spec, ledger, arm, 1, {"supervised": {"dev": heard(3)}})
        rows = differences(spec, ledger, answer(spec, ledger))
        assert [row.metric for row in rows] == ["dev_wer", "dev_cer"]
        assert [row.difference.estimate for row in rows if row.difference] == [0.0, 0.0]

    def test_what_a_language_model_decoded_is_compared_apart(self, tmp_path: Path) -> None:
        arms = arms_of(
            a={**supervised(40), "language_model": {}}, b={**supervised(40), "language_model": {"weight": 1.5}}
        )
        spec = spec_of(tmp_path / "results", arms=arms, search=_SEARCH)
        ledger = open_study(spec)
        greedy = {"dev": heard(5)}
        finish(spec, ledger, "a", 1, {"supervised": greedy, "decode": {"dev": heard(4)}})
        _, stages = add_trial(ledger, spec, "b", origin="replication", seed=1)
        decode = stages[-1]
        store = StageStore(spec.storage)
        store.partial_folder(decode).mkdir(parents=True)
        write_hypotheses(store.partial_folder(decode) / "hypotheses-dev.jsonl", heard(1))
        store.commit(decode, StageResult(reports=(), num_parameters=1))
        rates = {f"dev_{rate}_lm": value for rate, value in error_rates(heard(1)).items()}
        ledger.append(decode.fingerprint(), [report(10, **rates)])
        ledger.end_trial(spec.study, "b-000-seed1", "finished")
        rows = {row.metric: row for row in differences(spec, ledger, answer(spec, ledger))}
        assert list(rows) == ["dev_wer", "dev_cer", "dev_wer_lm", "dev_cer_lm"]
        found = [rows[metric].difference for metric in ("dev_wer", "dev_wer_lm")]
        assert [d.estimate for d in found if d] == pytest.approx([0.0, -0.3])


class TestMissing:
    def test_a_removed_trial_is_named_and_the_others_are_compared(self, study: Study) -> None:
        shutil.rmtree(study.file("better", 2, "dev").parent)
        rows = study.rows()
        assert [row.seeds for row in rows] == [(1, 2)] * 4 + [(2, 2)] * 4
        assert [row.missing for row in rows] == [("better-000-seed2",)] * 4 + [()] * 4
        assert all(row.difference for row in rows)
        assert missing_trials(rows) == ["better-000-seed2"]

    def test_without_any_hypotheses_there_is_no_difference(self, study: Study) -> None:
        shutil.rmtree(study.spec.storage / "stages")
        rows = study.rows()
        assert {row.verdict for row in rows} == {"cannot be compared: no hypotheses are left"}
        assert len(missing_trials(rows)) == 6

    @pytest.mark.parametrize("content", ["{", '{"id": "a"}\n', '{"id": "a", "errors": 1, "words": 2}\n'])
    def test_a_damaged_file_is_as_good_as_none(self, study: Study, content: str) -> None:
        study.file("alike", 1, "test").write_text(content, encoding="utf-8")
        missing = {(row.arm, row.metric): row.missing for row in study.rows() if row.missing}
        assert missing == {("alike", f"test_{rate}"): ("alike-000-seed1",) for rate in ("wer", "cer")}

    def test_other_utterances_are_not_compared(self, study: Study) -> None:
        write_hypotheses(study.file("better", 1, "dev"), heard(2, prefix="v"))
        row, *_ = study.rows()
        assert row.difference is None
        assert row.verdict == "cannot be compared: utterance 1 is v00 in result 1 and u00 in result 2"


class TestReport:
    def test_the_page_has_the_table_and_names_what_is_missing(self, study: Study) -> None:
        shutil.rmtree(study.file("better", 2, "dev").parent)
        text = write_report(study.spec, study.ledger).read_text(encoding="utf-8")
        assert "<h2>Differences</h2>" in text
        assert "Without the hypotheses of better-000-seed2" in text
        for row in study.rows():
            assert "".join(f"<td>{html.escape(cell)}</td>" for cell in difference_cells(row)) in text

    def test_json(self, study: Study, call: Call) -> None:
        study.ledger.close()
        code, out, _ = call("report", study.spec.study, "--storage", study.spec.storage, "--json")
        assert code == 0
        rows = json.loads(out)["differences"]
        assert len(rows) == 8
        assert rows[0]["verdict"] == "better"
        assert rows[0]["difference"]["estimate"] == pytest.approx(-0.4)
