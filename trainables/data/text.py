"""Transcripts: normalisation, and the characters that the recogniser writes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Self

BLANK = 0


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

    def encode(self, text: str) -> list[int]:
        """Indices of the characters; one that the vocabulary lacks is left out (dev and test may have some)."""
        return [self._index[character] for character in text if character in self._index]

    def decode(self, indices: Sequence[int]) -> str:
        """Text of the indices, blanks left out."""
        return "".join(self.symbols[i] for i in indices if i != BLANK)
