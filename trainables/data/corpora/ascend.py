"""ASCEND: spontaneous Mandarin-English conversation from Hong Kong (arXiv:2112.06223).

The Hugging Face release of CAiRE/ASCEND as of its revisions with CSV files (before it was turned into Parquet),
`waves.tar.bz2` unpacked. Its CSV files have the columns file_name, transcription, duration, language (zh, en or
mixed), original_speaker_id, session_id and topic; there is no id, which is the file's name here. That the splits share
no speaker is not confirmed. `[UNK]`, for a word that could not be understood, is left out. lhotse has no recipe.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from trainables.data.corpora.files import file_below, refuse_missing
from trainables.data.corpora.segment import PublishedCorpus, Segment
from trainables.data.corpus import CorpusError, Split

SPLITS: dict[Split, str] = {
    "train": "train_metadata.csv",
    "dev": "validation_metadata.csv",
    "test": "test_metadata.csv",
}
COLUMNS = ("file_name", "transcription", "duration", "language", "original_speaker_id")
LANGUAGES = {"zh": "zh", "en": "en", "mixed": "zh"}  # of mixed utterances the matrix language
NEEDS = "train_metadata.csv, validation_metadata.csv, test_metadata.csv, waves/"


def read(root: Path, language: str | None) -> Iterator[Segment]:
    """The splits as published. Raises LayoutError, and CorpusError for a row that is not as described above."""
    missing = [name for name in SPLITS.values() if not (root / name).is_file()]
    refuse_missing(root, missing + ([] if (root / "waves").is_dir() else ["waves/"]), NEEDS)
    return (segment for split, name in SPLITS.items() for segment in _split(root, root / name, split))


def _split(root: Path, table: Path, split: Split) -> Iterator[Segment]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            if absent := [column for column in COLUMNS if column not in (rows.fieldnames or ())]:
                raise CorpusError(f"{table}:1: lacks the column(s) {', '.join(absent)}; take ASCEND's own file")
            for row in rows:
                yield _segment(root, row, split, f"{table}:{rows.line_num}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"{table}: is not a table of comma-separated values in UTF-8: {error}") from error


def _segment(root: Path, row: dict[str, str | None], split: Split, where: str) -> Segment:
    file_name, text, duration, language, speaker = (row[column] for column in COLUMNS)
    if not file_name or text is None or not duration or not speaker:
        raise CorpusError(f"{where}: must have {', '.join(COLUMNS)}, got {list(row.values())}; take ASCEND's own file")
    if language not in LANGUAGES:
        raise CorpusError(f"{where}: language must be one of {', '.join(LANGUAGES)}, got {language!r}")
    try:
        seconds = float(duration)
    except ValueError:
        raise CorpusError(f"{where}: duration must be a number of seconds, got {duration!r}") from None
    return Segment(
        id=Path(file_name).stem,
        path=file_below(root, file_name, where),
        text=text.replace("[UNK]", " "),
        split=split,
        speaker=speaker,
        language=LANGUAGES[language],
        expected_seconds=seconds,
    )


CORPUS = PublishedCorpus(
    title="ASCEND (Mandarin-English)",
    hours="10.62",
    licence="CC BY-SA 4.0",
    needs=NEEDS,
    read=read,
    languages=("zh",),
)
