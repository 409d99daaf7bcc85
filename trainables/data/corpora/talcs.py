"""TALCS: Mandarin-English speech of online lessons of English, by TAL Education (arXiv:2206.13135).

In `label.txt` of each set a line has the name of a file in `wav/`, white space and its transcript. Speakers are not
told. lhotse's recipe (tal_csasr) opens every file and leaves out those that lack, so the transcripts are parsed here;
its folding of punctuation is left to `clean`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainables.data.corpora.files import file_below, read_lines, refuse_missing
from trainables.data.corpora.segment import PublishedCorpus, Segment
from trainables.data.corpus import Split

SETS: dict[Split, str] = {"train": "train_set", "dev": "dev_set", "test": "test_set"}
NEEDS = "TALCS_corpus/ with train_set/, dev_set/ and test_set/, each with label.txt and wav/"


def read(root: Path, language: str | None) -> Iterator[Segment]:
    """The splits as published. Raises LayoutError, and CorpusError for a `label.txt` that is not UTF-8."""
    corpus = root / "TALCS_corpus"
    labels = [corpus / folder / "label.txt" for folder in SETS.values()]
    audio = [corpus / folder / "wav" for folder in SETS.values()]
    missing = [str(path.relative_to(root)) for path in labels if not path.is_file()]
    missing += [f"{path.relative_to(root)}/" for path in audio if not path.is_dir()]
    refuse_missing(root, missing, NEEDS)
    return (segment for split, folder in SETS.items() for segment in _set(corpus / folder, split))


def _set(folder: Path, split: Split) -> Iterator[Segment]:
    for where, line in read_lines(folder / "label.txt"):
        name, *words = line.split()
        path = file_below(folder / "wav", f"{name}.wav", where)
        yield Segment(name, path, " ".join(words), split, language="zh")


CORPUS = PublishedCorpus(
    title="TALCS (Mandarin-English)",
    hours="587",
    licence="terms of TAL Education, https://ai.100tal.com/dataset",
    needs=NEEDS,
    read=read,
    languages=("zh",),
)
