"""Small models and real batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.conftest import SMALL_MODEL
from trainables.data.batches import Batch, make_batch
from trainables.data.config import FolderConfig
from trainables.data.corpus import Corpus, read_corpus
from trainables.data.text import Characters
from trainables.models.acoustic import AcousticModel
from trainables.models.config import CompactCnnGruConfig


def corpus_of(root: Path) -> Corpus:
    return read_corpus(FolderConfig(root=root))


def characters_of(corpus: Corpus) -> Characters:
    return Characters(u.text or "" for u in corpus.train)


def batch_of(corpus: Corpus, indices: Sequence[int], *, labelled: bool = True, counted: bool = True) -> Batch:
    """The train utterances of these indices; each one's seed is its index + 100, in any batch."""
    return make_batch(
        [(corpus.train if labelled else corpus.unlabelled)[i] for i in indices],
        characters_of(corpus) if labelled else None,
        [i + 100 for i in indices],
        counted=counted,
    )


def small_model(corpus: Corpus, seed: int = 0) -> AcousticModel:
    return AcousticModel(CompactCnnGruConfig.model_validate(SMALL_MODEL), len(characters_of(corpus)), seed)
