"""What a reader of a corpus gives: utterances as the corpus's own files describe them. No audio is decoded here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainables.data.corpus import CorpusError, Split


@dataclass(frozen=True)
class Segment:
    """One utterance: a stretch of an audio file, with what the corpus says about it."""

    id: str
    path: Path  # audio of any rate; need not exist
    text: str | None  # as the corpus writes it; None: no transcript, for the split `unlabelled`, where it is optional
    split: Split | None  # None: the corpus has no splits; they are made by the hash of the text
    speaker: str = ""  # unique within the corpus; empty: not known
    language: str = ""  # ISO 639-1; of code-switched speech the matrix language
    start_seconds: float = 0.0
    duration_seconds: float | None = None  # None: to the end of the file
    channel: int | None = None  # None: the mean of all
    expected_seconds: float | None = None  # what the corpus says of a whole file's length; another one is a finding


class LayoutError(CorpusError):
    """A corpus folder without the files that it should have; the message lists each of them."""


Read = Callable[[Path, str | None], Iterator[Segment]]
Lists = Callable[[Path], Mapping[str, Sequence[str]]]


@dataclass(frozen=True)
class PublishedCorpus:
    """What `study corpora` shows of a corpus, and how it is read."""

    title: str
    hours: str  # as its publishers state them
    licence: str
    needs: str  # the files and folders below the root
    read: Read  # (root, language). Raises LayoutError.
    languages: tuple[str, ...] = ()  # ISO 639-1; empty: any. More than one: the language has to be given.
    lists: Lists | None = None  # published lists of train utterances by name, such as 10min
