"""Corpora as lists of utterances. No audio is decoded here, and torch is not needed.

Adding a corpus: a settings class and its line in the union of `config.py`, and here one reader and its
line in `READERS`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from trainables.data.config import CorpusConfig, FolderConfig, PromptsConfig
from trainables.data.text import normalise

Split = Literal["train", "dev", "test"]
PROMPTS = Path(__file__).parent / "prompts"


class CorpusError(ValueError):
    """A manifest or an audio file that cannot be used; the message names the file, the line and the rule."""


@dataclass(frozen=True)
class Utterance:
    """One recording. `text` is None where the stage must not see it."""

    id: str
    path: Path
    duration_seconds: float
    size_bytes: int
    text: str | None
    split: Split


@dataclass(frozen=True)
class Corpus:
    """The labelled splits, and the audio without text for self-supervised stages."""

    train: tuple[Utterance, ...]
    dev: tuple[Utterance, ...]
    test: tuple[Utterance, ...]
    unlabelled: tuple[Utterance, ...]

    def split_hashes(self) -> dict[str, str]:
        """sha256 of the list of utterances of each part: which recordings, how long, and their text."""
        return {
            "train": hash_utterances(self.train),
            "dev": hash_utterances(self.dev),
            "test": hash_utterances(self.test),
            "unlabelled": hash_utterances(self.unlabelled),
        }


def hash_utterances(utterances: Iterable[Utterance]) -> str:
    """sha256 over id, duration, file size and text, in the order of the ids; where the files lie does not matter."""
    rows = sorted((u.id, f"{u.duration_seconds:.3f}", u.size_bytes, u.text) for u in utterances)
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


def split_of(text: str) -> Split:
    """The split of a transcript: 80 % train, 10 % dev, 10 % test by the hash of the normalised text.

    Equal texts always fall into one split, so dev and test hold no sentence that was trained on.
    """
    bucket = int(hashlib.sha256(normalise(text).encode()).hexdigest(), 16) % 10
    return "dev" if bucket == 0 else "test" if bucket == 1 else "train"


def read_manifest(root: Path, *, prefix: str = "") -> list[Utterance]:
    """Read `root/manifest.tsv`. Rows marked `has_digits` are left out: their text was guessed from figures.

    Raises CorpusError with file and line for a missing column, file or text, a duplicate id, a bad duration,
    an unknown split, or a path that leaves the folder.
    """
    manifest = root / "manifest.tsv"
    if not manifest.is_file():
        raise CorpusError(f"{manifest}: no such file; a corpus folder needs a manifest.tsv")
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as stream:
            utterances = _read_rows(stream, root, manifest, prefix)
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"{manifest}: is not a tab-separated table in UTF-8: {error}") from error
    if not utterances:
        raise CorpusError(f"{manifest}: no usable utterance")
    return sorted(utterances, key=lambda u: u.id)  # equal hashes must mean equal batches, whatever the order of rows


def _read_rows(stream: Iterable[str], root: Path, manifest: Path, prefix: str) -> list[Utterance]:
    utterances: dict[str, Utterance] = {}
    rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = {"id", "path", "duration_seconds", "text"} - set(rows.fieldnames or ())
    if missing:
        raise CorpusError(f"{manifest}:1: missing column(s) {', '.join(sorted(missing))}")
    for row in rows:
        if row.get("has_digits") == "1":
            continue
        utterance = _utterance(row, root, f"{manifest}:{rows.line_num}")
        if utterance.id in utterances:
            raise CorpusError(f"{manifest}:{rows.line_num}: id {utterance.id!r} occurs twice; ids must be unique")
        utterances[utterance.id] = replace(utterance, id=prefix + utterance.id)
    return list(utterances.values())


def _utterance(row: dict[str, str], root: Path, where: str) -> Utterance:
    for column in ("id", "path", "duration_seconds", "text"):
        if not row[column]:
            raise CorpusError(f"{where}: utterance {row['id']!r} has no {column}")
    text = normalise(row["text"])
    if not text:
        raise CorpusError(f"{where}: utterance {row['id']!r} has no text")
    path = root / row["path"]
    if not path.resolve().is_relative_to(root.resolve()):
        raise CorpusError(f"{where}: path {row['path']!r} leaves the corpus folder")
    if not path.is_file():
        raise CorpusError(f"{where}: audio file {row['path']!r} does not exist")
    try:
        duration_seconds = float(row["duration_seconds"])
    except (TypeError, ValueError):
        duration_seconds = math.nan
    if not 0 < duration_seconds < math.inf:
        raise CorpusError(f"{where}: duration_seconds must be a positive number, got {row['duration_seconds']!r}")
    split = row.get("split") or split_of(text)
    if split not in get_args(Split):
        raise CorpusError(f"{where}: split must be one of train, dev, test, got {split!r}")
    return Utterance(row["id"], path, duration_seconds, path.stat().st_size, text, split)  # type: ignore[arg-type]


def _without_text(utterances: Iterable[Utterance]) -> tuple[Utterance, ...]:
    return tuple(replace(u, text=None) for u in utterances)


def _corpus(utterances: list[Utterance], more_unlabelled: list[Utterance], where: str) -> Corpus:
    parts = {split: tuple(u for u in utterances if u.split == split) for split in get_args(Split)}
    for split, part in parts.items():
        if not part:
            raise CorpusError(f"{where}: the {split} split has no utterance; training needs train, dev and test")
    unlabelled = [*parts["train"], *(u for u in more_unlabelled if u.split == "train")]
    return Corpus(**parts, unlabelled=_without_text(sorted(unlabelled, key=lambda u: u.id)))


def read_prompts(config: PromptsConfig) -> Corpus:
    languages = set(config.more_unlabelled) - {config.language}
    more = [u for language in languages for u in read_manifest(PROMPTS / language, prefix=f"{language}/")]
    labelled = read_manifest(PROMPTS / config.language, prefix=f"{config.language}/")
    return _corpus(labelled, more, str(PROMPTS / config.language))


def read_folder(config: FolderConfig) -> Corpus:
    try:
        root = config.root.expanduser().absolute()
    except RuntimeError as error:
        raise CorpusError(f"{config.root}: {error}") from error
    return _corpus(read_manifest(root), [], str(root))


READERS: dict[type, Callable[..., Corpus]] = {PromptsConfig: read_prompts, FolderConfig: read_folder}


def read_corpus(config: CorpusConfig) -> Corpus:
    """The corpus that the settings name. Raises CorpusError when it cannot be used."""
    return READERS[type(config)](config)
