"""Mozilla Common Voice (Ardila et al. 2020, arXiv:1912.06670), scripted speech, any language.

The tables are read here: lhotse's recipe leaves out missing audio, opens every clip and knows 24 languages only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainables.data.corpora.files import choose_language, iso_639_1, read_table, refuse_missing
from trainables.data.corpora.segment import LayoutError, PublishedCorpus, Segment
from trainables.data.corpus import LABELLED, CorpusError

COLUMNS = ("client_id", "path", "sentence")
DURATIONS = "clip_durations.tsv"  # since release 14
NEEDS = (
    "LANGUAGE/{train,dev,test}.tsv and LANGUAGE/clips/*.mp3, in it or in one cv-corpus-RELEASE folder; optional: "
    f"LANGUAGE/validated.tsv, clips of which that are in none of the three are unlabelled, and LANGUAGE/{DURATIONS}"
)


def read(root: Path, language: str | None) -> Iterator[Segment]:
    """Segments of the three splits, then of the other validated clips as unlabelled speech.

    Speakers of train, dev and test are disjoint; the unlabelled clips may be of any of them. Raises LayoutError for
    missing tables, CorpusError for a language that is not one of those there or for a malformed row.
    """
    home = release(root)
    names = sorted(path.parent.name for path in home.glob("*/train.tsv"))
    refuse_missing(home, [] if names else ["LANGUAGE/train.tsv"], NEEDS)
    name = choose_language(language, names, home)
    needed = [f"{split}.tsv" for split in LABELLED]
    missing = [f"{name}/{file}" for file in (*needed, "clips") if not (home / name / file).exists()]
    refuse_missing(home, missing, NEEDS)
    yield from _segments(home / name, iso_639_1(name))


def release(root: Path) -> Path:
    """The folder of the languages: the root, or the one `cv-corpus-*` folder in it. Raises LayoutError for several."""
    releases = sorted(path for path in root.glob("cv-corpus-*") if path.is_dir())
    if len(releases) > 1:
        names = ", ".join(path.name for path in releases)
        raise LayoutError(f"{root}: has the releases {names}; name the folder of one of them")
    return releases[0] if releases else root


def clip(folder: Path, name: str, where: str) -> Path:
    """The audio file of a row. Raises CorpusError for a name that is not that of a file in `clips`."""
    if not name or name in (".", "..") or any(character in name for character in "/\\\0"):
        raise CorpusError(f"{where}: path must be the name of a file in {folder}, got {name!r}")
    return folder / name


def _segments(folder: Path, language: str) -> Iterator[Segment]:
    durations = _durations(folder / DURATIONS)
    found: set[str] = set()
    for split in (*LABELLED, "unlabelled"):
        table = folder / ("validated.tsv" if split == "unlabelled" else f"{split}.tsv")
        if split == "unlabelled" and not table.is_file():
            continue
        for where, row in read_table(table, COLUMNS):
            path = clip(folder / "clips", row["path"], where)
            if split != "unlabelled":
                found.add(path.name)
            elif path.name in found:
                continue
            text = None if split == "unlabelled" else row["sentence"]
            seconds = durations.get(path.name)
            yield Segment(path.stem, path, text, split, row["client_id"], language, expected_seconds=seconds)


def _durations(table: Path) -> dict[str, float]:
    """Seconds by the clip's name, when the release has them."""
    durations: dict[str, float] = {}
    for where, row in read_table(table, ("clip", "duration[ms]")) if table.is_file() else ():
        try:
            durations[row["clip"]] = float(row["duration[ms]"]) / 1000
        except ValueError as error:
            raise CorpusError(f"{where}: duration[ms] must be a number, got {row['duration[ms]']!r}") from error
    return durations


CORPUS = PublishedCorpus(
    title="Common Voice",
    hours="by language and release; see its commonvoice.mozilla.org page",
    licence="CC0 1.0",
    needs=NEEDS,
    read=read,
)
