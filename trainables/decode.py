"""The stage that decodes with a language model what earlier stages have trained. It trains nothing.

So a study that searches the weight of the language model, or compares several, trains each model once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trainables.data.corpus import CorpusError, Utterance
from trainables.data.symbols import symbols_of
from trainables.data.text import Characters
from trainables.decoding.beam import BeamSearch, symbol_names
from trainables.decoding.config import LanguageModelConfig
from trainables.decoding.files import fingerprint
from trainables.decoding.ngram import estimate, vocabulary
from trainables.distributed import agree, rank, world_size
from trainables.evaluate import everywhere, hypothesis_of, log_probabilities, write_hypotheses
from trainables.models.acoustic import AcousticModel, count_parameters
from trainables.scoring import error_rates
from trainables.stage import Report, Stage, StageResult
from trainables.start import autocast, build_model, corpus_of_stage
from trainables.store import StageStore

FRAMES_WORTH_PROCESSES = 100_000  # starting processes takes some seconds, in which one decodes about as many


def decode_stage(
    stage: Stage, store: StageStore, device: torch.device, report: Callable[[Report], None]
) -> StageResult:
    """Decode dev and test with the language model, and commit the hypotheses and their error rates (`dev_wer_lm`).

    Raises CorpusError for a language model that is not the one that the stage was planned with, or cannot be used.
    """
    started = time.monotonic()
    config = stage.language_model
    assert config
    corpus = corpus_of_stage(stage)
    symbols = symbols_of((u.text or "" for u in corpus.train), stage.outputs)
    assert isinstance(symbols, Characters), "a language model of phones is refused before anything starts"
    model = build_model(stage, store, len(symbols)).to(device)
    folder = store.partial_folder(stage)
    folder.mkdir(parents=True, exist_ok=True)
    search = _search(stage, config, symbols, corpus.train, folder)
    metrics: dict[str, float] = {}
    for split in ("dev", "test"):
        with autocast(stage, device):
            metrics |= _decode_split(model, getattr(corpus, split), search, device, folder, split)
    seconds = time.monotonic() - started
    last = Report(
        step=0,
        metrics=metrics,
        audio_seconds=0.0,  # of training
        epochs=0.0,
        elapsed_seconds=seconds,
        accelerator_seconds=seconds * world_size(),
        reported_at=time.time(),
    )
    report(last)
    result = StageResult(reports=(last,), num_parameters=count_parameters(model))
    if rank() == 0:
        store.commit(stage, result)
    agree(None)  # no worker goes on before the stage is stored
    return result


def _search(
    stage: Stage, config: LanguageModelConfig, symbols: Characters, train: Sequence[Utterance], folder: Path
) -> BeamSearch:
    texts = [u.text or "" for u in train]
    path = config.path
    if fingerprint(config) != stage.language_model_sha256:
        raise CorpusError(f"{path}: the language model is not the one that {stage.name()} was planned with")
    try:
        if path is None:
            path = folder / "language-model.arpa"
            if rank() == 0:
                estimate(units(texts, config, symbols), config.order, path)
            agree(None)  # the first worker has written it
        return BeamSearch.make(config, path, symbols, _words(config, path))
    except ValueError as error:
        raise CorpusError(f"language model: {error}") from error


def units(texts: Sequence[str], config: LanguageModelConfig, symbols: Characters) -> list[list[str]]:
    """The texts as the language model's units: words, or names of symbols."""
    if config.unit == "words":
        return [text.split() for text in texts]
    names = symbol_names(symbols.symbols)
    return [[names[index] for index in symbols.encode(text)] for text in texts]


def _words(config: LanguageModelConfig, language_model: Path) -> list[str]:
    if config.unit == "symbols":
        return []
    if config.lexicon is None:
        return vocabulary(language_model)
    return [line.split()[0] for line in config.lexicon.read_text("utf-8").splitlines() if line.strip()]


def _decode_split(
    model: AcousticModel,
    utterances: Sequence[Utterance],
    search: BeamSearch,
    device: torch.device,
    folder: Path,
    split: str,
) -> dict[str, float]:
    mine: list[Utterance] = []
    scores: list[Tensor] = []
    for share, scores_BTV, num_frames_B in log_probabilities(model, utterances, device):
        mine += share
        on_cpu = scores_BTV.float().cpu()
        scores += [on_cpu[i, :frames] for i, frames in enumerate(num_frames_B.tolist())]
    # A worker has as many threads as cores.
    processes = torch.get_num_threads() if sum(map(len, scores)) > FRAMES_WORTH_PROCESSES else 1
    try:
        texts = search.decode(scores, processes)
    except ValueError as error:
        raise CorpusError(f"language model: {error}") from error
    hypotheses = everywhere(hypothesis_of(u, text) for u, text in zip(mine, texts, strict=True))
    if rank() == 0:
        write_hypotheses(folder / f"hypotheses-{split}.jsonl", hypotheses)
    return {f"{split}_{rate}_lm": value for rate, value in error_rates(hypotheses).items()}
