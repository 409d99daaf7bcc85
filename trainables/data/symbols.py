"""What a recogniser writes: characters, letters, pieces of words, or phones."""

from __future__ import annotations

from collections.abc import Iterable

from trainables.data.config import CharactersConfig, LettersConfig, PhonesConfig, PiecesConfig, StageOutputsConfig
from trainables.data.phones import LANGUAGES, Phones, pronouncer
from trainables.data.text import Characters, Letters

Symbols = Characters | Phones  # letters and pieces are characters, too: symbols that write themselves


def symbols_of(texts: Iterable[str], outputs: StageOutputsConfig) -> Symbols:
    """The symbols that the settings name, for these texts. Symbol 0 is the CTC blank."""
    match outputs:
        case CharactersConfig():
            return Characters(texts)
        case LettersConfig():
            return Letters()
        case PiecesConfig():
            from trainables.data.pieces import Pieces

            return Pieces(texts, outputs.vocabulary_size)
        case PhonesConfig():
            return Phones(texts, outputs.language)


def made_with(outputs: StageOutputsConfig) -> str | None:
    """The libraries that the symbols depend on, with their versions."""
    match outputs:
        case PiecesConfig():
            from trainables.data.pieces import trainer

            return trainer()
        case PhonesConfig():
            return pronouncer(outputs.language) if outputs.language in LANGUAGES else None
        case _:
            return None
