"""CoVoST 2 (Wang et al. 2020, arXiv:2007.10310), the languages that are translated to English, as speech recognition:
the text is the sentence that was read. Audio and sentences are those of Common Voice, release 4.

What is published, `covost_v2.LL_en.tsv`, has the columns path, translation and split; `get_covost_splits.py` of
https://github.com/facebookresearch/covost joins it with Common Voice's `validated.tsv` into three files. Either is
read, and joined here when need be. lhotse has no recipe for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainables.data.corpora.commonvoice import COLUMNS, clip, release
from trainables.data.corpora.files import choose_language, iso_639_1, read_table, refuse_missing
from trainables.data.corpora.segment import PublishedCorpus, Segment
from trainables.data.corpus import LABELLED, Split

Row = tuple[str, Split, dict[str, str]]  # its place, its split, its fields
TABLES = "covost_v2.*_en*.tsv"
ESCAPE = "\\"  # as the script writes the files
SPLITS: dict[str, Split] = {"train": "train", "train_covost": "train", "dev": "dev", "test": "test"}
NEEDS = (
    "covost_v2.LL_en.{train,dev,test}.tsv, or covost_v2.LL_en.tsv and Common Voice's validated.tsv, and Common Voice's "
    "clips/*.mp3; each in it, in LL or in cv-corpus-4-2019-12-10/LL (LL: nl, mn, ar, sv-SE ...)"
)


def read(root: Path, language: str | None) -> Iterator[Segment]:
    """Segments of train (Common Voice's with CoVoST's additions), dev and test.

    A clip that `validated.tsv` lacks has an empty text. Raises LayoutError for missing files, CorpusError for a
    language that is not one of those there or for a malformed row.
    """
    home = release(root)
    found = [path.name for folder in {root, home} for path in (*folder.glob(TABLES), *folder.glob(f"*/{TABLES}"))]
    names = sorted({name.split(".")[1].removesuffix("_en") for name in found})
    refuse_missing(root, [] if names else ["covost_v2.LL_en.tsv"], NEEDS)
    name = choose_language(language, names, root)
    files = _files((root / name, home / name, root), name)
    refuse_missing(root, [file for file, path in files.items() if not path.exists()], NEEDS)
    whole = files.get(f"covost_v2.{name}_en.tsv")
    rows = _joined_rows(whole, files["validated.tsv"]) if whole else _split_rows(files, name)
    for where, split, row in rows:
        path = clip(files["clips"], row["path"], where)
        yield Segment(path.stem, path, row["sentence"], split, row["client_id"], iso_639_1(name))


def _files(places: tuple[Path, ...], name: str) -> dict[str, Path]:
    """The needed files by name, each in the first place that has it; those of the three splits if there is one."""
    three = [f"covost_v2.{name}_en.{split}.tsv" for split in LABELLED]
    is_split = any((place / file).is_file() for place in places for file in three)
    needed = (*(three if is_split else (f"covost_v2.{name}_en.tsv", "validated.tsv")), "clips")
    return {file: next((p / file for p in places if (p / file).exists()), places[0] / file) for file in needed}


def _split_rows(files: dict[str, Path], name: str) -> Iterator[Row]:
    for split in LABELLED:
        for where, row in read_table(files[f"covost_v2.{name}_en.{split}.tsv"], COLUMNS, escape=ESCAPE):
            yield where, split, row


def _joined_rows(whole: Path, validated: Path) -> Iterator[Row]:
    """Rows of the splits of version 2; the table has others, of version 1, which are left out as the script does."""
    absent = {"sentence": "", "client_id": ""}
    sentences = {row["path"]: row for _, row in read_table(validated, COLUMNS)}
    for where, row in read_table(whole, ("path", "split"), escape=ESCAPE):
        if row["split"] in SPLITS:
            yield where, SPLITS[row["split"]], sentences.get(row["path"], absent) | {"path": row["path"]}


CORPUS = PublishedCorpus(
    title="CoVoST 2",
    hours="by language; of train and test each Dutch 2, Mongolian 3, Arabic 2",
    licence="CC BY-NC 4.0; Common Voice's audio CC0 1.0",
    needs=NEEDS,
    read=read,
    languages=(
        *("ar", "ca", "cy", "de", "es", "et", "fa", "fr", "id", "it", "ja"),
        *("lv", "mn", "nl", "pt", "ru", "sl", "sv", "ta", "tr", "zh"),
    ),
)
