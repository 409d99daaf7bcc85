"""Any folder of audio with a table: `manifest.tsv`, or the only `*.tsv` in it.

Columns, separated by tabs, without quotes: id, path (below the folder) and text; optionally speaker, language
(ISO 639-1), split (train, dev, test or unlabelled; without it the hash of the text decides), start_seconds,
duration_seconds, channel (from 0). Rows with `has_digits` 1 are left out: their text was guessed from figures. Without
a start, duration_seconds is the length of the whole file, and another one is a finding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from trainables.data.corpora.files import file_below, read_table, refuse_missing
from trainables.data.corpora.segment import PublishedCorpus, Segment
from trainables.data.corpus import CorpusError, Split

COLUMNS = ("id", "path", "text")
NEEDS = "manifest.tsv, or one other *.tsv, with the columns id, path and text"


def read(root: Path, language: str | None) -> Iterator[Segment]:
    """The rows of the table; those without a language are in the one that is given.

    Raises LayoutError without such a table, and CorpusError with file and line for a bad row.
    """
    table = root / "manifest.tsv"
    if not table.is_file():
        others = sorted(root.glob("*.tsv"))
        if len(others) > 1:
            raise CorpusError(f"{root}: has several tables: {', '.join(o.name for o in others)}; name one manifest.tsv")
        refuse_missing(root, [] if others else ["manifest.tsv"], NEEDS)
        table = others[0]
    return _segments(root, table, language or "")


def _segments(root: Path, table: Path, language: str) -> Iterator[Segment]:
    ids: set[str] = set()
    for where, row in read_table(table, COLUMNS):
        if row.get("has_digits") == "1":
            continue
        segment = _segment(root, row, language, where)
        if segment.id in ids:
            raise CorpusError(f"{where}: id {segment.id!r} occurs twice; ids must be unique, rename one")
        ids.add(segment.id)
        yield segment


def _segment(root: Path, row: dict[str, str], language: str, where: str) -> Segment:
    if not row["id"] or not row["path"]:
        raise CorpusError(
            f"{where}: id and path must not be empty, got {row['id']!r} and {row['path']!r}; fill them in"
        )
    split = _split(row, where)
    start, seconds = (_number(row, column, where) for column in ("start_seconds", "duration_seconds"))
    channel = _number(row, "channel", where)
    if channel is not None and not channel.is_integer():
        raise CorpusError(f"{where}: channel must be a whole number from 0 on, got {row['channel']!r}; correct it")
    return Segment(
        id=row["id"],
        path=file_below(root, row["path"], where),
        text=None if split == "unlabelled" else row["text"],
        split=split,
        speaker=row.get("speaker", ""),
        language=row.get("language") or language,
        start_seconds=start or 0.0,
        duration_seconds=None if start is None else seconds,
        channel=None if channel is None else int(channel),
        expected_seconds=seconds if start is None else None,
    )


def _split(row: dict[str, str], where: str) -> Split | None:
    given = row.get("split", "")
    if given not in ("", *get_args(Split)):
        raise CorpusError(f"{where}: split must be one of {', '.join(get_args(Split))}, got {given!r}; correct it")
    return given or None  # type: ignore[return-value]


def _number(row: dict[str, str], column: str, where: str) -> float | None:
    if not (given := row.get(column)):
        return None
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise CorpusError(f"{where}: {column} must be a number from 0 on, got {given!r}; correct it")
    return number


CORPUS = PublishedCorpus(
    title="a folder of your own with a table",
    hours="any",
    licence="yours",
    needs=NEEDS,
    read=read,
)
