"""Decoding with a language model as a stage: one real training, shared by trials with several language models."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCTC

from study.spec import StudySpec, read_spec
from study.trained import decoded_folder, trained_folder
from tests.conftest import SMALL_TRANSFORMER, small_trial
from tests.study.builders import add_trial, open_study, spec_of, write_sweep
from tests.study.conftest import Call, call
from trainables.data.config import PromptsConfig
from trainables.data.corpus import PROMPTS, CorpusError, read_corpus
from trainables.decoding.config import LanguageModelConfig
from trainables.decoding.ngram import estimate
from trainables.device import hardware_name
from trainables.evaluate import read_hypotheses
from trainables.loop import run_stage
from trainables.recogniser import Recogniser
from trainables.scoring import error_rates
from trainables.settings_file import SettingsError
from trainables.stage import Report, Stage
from trainables.store import StageStore
from trainables.trial import TrialConfig, stages_of

__all__ = ["call"]  # the fixture of the command line's tests

SPEAKERS = ("one", "two", "three")
TRAIN = {"steps": 280, "batch_seconds": 16, "learning_rate": 3e-3, "evaluate_every": 140, "report_every": 140}
BRIEF = {"steps": 2, "batch_seconds": 6, "learning_rate": 1e-4, "evaluate_every": 2, "report_every": 1}
LANGUAGE_MODELS: dict[str, dict[str, Any] | None] = {
    "greedy": None,
    "words": {},
    "light": {"weight": 0.5, "order": 2},
    "symbols": {"unit": "symbols", "order": 6, "weight": 1.5},
}


@pytest.fixture(scope="module")
def spanish(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All Spanish prompts as a folder, in which speakers are named (at random: one person spoke them all)."""
    root = tmp_path_factory.mktemp("spanish")
    (root / "audio").symlink_to(PROMPTS / "es" / "audio")
    corpus = read_corpus(PromptsConfig(language="es"))
    with (root / "manifest.tsv").open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows.writerow(["id", "path", "duration_seconds", "text", "split", "speaker"])
        for i, u in enumerate((*corpus.train, *corpus.dev, *corpus.test)):
            path = u.path.relative_to(PROMPTS / "es")
            rows.writerow([u.id, path, u.duration_seconds, u.text, u.split, SPEAKERS[i % len(SPEAKERS)]])
    return root


def trial_of(root: Path, language_model: dict[str, Any] | None, train: dict[str, Any] = TRAIN) -> dict[str, Any]:
    return {
        "corpus": {"kind": "folder", "root": str(root)},
        "model": {"preset": "compact_cnn_gru"},
        "regime": {"kind": "supervised", "train": train},
        **({} if language_model is None else {"language_model": language_model}),
    }


def stages(root: Path, language_model: dict[str, Any] | None) -> Sequence[Stage]:
    return stages_of(TrialConfig.model_validate(trial_of(root, language_model)))


class Studied:
    """A study whose arms differ in the language model alone."""

    def __init__(self, root: Path, corpus: Path) -> None:
        self.root, self.corpus = root, corpus
        arms = {arm: {"trial": trial_of(corpus, lm)} for arm, lm in LANGUAGE_MODELS.items()}
        self.spec: StudySpec = spec_of(root, arms=arms)
        self.ledger = open_study(self.spec)
        self.stages: dict[str, Sequence[Stage]] = {}
        self.trained_at: set[int] = set()
        for arm in LANGUAGE_MODELS:
            name, self.stages[arm] = add_trial(self.ledger, self.spec, arm)
            for stage in self.stages[arm]:
                result = run_stage(stage, StageStore(root), lambda report: None)
                self.ledger.append(stage.fingerprint(), result.reports)
            self.trained_at.add(StageStore(root).folder(self.stages[arm][0]).joinpath("DONE").stat().st_mtime_ns)
            self.ledger.end_trial(self.spec.study, name, "finished")

    def final(self, arm: str) -> dict[str, float]:
        return self.ledger.final(self.spec.study, f"{arm}-000")

    def hypotheses(self, stage: Stage, split: str) -> Path:
        return StageStore(self.root).folder(stage) / f"hypotheses-{split}.jsonl"


@pytest.fixture(scope="module")
def studied(spanish: Path, tmp_path_factory: pytest.TempPathFactory) -> Studied:
    torch.set_num_threads(1)
    return Studied(tmp_path_factory.mktemp("results"), spanish)


@pytest.mark.slow
@pytest.mark.long
class TestTrained:
    @pytest.mark.parametrize("split", ["dev", "test"])
    def test_the_language_model_beats_greedy_decoding(self, studied: Studied, split: str) -> None:
        """Measured: dev WER 84.6 % and 61.5 %, test WER 86.2 % and 51.5 %."""
        rates = studied.final("words")
        assert rates[f"{split}_wer"] < 0.95
        assert rates[f"{split}_wer_lm"] < rates[f"{split}_wer"] - 0.1

    def test_the_symbols_of_the_train_transcripts_help_too(self, studied: Studied) -> None:
        """Measured: dev WER 84.6 % and 60.5 %, test WER 86.2 % and 57.7 %."""
        rates = studied.final("symbols")
        for split in ("dev", "test"):
            assert rates[f"{split}_wer_lm"] < rates[f"{split}_wer"] - 0.1

    @pytest.mark.parametrize("arm", [arm for arm, lm in LANGUAGE_MODELS.items() if lm is not None])
    @pytest.mark.parametrize("split", ["dev", "test"])
    def test_files_of_hypotheses_give_the_reported_rates(self, studied: Studied, arm: str, split: str) -> None:
        trained, decoded = studied.stages[arm]
        utterances = {u.id: u for u in getattr(read_corpus(trained.corpus), split)}
        for stage, ending in ((trained, ""), (decoded, "_lm")):
            path = studied.hypotheses(stage, split)
            rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            assert [row["id"] for row in rows] == sorted(utterances)
            for row in rows:
                utterance = utterances[row["id"]]
                assert row["reference"] == utterance.text
                assert row["words"] == len(row["reference"].split())
                assert row["characters"] == len(row["reference"])
                assert (row["duration_seconds"], row["speaker"]) == (utterance.duration_seconds, utterance.speaker)
            assert {row["speaker"] for row in rows} == set(SPEAKERS)
            sums = {
                name: sum(row[name] for row in rows) for name in ("errors", "words", "character_errors", "characters")
            }
            rates = studied.final(arm)
            assert rates[f"{split}_wer{ending}"] == pytest.approx(sums["errors"] / sums["words"])
            assert rates[f"{split}_cer{ending}"] == pytest.approx(sums["character_errors"] / sums["characters"])
            assert error_rates(read_hypotheses(path))["wer"] == pytest.approx(rates[f"{split}_wer{ending}"])

    def test_words_are_those_of_the_train_transcripts(self, studied: Studied) -> None:
        known = {word for u in read_corpus(studied.stages["words"][0].corpus).train for word in (u.text or "").split()}
        found = read_hypotheses(studied.hypotheses(studied.stages["words"][-1], "test"))
        assert {word for h in found for word in h.hypothesis.split()} <= known

    def test_it_is_trained_once(self, studied: Studied) -> None:
        assert len({chain[0].fingerprint() for chain in studied.stages.values()}) == 1
        assert len({chain[-1].fingerprint() for chain in studied.stages.values()}) == len(LANGUAGE_MODELS)
        assert len(studied.trained_at) == 1
        folders = [path.name for path in (studied.root / "stages").iterdir()]
        assert sorted(folders) == ["decode", "supervised"]

    def test_final_results_have_both_decodings(self, studied: Studied) -> None:
        greedy = {f"{split}_{rate}" for split in ("dev", "test") for rate in ("wer", "cer")}
        with_it = greedy | {f"{name}_lm" for name in greedy}
        without, words, light = (studied.final(arm) for arm in ("greedy", "words", "light"))
        assert greedy <= without.keys()
        assert not any(name.endswith("_lm") for name in without)
        assert with_it <= words.keys()
        assert {name: words[name] for name in greedy} == {name: without[name] for name in greedy}
        assert words["dev_cer_lm"] != light["dev_cer_lm"]
        trials = studied.ledger.trials(studied.spec.study)
        ranked = studied.ledger.ranked([t for t in trials if t.arm in ("words", "light")], "dev_wer_lm")
        assert [t.arm for t in ranked] == sorted(("words", "light"), key=lambda arm: studied.final(arm)["dev_wer_lm"])

    def test_decoding_again_writes_the_same(self, studied: Studied, tmp_path: Path) -> None:
        """With several processes, too."""
        trained, decoded = studied.stages["words"]
        store = StageStore(tmp_path)
        shutil.copytree(StageStore(studied.root).folder(trained), store.folder(trained))
        reports: list[Report] = []
        torch.set_num_threads(2)
        try:
            run_stage(decoded, store, reports.append)
        finally:
            torch.set_num_threads(1)
        assert [report.step for report in reports] == [0]
        assert reports[0].audio_seconds == 0
        assert reports[0].device == hardware_name(torch.device("cpu"))
        for split in ("dev", "test"):
            again = store.folder(decoded) / f"hypotheses-{split}.jsonl"
            assert again.read_bytes() == studied.hypotheses(decoded, split).read_bytes()
        assert not store.partial_folder(decoded).exists()

    def test_transcribe_uses_the_trained_stage(self, studied: Studied, call: Call) -> None:
        trained = studied.stages["words"][0]
        audio = [u.path for u in read_corpus(trained.corpus).test[:3]]
        code, out, _ = call("transcribe", "words-000", *audio, "--storage", studied.root)
        recogniser = Recogniser.open(StageStore(studied.root).folder(trained))
        assert code == 0
        assert out.splitlines() == [f"{path}\t{recogniser.transcribe(path)}" for path in audio]

    def test_its_folders_are_found_by_name(self, studied: Studied) -> None:
        store = StageStore(studied.root)
        for arm, (trained, *decoded) in studied.stages.items():
            assert trained_folder(studied.ledger, studied.root, f"{arm}-000") == store.folder(trained)
            folder = store.folder(decoded[0]) if decoded else None
            assert decoded_folder(studied.ledger, studied.root, f"{arm}-000") == folder


def test_export_of_a_trial_with_a_language_model_is_of_its_trained_stage(
    small_corpus: Path, tmp_path: Path, call: Call
) -> None:
    regime = {"kind": "supervised", "train": BRIEF}
    trial = small_trial(small_corpus, regime, model=SMALL_TRANSFORMER, language_model={})
    spec = spec_of(tmp_path / "results", arms={"one": {"trial": trial}})
    ledger = open_study(spec)
    name, found = add_trial(ledger, spec, "one")
    for stage in found:
        run_stage(stage, StageStore(spec.storage), lambda report: None)
    ledger.end_trial(spec.study, name, "finished")
    assert [stage.kind for stage in found] == ["supervised", "decode"]
    code, out, _ = call("export", name, tmp_path / "exported", "--storage", spec.storage)
    assert (code, out) == (0, f"{tmp_path / 'exported'}\n")
    assert AutoModelForCTC.from_pretrained(tmp_path / "exported").config.hidden_size == SMALL_TRANSFORMER["width"]
    audio = read_corpus(found[0].corpus).dev[0].path
    ours = Recogniser.open(StageStore(spec.storage).folder(found[0]))
    assert Recogniser.open(tmp_path / "exported").transcribe(audio) == ours.transcribe(audio)


class TestIdentity:
    @pytest.fixture
    def arpa(self, tmp_path: Path) -> Path:
        estimate([["hola", "amigo"]], 2, tmp_path / "lm.arpa")
        return tmp_path / "lm.arpa"

    def fingerprints(self, corpus: Path, **language_model: Any) -> list[str]:
        return [stage.fingerprint() for stage in stages(corpus, language_model)]

    def test_the_content_of_the_file_changes_decoding_alone(self, small_corpus: Path, arpa: Path) -> None:
        before = self.fingerprints(small_corpus, path=arpa)
        estimate([["hola", "amiga"]], 2, arpa)
        after = self.fingerprints(small_corpus, path=arpa)
        assert after[0] == before[0] == stages(small_corpus, None)[0].fingerprint()
        assert after[1] != before[1]

    def test_its_place_changes_nothing(self, small_corpus: Path, arpa: Path, tmp_path: Path) -> None:
        before = self.fingerprints(small_corpus, path=arpa)
        (tmp_path / "elsewhere").mkdir()
        assert self.fingerprints(small_corpus, path=arpa.rename(tmp_path / "elsewhere" / "other.arpa")) == before

    def test_the_lexicon_counts_by_its_content_too(self, small_corpus: Path, arpa: Path, tmp_path: Path) -> None:
        lexicon = tmp_path / "lexicon"
        lexicon.write_text("hola\n")
        without, one = (
            self.fingerprints(small_corpus, path=arpa),
            self.fingerprints(small_corpus, path=arpa, lexicon=lexicon),
        )
        lexicon.write_text("amigo\n")
        other = self.fingerprints(small_corpus, path=arpa, lexicon=lexicon)
        assert len({without[1], one[1], other[1]}) == 3
        assert without[0] == one[0] == other[0]

    @pytest.mark.parametrize(
        "changes",
        [{"weight": 1.0}, {"word_score": 0.5}, {"order": 4}, {"beam": 20}, {"unit": "symbols"}, {"beam_symbols": 9}],
    )
    def test_every_setting_changes_decoding_alone(self, small_corpus: Path, changes: dict[str, Any]) -> None:
        before, after = self.fingerprints(small_corpus), self.fingerprints(small_corpus, **changes)
        assert before[0] == after[0]
        assert before[1] != after[1]

    def test_a_file_that_changed_after_planning_is_refused(
        self, small_corpus: Path, arpa: Path, tmp_path: Path
    ) -> None:
        trial = small_trial(small_corpus, {"kind": "supervised", "train": BRIEF}, language_model={"path": str(arpa)})
        trained, decoded = stages_of(TrialConfig.model_validate(trial))
        store = StageStore(tmp_path / "results")
        run_stage(trained, store, lambda report: None)
        estimate([["hola"]], 2, arpa)
        with pytest.raises(CorpusError, match=rf"^language model: {arpa} is not the one that {decoded.name()} was"):
            run_stage(decoded, store, lambda report: None)
        assert store.result(decoded) is None

    def test_a_relative_path_becomes_absolute(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """For workers have other working directories."""
        monkeypatch.delenv("CORPORA", raising=False)
        monkeypatch.chdir(tmp_path)
        assert LanguageModelConfig(path=Path("lm.arpa")).path == tmp_path / "lm.arpa"
        monkeypatch.setenv("CORPORA", str(tmp_path / "corpora"))
        assert LanguageModelConfig(path=Path("lm.arpa")).path == tmp_path / "corpora" / "lm.arpa"


class TestDecoding:
    """Of a model that has hardly been trained: only whether it can be decoded matters."""

    def run(self, corpus: Path, storage: Path, **language_model: Any) -> Report:
        trial = small_trial(corpus, {"kind": "supervised", "train": BRIEF}, language_model=language_model)
        store = StageStore(storage)
        return [run_stage(s, store, lambda report: None) for s in stages_of(TrialConfig.model_validate(trial))][-1].last

    def test_a_lexicon_without_a_word_that_can_be_written_is_refused(self, small_corpus: Path, tmp_path: Path) -> None:
        (tmp_path / "lexicon").write_text("привет\n你好\n", encoding="utf-8")
        with pytest.raises(CorpusError, match="language model: the lexicon has no word that the recogniser can write"):
            self.run(small_corpus, tmp_path / "results", lexicon=str(tmp_path / "lexicon"))

    @pytest.mark.parametrize(
        "content",
        [b"", b"hola\namigo\n", b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(200)],
        ids=["empty", "text", "binary"],
    )
    def test_a_file_that_kenlm_cannot_read_is_refused_by_name(
        self, small_corpus: Path, tmp_path: Path, content: bytes
    ) -> None:
        """With a lexicon beside it nothing else reads it."""
        (tmp_path / "lexicon").write_text("hola\n")
        (tmp_path / "lm").write_bytes(content)
        with pytest.raises(CorpusError, match=f"{tmp_path / 'lm'}: .*KenLM"):
            self.run(small_corpus, tmp_path / "results", path=str(tmp_path / "lm"), lexicon=str(tmp_path / "lexicon"))

    def test_a_lexicon_may_have_spellings_and_empty_lines(self, small_corpus: Path, tmp_path: Path) -> None:
        """As wav2letter's: the word, then what it is written with."""
        (tmp_path / "lexicon").write_text("hola h o l a |\n\nagente\ta g e n t e |\n", encoding="utf-8")
        last = self.run(small_corpus, tmp_path / "results", lexicon=str(tmp_path / "lexicon"))
        assert all(math.isfinite(last.metrics[f"{split}_wer_lm"]) for split in ("dev", "test"))


SWEEP = """\
study: decoding
question: Does it help?
trial:
  corpus: {kind: folder, root: CORPUS}
  language_model: SETTINGS
arms:
  one:
    trial:
      regime: {kind: supervised, train: {steps: 10}}
search: {trials: 1, metric: SEARCHED}
convergence: {metric: CONVERGED, target: 0.4}
"""


class TestRefused:
    """Before anything starts, with the line of the file."""

    def errors(
        self, folder: Path, corpus: Path, settings: str, searched: str = "dev_wer", converged: str = "dev_wer"
    ) -> list[str]:
        path = folder / "sweep.yaml"
        values = {"CORPUS": str(corpus), "SETTINGS": settings, "SEARCHED": searched, "CONVERGED": converged}
        text = SWEEP
        for name, value in values.items():
            text = text.replace(name, value)
        path.write_text(text, encoding="utf-8")
        try:
            read_spec(path)
        except SettingsError as error:
            return [line.removeprefix(f"{path}:") for line in error.errors]
        return []

    def test_the_sweep_of_these_tests_is_valid(self, tmp_path: Path, small_corpus: Path) -> None:
        assert self.errors(tmp_path, small_corpus, "null") == []
        assert self.errors(tmp_path, small_corpus, "{weight: 1}", "dev_wer_lm") == []

    def test_a_missing_file(self, tmp_path: Path, small_corpus: Path) -> None:
        settings = "{path: /no/such.arpa, lexicon: /no/lexicon}"
        found = self.errors(tmp_path, small_corpus, settings)
        assert len(found) == 2
        assert found[0].startswith("5:3: trial.language_model: /no/such.arpa: no such file (path")
        assert found[1].startswith("5:3: trial.language_model: /no/lexicon: no such file (lexicon")

    def test_a_kenlm_binary_without_its_words(self, tmp_path: Path, small_corpus: Path) -> None:
        (tmp_path / "lm.bin").write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0")
        (found,) = self.errors(tmp_path, small_corpus, f"{{path: {tmp_path / 'lm.bin'}}}")
        assert found.startswith(f"5:3: trial.language_model: {tmp_path / 'lm.bin'}: a KenLM binary does not tell its")
        assert "name a lexicon" in found
        (tmp_path / "lexicon").write_text("hola\n")
        settings = f"{{path: {tmp_path / 'lm.bin'}, lexicon: {tmp_path / 'lexicon'}}}"
        assert self.errors(tmp_path, small_corpus, settings) == []
        assert self.errors(tmp_path, small_corpus, f"{{path: {tmp_path / 'lm.bin'}, unit: symbols}}") == []

    def test_symbols_with_a_lexicon(self, tmp_path: Path, small_corpus: Path) -> None:
        (found,) = self.errors(tmp_path, small_corpus, "{unit: symbols, lexicon: /some/lexicon}")
        assert found.startswith("5:3: trial.language_model: unit: symbols knows no words; leave lexicon and word_score")

    def test_a_metric_of_a_language_model_that_is_not_there(self, tmp_path: Path, small_corpus: Path) -> None:
        (found,) = self.errors(tmp_path, small_corpus, "null", "dev_wer_lm")
        assert found.startswith("10:21: search.metric: arm 'one': dev_wer_lm needs a language model")
        assert found.endswith("give the trial its `language_model`")

    def test_a_metric_of_decoding_has_no_curve(self, tmp_path: Path, small_corpus: Path) -> None:
        """Decoding happens once, after training."""
        (found,) = self.errors(tmp_path, small_corpus, "{}", converged="dev_wer_lm")
        assert found.startswith("11:15: convergence.metric: input should be 'dev_wer', 'dev_cer' or 'dev_mer'")

    @pytest.mark.parametrize("metric", ["dev_mer", "dev_mer_lm"])
    def test_mixed_error_rate_of_speech_in_one_script(self, tmp_path: Path, small_corpus: Path, metric: str) -> None:
        (found,) = self.errors(tmp_path, small_corpus, "{}", metric)
        assert found.startswith(f"10:21: search.metric: arm 'one': there is no {metric} on a dev split in one script")
        assert found.endswith("take dev_wer")

    def test_the_command_says_so_and_starts_nothing(self, tmp_path: Path, small_corpus: Path, call: Call) -> None:
        """But a study can be planned before the file is there."""
        trial = small_trial(small_corpus, {"kind": "supervised", "train": BRIEF}, language_model={"path": "/no/such"})
        path = write_sweep(tmp_path / "sweep.yaml", arms={"one": {"trial": trial}})
        code, out, err = call("run", path)
        assert (code, out) == (2, "")
        assert "arms.one.trial.language_model: /no/such: no such file" in err
        assert not (tmp_path / "results").exists()
        assert call("plan", path)[0] == 0


def test_a_head_that_writes_other_symbols_is_refused(small_corpus: Path, tmp_path: Path) -> None:
    """As when the libraries that make them are others on this machine."""
    trial = small_trial(small_corpus, {"kind": "supervised", "train": BRIEF}, language_model={"unit": "symbols"})
    trained, decoded = stages_of(TrialConfig.model_validate(trial))
    store = StageStore(tmp_path)
    run_stage(trained, store, lambda report: None)
    path = store.folder(trained) / "symbols.json"
    symbols = json.loads(path.read_text("utf-8"))["symbols"]
    path.write_text(json.dumps({"symbols": [symbols[0], *reversed(symbols[1:])]}), encoding="utf-8")
    with pytest.raises(CorpusError, match="not the symbols"):
        run_stage(decoded, store, lambda report: None)


def test_the_lease_of_a_dead_process_keeps_nobody_from_running_the_stage(small_corpus: Path, tmp_path: Path) -> None:
    (stage,) = stages_of(TrialConfig.model_validate(small_trial(small_corpus, {"kind": "supervised", "train": BRIEF})))
    store = StageStore(tmp_path)
    code = (
        "import sys, pathlib, os; from trainables.lease import Lease;"
        "held = Lease(pathlib.Path(sys.argv[1])).hold(); held.__enter__(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(store.lease(stage).path)], check=True)
    assert store.lease(stage).path.is_file()
    assert run_stage(stage, store, lambda report: None).last.step == stage.steps


def test_searches_of_a_language_model_estimate_it_once(small_corpus: Path, tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    regime = {"kind": "supervised", "train": BRIEF}
    for weight in (0.5, 1.0):
        trial = small_trial(small_corpus, regime, language_model={"unit": "symbols", "weight": weight})
        for stage in stages_of(TrialConfig.model_validate(trial)):
            run_stage(stage, store, lambda report: None)
    assert len(list(tmp_path.rglob("*.arpa"))) == 1
