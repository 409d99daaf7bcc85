"""Reading the files of a published corpus: what its readers share. No audio is opened here."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainables.data.corpora.segment import LayoutError
from trainables.data.corpus import CorpusError, is_below

SHOWN = 20  # of many missing files


def refuse_missing(root: Path, missing: Sequence[str], needs: str) -> None:
    """Raise a LayoutError when something is missing; `missing` holds paths relative to the root."""
    if not missing:
        return
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    raise LayoutError(f"{root}: missing {', '.join(missing[:SHOWN])}{more}. Needed below this folder: {needs}")


def file_below(folder: Path, name: str, where: str) -> Path:
    """The file that a line of the corpus names. Raises CorpusError for one that is not below the folder."""
    if not is_below(folder, name):
        raise CorpusError(f"{where}: path {name!r} leaves the folder; put the audio below {folder}")
    return folder / name


def unpacked(root: Path, name: str) -> Path:
    """The folder of that name that an archive unpacks to, below the root; the root where it is that folder itself."""
    return root / name if (root / name).is_dir() else root


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not blank with its place, `file:line`. Raises CorpusError for a file that is not UTF-8 text."""
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"{path}:{number}", line.strip()
    except (UnicodeDecodeError, OSError) as error:
        raise CorpusError(f"{path}: cannot be read as text in UTF-8: {error}; unpack the corpus again") from error


def read_table(
    path: Path, columns: Sequence[str], *, escape: str | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row of a tab-separated table as a dict, with its place, `file:line`. Quotes are letters as any other.

    Raises CorpusError when the header lacks one of the columns, or a row has more or fewer fields than the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE, escapechar=escape)
            header = next(rows, [])
            if lacking := [column for column in columns if column not in header]:
                raise CorpusError(f"{path}:1: the header has no column {', '.join(lacking)}; it has {header}")
            for row in rows:
                where = f"{path}:{rows.line_num}"
                if row and len(row) != len(header):
                    raise CorpusError(f"{where}: has {len(row)} fields; the header has {len(header)}: mend the line")
                if row:
                    yield where, dict(zip(header, row, strict=True))
    except (UnicodeDecodeError, OSError, csv.Error) as error:
        raise CorpusError(f"{path}: cannot be read as a tab-separated table in UTF-8: {error}") from error


def choose_language(language: str | None, choices: Sequence[str], root: Path) -> str:
    """The language's name on disk, such as `sv-SE` for `sv`. `choices` are the names on disk; at least one.

    Raises CorpusError when none is given and there are several, when it fits several, or when it fits none.
    """
    exact = [name for name in choices if name == language]
    fitting = exact or [name for name in choices if language is None or iso_639_1(name) == language]
    if len(fitting) == 1:
        return fitting[0]
    rule = "a language has to be given" if language is None else f"language {language!r} is not one of them"
    if len(fitting) > 1 and language is not None:
        rule = f"language {language!r} is several of them; give one by its whole name"
    raise CorpusError(f"{root}: has the languages {', '.join(choices)}; {rule}")


def iso_639_1(name: str) -> str:
    """The language of a name with a region: `sv` of `sv-SE`."""
    return name.split("-")[0]
