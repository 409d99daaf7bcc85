"""What a recogniser writes: characters, or phones."""

from __future__ import annotations

from collections.abc import Iterable

from trainables.data.phones import Phones
from trainables.data.text import Characters

Symbols = Characters | Phones


def symbols_of(texts: Iterable[str], phones: str | None) -> Symbols:
    """The symbols of the texts: phones of that language, or characters when it is None. Symbol 0 is the CTC blank."""
    return Characters(texts) if phones is None else Phones(texts, phones)
