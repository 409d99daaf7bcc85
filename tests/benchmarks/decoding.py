"""Speed and error rates of the beam search beside pyctcdecode's: same log-probabilities, n-gram, beam and weights.

    python -m tests.benchmarks.decoding                  # on as many processes as there are cores, and on one
    python -m tests.benchmarks.decoding --seconds 600 --beam 100

pyctcdecode is no dependency of the project, and its requirements do not go with it; without them it is enough for this:

    pip install --no-deps --target SOME/FOLDER pyctcdecode pygtrie kenlm      # then PYTHONPATH=SOME/FOLDER

Without it, the numbers are of this project's search alone. The log-probabilities are of a `compact_cnn_gru` that is
trained on the Spanish prompts first (300 updates); dev and test are decoded, over and over until the audio is as long
as asked. The n-gram is of words, made of the train transcripts. Rounds alternate between the decoders; the best counts.
Starting processes and reading the n-gram are part of each round.

What differs: pyctcdecode multiplies its weight with natural logarithms, so it gets the weight / ln 10; it sums over the
paths of a text, and may write a word that the n-gram lacks, with a penalty of 10. Its thresholds of pruning are its
defaults.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import logging
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.data.corpus import Utterance, read_corpus
from trainables.data.text import BLANK, Characters
from trainables.decoding.beam import BeamSearch
from trainables.decoding.config import LanguageModelConfig
from trainables.decoding.greedy import greedy_decode
from trainables.decoding.ngram import estimate, vocabulary
from trainables.evaluate import hypothesis_of, log_probabilities
from trainables.loop import run_stage
from trainables.scoring import error_rates
from trainables.start import build_model
from trainables.store import StageStore
from trainables.trial import TrialConfig, stages_of

Decode = Callable[[Sequence[Tensor], int], list[str]]  # (T, V) log-probabilities, processes -> texts


def trained_scores(steps: int) -> tuple[list[Utterance], list[Tensor], Characters, list[str]]:
    """Utterances of dev and test, their (T, V) log-probabilities, the symbols, and the train transcripts."""
    train = {"steps": steps, "batch_seconds": 16, "learning_rate": 3e-3, "evaluate_every": steps, "report_every": steps}
    trial = {"model": {"preset": "compact_cnn_gru"}, "regime": {"kind": "supervised", "train": train}}
    (stage,) = stages_of(TrialConfig.model_validate(trial))
    corpus = read_corpus(stage.corpus)
    texts = [u.text or "" for u in corpus.train]
    symbols = Characters(texts)
    with tempfile.TemporaryDirectory() as folder:
        store = StageStore(Path(folder))
        run_stage(stage, store, lambda report: None)
        model = build_model(stage.with_(initial={"stage": stage, "parts": stage.parts}), store, len(symbols))
    utterances: list[Utterance] = []
    scores: list[Tensor] = []
    for share, scores_BTV, num_frames_B in log_probabilities(model, (*corpus.dev, *corpus.test), torch.device("cpu")):
        utterances += share
        scores += [scores_BTV[i, :frames].clone() for i, frames in enumerate(num_frames_B.tolist())]
    return utterances, scores, symbols, texts


def ours(arpa: Path, symbols: Characters, options: argparse.Namespace) -> Decode:
    config = LanguageModelConfig(path=arpa, weight=options.weight, word_score=options.word_score, beam=options.beam)
    search = BeamSearch.make(config, arpa, symbols, vocabulary(arpa))

    def decode(scores: Sequence[Tensor], processes: int) -> list[str]:
        with search.open(processes) as decode_all:
            return decode_all(scores)

    return decode


def pyctcdecode(arpa: Path, symbols: Characters, options: argparse.Namespace) -> Decode:
    build: Any = importlib.import_module("pyctcdecode").build_ctcdecoder
    logging.getLogger("pyctcdecode").setLevel(logging.ERROR)
    labels = ["" if index == BLANK else symbol for index, symbol in enumerate(symbols.symbols)]

    def decode(scores: Sequence[Tensor], processes: int) -> list[str]:
        decoder = build(
            labels,
            str(arpa),
            vocabulary(arpa),
            alpha=options.weight / math.log(10),
            beta=options.word_score,
        )
        arrays = [scores_TV.numpy() for scores_TV in scores]
        if processes == 1:
            return [decoder.decode(scores_TV, beam_width=options.beam) for scores_TV in arrays]
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            texts: list[str] = decoder.decode_batch(pool, arrays, beam_width=options.beam)
            return texts

    return decode


def greedy(symbols: Characters) -> Decode:
    def decode(scores: Sequence[Tensor], processes: int) -> list[str]:
        return [greedy_decode(scores_TV[None], torch.tensor([len(scores_TV)]), symbols)[0] for scores_TV in scores]

    return decode


def word_error_rate(utterances: Sequence[Utterance], texts: Sequence[str]) -> float:
    return error_rates([hypothesis_of(u, text) for u, text in zip(utterances, texts, strict=True)])["wer"]


def repeated(utterances: Sequence[Utterance], scores: Sequence[Tensor], seconds: float) -> tuple[list[Tensor], float]:
    """The log-probabilities again and again until there is as much audio, and how many seconds that is."""
    found: list[Tensor] = []
    total = 0.0
    for utterance, scores_TV in itertools.cycle(zip(utterances, scores, strict=True)):
        found.append(scores_TV)
        total += utterance.duration_seconds
        if total >= seconds:
            return found, total
    raise AssertionError("unreachable: there is speech")


def seconds_of(decoders: dict[str, Decode], scores: Sequence[Tensor], processes: int, rounds: int) -> dict[str, float]:
    """The best of alternating rounds."""
    best = dict.fromkeys(decoders, float("inf"))
    for _ in range(rounds):
        for name, decode in decoders.items():
            started = time.perf_counter()
            decode(scores, processes)
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def compare(
    decoders: dict[str, Decode], scores: Sequence[Tensor], audio_seconds: float, processes: int, rounds: int
) -> None:
    seconds = seconds_of(decoders, scores, processes, rounds)
    shown = "  ".join(f"{name} {audio_seconds / value:8.0f}" for name, value in seconds.items())
    ratio = f"   ratio {seconds['pyctcdecode'] / seconds['ours']:5.2f}" if "pyctcdecode" in seconds else ""
    print(f"seconds of audio a second, {processes} process(es): {shown}{ratio}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800, help="audio that is decoded")
    parser.add_argument("--steps", type=int, default=300, help="updates of the model")
    parser.add_argument("--order", type=int, default=3, help="of the n-gram")
    parser.add_argument("--beam", type=int, default=50)
    parser.add_argument("--weight", type=float, default=2.0, help="of the n-gram")
    parser.add_argument("--word-score", type=float, default=-1.0)
    parser.add_argument("--processes", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    utterances, scores, symbols, texts = trained_scores(options.steps)
    with tempfile.TemporaryDirectory() as folder:
        arpa = Path(folder) / "words.arpa"
        estimate([text.split() for text in texts], options.order, arpa)
        decoders = {"ours": ours(arpa, symbols, options)}
        if importlib.util.find_spec("pyctcdecode"):
            decoders["pyctcdecode"] = pyctcdecode(arpa, symbols, options)
        else:
            print("pyctcdecode is not there; --help tells how to install it")
        for name, decode in {"greedy": greedy(symbols), **decoders}.items():
            print(f"WER of {len(scores)} utterances, {name}: {word_error_rate(utterances, decode(scores, 1)):.1%}")
        again, audio_seconds = repeated(utterances, scores, options.seconds)
        for processes in options.processes:
            compare(decoders, again, audio_seconds, processes, options.rounds)


if __name__ == "__main__":
    main()
