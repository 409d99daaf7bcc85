"""Where the paths that a sweep or a corpus's own files name may lead.

A line of a corpus names files below the corpus's folder, no others. Links in that folder are followed, wherever they
lead: whoever made the folder made them (copies of the Hugging Face hub consist of links). A lhotse manifest may name
any local file, as lhotse writes them. Names of studies, arms and lists are no paths. `study gc` removes no link and
nothing behind one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from study.garbage import over_quota, remove, survey
from study.ledger import Ledger
from study.spec import read_spec
from tests.conftest import spanish_rows, write_corpus
from tests.security.test_fuzz_corpora import CASES, content_of, write_content
from tests.trainables.corpora import layouts
from trainables.data.config import FolderConfig
from trainables.data.corpora import folder as folder_reader
from trainables.data.corpora import lhotse_manifests
from trainables.data.corpora.prepare import prepare
from trainables.data.corpus import CorpusError, read_corpus, read_manifest
from trainables.settings_file import SettingsError

QUICKSTART = Path(__file__).parents[2] / "search_spaces" / "quickstart.yaml"
LEADING_OUT = ["../../etc/passwd", "audio/../../secret.wav", "/etc/passwd", "audio/a\0b.wav"]


def corpus_naming(name: str, root: Path) -> Path:
    """A corpus folder, the third line of whose manifest names that file."""
    rows = spanish_rows(8)
    write_corpus(root, rows)
    manifest = root / "manifest.tsv"
    manifest.write_text(manifest.read_text("utf-8").replace(rows[1]["path"], name), encoding="utf-8")
    return root


@pytest.mark.parametrize("name", LEADING_OUT)
def test_the_manifest_of_a_sweep_names_files_of_its_folder_alone(name: str, tmp_path: Path) -> None:
    root = corpus_naming(name, tmp_path / "corpus")
    with pytest.raises(CorpusError, match=r"manifest\.tsv:3: path .* leaves the corpus folder"):
        read_corpus(FolderConfig(root=root))


@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_folder_to_prepare_names_files_below_it_alone(name: str, tmp_path: Path) -> None:
    root = corpus_naming(name, tmp_path / "corpus")
    with pytest.raises(CorpusError, match=r"manifest\.tsv:3: path .* leaves the folder; put the audio below"):
        list(folder_reader.read(root, None))


@pytest.mark.parametrize("name", ["~/speech.wav", "~root/speech.wav", "x" * 300 + ".wav", "audio"])
def test_a_name_that_is_no_file_of_the_folder_is_absent(name: str, tmp_path: Path) -> None:
    root = corpus_naming(name, tmp_path / "corpus")
    with pytest.raises(CorpusError, match=r"manifest\.tsv:3: audio file .* does not exist"):
        read_manifest(root)
    prepared = prepare(CASES["folder"].corpus, "folder", root, tmp_path / "prepared")
    assert sum(prepared.findings.get(kind, 0) for kind in ("missing_audio", "undecodable")) == 1


def test_a_path_may_be_absolute_below_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    corpus_naming(f"{root}/audio/other.ogg", root)
    shutil.copy(root / spanish_rows(8)[0]["path"], root / "audio" / "other.ogg")
    assert root / "audio" / "other.ogg" in {utterance.path for utterance in read_manifest(root)}
    assert root / "audio" / "other.ogg" in {segment.path for segment in folder_reader.read(root, None)}


def test_links_in_a_folder_are_followed(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "corpus", spanish_rows(8))
    whole = read_manifest(root)
    (root / "audio").rename(tmp_path / "blobs")
    (root / "audio").symlink_to(tmp_path / "blobs")
    (tmp_path / "linked").symlink_to(root)
    assert read_manifest(root) == whole
    assert len(list(folder_reader.read(tmp_path / "linked", None))) == len(whole)


# Each published corpus whose files name audio: the file, what stands there, and what is put in its place.
NAMES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "ascend": ("train_metadata.csv", lambda text: text.replace(b"waves/", b"../waves/", 1)),
    "mucs2021_hi": ("Hindi-English/train/transcripts/wav.scp", lambda text: text.replace(b" H", b" ../../H", 1)),
    "seame": (
        "data/conversation/transcript/phaseII/01NC01FBX_0101.txt",
        lambda text: text.replace(b"01NC01FBX_0101", b"../../01NC01FBX_0101"),
    ),
    "talcs": ("TALCS_corpus/train_set/label.txt", lambda text: b"../../" + text),
    "tedlium3": ("", lambda text: text.replace(text.split()[0], b"/etc/passwd", 1)),
    "switchboard": (
        "LDC2002T43/reference/hub5e00.english.000405.stm",
        lambda text: text.replace(b"\nen_4156", b"\n../../en_4156"),
    ),
    "voxpopuli": ("transcribed_data/es/asr_train.tsv", lambda text: text.replace(b"-0-es_", b"-0-es_\0", 1)),
    "commonvoice": ("", lambda text: text.replace(b"common_voice", b"../common_voice", 1)),
    "covost2": ("", lambda text: text.replace(b"common_voice", b"../common_voice", 1)),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_published_corpus_names_files_below_its_folder_alone(name: str, tmp_path: Path) -> None:
    root = CASES[name].write(tmp_path)
    file, change = NAMES[name]
    files = [root / file] if file else [path for path in root.rglob("*") if path.suffix in (".tsv", ".stm")]
    for path in files:
        changed = change(content_of(path))
        assert not file or changed != content_of(path)
        write_content(path, changed)
    with pytest.raises(CorpusError, match=r":\d+: .*path .*(leaves the folder|must be the name of a file)"):
        CASES[name].read(root)


def test_a_lhotse_manifest_may_name_any_local_file(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    root = layouts.lhotse_cuts(tmp_path / "corpus")
    (root / "audio").rename(tmp_path / "elsewhere")
    manifest = root / "cuts.jsonl"
    manifest.write_text(manifest.read_text("utf-8").replace('"audio/', f'"{tmp_path}/elsewhere/'), encoding="utf-8")
    paths = [segment.path for segment in lhotse_manifests.read(root, None)]
    assert paths
    assert all(path.parent == tmp_path / "elsewhere" and path.is_file() for path in paths)


@pytest.mark.parametrize("source", ["a\\u0000b.wav", "\\u0000"])
def test_a_lhotse_manifest_names_files_that_there_can_be(source: str, tmp_path: Path) -> None:
    root = layouts.lhotse_cuts(tmp_path)
    manifest = root / "cuts.jsonl"
    manifest.write_text(manifest.read_text("utf-8").replace("audio/train0.wav", source), encoding="utf-8")
    with pytest.raises(CorpusError, match=r"cuts\.jsonl:1: recording .* no file can have the name"):
        list(lhotse_manifests.read(root, None))


@pytest.mark.parametrize(
    "override",
    [
        *(f"study={name}" for name in ("../up", "a/b", "..", ".hidden", "~", "-", '"a\\0b"', '"a\\n"', "x" * 65)),
        *(f"search.warm_start=[{name}]" for name in ("../up", "a/b", "..")),
        "arms.../../up.baseline=one",
        *(f"trial.corpus={{kind: folder, root: /x, labelled_list: {name}}}" for name in ("../up", "a/b", '"a\\0"')),
        '"storage=a"',
        'storage="a\\0b"',
        f"storage={'x' * 300}",
        "storage=~nobody-of-this-name/results",
    ],
)
def test_names_of_a_sweep_are_no_paths(override: str) -> None:
    with pytest.raises(SettingsError, match=r"^(command line|/)"):
        read_spec(QUICKSTART, [override], absent_is_fine=True)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    storage = tmp_path / "results"
    for folder in (storage / "stages" / "supervised", storage / "ray"):
        folder.mkdir(parents=True)
    return storage


def clean(storage: Path) -> None:
    """As `study gc --quota 0` does it."""
    ledger = Ledger.in_folder(storage)
    items = survey(ledger, storage)
    remove(ledger, [item for item in items if item.garbage or item in over_quota(items, 0)])


@pytest.mark.parametrize(
    "place",
    [
        *("stages/supervised/supervised-0123456789abcdef", "stages/supervised/supervised-0123456789abcdef.partial"),
        *("stages/supervised/.supervised-0123456789abcdef.01234567", "stages/pretrain", "ray/run"),
    ],
)
def test_cleaning_removes_no_link_and_nothing_behind_it(place: str, storage: Path, tmp_path: Path) -> None:
    precious = tmp_path / "outside" / "supervised-0123456789abcdef.partial" / "weights"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    (storage / place).symlink_to(precious.parent.parent if place.endswith("pretrain") else precious.parent)
    clean(storage)
    assert precious.read_text() == "mine"
    assert (storage / place).is_symlink()


def test_cleaning_removes_a_link_inside_what_goes_and_nothing_behind_it(storage: Path, tmp_path: Path) -> None:
    precious = tmp_path / "outside" / "weights"
    precious.parent.mkdir()
    precious.write_text("mine")
    going = storage / "stages" / "supervised" / "supervised-0123456789abcdef.partial"
    going.mkdir()
    (going / "link").symlink_to(precious.parent)
    clean(storage)
    assert not going.exists()
    assert precious.read_text() == "mine"
