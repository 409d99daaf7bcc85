"""`study lm train`: an n-gram language model from text."""

from __future__ import annotations

import argparse
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainables.settings_file import SettingsError


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    lm = verbs.add_parser("lm", help="n-gram language models")
    actions = lm.add_subparsers(required=True, metavar="ACTION")
    train = actions.add_parser("train", help="estimate an n-gram (modified Kneser-Ney) and write an ARPA file")
    train.add_argument(
        "texts",
        nargs="+",
        type=Path,
        metavar="TEXT",
        help="a sentence a line (.gz too), or a corpus folder: its train split",
    )
    train.add_argument("--output", type=Path, required=True, metavar="FILE.arpa", help="where to write")
    train.add_argument("--order", type=int, default=3, help="2 to 6 (default: 3)")
    train.add_argument("--unit", choices=("words", "characters"), default="words", help="(default: words)")
    train.add_argument(
        "--language", help="ISO 639-1 code: clean the text as transcripts of it are; without it, lower case"
    )
    train.set_defaults(command=_train)


def _train(options: argparse.Namespace) -> int:
    from trainables.data.clean import clean
    from trainables.data.text import normalise
    from trainables.decoding.ngram import MAX_ORDER, estimate

    def units(line: str) -> Sequence[str]:
        text = clean(line, options.language) if options.language else normalise(line)
        return text.split() if options.unit == "words" else [*text.replace(" ", "|")]

    if not 2 <= options.order <= MAX_ORDER:
        raise SettingsError([f"--order must be from 2 to {MAX_ORDER}, which decoders read; got {options.order}"])
    missing = [f"{path}: no such file or folder" for path in options.texts if not path.exists()]
    if missing:
        raise SettingsError(missing)
    try:
        sentences = (units(line) for path in options.texts for line in _lines(path))
        estimate((s for s in sentences if s), options.order, options.output)
    except (ValueError, OSError, EOFError, zlib.error, RuntimeError) as error:
        raise SettingsError([str(error)]) from error
    print(options.output)
    return 0


def _lines(path: Path) -> Iterator[str]:
    if path.is_dir():
        yield from _train_transcripts(path)
        return
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        yield from lines


def _train_transcripts(folder: Path) -> Iterator[str]:
    """Of a corpus folder, as training reads them."""
    from trainables.data.corpus import read_manifest

    return (u.text or "" for u in read_manifest(folder) if u.split == "train")
