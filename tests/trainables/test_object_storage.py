"""Stages in object storage: a real server of S3, real training, processes that die, machines that share no folder."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import signal
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from study.run import main as study
from tests.buckets import BUCKET, BucketServer, bucket_server
from tests.conftest import pretrain_finetune, small_trial, spanish_rows, write_corpus
from tests.processes import forked, forkserver
from tests.study.builders import spec_of, write_sweep
from tests.trainables.object_storage_work import train
from tests.trainables.test_loop import run, without_times
from tests.trainables.test_resume import interrupted, stages, supervised
from trainables import loop, remote_stages
from trainables.__main__ import main
from trainables.object_lease import ObjectLease
from trainables.object_storage import ObjectStorage, ObjectStorageError, checked_url, storage_problem
from trainables.remote_stages import LISTING, DamagedObjectError, RemoteStages
from trainables.stage import Stage
from trainables.store import StageStore

__all__ = ["bucket_server"]

pytestmark = pytest.mark.usefixtures("bucket_server")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), spanish_rows(8, longest_seconds=2.0))


@pytest.fixture
def url() -> str:
    """A place of its own for each test."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def every_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is uploaded, however much time that takes."""
    monkeypatch.setattr(loop, "UPLOADING_SHARE", math.inf)


def small(corpus: Path, steps: int = 3) -> Stage:
    """With a checkpoint at each step, evaluations, and the best weights kept."""
    return supervised(corpus, steps, batch_seconds=3, evaluate_every=2, keep="best")


def files(folder: Path) -> dict[str, object]:
    """Of a finished stage, but for times and what says where it came from."""
    found: dict[str, object] = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LISTING}
    found["result.json"] = without_times(StageStore(folder.parents[2]).result(_stage(folder)).reports)  # type: ignore[union-attr]
    return found


def _stage(folder: Path) -> Stage:
    return Stage.model_validate_json((folder / "stage.json").read_bytes())


def objects(url: str) -> list[str]:
    """The keys, with random parts and names of stages left out."""
    keys = ObjectStorage(url).list("")
    return sorted(re.sub(r"stages/(\w+)/[^/]+", r"\1", re.sub(r"[0-9a-f]{12}-", "", key)) for key in keys)


# What is kept where


def test_a_stage_in_object_storage_is_the_one_in_a_folder_byte_for_byte(corpus: Path, tmp_path: Path, url: str) -> None:
    stage = small(corpus)
    here, there = StageStore(tmp_path / "here"), StageStore(tmp_path / "there", url)
    assert without_times(run(stage, there)) == without_times(run(stage, here))
    assert files(there.folder(stage)) == files(here.folder(stage))
    elsewhere = StageStore(tmp_path / "elsewhere", url)
    assert files(elsewhere.fetch(stage)) == files(here.folder(stage))
    assert elsewhere.read_named(stage.kind, stage.name(), "stage.json") == _content(stage)
    names = sorted(name for name in files(here.folder(stage)) if name != "DONE")
    assert objects(url) == ["supervised/DONE", *(f"supervised/objects/{name}" for name in names)]
    assert RemoteStages(url).leftovers() == []


def _content(stage: Stage) -> bytes:
    return stage.model_dump_json(indent=1).encode()


def test_machines_without_a_common_folder_share_a_pretraining(corpus: Path, tmp_path: Path, url: str) -> None:
    regime = pretrain_finetune(2)
    for settings in (regime["pretrain"], regime["finetune"]):
        settings["batch_seconds"] = 3
    pretrain, finetune = stages(corpus, regime)
    here, first, second = (StageStore(tmp_path / "here"), *(StageStore(tmp_path / name, url) for name in "ab"))
    trained = run(pretrain, first)
    assert run(pretrain, second) == trained  # times included: nothing was trained again
    assert not second.folder(pretrain).exists()  # and nothing was copied that nobody reads
    run(finetune, second)
    for stage in (pretrain, finetune):
        run(stage, here)
        assert files(first.fetch(stage)) == files(here.folder(stage))


def test_several_that_fetch_a_stage_at_once_get_all_of_it(corpus: Path, tmp_path: Path, url: str) -> None:
    stage = small(corpus)
    run(stage, trained := StageStore(tmp_path / "trained", url))
    store = StageStore(tmp_path / "node", url)
    with ThreadPoolExecutor(4) as pool:
        found = [files(folder) for folder in pool.map(lambda _: store.fetch(stage), range(8))]
    assert all(these == files(trained.folder(stage)) for these in found)
    assert [path.name for path in store.folder(stage).parent.iterdir()] == [stage.name()]


def test_what_is_not_there_is_not_found_and_what_is_damaged_is_told_and_trained_again(
    corpus: Path, tmp_path: Path, url: str
) -> None:
    stage, store = small(corpus), StageStore(tmp_path / "a", url)
    assert store.result(stage) is None
    for read in (store.fetch, lambda stage: store.read_named(stage.kind, stage.name(), "stage.json")):
        with pytest.raises(FileNotFoundError, match="is not there"):
            read(stage)
    run(stage, store)
    storage = ObjectStorage(url)
    for name, harm in {"backbone.safetensors": b"other", "result.json": b"{}"}.items():
        (key,) = (key for key in storage.list("") if key.endswith(name))
        storage.write(key, harm)
        elsewhere = StageStore(tmp_path / f"for {name}", url)
        with pytest.raises((DamagedObjectError, FileNotFoundError)):
            elsewhere.fetch(stage)
        assert not elsewhere.folder(stage).exists()
    assert elsewhere.result(stage) is None
    run(stage, elsewhere)
    assert files(StageStore(tmp_path / "c", url).fetch(stage)) == files(elsewhere.folder(stage))
    assert RemoteStages(url).leftovers() == []


def test_the_first_commit_counts_and_the_other_leaves_nothing(corpus: Path, tmp_path: Path, url: str) -> None:
    """Two machines that both believe to hold the lease finish the same stage."""
    stage, first, second = small(corpus), StageStore(tmp_path / "a", url), StageStore(tmp_path / "b", url)
    result = _prepared(stage, first), _prepared(stage, second)
    listings: list[object] = []
    meeting = threading.Barrier(2, timeout=60)

    def commit(store: StageStore) -> None:
        paths = sorted(store.partial_folder(stage).glob("*"))
        meeting.wait()
        listings.append(RemoteStages(url).publish(f"{stage.kind}/{stage.name()}", paths, None))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(commit, (first, second)))
    assert listings.count(None) == 1
    reader = StageStore(tmp_path / "c", url)
    content = reader.read_named(stage.kind, stage.name(), "weights")
    assert content in (b"a", b"b")
    assert result == (None, None)
    RemoteStages(url).tidy(f"{stage.kind}/{stage.name()}")
    assert objects(url) == ["supervised/DONE", "supervised/objects/weights"]
    assert reader.read_named(stage.kind, stage.name(), "weights") == content


def _prepared(stage: Stage, store: StageStore) -> None:
    store.partial_folder(stage).mkdir(parents=True)
    (store.partial_folder(stage) / "weights").write_text(store.root.name)


# Interruptions


@pytest.mark.parametrize("at", [2, 3])
def test_a_stage_goes_on_on_another_machine_bit_for_bit(
    corpus: Path, tmp_path: Path, url: str, at: int, every_checkpoint: None
) -> None:
    stage, whole = small(corpus, 4), StageStore(tmp_path / "whole")
    expected = run(stage, whole)
    before = interrupted(stage, StageStore(tmp_path / "a", url), at)
    store = StageStore(tmp_path / "b", url)
    resumed = run(stage, store)
    assert without_times(resumed) == without_times(expected)
    checkpointed = [report for report in before if report.step < at]
    assert resumed[: len(checkpointed)] == checkpointed  # times included: they were not trained again
    assert files(store.folder(stage)) == files(whole.folder(stage))
    assert RemoteStages(url).leftovers() == []


def test_what_is_newest_is_taken_up_and_never_an_older_state_of_this_machine(
    corpus: Path, tmp_path: Path, url: str, every_checkpoint: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, first, second = small(corpus, 5), StageStore(tmp_path / "a", url), StageStore(tmp_path / "b", url)

    def checkpoint(store: StageStore) -> bytes:
        store.take_up(stage)
        return (store.partial_folder(stage) / "checkpoint.pt").read_bytes()

    interrupted(stage, first, at=2)
    interrupted(stage, second, at=4)
    assert checkpoint(first) == checkpoint(second)
    with monkeypatch.context() as patch:  # what could not be uploaded is newer, too
        patch.setattr(RemoteStages, "save", _refuses)
        interrupted(stage, first, at=5)
    newest = checkpoint(first)
    assert newest != checkpoint(second)
    run(stage, second)
    first.take_up(stage)  # now without any
    assert not (first.partial_folder(stage) / "checkpoint.pt").exists()


def _refuses(*arguments: object) -> None:
    raise ObjectStorageError("away")


def test_a_spoilt_checkpoint_costs_the_steps_since_the_one_before(
    corpus: Path, tmp_path: Path, url: str, every_checkpoint: None, caplog: pytest.LogCaptureFixture
) -> None:
    stage, storage = small(corpus, 5), ObjectStorage(url)
    before = interrupted(stage, StageStore(tmp_path / "a", url), at=5)
    found = storage.read(next(key for key in storage.list("") if key.endswith("/unfinished")))
    assert found
    spoilt = json.loads(found.content)["files"]["checkpoint.pt"]["key"]
    storage.delete([key for key in storage.list("") if key.endswith(spoilt)])
    resumed = run(stage, StageStore(tmp_path / "b", url))
    assert "there is no such object" in caplog.text
    assert resumed[:3] == before[:3]
    assert without_times(resumed[:4]) == without_times(before[:4])
    assert resumed[3] != before[3]


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.long)])
def test_a_process_killed_at_any_write_shows_no_part_of_a_stage_and_leaves_no_trace(
    corpus: Path, tmp_path: Path, url: str, bucket_server: BucketServer, every: int
) -> None:
    """Killed by the server when it asks for a write, which is not made; the next process runs on another machine."""
    stage = small(corpus, 2)
    run(stage, whole := StageStore(tmp_path / "whole"))
    context = forkserver(train.__module__)

    def died(place: str, root: str, kill_at: int | None) -> bool:
        process = forked(context, train, stage, tmp_path / root, place)
        process.start()
        assert process.pid
        bucket_server.forget(process.pid, kill_at)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode != 0

    assert not died(f"{url}/whole", "counted", None)
    writes = [re.sub(r"[0-9a-f]{12}-", "", write) for write in bucket_server.writes]
    deaths = sorted({writes.index(w) for w in writes} | {len(writes) - 1 - writes[::-1].index(w) for w in writes})
    assert len(deaths) > 15
    for at in deaths[::every]:
        assert died(f"{url}/{at}", f"{at}-first", at), writes[at]
        reader = StageStore(tmp_path / f"{at}-reader", f"{url}/{at}")
        seen = reader.result(stage)
        assert (seen is not None) == any("DONE" in write for write in writes[:at]), writes[at]
        if seen:
            assert files(reader.fetch(stage)) == files(whole.folder(stage)), writes[at]
        assert not died(f"{url}/{at}", f"{at}-second", None), writes[at]
        assert files(reader.fetch(stage)) == files(whole.folder(stage)), writes[at]
        assert RemoteStages(f"{url}/{at}").leftovers() == [], writes[at]
        for name in ("first", "second", "reader"):
            shutil.rmtree(tmp_path / f"{at}-{name}", ignore_errors=True)


def test_storage_that_is_away_for_a_while_stops_nothing(
    corpus: Path,
    tmp_path: Path,
    url: str,
    bucket_server: BucketServer,
    every_checkpoint: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Checkpoints are not uploaded meanwhile, which is told; the commit waits."""
    caplog.set_level(logging.WARNING)
    for module in (remote_stages, "trainables.object_lease"):
        monkeypatch.setattr(f"{getattr(module, '__name__', module)}.PATIENCE_SECONDS", 0.2)
    stage, whole, store = small(corpus, 4), StageStore(tmp_path / "whole"), StageStore(tmp_path / "a", url)
    run(stage, whole)

    def report(new: object) -> None:
        if getattr(new, "step", None) == 2:
            bucket_server.go_away()
            threading.Timer(4.0, bucket_server.come_back).start()

    loop.run_stage(stage, store, report)
    assert "step 2 was not uploaded" in caplog.text
    assert "training goes on" in caplog.text
    assert files(store.folder(stage)) == files(whole.folder(stage))
    assert RemoteStages(url).leftovers() == []


def test_a_stage_that_is_discarded_is_gone_everywhere(
    corpus: Path, tmp_path: Path, url: str, every_checkpoint: None
) -> None:
    stage, store = small(corpus), StageStore(tmp_path / "a", url)
    interrupted(stage, store, at=3)
    assert "supervised/unfinished" in objects(url)
    with store.lease(stage).hold() as held:
        assert isinstance(held, ObjectLease)
        store.discard(stage)
    assert objects(url) == []
    assert not store.partial_folder(stage).exists()


# What cannot be used


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://someone:secret@bucket/prefix", "without credentials"),
        ("s3://bucket/prefix?access_key_id=someone", "without credentials"),
        ("/mnt/bucket", "must be the URL of a bucket"),
        ("ftp://bucket", "must be the URL of a bucket"),
        ("s3://", "must be the URL of a bucket"),
    ],
)
def test_urls_that_are_none_of_a_bucket_or_hold_secrets_are_refused(url: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as raised:
        checked_url(url)
    assert "secret" not in str(raised.value)
    with pytest.raises(ValueError, match=told):
        spec_of(Path("results"), stages=url)


def test_a_url_is_taken_without_the_slash_at_its_end_and_a_quota_is_refused_beside_it() -> None:
    assert spec_of(Path("results"), stages="s3://bucket/prefix/").stages == "s3://bucket/prefix"
    assert spec_of(Path("results")).stages is None
    with pytest.raises(ValueError, match="leave out one of them"):
        spec_of(Path("results"), stages="s3://bucket", quota="1GB")


def test_storage_that_can_be_used_has_no_problem_and_keeps_nothing(url: str) -> None:
    assert storage_problem(url) is None
    assert objects(url) == []


def test_what_is_refused_or_absent_is_told_with_what_to_do(
    url: str, bucket_server: BucketServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command of a study, before anything starts."""
    sweep = write_sweep(tmp_path / "sweep.yaml", stages=url)

    def told() -> str:
        assert study(["run", str(sweep)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert not (tmp_path / "results").exists()
        return captured.err

    bucket_server.refuse_strangers(refuse=True)
    try:
        said = told()
    finally:
        bucket_server.refuse_strangers(refuse=False)
    assert "may not be used" in said
    assert "AWS_ACCESS_KEY_ID" in said
    sweep = write_sweep(tmp_path / "sweep.yaml", stages="s3://no-such-bucket/x")
    assert "no such bucket; make it first" in told()


def test_storage_that_writes_over_what_it_should_not_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As servers do that do not know the conditions."""

    def unconditional(found: ObjectStorage, key: str, content: bytes, *version: object) -> dict[str, str]:
        found.write(key, content)
        return {"e_tag": "one"}

    for method in ("create", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(ObjectStorage, method, unconditional)
            assert "take a newer server" in str(storage_problem(url))


def test_a_trial_is_trained_without_ray_into_a_bucket(
    corpus: Path, tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    brief = {"kind": "supervised", "train": {"steps": 1, "batch_seconds": 3, "report_every": 1, "evaluate_every": 1}}
    path = tmp_path / "trial.yaml"
    path.write_text(json.dumps(small_trial(corpus, brief)))
    command = [str(path), "--storage", str(tmp_path / "a"), "--device", "cpu", "--stages"]
    assert main([*command, url]) == 0
    assert "supervised/DONE" in objects(url)
    assert main([*command, "s3://no-such-bucket"]) == 3
    assert "no such bucket" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "s3://someone:secret@bucket"])
