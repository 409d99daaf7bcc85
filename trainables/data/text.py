"""Transcripts: normalisation, and the characters or letters that the recogniser writes.

A symbol is the text that it writes; a space stands for a word boundary.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Self

BLANK = 0
# fairseq's dictionary of LibriSpeech (wav2vec 2.0; P-SEW): the blank, three symbols that nothing is written with, the
# word boundary, and letters from frequent to rare.
LETTERS = ("<blank>", "", "", "", " ", *"etaonihsrdlumwcfgypbvk'xjqz")


def normalise(text: str) -> str:
    """Lower case, Unicode NFC, single spaces: `"  Agente  Conectado "` becomes `"agente conectado"`."""
    return " ".join(unicodedata.normalize("NFC", text.lower()).split())


class Characters:
    """The character vocabulary of a corpus. Index 0 is the CTC blank."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._set(("<blank>", *sorted(set("".join(texts)))))

    @classmethod
    def of_symbols(cls, symbols: tuple[str, ...]) -> Self:
        """The vocabulary of a trained model; symbol 0 is the blank."""
        characters = cls(())
        characters._set(symbols)
        return characters

    def _set(self, symbols: tuple[str, ...]) -> None:
        self.symbols = symbols
        self._index = {symbol: i for i, symbol in enumerate(symbols)}

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def boundary(self) -> int | None:
        """Index of the symbol between two words; None where there is none."""
        return self._index.get(" ")

    def encode(self, text: str) -> list[int]:
        """Indices of the characters; one that the vocabulary lacks is left out (dev and test may have some)."""
        return [self._index[character] for character in text if character in self._index]

    def decode(self, indices: Sequence[int]) -> str:
        """Text of the indices, blanks left out."""
        return "".join(self.symbols[i] for i in indices if i != BLANK)


class Letters(Characters):
    """The 32 symbols of English models of fairseq, with their indices. Every transcript ends with a word boundary."""

    def __init__(self) -> None:
        self._set(LETTERS)

    def encode(self, text: str) -> list[int]:
        """Indices of the letters, and of the boundary after the last word; what is no letter is left out."""
        return super().encode(f"{text} ")
