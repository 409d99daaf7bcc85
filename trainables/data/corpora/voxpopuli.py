"""VoxPopuli (Wang et al. 2021, arXiv:2101.00390), as `get_asr_data` and `get_unlabelled_data` of
https://github.com/facebookresearch/voxpopuli leave it.

The tables are read here: lhotse's recipe reads other files, the uncut sessions, and opens each. The scripts write no
table of the unlabelled segments, so these are the files that are there. The scripts do not leave out the sessions that
dev and test are from; the files of these are left out here, for dev and test must never be among unlabelled speech.
The names tell: SESSION-LANGUAGE_UTTERANCE of the tables is from the same session as SESSION_LANGUAGE_NUMBER.ogg.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from trainables.data.corpora.files import choose_language, file_below, read_table, refuse_missing
from trainables.data.corpora.segment import PublishedCorpus, Segment
from trainables.data.corpus import LABELLED, CorpusError

TRANSCRIBED, UNLABELLED = "transcribed_data", "unlabelled_data"
COLUMNS = ("id", "normalized_text", "speaker_id", "split")
UTTERANCE = re.compile(r"(?P<session>\d{4}[^_/]*)-[a-z]{2}_[^/]+")
NEEDS = (
    "transcribed_data/LANGUAGE/asr_{train,dev,test}.tsv and YEAR/*.ogg beside them, or "
    "unlabelled_data/LANGUAGE/YEAR/*.ogg, or both; with both, unlabelled files of a session that asr_dev.tsv or "
    "asr_test.tsv names are left out"
)


def read(root: Path, language: str | None) -> Iterator[Segment]:
    """Segments of the transcribed speech, normalised text, then of the unlabelled speech, whose speakers are not known,
    without the sessions of dev and test. Where there is no transcribed speech, these are not known.

    Raises LayoutError for missing folders or tables, CorpusError for a language that is not one of those there, or for
    a malformed row.
    """
    names = sorted({path.name for part in (TRANSCRIBED, UNLABELLED) for path in (root / part).glob("*/")})
    neither = [f"{TRANSCRIBED}/LANGUAGE or {UNLABELLED}/LANGUAGE"]
    refuse_missing(root, [] if names else neither, NEEDS)
    name = choose_language(language, names, root)
    transcribed = root / TRANSCRIBED / name
    tables = {split: transcribed / f"asr_{split}.tsv" for split in LABELLED} if transcribed.is_dir() else {}
    missing = [path.relative_to(root).as_posix() for path in tables.values() if not path.is_file()]
    unlabelled = sorted((root / UNLABELLED / name).glob("*/*.ogg"))
    missing += [] if tables or unlabelled else [f"{UNLABELLED}/{name}/YEAR/*.ogg"]
    refuse_missing(root, missing, NEEDS)
    held_out: set[str] = set()
    for split, table in tables.items():
        for where, row in read_table(table, COLUMNS):
            utterance, speaker = row["id"], row["speaker_id"]
            named = UTTERANCE.fullmatch(utterance)
            if row["split"] != split or not named:
                rule = f"must be of the split {split}, with an id that begins with the year, YEAR...-LANGUAGE_..."
                raise CorpusError(f"{where}: {rule}; got split {row['split']!r}, id {utterance!r}: unpack again")
            path = file_below(transcribed / utterance[:4], f"{utterance}.ogg", where)
            held_out |= {named["session"]} if split != "train" else set()
            known = "" if speaker == "None" else speaker
            yield Segment(utterance, path, row["normalized_text"], split, known, name)
    for path in unlabelled:
        if path.stem.partition(f"_{name}_")[0] not in held_out:
            yield Segment(path.stem, path, None, "unlabelled", "", name)


CORPUS = PublishedCorpus(
    title="VoxPopuli",
    hours="1,791 transcribed in 16 languages (English 543), 400,000 unlabelled in 23",
    licence="CC0 1.0; European Parliament's terms for the recordings",
    needs=NEEDS,
    read=read,
    languages=(
        *("bg", "cs", "da", "de", "el", "en", "es", "et", "fi", "fr", "hr", "hu"),
        *("it", "lt", "lv", "mt", "nl", "pl", "pt", "ro", "sk", "sl", "sv"),
    ),
)
