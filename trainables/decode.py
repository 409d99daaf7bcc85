"""The stage that decodes with a language model what earlier stages have trained. It trains nothing.

So a study that searches the weight of the language model, or compares several, trains each model once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trainables.data.corpus import CorpusError, Utterance, total_seconds
from trainables.data.symbols import symbols_of
from trainables.data.text import Characters
from trainables.decoding.beam import BeamSearch, Decode, symbol_names
from trainables.decoding.config import LanguageModelConfig
from trainables.decoding.files import fingerprint
from trainables.decoding.ngram import estimate, vocabulary
from trainables.device import hardware_name
from trainables.distributed import agree, rank, world_size
from trainables.evaluate import everywhere, hypothesis_of, log_probabilities, write_hypotheses
from trainables.models.acoustic import AcousticModel, count_parameters
from trainables.scoring import Hypothesis, error_rates
from trainables.stage import Report, Stage, StageResult
from trainables.start import autocast, build_model, check_symbols, corpus_of_stage
from trainables.store import StageStore

MOST_SCORES = 2**26  # kept at a time; 256 MB
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
    check_symbols(stage, store, symbols.symbols)
    splits = {"dev": corpus.dev, "test": corpus.test}
    frames = total_seconds(u for split in splits.values() for u in split) * stage.model.frame_rate_hz
    # A worker has as many threads as cores.
    processes = torch.get_num_threads() if frames > FRAMES_WORTH_PROCESSES * world_size() else 1
    metrics: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        try:
            decode = stack.enter_context(_search(stage, config, symbols, corpus.train, store).open(processes))
        except ValueError as error:  # of its files
            raise CorpusError(f"language model: {error}") from error
        stack.enter_context(autocast(stage, device))
        for name, split in splits.items():
            split_started = time.monotonic()
            hypotheses = everywhere(_hypotheses(decode, model, split, device))
            if name == "dev":
                dev_seconds = (time.monotonic() - split_started) * world_size()
            if rank() == 0:
                write_hypotheses(folder / f"hypotheses-{name}.jsonl", hypotheses)
            metrics |= {f"{name}_{rate}_lm": value for rate, value in error_rates(hypotheses).items()}
    seconds = time.monotonic() - started
    last = Report(
        step=0,
        metrics=metrics,
        audio_seconds=0.0,  # of training
        epochs=0.0,
        elapsed_seconds=seconds,
        accelerator_seconds=seconds * world_size(),
        reported_at=time.time(),
        device=hardware_name(device),
        parameters=model.num_recogniser_parameters,
        real_time_factor=dev_seconds / total_seconds(corpus.dev),
    )
    report(last)
    result = StageResult(reports=(last,), num_parameters=count_parameters(model))
    if rank() == 0:
        store.commit(stage, result)
    agree(None)  # no worker goes on before the stage is stored
    return result


def _search(
    stage: Stage, config: LanguageModelConfig, symbols: Characters, train: Sequence[Utterance], store: StageStore
) -> BeamSearch:
    path = config.path
    if fingerprint(config) != stage.language_model_sha256:
        raise ValueError(f"{path} is not the one that {stage.name()} was planned with; plan it again, or restore it")
    if path is None:
        path = _estimated(units([u.text or "" for u in train], config, symbols), config.order, store)
    return BeamSearch.make(config, path, symbols, _words(config, path))


def _estimated(sentences: Sequence[Sequence[str]], order: int, store: StageStore) -> Path:
    """The n-gram of the sentences, made once for all stages that want it."""
    content = hashlib.sha256(json.dumps([order, sentences], ensure_ascii=False).encode()).hexdigest()[:16]
    path = store.root / "language_models" / f"{order}-gram-{content}.arpa"
    if rank() == 0 and not path.is_file():
        estimate(sentences, order, path)
    agree(None)  # the first worker has written it, where the others see its storage
    if not path.is_file():
        estimate(sentences, order, path)
    return path


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


def _hypotheses(
    decode: Decode, model: AcousticModel, utterances: Sequence[Utterance], device: torch.device
) -> Iterator[Hypothesis]:
    """Of this worker's share, decoded in parts that fit into memory."""
    part: list[Utterance] = []
    scores: list[Tensor] = []
    for share, scores_BTV, num_frames_B in log_probabilities(model, utterances, device):
        part += share
        on_cpu = scores_BTV.float().cpu()
        scores += [on_cpu[i, :frames] for i, frames in enumerate(num_frames_B.tolist())]
        if sum(scores_TV.numel() for scores_TV in scores) > MOST_SCORES:
            yield from map(hypothesis_of, part, decode(scores))
            part, scores = [], []
    yield from map(hypothesis_of, part, decode(scores))
