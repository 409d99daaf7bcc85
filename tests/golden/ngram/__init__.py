"""ARPA files that KenLM's lmplz wrote for embedded transcripts. `python -m tests.golden.ngram` writes them again.

It needs `lmplz` on the PATH. The files here are those of kenlm 0.3.0 (https://pypi.org/project/kenlm, its sources built
with `cmake` and `make lmplz`).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from trainables.data.config import Language, PromptsConfig
from trainables.data.corpus import read_corpus


class Case(NamedTuple):
    """The first so many train utterances of the prompts in a language, as words or as characters."""

    language: Language
    unit: str
    utterances: int
    order: int

    @property
    def path(self) -> Path:
        return Path(__file__).with_name(f"{self.language}_{self.unit}_{self.order}.arpa")


# Few and short: some orders get their discounts in closed form, some the fallback.
CASES = (
    Case("es", "words", 120, 2),
    Case("ru", "words", 60, 3),
    Case("en", "words", 40, 4),
    Case("it", "characters", 60, 2),
    Case("fr", "characters", 30, 3),
    Case("es", "characters", 12, 4),
)


def sentences(language: Language, unit: str, utterances: int | None = None) -> list[list[str]]:
    texts = [u.text or "" for u in read_corpus(PromptsConfig(language=language)).train[:utterances]]
    return [text.split() if unit == "words" else list(text.replace(" ", "|")) for text in texts]
