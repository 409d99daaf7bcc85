"""`study errors`: what a finished trial gets wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from study.significance import Scored, rate_interval
from study.spec import StudySpec
from tests.study.builders import add_trial, open_study, spec_of, supervised
from tests.study.conftest import Call
from trainables.evaluate import write_hypotheses
from trainables.scoring import Hypothesis, error_rates
from trainables.stage import StageResult
from trainables.store import StageStore

GREEDY = [
    Hypothesis("a", "una casa blanca", "un casa banca", 2.0, "ana"),
    Hypothesis("b", "una mesa", "un mesa", 1.0, "eva"),
    Hypothesis("c", "buenos días", "buenos días", 1.5, "ana"),
    Hypothesis("d", "hasta luego", "", 1.5, "eva"),
]
DECODED = [
    Hypothesis("a", "una casa blanca", "una casa banca", 2.0, "ana"),
    *(Hypothesis(h.id, h.reference, h.reference, h.duration_seconds, h.speaker) for h in GREEDY[1:]),
]
ON_DEV = [Hypothesis("e", "dev", "def")]
SWITCHED = [Hypothesis("s", "我 要 coffee", "我 药 coffee")]
Found = dict[str, Any]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def finish(spec: StudySpec, arm: str, hypotheses: dict[str, dict[str, list[Hypothesis]]], number: int = 0) -> str:
    """Record a finished trial; the hypotheses are those of the kind of stage and the split."""
    ledger = open_study(spec)
    name, stages = add_trial(ledger, spec, arm, number)
    store = StageStore(spec.storage)
    for stage in stages:
        folder = store.partial_folder(stage)
        folder.mkdir(parents=True)
        for split, found in hypotheses.get(stage.kind, {}).items():
            write_hypotheses(folder / f"hypotheses-{split}.jsonl", found)
        store.commit(stage, StageResult(reports=(), num_parameters=1))
    ledger.end_trial(spec.study, name, "finished")
    ledger.close()
    return name


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    arms = {
        "plain": {"trial": supervised()},
        "decoded": {"trial": {**supervised(41), "language_model": {}}},
        "switched": {"trial": supervised(42)},
        "other": {"trial": supervised(43)},
    }
    spec = spec_of(tmp_path / "results", arms=arms)
    finish(spec, "plain", {"supervised": {"dev": ON_DEV, "test": GREEDY}})
    finish(spec, "decoded", {"supervised": {"dev": ON_DEV, "test": GREEDY}, "decode": {"test": DECODED}})
    finish(spec, "switched", {"supervised": {"test": SWITCHED}})
    ledger = open_study(spec)
    add_trial(ledger, spec, "other")
    ledger.close()
    return spec.storage


@pytest.fixture
def errors(storage: Path, call: Call) -> Any:
    """What the command prints as JSON."""

    def run(trial: str, *words: object) -> Found:
        code, out, err = call("errors", trial, *words, "--storage", storage, "--json")
        assert (code, err) == (0, "")
        found: Found = json.loads(out)
        return found

    return run


class TestJson:
    def test_has_rates_worst_utterances_and_confusions(self, errors: Any) -> None:
        """By hand: 2 + 1 + 0 + 2 of 3 + 2 + 2 + 2 words are wrong."""
        found = errors("plain-000")
        assert found["rates"] == error_rates(GREEDY)
        assert found["rates"]["wer"] == pytest.approx(5 / 9)
        assert [row["id"] for row in found["worst"]] == ["a", "d", "b", "c"]
        assert [(row["errors"], row["words"]) for row in found["worst"]] == [(2, 3), (2, 2), (1, 2), (0, 2)]
        first = found["worst"][0]
        assert (first["reference"], first["hypothesis"]) == ("una casa blanca", "un casa banca")
        assert (first["duration_seconds"], first["speaker"]) == (2.0, "ana")
        assert (first["character_errors"], first["characters"]) == (2, 15)
        assert found["confusions"]["words"] == [
            {"reference": "una", "hypothesis": "un", "count": 2},
            {"reference": "blanca", "hypothesis": "banca", "count": 1},
            {"reference": "hasta", "hypothesis": "", "count": 1},
            {"reference": "luego", "hypothesis": "", "count": 1},
        ]
        assert found["confusions"]["characters"][0] == {"reference": "a", "hypothesis": "", "count": 4}

    def test_has_the_intervals_of_a_bootstrap_over_speakers(self, errors: Any) -> None:
        found = errors("plain-000")
        scored = Scored(["a", "b", "c", "d"], np.array([2, 1, 0, 2]), np.array([3, 2, 2, 2]))
        expected = rate_interval([scored], ["ana", "eva", "ana", "eva"])
        assert found["intervals"]["wer"] == [expected.low, expected.high]
        assert found["intervals"]["cer"][0] < found["rates"]["cer"] < found["intervals"]["cer"][1]
        assert errors("plain-000", "--split", "dev")["intervals"] == {}  # one utterance tells nothing

    def test_is_of_the_language_model_where_there_is_one(self, errors: Any) -> None:
        assert errors("decoded-000")["rates"] == error_rates(DECODED)
        assert errors("decoded-000", "--greedy")["rates"] == error_rates(GREEDY)
        assert errors("plain-000", "--greedy") == errors("plain-000")

    def test_top_limits_each_list(self, errors: Any) -> None:
        found = errors("plain-000", "--top", 1)
        assert [row["id"] for row in found["worst"]] == ["a"]
        assert [len(pairs) for pairs in found["confusions"].values()] == [1, 1]
        assert found["rates"] == error_rates(GREEDY)

    def test_split_and_full_name(self, errors: Any) -> None:
        assert errors("race/plain-000", "--split", "dev")["rates"] == error_rates(ON_DEV)

    def test_of_code_switched_speech_has_mixed_error_rates(self, errors: Any) -> None:
        rates = errors("switched-000")["rates"]
        assert rates == error_rates(SWITCHED)
        assert rates["mer"] == pytest.approx(1 / 3)
        assert rates["pier"] == 0

    def test_keeps_letters_of_all_scripts(self, storage: Path, call: Call) -> None:
        _, out, _ = call("errors", "switched-000", "--storage", storage, "--json")
        assert "药" in out


class TestText:
    def test_shows_rates_worst_utterances_and_confusions(self, storage: Path, call: Call) -> None:
        code, out, err = call("errors", "plain-000", "--storage", storage)
        assert (code, err) == (0, "")
        lines = [line.strip() for line in out.splitlines()]
        interval = r"\([\d.]+-[\d.]+\)"
        rates = rf"test WER 55\.6% {interval}  test CER 31\.1% {interval}"
        assert re.fullmatch(rf"plain-000, greedy decoding, 4 utterances: {rates}", lines[0])
        assert any("una casa blanca" in line and "2 / 3" in line for line in lines)
        assert any("un casa banca" in line for line in lines)
        assert any("(nothing)" in line for line in lines)
        row = next(line for line in lines if "una " in line and "un " in line and "2" in line and "casa" not in line)
        assert row.strip("│ ").replace("│", " ").split() == ["una", "un", "2"]

    def test_tells_the_decoding(self, storage: Path, call: Call) -> None:
        _, out, _ = call("errors", "decoded-000", "--storage", storage)
        assert out.startswith("decoded-000, with its language model, 4 utterances: test WER 11.1%")
        _, out, _ = call("errors", "decoded-000", "--storage", storage, "--greedy")
        assert out.startswith("decoded-000, greedy decoding, 4 utterances: test WER 55.6%")

    def test_names_a_space_and_what_is_not_there(self, tmp_path: Path, call: Call) -> None:
        spec = spec_of(tmp_path / "results", arms={"one": {"trial": supervised()}})
        said = [Hypothesis("a", "a b", "ab"), Hypothesis("b", "c", "cd")]
        finish(spec, "one", {"supervised": {"test": said}})
        _, out, _ = call("errors", "one-000", "--storage", spec.storage)
        rows = [line.strip("│ ").replace("│", " ").split() for line in out.splitlines()]
        assert ["(space)", "-", "1"] in rows
        assert ["-", "d", "1"] in rows


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("plain-00", "plain-00: no such folder, and no such trial in STORAGE; did you mean 'plain-000'?"),
            ("rerun/plain-000", "rerun/plain-000: no such folder, and no such trial in STORAGE"),
            ("other-000", "race/other-000: is unfinished; only a finished trial has results"),
        ],
    )
    def test_other_names(self, storage: Path, call: Call, name: str, message: str) -> None:
        code, out, err = call("errors", name, "--storage", storage)
        assert (code, out) == (2, "")
        assert err.startswith(message.replace("STORAGE", str(storage)))
        assert len(err.splitlines()) == 1

    def test_a_name_that_two_studies_have(self, storage: Path, call: Call) -> None:
        spec = spec_of(storage, study="again", arms={"plain": {"trial": supervised(44)}})
        finish(spec, "plain", {"supervised": {"test": GREEDY}})
        code, _, err = call("errors", "plain-000", "--storage", storage)
        assert (code, err) == (2, "plain-000: several studies have it; name one of race/plain-000, again/plain-000\n")
        assert call("errors", "again/plain-000", "--storage", storage)[0] == 0

    def test_a_folder_without_a_ledger(self, tmp_path: Path, call: Call) -> None:
        code, out, err = call("errors", "plain-000", "--storage", tmp_path)
        assert (code, out) == (2, "")
        assert err.startswith(f"{tmp_path / 'ledger.db'}: no such file")
        assert list(tmp_path.iterdir()) == []

    def test_a_storage_whose_stages_are_gone(self, storage: Path, call: Call) -> None:
        shutil.rmtree(storage / "stages")
        code, out, err = call("errors", "plain-000", "--storage", storage)
        assert (code, out) == (2, "")
        assert "hypotheses-test.jsonl: no such file; was the storage folder moved without its stages?" in err

    @pytest.mark.parametrize("content", ["{", "[]\n", '{"id": "a"}\n'])
    def test_hypotheses_that_are_damaged(self, storage: Path, call: Call, content: str) -> None:
        for path in storage.glob("stages/supervised/*/hypotheses-dev.jsonl"):
            path.write_text(content)
        code, out, err = call("errors", "plain-000", "--split", "dev", "--storage", storage)
        assert (code, out) == (2, "")
        assert "hypotheses-dev.jsonl: is damaged (" in err
        assert err.endswith("; remove the stage's folder, and it is trained again\n")

    def test_a_split_that_was_not_decoded(self, storage: Path, call: Call) -> None:
        code, _, err = call("errors", "decoded-000", "--split", "dev", "--storage", storage)
        assert code == 2
        assert "hypotheses-dev.jsonl: no such file" in err

    @pytest.mark.parametrize("top", ["-1", "many"])
    def test_a_number_that_cannot_be(self, storage: Path, call: Call, top: str) -> None:
        with pytest.raises(SystemExit) as caught:
            call("errors", "plain-000", "--storage", storage, "--top", top)
        assert caught.value.code == 2
