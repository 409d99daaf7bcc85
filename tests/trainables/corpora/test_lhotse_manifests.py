from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainables.corpora import layouts
from trainables.data.corpora.lhotse_manifests import read
from trainables.data.corpora.segment import LayoutError, Segment
from trainables.data.corpus import LABELLED, CorpusError

Item = dict[str, Any]


def as_lhotse_has_it(cuts: Any, root: Path) -> set[tuple[Any, ...]]:
    """Each supervision as a cut of its own, trimmed by lhotse."""
    trimmed = cuts.trim_to_supervisions(keep_overlapping=False)
    return {
        (c.supervisions[0].id, root / c.recording.sources[0].source, c.supervisions[0].text, c.start, c.duration)
        for c in trimmed
    }


def as_read(segments: list[Segment]) -> set[tuple[Any, ...]]:
    labelled = [s for s in segments if s.text is not None]
    return {(s.id, s.path, s.text, round(s.start_seconds, 8), s.duration_seconds) for s in labelled}


def change(manifest: Path, edit: Callable[[Item], Any]) -> None:
    """Edit the first item of a manifest."""
    first, *others = (line for line in read_text(manifest).splitlines() if line)
    item = json.loads(first)
    edit(item)
    text = "\n".join([json.dumps(item), *others])
    manifest.write_bytes(gzip.compress(text.encode()) if manifest.suffix == ".gz" else text.encode())


def read_text(manifest: Path) -> str:
    content = manifest.read_bytes()
    return (gzip.decompress(content) if manifest.suffix == ".gz" else content).decode()


def test_supervisions_are_those_of_lhotse(tmp_path: Path) -> None:
    from lhotse import CutSet, load_manifest

    root = layouts.lhotse_recordings(tmp_path)
    segments = list(read(root, None))
    for split in LABELLED:
        manifests = {
            kind: load_manifest(root / f"calls_{kind}_{split}.jsonl.gz") for kind in ("recordings", "supervisions")
        }
        expected = as_lhotse_has_it(CutSet.from_manifests(**manifests), root)
        assert as_read([s for s in segments if s.split == split]) == expected
        assert {s.speaker for s in segments if s.split == split} == {f"speaker-{split}"}
    assert {(s.language, s.channel) for s in segments} == {("it", None)}


def test_cuts_are_those_of_lhotse(tmp_path: Path) -> None:
    from lhotse import CutSet

    root = layouts.lhotse_cuts(tmp_path)
    segments = list(read(root, None))
    whole, *others = segments
    assert as_read(others) == as_lhotse_has_it(CutSet.from_file(root / "cuts.jsonl").subset(last=5), root)
    assert [s.split for s in others] == ["train", "dev", "dev", "test", "test"]
    assert {s.start_seconds for s in others} == {0.125}
    assert (whole.id, whole.text, whole.split, whole.start_seconds) == ("cut-said-train0", None, "unlabelled", 0.1)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("cuts_valid.jsonl", "dev"),
        ("x_cuts_train-clean-100.jsonl", "train"),
        ("CUTS-cuts-Test.jsonl", "test"),
        ("cuts_unlabelled_60k.jsonl", "unlabelled"),
        ("cuts_training.jsonl", None),
        ("cuts_train_dev.jsonl", None),  # of two
    ],
)
def test_the_split_is_a_word_of_the_name(tmp_path: Path, name: str, split: str | None) -> None:
    root = layouts.lhotse_cuts(tmp_path)
    text = (root / "cuts.jsonl").read_text().replace('"split"', '"part"')
    (root / "cuts.jsonl").unlink()
    (root / name).write_text(text)
    segments = list(read(root, None))[1:]
    assert {s.split for s in segments} == {split}
    assert {s.text is None for s in segments} == {split == "unlabelled"}


def test_speech_without_text_is_unlabelled_or_has_an_empty_text(tmp_path: Path) -> None:
    root = layouts.lhotse_recordings(tmp_path)
    change(root / "calls_supervisions_dev.jsonl.gz", lambda item: item.pop("text"))
    assert {s.id: s.text for s in read(root, None)}["said-dev0"] == ""
    for kind in ("recordings", "supervisions"):
        shutil.move(root / f"calls_{kind}_dev.jsonl.gz", root / f"calls_{kind}.jsonl.gz")
    first, second = (s for s in read(root, None) if s.id.startswith("said-dev"))
    assert (first.text, first.split) == (None, "unlabelled")
    assert (bool(second.text), second.split) == (True, None)


@pytest.mark.parametrize(
    ("stated", "given", "language"),
    [("it", None, "it"), ("Italian", None, ""), (None, None, ""), ("Italian", "it", "it")],
)
def test_the_language_is_the_given_one_or_a_code(
    tmp_path: Path, stated: str | None, given: str | None, language: str
) -> None:
    root = layouts.lhotse_recordings(tmp_path)
    change(root / "calls_supervisions_dev.jsonl.gz", lambda item: item.update(language=stated))
    assert {s.id: s.language for s in read(root, given)}["said-dev0"] == language


TWO_FILES = [
    {"type": "file", "channels": [0, 1], "source": "audio/a.wav"},
    {"type": "file", "channels": [2], "source": "audio/b.wav"},
]


@pytest.mark.parametrize(
    ("channel", "file", "expected"), [(0, "a", 0), (1, "a", 1), ([0, 1], "a", None), (2, "b", None), ([2], "b", None)]
)
def test_a_channel_is_looked_up_in_the_file_that_has_it(
    tmp_path: Path, channel: int | list[int], file: str, expected: int | None
) -> None:
    root = layouts.lhotse_recordings(tmp_path)
    change(root / "calls_recordings_dev.jsonl.gz", lambda item: item.update(sources=TWO_FILES))
    change(root / "calls_supervisions_dev.jsonl.gz", lambda item: item.update(channel=channel))
    segment = next(s for s in read(root, None) if s.id == "said-dev0")
    assert (segment.path, segment.channel) == (root / f"audio/{file}.wav", expected)


def source(**fields: Any) -> Callable[[Item], Any]:
    return lambda item: item["sources"][0].update(fields)


@pytest.mark.parametrize(
    ("kind", "edit", "error", "message"),
    [
        (
            "recordings",
            source(type="url", source="https://a.b/c.wav"),
            LayoutError,
            ":1: recording 'dev0': .*type 'url'",
        ),
        ("recordings", source(type="command", source="sox a -"), LayoutError, ":1: recording 'dev0': .*type 'command'"),
        (
            "recordings",
            lambda item: item.update(transforms=[{"name": "Speed", "kwargs": {"factor": 0.9}}]),
            LayoutError,
            ":1: recording 'dev0' is transformed",
        ),
        ("recordings", lambda item: item.pop("sources"), CorpusError, ":1: lhotse cannot read this as a Recording"),
        ("supervisions", lambda item: item.pop("start"), CorpusError, ":1: lhotse cannot read this as a Supervision"),
        ("supervisions", lambda item: item.update(channel=7), CorpusError, r"channels \[7\] of recording 'dev0'"),
        (
            "supervisions",
            lambda item: item.update(recording_id="no"),
            CorpusError,
            ":1: recording 'no' is not in calls_",
        ),
    ],
)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, kind: str, edit: Callable[[Item], Any], error: type[CorpusError], message: str
) -> None:
    root = layouts.lhotse_recordings(tmp_path)
    change(root / f"calls_{kind}_dev.jsonl.gz", edit)
    with pytest.raises(error, match=message):
        list(read(root, None))


@pytest.mark.parametrize("content", [b"{", b"[]", b"not gzip"])
def test_a_broken_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    root = layouts.lhotse_recordings(tmp_path)
    manifest = root / "calls_supervisions_dev.jsonl.gz"
    manifest.write_bytes(content if content == b"not gzip" else gzip.compress(content))
    with pytest.raises(CorpusError, match=rf"^{re.escape(str(manifest))}:\d: lhotse cannot read this as a Supervision"):
        list(read(root, None))


def test_a_truncated_manifest_is_named(tmp_path: Path) -> None:
    root = layouts.lhotse_recordings(tmp_path)
    manifest = root / "calls_supervisions_dev.jsonl.gz"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    with pytest.raises(CorpusError, match=rf"^{re.escape(str(manifest))}:\d: lhotse cannot read"):
        list(read(root, None))


def test_cuts_that_are_mixed_or_have_features_only_are_refused(tmp_path: Path) -> None:
    from lhotse import CutSet

    root = layouts.lhotse_cuts(tmp_path)
    cuts = list(CutSet.from_file(root / "cuts.jsonl"))
    CutSet.from_cuts([cuts[0].append(cuts[1])]).to_file(root / "cuts.jsonl")
    with pytest.raises(
        LayoutError, match=r"cuts\.jsonl:1: must be a MonoCut or MultiCut over one audio file, got a Mixed"
    ):
        list(read(root, None))
    CutSet.from_cuts(cuts).to_file(root / "cuts.jsonl")
    change(root / "cuts.jsonl", lambda item: item.pop("recording"))
    with pytest.raises(LayoutError, match=r"cuts\.jsonl:1: cut 'cut-said-train0' has features only"):
        list(read(root, None))


def test_an_unknown_custom_split_is_named(tmp_path: Path) -> None:
    root = layouts.lhotse_cuts(tmp_path)
    manifest = root / "cuts.jsonl"
    manifest.write_text(manifest.read_text().replace('"split": "test"', '"split": "eval2"'))
    with pytest.raises(CorpusError, match=r"cuts\.jsonl:5: custom field split must be one of .*, got 'eval2'"):
        list(read(root, None))


def test_recordings_without_supervisions_and_both_kinds_at_once_are_refused(tmp_path: Path) -> None:
    root = layouts.lhotse_recordings(tmp_path)
    for split in ("dev", "test"):
        (root / f"calls_supervisions_{split}.jsonl.gz").unlink()
    message = r"missing calls_supervisions_dev\.jsonl\.gz, calls_supervisions_test\.jsonl\.gz\. Needed"
    with pytest.raises(LayoutError, match=message):
        list(read(root, None))
    for split in ("dev", "test"):
        (root / f"calls_recordings_{split}.jsonl.gz").unlink()
    layouts.lhotse_cuts(root)
    with pytest.raises(
        LayoutError, match=r"has recordings and cuts \(calls_recordings_train\.jsonl\.gz and cuts\.jsonl\)"
    ):
        list(read(root, None))
