"""MUCS 2021, sub-task 2: Hindi-English and Bengali-English speech of technical tutorials (arXiv:2104.00235, SLR104).

The archives `Hindi-English_train.tar.gz` etc. of https://www.openslr.org/104 hold `train/` or `test/` with the
recordings and Kaldi's files in `transcripts/`; those of one language are unpacked into one folder. `text`, `segments`,
`utt2spk` and `wav.scp` (a recording's name and its file) are as in Kaldi. There is no dev set: the train speakers of
5 % of the utterances, chosen by the hash of their names, are dev. Train and test speakers are as published; that they
differ is not confirmed. lhotse has no recipe for it, and its import of Kaldi folders opens every file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from trainables.data.corpora.files import choose_language, file_below, read_lines, refuse_missing
from trainables.data.corpora.segment import PublishedCorpus, Segment
from trainables.data.corpora.transcripts import held_out, stretch
from trainables.data.corpus import CorpusError

FOLDERS = {"hi": "Hindi-English", "bn": "Bengali-English"}
TABLES = ("wav.scp", "segments", "text", "utt2spk")
DEV_SHARE = 0.05
NEEDS = (
    "Hindi-English/ or Bengali-English/, each with train/transcripts/ and test/transcripts/ (wav.scp, segments, text, "
    "utt2spk) and the recordings in train/ and test/"
)


def read(root: Path, language: str | None) -> Iterator[Segment]:
    """Utterances of Hindi-English (`hi`) or Bengali-English (`bn`).

    Raises LayoutError; CorpusError for a language that is not on disk, or none where both are, and for malformed or
    incomplete tables.
    """
    there = [code for code, folder in FOLDERS.items() if (root / folder).is_dir()]
    refuse_missing(root, [] if there else [f"{folder}/" for folder in FOLDERS.values()], NEEDS)
    language = choose_language(language, there, root)
    tables = [Path(FOLDERS[language], part, "transcripts", table) for part in ("train", "test") for table in TABLES]
    refuse_missing(root, [str(table) for table in tables if not (root / table).is_file()], NEEDS)
    return _segments(root / FOLDERS[language], language)


def _segments(folder: Path, language: str) -> Iterator[Segment]:
    train = list(_part(folder / "train", language))
    dev = held_out((segment.speaker for segment in train), DEV_SHARE)
    for segment in train:
        yield replace(segment, split="dev" if segment.speaker in dev else "train")
    for segment in _part(folder / "test", language):
        yield replace(segment, split="test")


def _part(folder: Path, language: str) -> Iterator[Segment]:
    """The utterances of a Kaldi folder, their split not yet set."""
    tables = folder / "transcripts"
    files = {name: _file(folder, file, where) for name, (file, where) in _table(tables / "wav.scp").items()}
    texts, speakers = _table(tables / "text"), _table(tables / "utt2spk")
    for where, line in read_lines(tables / "segments"):
        fields = line.split()
        if len(fields) != 4:
            raise CorpusError(f"{where}: must be an utterance, its recording, start and end in seconds, got {line!r}")
        utterance, recording, start, end = fields
        for table, name, rows in (("text", utterance, texts), ("utt2spk", utterance, speakers)):
            if name not in rows:
                raise CorpusError(f"{where}: utterance {name!r} has no line in {table}; add it, or remove this one")
        if recording not in files:
            raise CorpusError(f"{where}: recording {recording!r} has no line in wav.scp; add it")
        first, seconds = stretch(start, end, where)
        yield Segment(
            id=utterance,
            path=files[recording],
            text=texts[utterance][0],
            split=None,
            speaker=speakers[utterance][0],
            language=language,
            start_seconds=first,
            duration_seconds=seconds,
        )


def _table(path: Path) -> dict[str, tuple[str, str]]:
    """What follows the first field of each line, and where it stands; an empty transcript is one."""
    table = {}
    for where, line in read_lines(path):
        key, *value = line.split(maxsplit=1)
        table[key] = (value[0] if value else "", where)
    return table


def _file(folder: Path, file: str, where: str) -> Path:
    if not file or file.endswith("|"):
        raise CorpusError(f"{where}: must name a recording and its file, not a command, got {file!r}")
    return file_below(folder, file, where)


CORPUS = PublishedCorpus(
    title="MUCS 2021 sub-task 2 (Hindi-English, Bengali-English)",
    hours="Hindi-English 89.86 train, 5.18 test; Bengali-English 46.11 train, 7.02 test",
    licence="CC BY-SA 4.0",
    needs=NEEDS,
    read=read,
    languages=tuple(FOLDERS),
)
