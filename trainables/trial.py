"""A trial: one fully resolved configuration, and the stages that it runs."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from pydantic import Field

from trainables.config import Config
from trainables.data.config import CorpusConfig, PromptsConfig
from trainables.data.corpus import Corpus, read_corpus
from trainables.models.config import CompactCnnGruConfig
from trainables.models.presets import ModelConfig
from trainables.regimes.config import RegimeConfig
from trainables.regimes.stages import Setting, last_stage
from trainables.stage import Stage, chain


class TrialConfig(Config):
    """Everything that decides a result. Workers, devices and places on disk are not here: they do not."""

    corpus: CorpusConfig = PromptsConfig()
    model: ModelConfig = CompactCnnGruConfig()
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
    setting = Setting(corpus=trial.corpus, fingerprints=fingerprints, model=trial.model, seed=trial.seed)
    return chain(last_stage(trial.regime, setting))
