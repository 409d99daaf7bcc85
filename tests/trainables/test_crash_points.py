"""Nothing is lost and nothing counted twice, before whichever write a process dies.

What began and died is run again, and must end in the state of an uninterrupted run: the same result but for times, the
same weights and hypotheses to the last bit, and no file too many. Deaths are before the first and the last of equal
writes, and some pairs of them, drawn at random.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import crash_points
from tests.conftest import pretrain_finetune, small_trial, spanish_rows, write_corpus
from tests.crash_points import Action, Case, distinct, pairs, traces, writes
from tests.trainables.corpora.layouts import recordings, write_audio
from tests.trainables.test_resume import interrupted, stages, supervised
from trainables.data.corpora import audio_store
from trainables.data.corpora.prepare import prepare
from trainables.data.corpora.segment import PublishedCorpus, Segment
from trainables.data.corpus import LABELLED
from trainables.lease import Lease, here
from trainables.loop import run_stage
from trainables.stage import Stage
from trainables.store import StageStore
from trainables.trial import TrialConfig, stages_of

LOCK = ".breaking"  # stays: a file that is locked must not be removed
TIMES = ("elapsed_seconds", "accelerator_seconds", "reported_at", "real_time_factor")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), spanish_rows(8, longest_seconds=2.0))


def train(chain: Sequence[Stage]) -> Action:
    def run(folder: Path) -> None:
        for stage in chain:
            run_stage(stage, StageStore(folder), lambda report: None)

    return run


def stored(folder: Path) -> dict[str, object]:
    """Everything in a storage folder but times."""
    found = crash_points.contents(folder, _without_times)
    return {name: content for name, content in found.items() if Path(name).name != LOCK}


def _without_times(path: Path) -> object:
    if path.name != "result.json":
        return path.read_bytes()
    result = json.loads(path.read_text())
    for report in result["reports"]:
        assert all(name in report for name in TIMES)
        report |= dict.fromkeys(TIMES)
    return result


def assert_no_death_leaves_a_trace(case: Case, folder: Path, num_pairs: int, writing: str = "") -> None:
    """`writing`: a pattern of the writes before which a single death is tried; pairs are drawn from all."""
    case.action(whole := case.fresh(folder / "whole"))  # here first: what it imports, forks need not
    found = writes(case.action, case.fresh(folder / "counted"))
    assert case.seen(folder / "counted") == case.seen(whole), "the action does not do the same twice"
    single = [death for death in distinct(found) if re.search(writing, found[death[0]])]
    assert single
    deaths = [*single, *pairs(found, num_pairs)]
    assert traces(case, case.seen(whole), folder / "killed", found, deaths) == []


# Stages


@pytest.mark.parametrize("writing", [r"DONE|checkpoint\.pt$", pytest.param("", marks=pytest.mark.long)])
def test_a_supervised_stage(corpus: Path, tmp_path: Path, writing: str) -> None:
    """With a checkpoint at each step, evaluations, and the best weights kept."""
    stage = supervised(corpus, 3, batch_seconds=3, evaluate_every=2, keep="best")
    case = Case(train([stage]), stored)
    assert_no_death_leaves_a_trace(case, tmp_path, num_pairs=2, writing=writing)
    final = StageStore(tmp_path / "whole").folder(stage)
    names = ["backbone.safetensors", "ctc_head.safetensors", "hypotheses-dev.jsonl", "hypotheses-test.jsonl"]
    assert sorted(os.listdir(final)) == ["DONE", *names, "result.json", "stage.json", "symbols.json"]
    assert {path.name for path in final.parent.iterdir()} <= {final.name, LOCK}


@pytest.mark.long
def test_the_end_of_a_stage_whose_last_checkpoint_is_some_steps_old(corpus: Path, tmp_path: Path) -> None:
    """That checkpoint names the best weights so far: they are needed until the stage is in the store."""
    stage = supervised(corpus, 4, batch_seconds=3, evaluate_every=1, keep="best", learning_rate=1e-30)
    interrupted(stage, StageStore(tmp_path / "start"), at=3)
    rarely = stage.with_(checkpoint_seconds=3600)
    assert_no_death_leaves_a_trace(Case(train([rarely]), stored, tmp_path / "start"), tmp_path, num_pairs=1)


@pytest.mark.long
def test_pretraining_and_finetuning(corpus: Path, tmp_path: Path) -> None:
    """Above all where one ends and the other begins."""
    regime = pretrain_finetune(2)
    for settings in (regime["pretrain"], regime["finetune"]):
        settings["batch_seconds"] = 3
    case = Case(train(stages(corpus, regime)), stored)
    assert_no_death_leaves_a_trace(case, tmp_path, num_pairs=4, writing=r"lease|DONE|checkpoint\.pt$|stages/\w+$")


@pytest.mark.long
def test_a_stage_that_decodes(corpus: Path, tmp_path: Path) -> None:
    brief = {"steps": 1, "batch_seconds": 3, "evaluate_every": 1, "report_every": 1}
    trial = small_trial(corpus, {"kind": "supervised", "train": brief}, language_model={})
    trained, decodes = stages_of(TrialConfig.model_validate(trial))
    start = tmp_path / "start"
    train([trained, decodes])(start)
    shutil.rmtree(StageStore(start).folder(decodes))
    assert_no_death_leaves_a_trace(Case(train([decodes]), stored, start), tmp_path, num_pairs=2)


def test_a_stage_that_is_discarded_and_wanted_again(corpus: Path, tmp_path: Path) -> None:
    stage = supervised(corpus, 2, batch_seconds=3)
    start = tmp_path / "start"
    interrupted(stage, StageStore(start), at=2)

    def discard(folder: Path) -> None:
        with StageStore(folder).lease(stage).hold() as held:
            assert held
            StageStore(folder).discard(stage)

    def discard_and_train(folder: Path) -> None:
        StageStore(folder).lease(stage).held_by_another()  # a dead holder's is removed
        discard(folder)
        train([stage])(folder)

    case = Case(discard_and_train, stored, start)
    case.action(whole := case.fresh(tmp_path / "whole"))
    found = writes(discard, case.fresh(tmp_path / "discarded"))
    assert not StageStore(tmp_path / "discarded").partial_folder(stage).exists()
    deaths = [(number,) for number in range(len(found) + 1)]  # the last: when it is discarded
    assert traces(case, stored(whole), tmp_path / "killed", [*found, "training"], deaths) == []


# The lease


@pytest.mark.parametrize(
    "before", ["no lease", *(pytest.param(b, marks=pytest.mark.long) for b in ("a dead holder's", "a torn one"))]
)
def test_a_lease_that_is_taken_and_given_back(tmp_path: Path, before: str) -> None:
    start = tmp_path / "start"
    start.mkdir()
    if before != "no lease":
        dead = f"{here()} {os.getpid()} 1 {uuid.uuid4().hex}"
        (start / "a.lease").write_text(dead if before == "a dead holder's" else "")

    def take(folder: Path) -> None:
        lease = Lease(folder / "a.lease")
        assert not lease.held_by_another()
        with lease.hold() as held:
            assert held

    assert_no_death_leaves_a_trace(Case(take, stored, start), tmp_path, num_pairs=10)
    assert stored(tmp_path / "whole") == {}


# The preparation of a corpus


def prepared(root: Path, output: Path) -> None:
    """Four recordings, two a shard, and one that cannot be read."""
    segments = [
        Segment(f"{i:02d}", root / f"{i:02d}.wav", recording.text, split=LABELLED[i % 3])
        for i, recording in enumerate(itertools.islice(recordings("es"), 5))
    ]
    lists = {"ten": [segment.id for segment in segments[:2]]}
    published = PublishedCorpus("a test's", "", "", "", lambda root, language: iter(segments), lists=lambda root: lists)
    random.seed(0)  # shards are made in a random order
    prepare(published, "test", root, output)


def prepared_hours_later(root: Path, output: Path) -> None:
    for path in output.rglob(".*"):
        os.utime(path, (0, 0))
    prepared(root, output)


def complete(output: Path) -> dict[str, object]:
    """What a reader sees: without the hidden files."""
    found = crash_points.contents(output)
    return {name: content for name, content in found.items() if not Path(name).name.startswith(".")}


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(audio_store, "SEGMENTS_A_SHARD", 2)
    for i, recording in enumerate(itertools.islice(recordings("es"), 4)):
        write_audio(tmp_path / "recorded" / f"{i:02d}.wav", recording.samples)
    return tmp_path / "recorded"


@pytest.mark.long
def test_a_preparation_that_is_repeated_at_once(recorded: Path, tmp_path: Path) -> None:
    case = Case(functools.partial(prepared, recorded), complete)
    assert_no_death_leaves_a_trace(case, tmp_path, num_pairs=4)
    assert {name for name in complete(tmp_path / "whole") if "audio/" not in name} == {
        *("audio", "findings.tsv", "lists", "lists/ten.txt", "manifest.tsv", "preparation.json")
    }


def test_a_preparation_that_is_repeated_hours_later_leaves_no_unfinished_file(recorded: Path, tmp_path: Path) -> None:
    """Before, another one might be writing it."""
    case = Case(functools.partial(prepared_hours_later, recorded), crash_points.contents)
    assert_no_death_leaves_a_trace(case, tmp_path, num_pairs=4, writing="rename")


# What counts a write


def test_the_writes_of_an_action_are_counted_and_each_can_be_its_last(tmp_path: Path) -> None:
    def action(folder: Path) -> None:
        (folder / "kept").mkdir(exist_ok=True)
        (folder / "kept").mkdir(exist_ok=True)
        (folder / "kept" / "gone").write_text("one")
        (folder / "kept" / "absent").unlink(missing_ok=True)
        with (folder / ".file.0123abcd").open("w") as stream:
            stream.write("two")
            stream.flush()
            os.fsync(stream.fileno())
        (folder / "kept" / "gone").read_text()
        os.replace(folder / ".file.0123abcd", folder / "file")
        shutil.rmtree(folder / "kept")

    expected = [
        ("os.mkdir kept", {}),
        ("open kept/gone", {"kept": None}),
        ("open .file.*", {"kept": None, "kept/gone": b"one"}),
        ("os.fsync .file.*", {".file.0123abcd": b"two", "kept": None, "kept/gone": b"one"}),
        ("os.rename .file.* -> file", {".file.0123abcd": b"two", "kept": None, "kept/gone": b"one"}),
        ("os.remove kept/gone", {"file": b"two", "kept": None, "kept/gone": b"one"}),
        ("os.rmdir kept", {"file": b"two", "kept": None}),
    ]
    case = Case(action, crash_points.contents)
    assert writes(action, case.fresh(tmp_path / "whole")) == [write for write, _ in expected]
    assert crash_points.contents(tmp_path / "whole") == {"file": b"two"}
    for at, (_, left) in enumerate(expected):
        assert crash_points.killed(action, case.fresh(tmp_path / "killed"), at)
        assert crash_points.contents(tmp_path / "killed") == left
    assert not crash_points.killed(action, case.fresh(tmp_path / "killed"), len(expected))


def test_a_trace_is_found(tmp_path: Path) -> None:
    """Of an action that leaves its unfinished file, and one that counts twice."""

    def leaves(folder: Path) -> None:
        beside = folder / f".{uuid.uuid4().hex[:8]}"
        beside.touch()
        beside.replace(folder / "file")

    def counts(folder: Path) -> None:
        with (folder / "log").open("a") as stream:
            stream.write("done\n")
        (folder / "marker").touch()

    for action, name in ((leaves, "os.rename"), (counts, "open marker")):
        case = Case(action, crash_points.contents)
        found = writes(action, case.fresh(tmp_path / "whole"))
        left = traces(case, case.seen(tmp_path / "whole"), tmp_path / "killed", found, distinct(found))
        assert len(left) == 1
        assert name in left[0]
