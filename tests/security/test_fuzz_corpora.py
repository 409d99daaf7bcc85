"""Whatever stands in the files of a corpus: it is read, or refused with an error that names the file."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import spanish_rows, write_corpus
from tests.security.mutations import changed_bytes, changed_trees, may_be_refused
from tests.trainables.corpora import test_contract_a, test_contract_b
from trainables.data.config import FolderConfig
from trainables.data.corpora.prepare import prepare
from trainables.data.corpus import CorpusError, read_corpus

CASES = {**test_contract_a.CASES, **test_contract_b.CASES}
TEXT_FILES = {".tsv", ".csv", ".txt", ".json", ".jsonl", ".gz", ".stm", ".text", ".tbl", ".scp", ""}
BOUNDED = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def text_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path.suffix in TEXT_FILES)


def content_of(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def write_content(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture(scope="module", params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def root(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("corpus")
    CASES[name].write(root)
    yield root
    shutil.rmtree(root)


@given(st.data())
@BOUNDED
def test_a_published_corpus_with_changed_files_is_read_or_refused(name: str, root: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(text_files(root)))
    kept = path.read_bytes()
    try:
        with may_be_refused(CorpusError, root):
            write_content(path, data.draw(changed_bytes(content_of(path))))
            for segment in CASES[name].read(root):
                assert "\0" not in str(segment.path)
                assert ".." not in segment.path.parts or name.startswith("lhotse")
    finally:
        path.write_bytes(kept)


def changed_lines(data: st.DataObject, content: bytes) -> bytes:
    """JSON, or JSON lines, of which one has other values."""
    lines = content.splitlines() if content.count(b"\n") > 1 else [content]
    number = data.draw(st.integers(0, len(lines) - 1))
    lines[number] = json.dumps(data.draw(changed_trees(json.loads(lines[number])))).encode()
    return b"\n".join(lines)


@pytest.mark.parametrize("name", ["lhotse_recordings", "lhotse_cuts", "librilight"], indirect=True)
@given(st.data())
@BOUNDED
def test_a_manifest_with_changed_values_is_prepared_or_refused(
    name: str, root: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from([path for path in text_files(root) if ".json" in path.name]))
    kept, output = path.read_bytes(), tmp_path_factory.mktemp("prepared")
    try:
        with may_be_refused(CorpusError, root, output):
            write_content(path, changed_lines(data, content_of(path)))
            prepare(CASES[name].corpus, name, root, output)
            read_corpus(FolderConfig(root=output))
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize("name", ["folder"], indirect=True)
@given(st.data())
@BOUNDED
def test_a_table_with_changed_bytes_is_prepared_or_refused(
    name: str, root: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path, output = root / "manifest.tsv", tmp_path_factory.mktemp("prepared")
    kept = path.read_bytes()
    try:
        with may_be_refused(CorpusError, root, output):
            path.write_bytes(data.draw(changed_bytes(kept)))
            prepare(CASES[name].corpus, name, root, output)
            read_corpus(FolderConfig(root=output))
    finally:
        path.write_bytes(kept)


@pytest.fixture(scope="module", params=["decoded", "prepared"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a sweep names: with audio files, or with an audio store."""
    corpus = write_corpus(tmp_path_factory.mktemp("folder"), spanish_rows(16))
    if request.param == "decoded":
        return corpus
    output = tmp_path_factory.mktemp("store")
    prepare(test_contract_b.CASES["folder"].corpus, "folder", corpus, output)
    return output


@given(st.data())
@BOUNDED
def test_a_manifest_of_a_sweep_with_changed_bytes_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    manifest = folder / "manifest.tsv"
    kept = manifest.read_bytes()
    try:
        with may_be_refused(CorpusError, folder):
            manifest.write_bytes(data.draw(changed_bytes(kept)))
            corpus = read_corpus(FolderConfig(root=folder))
            assert all(utterance.path.is_relative_to(folder) for utterance in corpus.train)
    finally:
        manifest.write_bytes(kept)


@pytest.mark.parametrize("name", ["lhotse_cuts"], indirect=True)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration": [1.0]}, r"cuts\.jsonl:1: duration: "),
        ({"start": "now"}, r"cuts\.jsonl:1: start: "),
        ({"id": ["one"]}, r"cuts\.jsonl:1: id: "),
        ({"id": 5}, r"cuts\.jsonl:1: id: "),
        ({"custom": 5}, r"cuts\.jsonl:1: "),
        ({"custom": {"split": []}}, r"cuts\.jsonl:1: custom field split must be one of"),
        ({"id": "a\tb"}, r"utterance 'a\\tb': id 'a\\tb' has a tab or a line break"),
        ({"id": "a\nb"}, r"utterance 'a\\nb': id 'a\\nb' has a tab or a line break"),
    ],
)
def test_a_cut_that_cannot_be_is_refused_with_its_line(
    name: str, root: Path, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = root / "cuts.jsonl"
    kept = path.read_bytes()
    first, _, others = kept.partition(b"\n")
    cut = json.loads(first)
    given = change if "custom" not in change else {**change, "supervisions": [supervision_of(others)]}
    path.write_bytes(json.dumps(cut | given).encode() + b"\n" + others)
    try:
        with pytest.raises(CorpusError, match=message):
            prepare(CASES[name].corpus, name, root, tmp_path)
    finally:
        path.write_bytes(kept)


def supervision_of(cuts: bytes) -> dict[str, Any]:
    supervision: dict[str, Any] = json.loads(cuts.splitlines()[0])["supervisions"][0]
    return supervision | {"custom": None}
