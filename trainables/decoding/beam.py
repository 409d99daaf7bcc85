"""CTC beam search with an n-gram language model, on several cores.

Legend: T frames, V symbols.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.data.text import BLANK, Characters
from trainables.decoding.config import LanguageModelConfig

Decode = Callable[[Sequence[Tensor]], list[str]]  # of (T, V) log-probabilities, float32, on the CPU
BOUNDARY = "|"  # a space as a language model of symbols has it


def symbol_names(symbols: Sequence[str]) -> list[str]:
    """A name for each symbol, for a language model of symbols: the text that it writes, a space written |."""
    return [
        "<blank>" if index == BLANK else symbol.replace(" ", BOUNDARY) or f"<unused{index}>"
        for index, symbol in enumerate(symbols)
    ]


@dataclass(frozen=True)
class BeamSearch:
    """What a search needs; it travels to other processes as it is."""

    config: LanguageModelConfig
    language_model: Path
    symbols: tuple[str, ...]
    boundary: int | None  # index of the symbol between two words
    spellings: tuple[tuple[str, tuple[int, ...]], ...]  # of each word of the lexicon; none for unit: symbols

    @classmethod
    def make(
        cls, config: LanguageModelConfig, language_model: Path, symbols: Characters, words: Iterable[str] = ()
    ) -> Self:
        """A search over the words, or for unit: symbols over all texts.

        Words with a letter that the recogniser cannot write are left out. Raises ValueError when none is left.
        """
        spellings = tuple((word, spelling) for word in dict.fromkeys(words) if (spelling := _spelling(word, symbols)))
        if config.unit == "words" and not spellings:
            raise ValueError("the lexicon has no word that the recogniser can write; give one in its alphabet")
        return cls(config, language_model, symbols.symbols, symbols.boundary, spellings)

    @contextmanager
    def open(self, processes: int = 1) -> Iterator[Decode]:
        """What decodes utterances, on that many cores, each with a language model of its own.

        Raises ValueError for a file that KenLM cannot read.
        """
        if processes == 1:
            decoder = _Decoder(self)
            yield lambda scores: [decoder(scores_TV) for scores_TV in scores]
            return
        context = multiprocessing.get_context("spawn")  # the decoder holds Python's lock, so threads would not help
        _Decoder(self)  # a file that cannot be read is an error here, not in every process
        with ProcessPoolExecutor(processes, context, initializer=_start, initargs=(self,)) as pool:
            yield lambda scores: list(pool.map(_decode_in_process, [s.numpy() for s in scores], chunksize=8))


def _spelling(word: str, symbols: Characters) -> tuple[int, ...]:
    """Without the boundary at its end; nothing when a letter is missing."""
    written = unicodedata.normalize("NFC", word.lower())  # as transcripts are
    indices = symbols.encode(written)
    if symbols.decode(indices).strip() != written:
        return ()
    return tuple(indices[:-1] if indices[-1] == symbols.boundary else indices)


_in_this_process: dict[str, _Decoder] = {}


def _start(search: BeamSearch) -> None:
    torch.set_num_threads(1)
    _in_this_process["decoder"] = _Decoder(search)


def _decode_in_process(scores_TV: NDArray[np.float32]) -> str:
    return _in_this_process["decoder"](torch.from_numpy(scores_TV))


class _Decoder:
    """torchaudio's decoder (flashlight-text) for a search."""

    def __init__(self, search: BeamSearch) -> None:
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary
        from torchaudio.models.decoder import ctc_decoder

        config, self.symbols = search.config, search.symbols
        self.over_words = config.unit == "words"
        tokens = symbol_names(self.symbols)
        if self.over_words:  # any names will do, and these need no quoting in the lexicon
            tokens = [f"s{index}" for index in range(len(self.symbols))]
        self.boundary = search.boundary
        with tempfile.NamedTemporaryFile("w", suffix=".lexicon", encoding="utf-8") as lexicon:
            for word, spelling in search.spellings:
                lexicon.write(f"{word}\t{' '.join(tokens[index] for index in self._with_boundary(spelling))}\n")
            lexicon.flush()
            path = str(search.language_model)
            try:
                self.decoder = ctc_decoder(
                    lexicon=lexicon.name if self.over_words else None,
                    tokens=tokens,
                    # Without a lexicon torchaudio numbers the language model's words in another order than the symbols.
                    lm=path if self.over_words else KenLM(path, Dictionary(tokens)),
                    lm_weight=config.weight,
                    word_score=config.word_score,
                    beam_size=config.beam,
                    beam_threshold=config.beam_threshold,
                    beam_size_token=min(config.beam_symbols, len(tokens)),
                    blank_token=tokens[BLANK],
                    sil_token=tokens[BLANK if self.boundary is None else self.boundary],
                    sil_score=0.0,
                    unk_score=-float("inf"),
                    log_add=False,
                )
            except RuntimeError as error:  # KenLM's
                reason = str(error).strip().splitlines()[-1]
                raise ValueError(
                    f"{path}: KenLM cannot read it ({reason}); name an ARPA file of order 2 to 6 or a KenLM binary"
                ) from error

    def _with_boundary(self, spelling: tuple[int, ...]) -> tuple[int, ...]:
        return spelling if self.boundary is None else (*spelling, self.boundary)

    def __call__(self, scores_TV: Tensor) -> str:
        if self.over_words and self.boundary is not None:
            scores_TV = torch.cat([scores_TV, self._certain_boundary(scores_TV)])
        if self.over_words and self.boundary is None:
            scores_TV = _repeats_as_blanks(scores_TV)
        best = self.decoder(scores_TV[None])[0]
        if not best:
            return ""
        if self.over_words:
            return unicodedata.normalize("NFC", " ".join(best[0].words).lower())
        return "".join(self.symbols[i] for i in best[0].tokens.tolist() if i != BLANK).strip().lower()

    def _certain_boundary(self, scores_TV: Tensor) -> Tensor:
        """One more frame, in which the last word ends: recognisers of characters write no space at the end."""
        frame_1V = torch.full((1, scores_TV.shape[1]), -1e3)
        frame_1V[0, self.boundary] = 0.0
        return frame_1V


def _repeats_as_blanks(scores_TV: Tensor) -> Tensor:
    """The scores with those of the blank and of the likeliest symbol swapped where that repeats the frame before.

    A word's last symbol cannot last two frames in flashlight's search over words without a boundary between them. A
    repeated symbol and a blank after it write the same, so the greedy path keeps its score; others nearly.
    """
    best_T = scores_TV.argmax(1)
    frames = ((best_T[1:] == best_T[:-1]) & (best_T[1:] != BLANK)).nonzero()[:, 0] + 1
    swapped_TV = scores_TV.clone()
    swapped_TV[frames, BLANK] = scores_TV[frames, best_T[frames]]
    swapped_TV[frames, best_T[frames]] = scores_TV[frames, BLANK]
    return swapped_TV
