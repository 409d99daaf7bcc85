"""`study corpora` and `study corpora prepare`, and a sweep on what they make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from tests.conftest import spanish_rows, write_corpus
from tests.study.builders import supervised, sweep
from tests.study.conftest import Call
from tests.trainables.corpora import layouts
from trainables.data.corpora.registry import CORPORA
from trainables.data.corpus import read_manifest


def prepare(call: Call, root: Path, *words: object, name: str = "folder") -> tuple[int, str, str]:
    code, out, err = call("corpora", "prepare", name, "--root", root, "--processes", 1, *words)
    return code, out, unwrapped(err)


def unwrapped(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 utterances: 12 train, 2 dev and 2 test; of one the audio is silent, of another it is missing."""
    rows = [{**row, "duration_seconds": "", "speaker": "ana"} for row in spanish_rows(18, longest_seconds=2)]
    folder = write_corpus(tmp_path_factory.mktemp("given"), rows)
    train = [row for row in rows if row["split"] == "train"]
    soundfile.write(folder / "silent.wav", np.zeros(16_000), 16_000)
    shutil.move(folder / "silent.wav", folder / train[0]["path"])
    (folder / train[1]["path"]).unlink()
    return folder


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpora")


@pytest.fixture
def _below(corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORPORA", str(corpora))


@pytest.fixture
def prepared(_below: None, root: Path, corpora: Path, call: Call) -> Path:
    """What the first test that needs it decodes; for all others it is there."""
    assert prepare(call, root, "--language", "es")[0] == 0
    return corpora / "folder-es"


# The list


def test_all_corpora_are_listed_with_what_they_need(call: Call) -> None:
    code, out, err = call("corpora")
    assert (code, err) == (0, "")
    assert all(name in out for name in CORPORA)


def test_as_json_each_corpus_has_title_hours_licence_needs_and_languages(call: Call) -> None:
    code, out, err = call("corpora", "--json")
    rows = {row.pop("name"): row for row in json.loads(out)}
    assert (code, err) == (0, "")
    assert [*rows] == [*CORPORA]
    for name, row in rows.items():
        published = CORPORA[name]
        about = (published.title, published.hours, published.licence, published.needs, list(published.languages))
        assert row == dict(zip(("title", "hours", "licence", "needs", "languages"), about, strict=True))


# Refusals


def test_an_unknown_corpus_is_refused_with_the_likely_one(call: Call, tmp_path: Path) -> None:
    code, out, err = prepare(call, tmp_path, name="librispech")
    assert (code, out) == (2, "")
    assert "no corpus 'librispech'" in err
    assert "did you mean 'librispeech'?" in err
    assert "see `study corpora`" in err


def test_a_root_that_is_not_there_is_refused(call: Call, tmp_path: Path) -> None:
    code, out, err = prepare(call, tmp_path / "nowhere", "--output", tmp_path / "out")
    assert (code, out) == (2, "")
    assert f"--root {tmp_path}/nowhere: no such folder" in err
    assert not (tmp_path / "out").exists()


def test_without_a_root_the_command_is_refused(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        call("corpora", "prepare", "folder")
    assert error.value.code == 2
    assert "--root" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["folder", "librispeech"])
def test_a_folder_without_the_corpus_is_refused_with_what_is_missing(call: Call, tmp_path: Path, name: str) -> None:
    output = tmp_path / "out"
    (tmp_path / "given").mkdir()
    code, out, err = prepare(call, tmp_path / "given", "--output", output, name=name)
    assert (code, out) == (2, "")
    assert f"{tmp_path}/given: missing " in err
    assert unwrapped(CORPORA[name].needs) in err
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--processes", 0), "--processes must be at least 1, got 0"),
        (("--max-seconds", 0), "--max-seconds"),
        (("--max-seconds", -1), "--max-seconds"),
        (("--min-seconds", -1), "--min-seconds"),
        (("--min-seconds", 50), "--min-seconds"),
        (("--max-seconds", "nan"), "--max-seconds"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_written(
    call: Call, root: Path, tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    code, out, err = prepare(call, root, "--output", tmp_path / "out", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_language_that_a_corpus_lacks_is_refused(call: Call, tmp_path: Path) -> None:
    code, _, err = prepare(call, tmp_path, "--language", "fr", name="librispeech")
    assert code == 2
    assert "--language fr: LibriSpeech" in err


def test_a_strict_preparation_exits_with_2_and_names_each_finding(
    call: Call, root: Path, prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared / "audio", tmp_path / "out" / "audio")  # so that nothing is decoded again
    code, out, err = prepare(call, root, "--language", "es", "--strict", "--output", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "2 utterance(s) cannot be used" in err
    assert "silent: " in err
    assert "missing_audio: " in err
    assert not (tmp_path / "out" / "manifest.tsv").exists()


# What it makes


def test_the_default_output_is_below_corpora_and_the_summary_says_how_to_use_it(
    call: Call, root: Path, prepared: Path
) -> None:
    code, out, _ = prepare(call, root, "--language", "es")
    assert code == 0
    found = unwrapped(out)
    for part in (str(prepared), "corpus: {kind: folder, root: folder-es}", f"CORPORA={prepared.parent}"):
        assert "".join(part.split()) in "".join(found.split())
    for kind in ("missing_audio", "silent"):
        assert f"{kind} │ 1" in found
    assert len(read_manifest(prepared)) == 16


def test_the_summary_tells_of_lists_and_of_files_that_are_no_longer_used(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, output = layouts.librispeech(tmp_path / "given"), tmp_path / "out"
    left_out = root / "LibriSpeech/train-clean-100/103/1240/103-1240-0000.flac"  # of each list
    soundfile.write(left_out, np.zeros(16_000), 16_000)
    (output / "audio").mkdir(parents=True)
    with (output / "audio" / "0123.s16").open("wb") as stream:
        stream.truncate(20_000_000)
    code, out, _ = prepare(call, root, "--output", output, name="librispeech")
    found = unwrapped(out)
    assert code == 0
    for name, count in {"10min": 1, "1h": 6, "10h": 8, "960h": 13}.items():
        assert f"│ {name} │ {count} │ 1 │" in " ".join(found.split())
    assert "".join(f"1 files, 0.02 GB in {output}/audio".split()) in "".join(found.split())
    assert "are no longer used by the manifest; delete them when no study runs on them." in found


def test_as_json_it_prints_the_folder_and_the_counts(call: Call, root: Path, prepared: Path) -> None:
    code, out, _ = prepare(call, root, "--language", "es", "--json")
    found = json.loads(out)
    utterances = read_manifest(prepared)
    assert code == 0
    assert found["folder"] == str(prepared)
    assert found["findings"] == {"missing_audio": 1, "silent": 1}
    splits = ("train", "dev", "test")
    assert found["utterances"] == {split: sum(u.split == split for u in utterances) for split in splits}
    assert found["speakers"] == dict.fromkeys(splits, 1)
    hours = sum(u.duration_seconds for u in utterances) / 3600
    assert sum(found["hours"].values()) == pytest.approx(hours, rel=1e-4)


def test_a_sweep_on_the_prepared_corpus_can_be_planned(call: Call, prepared: Path, tmp_path: Path) -> None:
    corpus = {"kind": "folder", "root": prepared.name}
    arms = {"one": {"trial": supervised()}, "two": {"trial": supervised(augment_speed=False)}}
    given = sweep(tmp_path / "results", trial={"corpus": corpus}, arms=arms)
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    code, out, err = call("plan", path, "--json")
    plan = json.loads(out)
    assert (code, err) == (0, "")
    assert plan["absent_corpora"] == []
    assert plan["trials"] > 0
