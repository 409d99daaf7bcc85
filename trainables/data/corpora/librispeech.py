"""LibriSpeech (Panayotov et al. 2015, https://www.openslr.org/12), mini LibriSpeech (https://www.openslr.org/31), and
the limited supervision lists of Libri-Light (arXiv:1912.07875, data_preparation/README.md of its repository).

The transcripts are parsed here: lhotse's recipe leaves out missing audio with a log line and opens every file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from trainables.data.corpora.files import read_lines, refuse_missing, unpacked
from trainables.data.corpora.segment import LayoutError, PublishedCorpus, Segment
from trainables.data.corpus import CorpusError, Split

LABELLED_TRAIN = ("train-clean-100", "train-clean-5")  # the second is a part of the first
UNLABELLED_TRAIN = ("train-clean-360", "train-other-500")
DEV = ("dev-other", "dev-clean")
TEST = ("test-other", "test-clean")
WHOLE = ("train-clean-100", "train-clean-360", "train-other-500")
MINI_HELD_OUT = "dev-clean-2"
LIMITED = "librispeech_finetuning"
TEN_MINUTES = ("1h/0",)
ONE_HOUR = tuple(f"1h/{fold}" for fold in range(6))
TEN_HOURS = (*ONE_HOUR, "9h")
NEEDS = (
    "train-clean-100 (or train-clean-5, train-clean-360, train-other-500), dev-other (or dev-clean), test-other (or "
    "test-clean), each with SPEAKER/CHAPTER/*.trans.txt and *.flac; of mini LibriSpeech train-clean-5 and dev-clean-2, "
    "every other speaker of which is dev, the rest test. train-clean-360 and train-other-500 are unlabelled. Lists: "
    f"960h, all of {', '.join(WHOLE)}; 10min, 1h, 10h, the utterances below "
    f"{LIMITED}/{{1h/0..5,9h}}/{{clean,other}} (optional)"
)
CLEAN_NEEDS = "train-clean-100, dev-clean and test-clean, each with SPEAKER/CHAPTER/*.trans.txt and *.flac"


def read(root: Path, language: str | None) -> Iterator[Segment]:
    """Segments of the folders that are there: the first of each of `DEV` and `TEST`, and the train folders.

    Those of the unlabelled split keep their text, for lists may take them. Raises LayoutError for missing folders,
    CorpusError for a line that is not an id and a text.
    """
    home = unpacked(root, "LibriSpeech")
    yield from _segments(home, _folders(home))


def read_clean(root: Path, language: str | None) -> Iterator[Segment]:
    """train-clean-100, dev-clean and test-clean, whatever else is there. Raises LayoutError and CorpusError."""
    home = unpacked(root, "LibriSpeech")
    folders: dict[str, Split] = {"train-clean-100": "train", "dev-clean": "dev", "test-clean": "test"}
    refuse_missing(home, [name for name in folders if not any(_transcript_files(home / name))], CLEAN_NEEDS)
    yield from _segments(home, folders)


def _segments(home: Path, folders: dict[str, Split]) -> Iterator[Segment]:
    for folder, split in folders.items():
        held_out = _dev_speakers(home / folder) if folder == MINI_HELD_OUT else set()
        for utterance, path, text in _transcripts(home / folder):
            speaker = utterance.split("-")[0]
            if folder == MINI_HELD_OUT:
                split = "dev" if speaker in held_out else "test"
            elif folder in UNLABELLED_TRAIN:
                split = "unlabelled"
            yield Segment(utterance, path, text, split, speaker, "en")


def lists(root: Path) -> dict[str, tuple[str, ...]]:
    """Sorted ids: `960h`, all of the three train folders, where they are there; and the Libri-Light limited supervision
    sets `10min`, `1h` and `10h`, each a part of the next, where their folder is there.

    Raises LayoutError for a folder that is not whole, an utterance that occurs in two of
    its parts, or one that the transcripts below the train folders lack.
    """
    home = unpacked(root, "LibriSpeech")
    listed = _listed(root, home)
    train = [home / name for name in (*LABELLED_TRAIN, *UNLABELLED_TRAIN)]
    known = {utterance for folder in train for utterance, _, _ in _transcripts(folder)}
    if lacking := sorted(set(chain.from_iterable(listed.values())) - known):
        raise LayoutError(
            f"{root}: {LIMITED} lists {len(lacking)} utterances, such as {lacking[0]}, that no transcript has; unpack "
            f"train-clean-100, train-clean-360 and train-other-500 beside it, or take {LIMITED} away"
        )
    limited = {"10min": TEN_MINUTES, "1h": ONE_HOUR, "10h": TEN_HOURS} if listed else {}
    return {
        **{name: tuple(sorted(chain.from_iterable(listed[p] for p in parts))) for name, parts in limited.items()},
        **({"960h": tuple(sorted(known))} if all((home / name).is_dir() for name in WHOLE) else {}),
    }


def _folders(home: Path) -> dict[str, Split]:
    """The folders to read, with their split. That of a folder with several splits is that of most of it."""
    train = _first(home, LABELLED_TRAIN) + [name for name in UNLABELLED_TRAIN if (home / name).is_dir()]
    dev, test = _first(home, DEV), _first(home, TEST)
    if not dev and not test and (home / MINI_HELD_OUT).is_dir():
        dev = test = [MINI_HELD_OUT]
    missing = [names[0] for names, found in ((LABELLED_TRAIN, train), (DEV, dev), (TEST, test)) if not found]
    found = dict.fromkeys((*train, *dev, *test))
    missing += [f"{name}/SPEAKER/CHAPTER/*.trans.txt" for name in found if not any(_transcript_files(home / name))]
    refuse_missing(home, missing, NEEDS)
    return {name: "train" if name in train else "dev" if name in dev else "test" for name in found}


def _first(home: Path, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if (home / name).is_dir()][:1]


def _dev_speakers(folder: Path) -> set[str]:
    return set(sorted(path.name for path in folder.iterdir() if path.is_dir())[::2])


def _transcript_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/*.trans.txt"))


def _transcripts(folder: Path) -> Iterator[tuple[str, Path, str]]:
    """Each utterance's id, audio file and text."""
    for file in _transcript_files(folder):
        chapter = f"{file.parent.parent.name}-{file.parent.name}"
        rule = re.compile(rf"({re.escape(chapter)}-\d+)\s+(\S.*)")
        for where, line in read_lines(file):
            match = rule.fullmatch(line)
            if not match:
                raise CorpusError(f"{where}: must be an id {chapter}-NUMBER, a space and a text, got {line[:60]!r}")
            yield match[1], file.with_name(f"{match[1]}.flac"), match[2]


def _listed(root: Path, home: Path) -> dict[str, list[str]]:
    """The utterances below each part of the limited supervision sets, by their FLAC files' names."""
    limited = next((folder for folder in (home / LIMITED, root / LIMITED) if folder.is_dir()), None)
    if limited is None:
        return {}
    listed = {part: [path.stem for path in sorted(limited.glob(f"{part}/*/*/*/*.flac"))] for part in TEN_HOURS}
    empty = [f"{LIMITED}/{part}/{{clean,other}}/SPEAKER/CHAPTER/*.flac" for part, ids in listed.items() if not ids]
    refuse_missing(limited.parent, empty, NEEDS)
    found: dict[str, str] = {}
    for part, ids in listed.items():
        for utterance in ids:
            if utterance in found:
                raise LayoutError(
                    f"{limited}: {utterance} is in {found[utterance]} and {part}, which must not overlap; unpack again"
                )
            found[utterance] = part
    return listed


CORPUS = PublishedCorpus(
    title="LibriSpeech",
    hours="960 train (100 labelled), 10.5 dev and 10.5 test, half of them other",
    licence="CC BY 4.0",
    needs=NEEDS,
    read=read,
    languages=("en",),
    lists=lists,
)
CLEAN = PublishedCorpus(
    title="LibriSpeech, clean: 100 hours",
    hours="100 train, 5.4 dev, 5.4 test",
    licence="CC BY 4.0",
    needs=CLEAN_NEEDS,
    read=read_clean,
    languages=("en",),
)
