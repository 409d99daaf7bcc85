"""A trial: one fully resolved configuration, the stages that it runs, and what keeps it from running."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from pydantic import Field

from trainables.config import Config
from trainables.data.config import SAMPLE_RATE_HZ, CorpusConfig, PromptsConfig
from trainables.data.corpus import Corpus, CorpusError, Utterance, read_corpus
from trainables.models.checkpoint_files import (
    CheckpointError,
    described_model,
    fingerprint,
    local_copy,
    misfit,
    weight_files,
)
from trainables.models.config import CompactCnnGruConfig, FrameGeometry, frames_after
from trainables.models.presets import ModelConfig
from trainables.regimes.config import RegimeConfig
from trainables.regimes.stages import Setting, last_stage
from trainables.stage import Stage, TrainedWeights, chain

FASTEST = 1.1  # speed that augmentation may play an utterance at
MAX_UNALIGNABLE = 0.01  # share of utterances whose text may be too long for CTC: their loss counts zero


class TrialConfig(Config):
    """Everything that decides a result. Workers, devices and places on disk are not here: they do not."""

    corpus: CorpusConfig = PromptsConfig()
    model: ModelConfig = CompactCnnGruConfig()
    init: str | None = Field(
        None,
        description="Trained weights that the first stage starts from: a Hugging Face folder, a stage's folder, a .pt "
        "file of fairseq or SEW, or the name of a model on the Hugging Face hub. The CTC head starts fresh.",
    )
    regime: RegimeConfig
    seed: int = Field(0, ge=0)


@functools.lru_cache
def corpus_of(config: CorpusConfig) -> Corpus:
    """The corpus of the settings, read once."""
    return read_corpus(config)


def stages_of(trial: TrialConfig) -> Sequence[Stage]:
    """The stages of the trial, in order. Reads the corpus' manifest, for its content is part of their identity."""
    hashes = corpus_of(trial.corpus).split_hashes()
    fingerprints = {
        "labelled": "".join(hashes[split][:12] for split in ("train", "dev", "test")),
        "unlabelled": hashes["unlabelled"][:12],
    }
    setting = Setting(
        corpus=trial.corpus,
        fingerprints=fingerprints,
        model=trial.model,
        start=trained_weights(trial.init) if trial.init else None,
        seed=trial.seed,
    )
    return chain(last_stage(trial.regime, setting))


def trained_weights(source: str) -> TrainedWeights:
    """What `init` names. A model of the hub that is not on this machine is known by its name until it is downloaded."""
    path = local_copy(source)
    if path and Path(source).expanduser().exists():
        source = str(path)  # workers have other working directories
    return TrainedWeights(source=source, sha256=fingerprint(path) if path else f"not downloaded: {source}")


def problems(trial: TrialConfig) -> Iterator[tuple[str, str]]:
    """(field, message) for each of the trial's inputs that cannot be used."""
    try:
        corpus = corpus_of(trial.corpus)
    except CorpusError as error:
        yield "corpus", str(error)
    else:
        message = _misfit(trial.corpus, trial.model.geometry, trial.model.min_samples)
        if corpus and message:
            yield "corpus", message
    if trial.init:
        try:
            path = local_copy(trial.init)
            found = described_model(path) if path else None
            if path:
                weight_files(path)
        except CheckpointError as error:
            yield "init", str(error)
        else:
            if found is not None and (message := misfit(trial.model, found)):
                yield "init", f"{trial.init} {message}"


@functools.lru_cache
def _misfit(corpus_config: CorpusConfig, geometry: FrameGeometry, min_samples: int) -> str | None:
    """Why the corpus does not go with a model of this frame geometry."""
    corpus = corpus_of(corpus_config)
    everything = (*corpus.train, *corpus.dev, *corpus.test, *corpus.unlabelled)
    needed = math.ceil(min_samples * FASTEST - 1e-6) / SAMPLE_RATE_HZ
    for utterance in everything:
        if utterance.duration_seconds < needed:
            return (
                f"utterance {utterance.id!r} lasts {utterance.duration_seconds:.3f} s, and this model needs "
                f"{needed:.3f} s; remove its line from the manifest"
            )
    unalignable = [u for u in corpus.train if _frames(u, geometry) < _frames_for_text(u.text or "")]
    if len(unalignable) <= MAX_UNALIGNABLE * len(corpus.train):
        return None
    example = unalignable[0]
    return (
        f"{len(unalignable)} of {len(corpus.train)} train utterances have fewer frames than CTC needs for their text, "
        f"such as {example.id!r} with {_frames(example, geometry)} frames for {_frames_for_text(example.text or '')}; "
        "take a model with more frames a second, or remove their lines"
    )


def _frames(utterance: Utterance, geometry: FrameGeometry) -> int:
    return frames_after(geometry, round(utterance.duration_seconds * SAMPLE_RATE_HZ))


def _frames_for_text(text: str) -> int:
    """One for each character, and a blank between equal ones."""
    return len(text) + sum(a == b for a, b in pairwise(text))
