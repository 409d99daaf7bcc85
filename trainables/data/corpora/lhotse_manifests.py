"""Any lhotse manifests (https://lhotse.readthedocs.io) over plain audio files."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainables.data.corpora.files import refuse_missing
from trainables.data.corpora.segment import LayoutError, PublishedCorpus, Segment
from trainables.data.corpus import CorpusError, Split

SPLITS: dict[str, Split] = {**{split: split for split in get_args(Split)}, "valid": "dev"}
NEEDS = (
    "*recordings*.jsonl.gz with *supervisions*.jsonl.gz of the same name, or *cuts*.jsonl.gz (or .jsonl), over "
    "plain audio files; relative paths of these start at the root. The split is train, dev, valid, test or unlabelled "
    "in a manifest's name, else the field split of a supervision's or cut's custom fields"
)


Seconds = Annotated[float, Field(allow_inf_nan=False)]
Channels = int | list[int]


class _Item(BaseModel):
    """What is used of lhotse's objects, which take any JSON for any of their fields."""

    model_config = ConfigDict(from_attributes=True)
    id: str


class _Source(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    type: str
    channels: list[int]
    source: Any  # text, for a source that is a file


class _Recording(_Item):
    sources: list[_Source]
    transforms: Any = None


class _Supervision(_Item):
    recording_id: str
    start: Seconds  # of a cut's, from the cut's start on: negative for what begins before it
    duration: Seconds
    channel: Channels
    text: str | None
    language: str | None
    speaker: str | None
    custom: dict[str, Any] | None


class _Cut(_Item):
    start: Seconds
    duration: Seconds
    channel: Channels
    supervisions: list[_Supervision]
    recording: _Recording | None
    custom: dict[str, Any] | None


RECORDINGS = {"Recording": _Recording}
SUPERVISIONS = {"SupervisionSegment": _Supervision}
CUTS = {"MonoCut": _Cut, "MultiCut": _Cut}
Kind = TypeVar("Kind", bound=_Item)


def read(root: Path, language: str | None) -> Iterator[Segment]:
    """One segment for each supervision, and for each cut without any, whose speech is unlabelled.

    `language` stands for all utterances; without it, that of a supervision where it is an ISO 639-1 code. Speech
    without text and split is unlabelled. Raises LayoutError for missing manifests and for audio that is not a plain
    file, CorpusError for a line that lhotse cannot read.
    """
    recordings, cuts = _manifests(root, "recordings"), _manifests(root, "cuts")
    pairs = [(path, path.with_name(path.name.replace("recordings", "supervisions"))) for path in recordings]
    missing = [path.name for _, path in pairs if not path.is_file()]
    missing += [] if recordings or cuts else ["*recordings*.jsonl.gz or *cuts*.jsonl.gz"]
    refuse_missing(root, missing, NEEDS)
    if recordings and cuts:
        names = f"{recordings[0].name} and {cuts[0].name}"
        raise LayoutError(f"{root}: has recordings and cuts ({names}), so the same speech twice; take one kind away")
    for pair in pairs:
        yield from _of_supervisions(*pair, language)
    for path in cuts:
        yield from _of_cuts(path, language)


def _manifests(root: Path, kind: str) -> list[Path]:
    return sorted([*root.glob(f"*{kind}*.jsonl"), *root.glob(f"*{kind}*.jsonl.gz")])


def _of_supervisions(recordings: Path, supervisions: Path, language: str | None) -> Iterator[Segment]:
    by_id = {recording.id: (where, recording) for where, recording in _items(recordings, RECORDINGS)}
    for where, supervision in _items(supervisions, SUPERVISIONS):
        if supervision.recording_id not in by_id:
            raise CorpusError(f"{where}: recording {supervision.recording_id!r} is not in {recordings.name}; add it")
        if supervision.start < 0:
            raise CorpusError(f"{where}: start must be a number of seconds from 0 on, got {supervision.start:g}")
        place, recording = by_id[supervision.recording_id]
        path, channel = _source(recording, supervision.channel, recordings.parent, place)
        yield _segment(supervision, path, channel, supervision.start, _split(recordings, where, supervision), language)


def _of_cuts(cuts: Path, language: str | None) -> Iterator[Segment]:
    """A supervision's start counts from its cut's."""
    for where, cut in _items(cuts, CUTS):
        if cut.recording is None:
            raise LayoutError(f"{where}: cut {cut.id!r} has features only; a cut needs a recording in an audio file")
        for supervision in cut.supervisions:
            path, channel = _source(cut.recording, supervision.channel, cuts.parent, where)
            split = _split(cuts, where, supervision, cut)
            start = max(0.0, cut.start + supervision.start)
            yield _segment(supervision, path, channel, start, split, language)
        if not cut.supervisions:
            path, channel = _source(cut.recording, cut.channel, cuts.parent, where)
            yield Segment(cut.id, path, None, "unlabelled", "", language or "", cut.start, cut.duration, channel)


def _items(manifest: Path, kinds: Mapping[str, type[Kind]]) -> Iterator[tuple[str, Kind]]:
    """Each item of a manifest with its place, `file:line`. `kinds`: lhotse's classes that it may be of, by name."""
    from lhotse.serialization import deserialize_item, open_best  # takes seconds to load

    number = 0
    try:
        with open_best(manifest) as stream:
            for number, line in enumerate(stream, start=1):
                item = deserialize_item(json.loads(line))
                if type(item).__name__ not in kinds:
                    rule = f"must be a {' or '.join(kinds)} over one audio file"
                    raise LayoutError(f"{manifest}:{number}: {rule}, got a {type(item).__name__}")
                yield f"{manifest}:{number}", kinds[type(item).__name__].model_validate(item)
    except LayoutError:
        raise
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise CorpusError(f"{manifest}:{number}: {field}: {error.errors()[0]['msg']}; correct it") from error
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        what = f"lhotse cannot read this as a {' or '.join(kinds)}"
        raise CorpusError(f"{manifest}:{number}: {what}: {error!r}; write the manifest again") from error


def _source(recording: _Recording, channels: Channels, root: Path, where: str) -> tuple[Path, int | None]:
    """The audio file with these channels of a recording, and which of its channels it is; None for all of them."""
    wanted = {channels} if isinstance(channels, int) else set(channels)
    if recording.transforms:
        raise LayoutError(
            f"{where}: recording {recording.id!r} is transformed ({recording.transforms}); use plain audio"
        )
    for source in recording.sources:
        if source.type != "file":
            rule = f"a source must be a local audio file, got type {source.type!r}"
            raise LayoutError(f"{where}: recording {recording.id!r}: {rule}; save its audio to files first")
        if not isinstance(source.source, str) or "\0" in source.source:
            raise CorpusError(f"{where}: recording {recording.id!r}: no file can have the name {source.source!r}")
    for source in recording.sources:
        if wanted == set(source.channels):
            return root / source.source, None
        if len(wanted) == 1 and wanted <= set(source.channels):
            return root / source.source, source.channels.index(*wanted)
    rule = "must be one channel of a file or all of them"
    raise CorpusError(f"{where}: channels {sorted(wanted)} of recording {recording.id!r}: {rule}")


def _split(manifest: Path, where: str, *items: _Supervision | _Cut) -> Split | None:
    """The split in the manifest's name when there is one only, else that of the first item with a field of it."""
    named = {SPLITS[word] for word in re.split(r"[^a-z]+", manifest.name.lower()) if word in SPLITS}
    if len(named) == 1:
        return named.pop()
    value = next((item.custom["split"] for item in items if item.custom and "split" in item.custom), None)
    if value is not None and (not isinstance(value, str) or value not in SPLITS):
        raise CorpusError(f"{where}: custom field split must be one of {', '.join(SPLITS)}, got {value!r}")
    return None if value is None else SPLITS[value]


def _segment(
    supervision: _Supervision, path: Path, channel: int | None, start: float, split: Split | None, language: str | None
) -> Segment:
    text = supervision.text
    if split is None and not text:
        split = "unlabelled"
    stated = supervision.language or ""
    return Segment(
        *(supervision.id, path, None if split == "unlabelled" else text or "", split, supervision.speaker or ""),
        language or (stated if re.fullmatch("[a-z]{2}", stated) else ""),
        *(start, supervision.duration, channel),
    )


CORPUS = PublishedCorpus(
    title="Lhotse manifests",
    hours="any",
    licence="as the corpus has it",
    needs=NEEDS,
    read=read,
)
