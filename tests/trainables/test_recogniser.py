"""From an audio file to text, and from a trained stage to a folder that transformers opens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional
from transformers import AutoModelForCTC, AutoProcessor

from tests.conftest import SMALL_MODEL, SMALL_TRANSFORMER, pretrain_finetune, small_trial
from tests.trainables.builders import corpus_of
from tests.trainables.test_checkpoints import save
from tests.trainables.test_loop import run
from trainables.data.audio import load_audio
from trainables.data.corpus import CorpusError
from trainables.models.checkpoint_files import CheckpointError
from trainables.models.checkpoints import read_ctc_model, write_huggingface
from trainables.recogniser import Recogniser
from trainables.store import StageStore
from trainables.trial import TrialConfig, stages_of

Settings = dict[str, Any]

# Group norm over each utterance's own frames: else an utterance's text depends on the padding beside it.
COMPACT: Settings = {"kind": "wave", "channels": 8, "compact": True, "masked_statistics": True}
TRANSFORMER: Settings = {**SMALL_TRANSFORMER, "extractor": COMPACT}
FILTER_BANK: Settings = {"kind": "filter_bank", "channels": 4, "mel_bins": 16, "width": 32}
DISENTANGLED: Settings = {"kind": "disentangled", "buckets": 8, "max_distance": 16}
LAYER_NORM: Settings = {"kind": "wave", "channels": 24, "norm": "layer"}
MODELS: dict[str, Settings] = {
    "sew": TRANSFORMER,
    "sew_d": {**TRANSFORMER, "attention": DISENTANGLED},
    "wav2vec2": {**TRANSFORMER, "extractor": LAYER_NORM, "squeeze": 1, "norm_first": True, "normalise_waveform": True},
    "filter bank": {**TRANSFORMER, "extractor": FILTER_BANK},
    "cnn_gru": {"kind": "cnn_gru", "mel_bins": 16, "channels": 8, "cnn_layers": 1, "gru_layers": 2, "gru_width": 16},
    "compact_cnn_gru": SMALL_MODEL,
}
# transformers has no masked statistics.
EXPORTED: dict[str, Settings] = {
    **{name: MODELS[name] | {"extractor": {**COMPACT, "masked_statistics": False}} for name in ("sew", "sew_d")},
    "wav2vec2": MODELS["wav2vec2"],
}


SHORT: Settings = {"steps": 3, "learning_rate": 1e-4, "batch_seconds": 6, "report_every": 1, "evaluate_every": 3}


def trained(corpus: Path, folder: Path, model: Settings) -> Path:
    """The folder of a stage so short that its model still writes many symbols: nearly the random ones of its start."""
    train = SHORT
    trial = TrialConfig.model_validate(small_trial(corpus, {"kind": "supervised", "train": train}, model=model))
    (stage,), store = stages_of(trial), StageStore(folder)
    run(stage, store)
    return store.folder(stage)


@pytest.fixture(scope="module")
def stage_folder(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(small_corpus, tmp_path_factory.mktemp("stage"), TRANSFORMER)


@pytest.fixture(scope="module")
def recogniser(stage_folder: Path) -> Recogniser:
    return Recogniser.open(stage_folder)


@pytest.fixture(scope="module")
def speech(small_corpus: Path) -> np.ndarray:
    return load_audio(corpus_of(small_corpus).dev[1].path).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate_hz: int = 16_000) -> Path:
    soundfile.write(path, samples, rate_hz, subtype="FLOAT")
    return path


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_text_of_a_file_is_that_of_the_evaluation(small_corpus: Path, tmp_path: Path, model: Settings) -> None:
    folder = trained(small_corpus, tmp_path, model)
    recogniser, corpus = Recogniser.open(folder), corpus_of(small_corpus)
    for split in ("dev", "test"):
        lines = (folder / f"hypotheses-{split}.jsonl").read_text(encoding="utf-8").splitlines()
        expected = {line["id"]: line["hypothesis"] for line in map(json.loads, lines)}
        assert len(set(expected.values())) == 5
        assert {u.id: recogniser.transcribe(u.path) for u in getattr(corpus, split)} == expected


def test_the_phones_of_a_file_are_those_of_the_evaluation(small_corpus: Path, tmp_path: Path) -> None:
    unlabelled = {name: value for name, value in SHORT.items() if name != "evaluate_every"}
    regime = {"kind": "wav2vec_s", "pretrain": unlabelled, "semi_supervised": {**SHORT, "labels": "phones"}}
    trial = small_trial(small_corpus, {**regime, "finetune": SHORT}, model=SMALL_MODEL)
    trial["corpus"]["language"] = "es"
    store = StageStore(tmp_path)
    for stage in stages_of(TrialConfig.model_validate(trial))[:2]:
        run(stage, store)
    recogniser = Recogniser.open(store.folder(stage))
    lines = (store.folder(stage) / "hypotheses-dev.jsonl").read_text(encoding="utf-8").splitlines()
    expected = {line["id"]: line["hypothesis"] for line in map(json.loads, lines)}
    assert any(" " in phones for phones in expected.values())
    assert {u.id: recogniser.transcribe(u.path) for u in corpus_of(small_corpus).dev} == expected


def test_the_text_does_not_depend_on_what_was_transcribed_before(small_corpus: Path, recogniser: Recogniser) -> None:
    paths = [u.path for u in corpus_of(small_corpus).dev]
    texts = [recogniser.transcribe(path) for path in paths]
    assert [recogniser.transcribe(path) for path in reversed(paths)] == texts[::-1]


class TestAudio:
    def test_two_equal_channels_are_as_one(self, recogniser: Recogniser, tmp_path: Path, speech: np.ndarray) -> None:
        mono = recogniser.transcribe(write(tmp_path / "mono.wav", speech))
        assert len(set(mono)) > 3
        assert recogniser.transcribe(write(tmp_path / "stereo.wav", np.stack([speech] * 2, axis=1))) == mono

    def test_channels_are_averaged(self, recogniser: Recogniser, tmp_path: Path, speech: np.ndarray) -> None:
        other_S = np.random.default_rng(0).normal(scale=0.05, size=len(speech)).astype(np.float32)
        mean = recogniser.transcribe(write(tmp_path / "mean.wav", (speech + other_S) / 2))
        channels = [speech, other_S]
        assert recogniser.transcribe(write(tmp_path / "one.wav", speech)) != mean
        assert recogniser.transcribe(write(tmp_path / "stereo.wav", np.stack(channels, axis=1))) == mean
        assert recogniser.transcribe(write(tmp_path / "six.wav", np.stack(channels * 3, axis=1))) == mean

    @pytest.mark.parametrize(("rate_hz", "most"), [(8_000, 0.3), (44_100, 0.1), (48_000, 0.1)])
    def test_any_rate_is_understood(
        self, recogniser: Recogniser, tmp_path: Path, speech: np.ndarray, rate_hz: int, most: float
    ) -> None:
        """A model of nearly random weights tells small differences; measured: 0.15, 0.03 and 0.03 of its characters."""
        expected = recogniser.transcribe(write(tmp_path / "16k.wav", speech))
        copy_S = torchaudio.functional.resample(torch.from_numpy(speech), 16_000, rate_hz).numpy()
        mono = recogniser.transcribe(write(tmp_path / "mono.wav", copy_S, rate_hz))
        stereo = recogniser.transcribe(write(tmp_path / "stereo.wav", np.stack([copy_S] * 2, axis=1), rate_hz))
        at_another_rate = recogniser.transcribe(write(tmp_path / "misnamed.wav", copy_S, 16_000))
        assert stereo == mono
        assert jiwer.cer(expected, mono) <= most
        assert jiwer.cer(expected, at_another_rate) > 0.5

    def test_the_fewest_samples_that_the_model_takes_are_enough(
        self, recogniser: Recogniser, tmp_path: Path, speech: np.ndarray
    ) -> None:
        """Two frames: 400 samples and 320 more."""
        assert isinstance(recogniser.transcribe(write(tmp_path / "short.wav", speech[8_000:8_720])), str)
        path = write(tmp_path / "shorter.wav", speech[8_000:8_719])
        with pytest.raises(CorpusError, match=rf"^{re.escape(str(path))}: is 0\.045 s; the model needs 720 samples$"):
            recogniser.transcribe(path)

    def test_length_counts_at_the_models_own_rate(
        self, recogniser: Recogniser, tmp_path: Path, speech: np.ndarray
    ) -> None:
        assert isinstance(recogniser.transcribe(write(tmp_path / "8k.wav", speech[8_000:8_400], 8_000)), str)
        with pytest.raises(CorpusError, match=r"is 0\.013 s"):
            recogniser.transcribe(write(tmp_path / "48k.wav", speech[8_000:8_600], 48_000))

    @pytest.mark.parametrize("name", ["text.wav", "empty.wav", "missing.wav", "folder.wav"])
    def test_a_file_that_cannot_be_decoded_is_named(self, recogniser: Recogniser, tmp_path: Path, name: str) -> None:
        (tmp_path / "text.wav").write_text("no sound at all")
        (tmp_path / "empty.wav").touch()
        (tmp_path / "folder.wav").mkdir()
        with pytest.raises(CorpusError, match=f"^{re.escape(str(tmp_path / name))}: cannot be decoded as audio"):
            recogniser.transcribe(tmp_path / name)

    def test_a_file_without_sound_is_named(self, recogniser: Recogniser, tmp_path: Path) -> None:
        path = write(tmp_path / "silence.wav", np.zeros(16_000, dtype=np.float32))
        with pytest.raises(CorpusError, match=f"^{re.escape(str(path))}: holds no sound"):
            recogniser.transcribe(path)


class TestFolders:
    def test_of_a_stage_that_was_not_trained_with_ctc_is_refused(self, small_corpus: Path, tmp_path: Path) -> None:
        stage = stages_of(TrialConfig.model_validate(small_trial(small_corpus, pretrain_finetune(1))))[0]
        store = StageStore(tmp_path)
        run(stage, store)
        message = re.escape(f"{store.folder(stage)}: has no symbols (symbols.json or vocab.json)")
        for open_ in (Recogniser.open, read_ctc_model):
            with pytest.raises(CheckpointError, match=message):
                open_(store.folder(stage))

    def test_of_transformers_without_a_vocabulary_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path))}: has no symbols"):
            Recogniser.open(save("wav2vec2", tmp_path))

    def test_without_anything_is_refused(self, tmp_path: Path) -> None:
        for folder in (tmp_path, tmp_path / "missing"):
            with pytest.raises(CheckpointError, match=f"^{re.escape(str(folder))}: neither config.json"):
                Recogniser.open(folder)

    def test_of_a_stage_without_its_head_is_refused(self, small_corpus: Path, tmp_path: Path) -> None:
        folder = trained(small_corpus, tmp_path, SMALL_MODEL)
        (folder / "ctc_head.safetensors").unlink()
        with pytest.raises(CheckpointError, match="does not fit the model's ctc_head; missing: weight, bias"):
            Recogniser.open(folder)


class TestExport:
    @pytest.mark.parametrize("model", EXPORTED.values(), ids=EXPORTED)
    def test_opens_in_transformers_and_writes_the_same_text(
        self, small_corpus: Path, tmp_path: Path, model: Settings
    ) -> None:
        folder, exported = trained(small_corpus, tmp_path, model), tmp_path / "exported"
        write_huggingface(*read_ctc_model(folder), exported)
        processor, theirs = AutoProcessor.from_pretrained(exported), AutoModelForCTC.from_pretrained(exported).eval()
        recogniser, again = Recogniser.open(folder), Recogniser.open(exported)
        for utterance in corpus_of(small_corpus).dev:
            samples_S = load_audio(utterance.path).astype(np.float32)
            with torch.no_grad():
                logits = theirs(**processor(samples_S, sampling_rate=16_000, return_tensors="pt")).logits
            (expected,) = processor.batch_decode(logits.argmax(2))
            assert len(set(expected)) > 3
            assert recogniser.transcribe(utterance.path).strip() == expected
            assert again.transcribe(utterance.path) == recogniser.transcribe(utterance.path)

    @pytest.mark.parametrize("name", ["compact_cnn_gru", "cnn_gru", "filter bank", "sew"])
    def test_of_a_model_that_transformers_lacks_is_refused_and_leaves_nothing(
        self, small_corpus: Path, tmp_path: Path, name: str
    ) -> None:
        folder = trained(small_corpus, tmp_path, MODELS[name])
        reason = {"filter bank": "filter-bank", "sew": "masked"}.get(name, f"like {name}")
        with pytest.raises(ValueError, match=f"transformers has no .*{reason}"):
            write_huggingface(*read_ctc_model(folder), tmp_path / "exported")
        assert not (tmp_path / "exported").exists()
