"""Corpora as lists of utterances. No audio is decoded here, and torch is not needed.

Adding a corpus: a settings class and its line in the union of `config.py`, and here one reader and its
line in `READERS`.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import heapq
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from trainables.data.config import CorpusConfig, FolderConfig, MixtureConfig, PromptsConfig
from trainables.data.seeds import fold
from trainables.data.text import normalise

Split = Literal["train", "dev", "test", "unlabelled"]
LABELLED: tuple[Split, ...] = ("train", "dev", "test")
PROMPTS = Path(__file__).parent / "prompts"
BYTES_PER_SAMPLE = 2  # of an audio store: int16


class CorpusError(ValueError):
    """A manifest or an audio file that cannot be used; the message names the file, the line and the rule."""


class AbsentCorpusError(CorpusError):
    """A corpus that is not on this machine."""


@dataclass(frozen=True)
class Utterance:
    """One recording. `text` is None where the stage must not see it."""

    id: str
    path: Path
    duration_seconds: float
    content: int | str  # stands for the audio in hashes: the size of its file, or the checksum of its stored samples
    text: str | None
    split: Split
    speaker: str = ""  # empty: not known
    stored: tuple[int, int] | None = None  # of an audio store: first sample, and how many; None: a file to decode
    source: int = 0  # which corpus of a mixture it comes from


@dataclass(frozen=True)
class Corpus:
    """The labelled splits, and the audio without text for self-supervised stages."""

    train: tuple[Utterance, ...]
    dev: tuple[Utterance, ...]
    test: tuple[Utterance, ...]
    unlabelled: tuple[Utterance, ...]
    sampling_exponent: float = 1.0  # of the sources of train and unlabelled speech; 1: each utterance once an epoch

    def split_hashes(self) -> dict[str, str]:
        """sha256 of the list of utterances of each part: which recordings, how long, and their text.

        Those of train and unlabelled speech also hold how their sources are sampled, where that matters.
        """
        return dict(self._split_hashes)

    @functools.cached_property
    def _split_hashes(self) -> dict[str, str]:
        hashes: dict[str, str] = {name: hash_utterances(getattr(self, name)) for name in (*LABELLED, "unlabelled")}
        for name in ("train", "unlabelled"):
            sources = sorted((u.id, u.source) for u in getattr(self, name))
            if self.sampling_exponent != 1.0 and len({source for _, source in sources}) > 1:
                sampled = json.dumps([hashes[name], self.sampling_exponent, sources])
                hashes[name] = hashlib.sha256(sampled.encode()).hexdigest()
        return hashes

    def fingerprint(self, streams: Iterable[str]) -> str:
        """What identifies the data of a stage that reads these streams: `labelled`, `unlabelled`, or both."""
        hashes = self.split_hashes()
        parts = {"labelled": LABELLED, "unlabelled": ("unlabelled",)}
        return "-".join("".join(hashes[name][:12] for name in parts[stream]) for stream in sorted(streams))


def hash_utterances(utterances: Iterable[Utterance]) -> str:
    """sha256 over id, duration, content and text, in the order of the ids; where the files lie does not matter."""
    rows = sorted((u.id, f"{u.duration_seconds:.3f}", u.content, u.text) for u in utterances)
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


def split_of(text: str) -> Split:
    """The split of a transcript: 80 % train, 10 % dev, 10 % test by the hash of the normalised text.

    Equal texts always fall into one split, so dev and test hold no sentence that was trained on.
    """
    bucket = int(hashlib.sha256(normalise(text).encode()).hexdigest(), 16) % 10
    return "dev" if bucket == 0 else "test" if bucket == 1 else "train"


def read_manifest(root: Path, *, prefix: str = "", listed: Set[str] = frozenset()) -> list[Utterance]:
    """Read `root/manifest.tsv`. Rows marked `has_digits` are left out: their text was guessed from figures.

    Rows of the split `unlabelled` need no text, and give none; but those whose ids are `listed` are train. Rows of a
    prepared corpus say where their samples are (`trainables.data.corpora.prepare`).

    Raises CorpusError with file and line for a missing column, file or text, a duplicate id, a bad duration, an unknown
    split, a path that leaves the folder, or samples beyond the end of the store.
    """
    manifest = root / "manifest.tsv"
    if not manifest.is_file():
        raise AbsentCorpusError(f"{manifest}: no such file; a corpus folder needs a manifest.tsv")
    if not (root / "audio").is_dir() or not any((root / "audio").glob("*.s16")):
        return _read_manifest(manifest, prefix, frozenset(listed))
    status = manifest.stat()  # of a prepared corpus the manifest tells all, so it is read once
    return _read_prepared(manifest, prefix, frozenset(listed), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=8)
def _read_prepared(
    manifest: Path, prefix: str, listed: frozenset[str], modified_ns: int, size_bytes: int
) -> list[Utterance]:
    return _read_manifest(manifest, prefix, listed)


def _read_manifest(manifest: Path, prefix: str, listed: frozenset[str]) -> list[Utterance]:
    root = manifest.parent
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as stream:
            utterances = _read_rows(stream, root, manifest, prefix, listed)
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"{manifest}: is not a tab-separated table in UTF-8: {error}") from error
    if not utterances:
        raise CorpusError(f"{manifest}: no usable utterance")
    return sorted(utterances, key=lambda u: u.id)  # equal hashes must mean equal batches, whatever the order of rows


def _read_rows(stream: Iterable[str], root: Path, manifest: Path, prefix: str, listed: Set[str]) -> list[Utterance]:
    utterances: dict[str, Utterance] = {}
    size_of = functools.cache(_size)  # for this reading: many utterances share a file of an audio store
    rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = {"id", "path", "duration_seconds", "text"} - set(rows.fieldnames or ())
    if missing:
        raise CorpusError(f"{manifest}:1: missing column(s) {', '.join(sorted(missing))}")
    for row in rows:
        if row.get("has_digits") == "1":
            continue
        if row["id"] in listed and row.get("split") == "unlabelled":
            row["split"] = "train"
        utterance = _utterance(row, root, f"{manifest}:{rows.line_num}", size_of)
        if utterance.id in utterances:
            raise CorpusError(f"{manifest}:{rows.line_num}: id {utterance.id!r} occurs twice; ids must be unique")
        utterances[utterance.id] = replace(utterance, id=prefix + utterance.id)
    return list(utterances.values())


def _size(path: Path) -> int | None:
    """Of a file; None where there is none, or none that can be read."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:  # a name that is too long, a folder that is closed
        return None


def is_below(folder: Path, name: str) -> bool:
    """Whether a path that a corpus's own file names stays below the folder. Links in the folder may lead elsewhere:
    whoever made the folder made them (copies of the Hugging Face hub consist of links).
    """
    path = folder / name
    return "\0" not in name and path.is_relative_to(folder) and ".." not in path.parts[len(folder.parts) :]


def _utterance(row: dict[str, str], root: Path, where: str, size_of: Callable[[Path], int | None]) -> Utterance:
    unlabelled = row.get("split") == "unlabelled"
    text = None if unlabelled else normalise(row["text"] or "")
    for column in ("id", "path", "duration_seconds"):
        if not row[column]:
            raise CorpusError(f"{where}: utterance {row['id']!r} has no {column}")
    if text == "":
        raise CorpusError(f"{where}: utterance {row['id']!r} has no text")
    path = root / row["path"]
    if not is_below(root, row["path"]):
        raise CorpusError(f"{where}: path {row['path']!r} leaves the corpus folder")
    size_bytes = size_of(path)
    if size_bytes is None:
        raise CorpusError(f"{where}: audio file {row['path']!r} does not exist or is closed")
    try:
        duration_seconds = float(row["duration_seconds"])
    except (TypeError, ValueError):
        duration_seconds = math.nan
    if not 0 < duration_seconds < math.inf:
        raise CorpusError(f"{where}: duration_seconds must be a positive number, got {row['duration_seconds']!r}")
    split = row.get("split") or split_of(text or "")
    if split not in get_args(Split):
        raise CorpusError(f"{where}: split must be one of {', '.join(get_args(Split))}, got {split!r}")
    stored = _stored(row, size_bytes, where) if row.get("first_sample") else None
    return Utterance(
        id=row["id"],
        path=path,
        duration_seconds=duration_seconds,
        content=row["checksum"] if stored else size_bytes,
        text=text,
        split=split,  # type: ignore[arg-type]
        speaker=row.get("speaker") or "",
        stored=stored,
    )


def _stored(row: dict[str, str], size_bytes: int, where: str) -> tuple[int, int]:
    try:
        first, length = int(row["first_sample"]), int(row["num_samples"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorpusError(f"{where}: first_sample and num_samples must be whole numbers") from error
    if first < 0 or length < 1 or (first + length) * BYTES_PER_SAMPLE > size_bytes:
        raise CorpusError(
            f"{where}: samples {first} to {first + length} are not in {row['path']!r}, which has "
            f"{size_bytes // BYTES_PER_SAMPLE}; prepare the corpus again"
        )
    if not row.get("checksum"):
        raise CorpusError(f"{where}: utterance {row['id']!r} has no checksum; prepare the corpus again")
    return first, length


def _without_text(utterances: Iterable[Utterance]) -> tuple[Utterance, ...]:
    return tuple(replace(u, text=None) for u in utterances)


def _corpus(utterances: list[Utterance], where: str) -> Corpus:
    """The train audio is also unlabelled speech. There may be no labelled speech at all."""
    parts = {split: tuple(u for u in utterances if u.split == split) for split in LABELLED}
    for split, part in parts.items():
        if not part and any(parts.values()):
            raise CorpusError(f"{where}: the {split} split has no utterance; training needs train, dev and test")
    unlabelled = (u for u in utterances if u.split in ("train", "unlabelled"))
    return Corpus(parts["train"], parts["dev"], parts["test"], _without_text(unlabelled))


def read_prompts(config: PromptsConfig) -> Corpus:
    folder = PROMPTS / config.language
    return _corpus(read_manifest(folder, prefix=f"{config.language}/"), str(folder))


def read_folder(config: FolderConfig) -> Corpus:
    if config.labelled_list is None or not (config.root / "manifest.tsv").is_file():
        return _corpus(read_manifest(config.root), str(config.root))
    listed = _read_list(config.root / "lists" / f"{config.labelled_list}.txt")
    corpus = _corpus(read_manifest(config.root, listed=listed), str(config.root))
    train = tuple(u for u in corpus.train if u.id in listed)
    if missing := listed - {u.id for u in train}:
        raise CorpusError(
            f"{config.root}: {len(missing)} of the {len(listed)} utterances of list {config.labelled_list!r} are not "
            f"in its train split, such as {min(missing)!r}; prepare the corpus again with all its parts"
        )
    return replace(corpus, train=train)


def _read_list(path: Path) -> set[str]:
    """The ids of a list, one a line. Raises CorpusError, naming the lists that there are, when it is not there."""
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt"))) or "none"
        raise CorpusError(f"{path}: no such list of utterances; this corpus has: {known}")
    return set(path.read_text("utf-8").split())


def read_mixture(config: MixtureConfig) -> Corpus:
    corpora = [read_corpus(corpus) for corpus in config.labelled]
    train, dev, test = (_joined((getattr(corpus, split) for corpus in corpora), "labelled") for split in LABELLED)
    unlabelled = _joined((read_corpus(source).unlabelled for source in config.unlabelled), "unlabelled")
    held_out = {u.id for u in (*dev, *test)}
    for role, part in (("train", train), ("unlabelled", unlabelled)):
        if leaked := sorted(held_out & {u.id for u in part}):
            raise CorpusError(
                f"id {leaked[0]!r} is in dev or test of a mixture and in its {role} speech: it is the same utterance, "
                "and must be left out there, or another one, and needs an id of its own"
            )
    return Corpus(train, dev, test, unlabelled, config.sampling_exponent)


def _joined(parts: Iterable[Sequence[Utterance]], role: str) -> tuple[Utterance, ...]:
    """The utterances of several corpora, each with the number of its own."""
    joined = [replace(u, source=number) for number, part in enumerate(parts) for u in part]
    found: set[str] = set()
    for utterance in joined:
        if utterance.id in found:
            raise CorpusError(f"id {utterance.id!r} occurs twice in a mixture's {role} corpora; ids must be unique")
        found.add(utterance.id)
    return tuple(sorted(joined, key=lambda u: u.id))


READERS: dict[type, Callable[..., Corpus]] = {
    PromptsConfig: read_prompts,
    FolderConfig: read_folder,
    MixtureConfig: read_mixture,
}


def read_corpus(config: CorpusConfig) -> Corpus:
    """The corpus that the settings name, or the subset of it. Raises CorpusError when it cannot be used."""
    corpus = READERS[type(config)](config)
    labelled = math.inf if config.labelled_minutes is None else config.labelled_minutes * 60
    hours = math.inf if config.unlabelled_hours is None else config.unlabelled_hours
    unlabelled = min(hours * 3600, _share(corpus.unlabelled, config.unlabelled_fraction))
    seed = config.subset_seed
    return replace(
        corpus,
        train=_subset_of_sources(corpus.train, labelled, seed),
        unlabelled=_subset_of_sources(corpus.unlabelled, unlabelled, seed),
    )


def _share(utterances: Sequence[Utterance], fraction: float) -> float:
    """That fraction of their duration in seconds; no limit for all of it."""
    return total_seconds(utterances) * fraction if fraction < 1 else math.inf


def _subset_of_sources(utterances: tuple[Utterance, ...], seconds: float, seed: int) -> tuple[Utterance, ...]:
    """A subset of that duration, to which each source of a mixture gives the same share of its speech."""
    if seconds == math.inf or not utterances:
        return utterances
    total = total_seconds(utterances)
    sources = [[u for u in utterances if u.source == source] for source in sorted({u.source for u in utterances})]
    chosen = (u for own in sources for u in subset(own, seconds * total_seconds(own) / total, seed))
    return tuple(sorted(chosen, key=lambda u: u.id))


def subset(utterances: Sequence[Utterance], seconds: float, seed: int) -> tuple[Utterance, ...]:
    """Utterances of that duration in total, or a little less; at least one, all when there are not enough.

    Each comes from the speaker who has spoken least so far, so that speakers have equal shares, to within one
    utterance, as long as they have any left. The order depends on the seed, the ids, durations and speakers alone, so
    that smaller subsets lie in larger ones.
    """
    chosen: list[Utterance] = []
    total = 0.0
    for utterance in _in_turns(utterances, seed):
        total += utterance.duration_seconds
        if chosen and total > seconds + 1e-6:
            break
        chosen.append(utterance)
    return tuple(sorted(chosen, key=lambda u: u.id))


def _in_turns(utterances: Sequence[Utterance], seed: int) -> Iterator[Utterance]:
    left: dict[str, list[Utterance]] = {}
    for utterance in sorted(utterances, key=lambda u: (fold(seed, "subset", u.id), u.id), reverse=True):
        left.setdefault(utterance.speaker, []).append(utterance)
    turns = [(0.0, fold(seed, "speaker", speaker), speaker) for speaker in left]
    heapq.heapify(turns)
    while turns:
        spoken, tie, speaker = heapq.heappop(turns)
        utterance = left[speaker].pop()
        yield utterance
        if left[speaker]:
            heapq.heappush(turns, (spoken + utterance.duration_seconds, tie, speaker))


def total_seconds(utterances: Iterable[Utterance]) -> float:
    return math.fsum(u.duration_seconds for u in utterances)
