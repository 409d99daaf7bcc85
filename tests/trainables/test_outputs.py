"""What a recogniser writes: fairseq's letters, and pieces of words."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCTC, AutoProcessor

from tests.conftest import SMALL_MODEL, SMALL_TRANSFORMER
from tests.study.conftest import Call, call
from trainables.data.audio import load_audio
from trainables.data.config import Language, LettersConfig, PiecesConfig, PromptsConfig
from trainables.data.corpus import read_corpus
from trainables.data.pieces import Pieces
from trainables.data.symbols import Symbols, made_with, symbols_of
from trainables.data.text import BLANK, LETTERS, Characters, Letters
from trainables.loop import run_stage
from trainables.recogniser import Recogniser
from trainables.stage import Stage
from trainables.store import StageStore
from trainables.trial import TrialConfig, problems, stages_of

__all__ = ["call"]  # the fixture of the command line's tests

Settings = dict[str, Any]
BRIEF: Settings = {"steps": 2, "learning_rate": 1e-5, "batch_seconds": 6, "report_every": 1, "evaluate_every": 2}
PIECES: Settings = {"kind": "pieces", "vocabulary_size": 60}


def train_texts(language: Language) -> list[str]:
    return [u.text or "" for u in read_corpus(PromptsConfig(language=language)).train]


def trial_of(outputs: Settings, language: Language = "es", **changes: Any) -> TrialConfig:
    settings = {
        "corpus": {"kind": "prompts", "language": language, "labelled_minutes": 1},
        "model": SMALL_MODEL,
        "regime": {"kind": "supervised", "train": BRIEF},
        "outputs": outputs,
    }
    return TrialConfig.model_validate({**settings, **changes})


def trained(trial: TrialConfig, storage: Path) -> Stage:
    """The last stage, trained."""
    for stage in stages_of(trial):
        run_stage(stage, StageStore(storage), lambda report: None)
    return stage


def symbols_of_stage(stage: Stage) -> Symbols:
    return symbols_of((u.text or "" for u in read_corpus(stage.corpus).train), stage.outputs)


# The order counts: with these indices published heads were trained (vocab.json of facebook/wav2vec2-base-960h on the
# Hugging Face hub).
FAIRSEQ = dict(zip("|ETAONIHSRDLUMWCFGYPBVK'XJQZ", range(4, 32), strict=True))


class TestLetters:
    def test_are_the_32_of_fairseq(self) -> None:
        letters = Letters()
        assert len(letters) == len(LETTERS) == 32
        assert letters.boundary == 4
        for letter, index in FAIRSEQ.items():
            assert letters.symbols[index] == letter.replace("|", " ").lower()
        assert letters.symbols[1:4] == ("", "", "")
        assert symbols_of(["whatever"], LettersConfig()).symbols == LETTERS

    @given(st.text("abcdefghijklmnopqrstuvwxyz' "))
    def test_every_text_ends_with_a_boundary_and_comes_back(self, text: str) -> None:
        letters = Letters()
        indices = letters.encode(text)
        assert letters.decode(indices) == f"{text} "
        assert indices[-1] == letters.boundary
        assert not {BLANK, 1, 2, 3} & set(indices)

    def test_transcripts_of_real_english_come_back(self) -> None:
        letters = Letters()
        for text in train_texts("en"):
            assert letters.decode(letters.encode(text)).rstrip() == "".join(c for c in text if c in LETTERS)

    def test_a_text_by_hand(self) -> None:
        assert Letters().encode("it's né") == [10, 6, 27, 12, 4, 9, 4]

    def test_russian_is_refused_with_its_characters(self) -> None:
        ((field, message),) = problems(trial_of({"kind": "letters"}, "ru"))
        assert field == "corpus"
        assert message.startswith("outputs: letters are a-z and the apostrophe; ")
        letters = {c for text in train_texts("ru") for c in text} - set(LETTERS)
        named = message.split("(")[1].split(")")[0].split()
        assert len(named) == 10
        assert set(named) <= letters
        assert "kind: characters" in message

    @pytest.mark.parametrize("language", ["en", "it"])
    def test_languages_in_these_letters_are_accepted(self, language: Language) -> None:
        """Italian prompts have accents, fewer than 1 % of their characters."""
        share = sum(c not in LETTERS for text in train_texts(language) for c in text) / sum(
            map(len, train_texts(language))
        )
        assert share < 0.01
        assert list(problems(trial_of({"kind": "letters"}, language))) == []


class TestPieces:
    @pytest.mark.parametrize("language", get_args(Language))
    def test_train_transcripts_come_back(self, language: Language) -> None:
        texts = train_texts(language)
        pieces = Pieces(texts, 200)
        assert len(pieces) == 200
        assert pieces.symbols[BLANK] == "<blank>"
        for text in texts:
            indices = pieces.encode(text)
            assert BLANK not in indices
            assert pieces.decode(indices).strip() == text

    @pytest.mark.parametrize("size", [40, 100, 472, 2000])
    def test_are_at_most_as_many_as_asked(self, size: int) -> None:
        pieces = Pieces(train_texts("es"), size)
        assert len(pieces) == len(set(pieces.symbols)) <= size
        assert len(Pieces(["a"], size)) < 10

    def test_fewer_pieces_are_longer_texts(self) -> None:
        texts = train_texts("es")
        made = [Pieces(texts, size) for size in (40, 100, 300)]
        lengths = [sum(len(pieces.encode(text)) for text in texts) for pieces in made]
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[-1] < lengths[0] / 2
        assert lengths[0] < sum(map(len, texts)) + 2 * len(texts)

    def test_are_what_sentencepiece_reads_and_writes(self) -> None:
        """Blank and boundary aside, indices and texts are its own."""
        pieces, processor = (made := Pieces(train_texts("fr"), 150)), made._processor
        for u in read_corpus(PromptsConfig(language="fr")).dev:
            indices = pieces.encode(u.text or "")
            assert indices == [i for i in processor.encode(u.text or "") if i != processor.unk_id()]
            assert pieces.decode(indices).strip() == processor.decode(indices)
        assert processor.unk_id() == BLANK

    def test_characters_that_train_lacks_are_left_out(self) -> None:
        pieces = Pieces(["hola amigo", "hola"], 30)
        assert pieces.decode(pieces.encode("hoЖla")).replace(" ", "") == "hola"
        assert pieces.encode("ЖЖ") in ([], pieces.encode(""), [pieces.symbols.index(" ")])

    def test_words_begin_with_a_space_and_have_none_inside(self) -> None:
        pieces = Pieces(train_texts("es"), 300)
        assert pieces.boundary is None
        assert not any("\u2581" in symbol or " " in symbol[1:] for symbol in pieces.symbols)
        assert sum(symbol.startswith(" ") for symbol in pieces.symbols) > 50

    def test_are_the_same_in_another_process(self) -> None:
        """Whatever the seed of its hashes."""
        program = """
import json
from trainables.data.config import PromptsConfig
from trainables.data.corpus import read_corpus
from trainables.data.pieces import Pieces
print(json.dumps(Pieces((u.text for u in read_corpus(PromptsConfig(language="es")).train), 100).symbols))
"""
        here = list(Pieces(iter(train_texts("es")), 100).symbols)
        for seed in ("1", "2"):
            done = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, check=True, env={"PYTHONHASHSEED": seed}
            )
            assert json.loads(done.stdout) == here

    def test_fewer_than_there_are_characters_are_refused_before_training(self) -> None:
        """SentencePiece needs each character, the mark of a word's start, and its unknown piece."""
        found = list(problems(trial_of({"kind": "pieces", "vocabulary_size": 9})))
        assert len(found) == 1
        assert "vocabulary_size" in found[0][1]

    def test_with_fewer_than_there_are_characters_the_error_is_a_value_error(self) -> None:
        with pytest.raises(ValueError, match="9"):
            Pieces(train_texts("es"), 9)


class TestTraining:
    @pytest.mark.parametrize("outputs", [PIECES, {"kind": "letters"}], ids=["pieces", "letters"])
    def test_two_steps_and_a_transcription(self, outputs: Settings, tmp_path: Path, call: Call) -> None:
        language: Language = "en" if outputs["kind"] == "letters" else "es"
        stage = trained(trial_of(outputs, language), tmp_path)
        reports = StageStore(tmp_path).result(stage)
        assert reports
        assert all(0 < report.metrics.get("ctc", 1) < 1e4 for report in reports.reports)
        folder = StageStore(tmp_path).folder(stage)
        symbols = symbols_of_stage(stage)
        assert json.loads((folder / "symbols.json").read_text("utf-8"))["symbols"] == list(symbols.symbols)
        audio = [u.path for u in read_corpus(stage.corpus).dev[:4]]
        code, out, _ = call("transcribe", folder, *audio, "--json")
        texts = [json.loads(line)["text"] for line in out.splitlines()]
        assert code == 0
        assert all(texts)
        assert any(" " in text for text in texts) or outputs["kind"] == "letters"  # which hardly trained writes few
        assert not any("\u2581" in text or text != text.strip() for text in texts)

    def test_pre_training_is_shared_by_trials_with_other_outputs(self) -> None:
        regime = {"kind": "pretrain_finetune", "pretrain": {"steps": 2}, "finetune": BRIEF}
        trials = [
            trial_of(outputs, "en", regime=regime)
            for outputs in ({"kind": "characters"}, {"kind": "letters"}, PIECES, {**PIECES, "vocabulary_size": 61})
        ]
        chains = [stages_of(trial) for trial in trials]
        assert len({pretrain.fingerprint() for pretrain, _ in chains}) == 1
        assert len({finetune.fingerprint() for _, finetune in chains}) == 4

    def test_the_version_of_sentencepiece_is_part_of_a_stages_identity(self) -> None:
        (stage,) = stages_of(trial_of(PIECES))
        assert stage.outputs_made_with == made_with(PiecesConfig()) is not None
        assert stage.with_(outputs_made_with="sentencepiece 0.0").fingerprint() != stage.fingerprint()
        assert stages_of(trial_of({"kind": "letters"}))[0].outputs_made_with is None


class TestExport:
    @pytest.mark.parametrize("outputs", [{"kind": "letters"}, PIECES], ids=["letters", "pieces"])
    def test_transformers_decodes_the_same_text(self, outputs: Settings, tmp_path: Path, call: Call) -> None:
        stage = trained(trial_of(outputs, "en", model=SMALL_TRANSFORMER), tmp_path)
        folder = StageStore(tmp_path).folder(stage)
        assert call("export", folder, tmp_path / "exported")[0] == 0
        model = AutoModelForCTC.from_pretrained(tmp_path / "exported").eval()
        processor = AutoProcessor.from_pretrained(tmp_path / "exported")  # type: ignore[no-untyped-call]
        symbols = symbols_of_stage(stage)
        assert isinstance(symbols, Characters)
        assert (model.config.vocab_size, model.config.pad_token_id) == (len(symbols), BLANK)
        corpus = read_corpus(stage.corpus)
        for utterance in (*corpus.dev[:5], *corpus.train[:5]):
            path = [i for index in symbols.encode(utterance.text or "") for i in (index, index, BLANK)]
            assert processor.batch_decode([path]) == [symbols.decode(symbols.encode(utterance.text or "")).strip()]
        assert Recogniser.open(tmp_path / "exported").symbols.symbols[1:] == symbols.symbols[1:]
        audio = corpus.dev[0].path
        inputs = processor(load_audio(audio).astype(np.float32), sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            best = model(**inputs).logits[0].argmax(1).tolist()
        ours = Recogniser.open(folder)
        assert symbols.decode([i for i, _ in groupby(best)]).strip() == ours.transcribe(audio)
