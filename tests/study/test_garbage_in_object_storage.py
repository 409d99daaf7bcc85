"""What `study gc` removes from a bucket, and what it leaves there."""

from __future__ import annotations

import json
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from study import garbage
from study.garbage import over_quota, remove, survey, survey_remote
from study.ledger import Ledger, LedgerError
from study.run import main
from tests.buckets import BUCKET, BucketServer, bucket_server
from tests.processes import forked, forkserver
from tests.study.test_garbage import Studied, run_gc
from trainables.object_lease import ObjectLease
from trainables.object_storage import ObjectStorage
from trainables.remote_stages import RemoteStages
from trainables.settings_file import SettingsError
from trainables.stage import Stage
from trainables.store import StageStore

__all__ = ["bucket_server"]

pytestmark = pytest.mark.usefixtures("bucket_server")


@pytest.fixture
def url() -> str:
    """A place of its own for each test."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def race(tmp_path: Path, url: str) -> Iterator[Studied]:
    studied = Studied(tmp_path / "results", url=url)
    yield studied
    studied.ledger.close()


def upload_unfinished(studied: Studied, stage: Stage) -> None:
    folder = studied.leave_unfinished(stage)
    lease = studied.store.lease(stage)
    with lease.hold() as held:
        assert isinstance(held, ObjectLease)
        studied.store.save(stage, held)
    assert folder.is_dir()


def reasons(studied: Studied, url: str, keep_best: int = 1) -> dict[str, str | None]:
    """Why each stage is kept, by the end of its URL."""
    items = survey_remote(studied.ledger, RemoteStages(url), keep_best)
    return {str(item.path).removeprefix(f"{url}/stages/"): item.kept for item in items}


def place(stage: Stage) -> str:
    return f"{stage.kind}/{stage.name()}"


def objects(url: str) -> dict[str, bytes]:
    storage = ObjectStorage(url)
    found = {key: storage.read(key) for key in storage.list("stages")}
    return {key: value.content for key, value in found.items() if value}


def gc(studied: Studied, url: str, quota_bytes: int = 0, keep_best: int = 1) -> list[str]:
    """The URLs of what went."""
    items = survey_remote(studied.ledger, RemoteStages(url), keep_best)
    return [str(item.path) for item in remove(studied.ledger, over_quota(items, quota_bytes), RemoteStages(url))]


def test_the_stages_of_the_worst_trials_go_and_nothing_of_them_stays(race: Studied, url: str) -> None:
    pretrain, best = race.add(0, 1e-3, cer=0.3)
    before = objects(url)
    worst = race.add(1, 2e-3, cer=0.6)[-1]
    assert reasons(race, url)[place(pretrain)] == "trials of race may start from it"
    assert reasons(race, url)[place(worst)] is None
    items = {str(item.path): item for item in survey_remote(race.ledger, RemoteStages(url))}
    assert sum(item.bytes for item in items.values()) == sum(map(len, objects(url).values()))
    assert items[f"{url}/stages/{place(worst)}"].what == "finetune of race/slow-001"
    assert gc(race, url) == [f"{url}/stages/{place(worst)}"]
    assert objects(url) == before
    assert not race.there(worst)
    race.ledger.end_study("race")
    assert gc(race, url, keep_best=1) == [f"{url}/stages/{place(pretrain)}"]
    assert list(reasons(race, url)) == [place(best)]
    race.finish(pretrain)
    assert race.there(pretrain)  # trained again


def test_an_unfinished_stage_is_garbage_where_its_trial_has_ended(race: Studied, url: str) -> None:
    failed = race.add(0, 1e-3, status="failed")[-1]
    needed = race.add(1, 2e-3, status="unfinished")[-1]
    upload_unfinished(race, failed)
    upload_unfinished(race, needed)
    race.ledger.end_study("race")
    items = survey_remote(race.ledger, RemoteStages(url))
    assert [(item.garbage, item.what.split()[0]) for item in items if item.kept is None] == [(True, "unfinished")]
    assert reasons(race, url)[place(needed)] == "race/slow-001 needs it"
    assert gc(race, url, quota_bytes=10**9) == []  # garbage goes without a quota: by the command
    assert remove(race.ledger, [item for item in items if item.garbage], RemoteStages(url))
    assert place(failed) not in reasons(race, url)
    assert not [key for key in objects(url) if place(failed) in key]


def test_what_another_ledger_has_there_is_left_alone(race: Studied, url: str, tmp_path: Path) -> None:
    """Finished or not, for one ledger does not know what another one needs."""
    finished, unfinished = race.add(0, 1e-3, status="unfinished")
    upload_unfinished(race, unfinished)
    other = Studied(tmp_path / "other", "other", url)
    try:
        assert reasons(other, url) == dict.fromkeys(
            map(place, (finished, unfinished)), "no trial of this ledger has it"
        )
        assert gc(other, url) == []
    finally:
        other.ledger.close()


def test_what_a_worker_has_stays(race: Studied, url: str) -> None:
    stage = race.add(0, 1e-3, cer=0.3)[-1]
    items = survey_remote(race.ledger, RemoteStages(url), keep_best=0)
    before = objects(url)
    with race.store.lease(stage).hold() as held:
        assert held
        assert reasons(race, url, keep_best=0)[place(stage)] == "a worker has it"
        assert remove(race.ledger, over_quota(items, 0), RemoteStages(url)) == []
    assert objects(url) == before
    assert gc(race, url, keep_best=0) == [f"{url}/stages/{place(stage)}"]


def test_a_stage_goes_whose_worker_died_on_a_machine_that_is_gone(
    race: Studied, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease of which nobody here can see the process; another one is alive, and renews its own."""
    monkeypatch.setattr(ObjectLease, "HEARTBEAT_SECONDS", 0.5)
    dead, alive = (race.add(number, rate, cer=0.3)[-1] for number, rate in enumerate((1e-3, 2e-3)))
    ObjectStorage(url).create(f"stages/{place(dead)}/lease", b"another-machine/boot 1 1 cafe 0")
    with race.store.lease(alive).hold() as held:
        assert held
        assert gc(race, url, keep_best=0) == []  # as new as a living one's
        monkeypatch.setattr(ObjectLease, "STALE_SECONDS", 4.0)
        time.sleep(5.0)
        assert gc(race, url, keep_best=0) == [f"{url}/stages/{place(dead)}"]
        assert list(reasons(race, url, keep_best=0).values()).count("a worker has it") == 1


def test_what_a_trial_needs_that_came_after_the_survey_stays(race: Studied, url: str) -> None:
    stage = race.add(0, 1e-3, cer=0.3)[-1]
    items, before = survey_remote(race.ledger, RemoteStages(url), keep_best=0), objects(url)
    race.add(1, 1e-3, status="unfinished")
    assert remove(race.ledger, over_quota(items, 0), RemoteStages(url)) == []
    assert objects(url) == before
    assert race.there(stage)


def test_what_cannot_be_asked_for_stays(race: Studied, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger's database is away just when it is asked whether the stage is needed."""
    stage = race.add(0, 1e-3, cer=0.3)[-1]
    items, before = survey_remote(race.ledger, RemoteStages(url), keep_best=0), objects(url)

    def away(ledger: Ledger) -> set[str]:
        raise LedgerError("the database is away")

    monkeypatch.setattr(garbage, "_needed", away)
    with pytest.raises(LedgerError):
        remove(race.ledger, over_quota(items, 0), RemoteStages(url))
    assert objects(url) == before
    assert race.there(stage)


def test_other_objects_in_the_bucket_are_left_alone(race: Studied, url: str) -> None:
    race.add(0, 1e-3, cer=0.3)
    for key in ("stages/README.txt", "stages/finetune/marker", "other/stages/finetune/x/DONE"):
        ObjectStorage(url).write(key, b"mine")
    assert len(reasons(race, url)) == 2
    race.ledger.end_study("race")
    gc(race, url, keep_best=0)
    assert [key for key in objects(url) if "stages/README.txt" in key]


def test_what_is_being_downloaded_is_no_garbage_of_the_folder(
    race: Studied, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is what a killed download has left in the way of the next one."""
    stage = race.add(0, 1e-3, cer=0.3)[-1]
    elsewhere = StageStore(tmp_path / "elsewhere", url)
    download, found = RemoteStages._download, []

    def watched(self: RemoteStages, *arguments: Any) -> None:
        found.extend(survey(race.ledger, elsewhere.root))
        download(self, *arguments)

    monkeypatch.setattr(RemoteStages, "_download", watched)
    beside = elsewhere.folder(stage).with_name(f".{stage.name()}.fetching")
    beside.mkdir(parents=True)
    (beside / "half").touch()
    assert {path.name for path in elsewhere.fetch(stage).iterdir()} >= {"DONE", "backbone.safetensors"}
    assert found == []
    assert not beside.exists()
    assert not (elsewhere.folder(stage) / "half").exists()


def _remove_all(storage: Path, url: str) -> None:
    ledger = Ledger.in_folder(storage)
    remove(ledger, over_quota(survey_remote(ledger, RemoteStages(url), 0), 0), RemoteStages(url))


def test_killed_at_any_write_it_leaves_whole_stages_or_garbage(
    race: Studied, url: str, bucket_server: BucketServer
) -> None:
    """Killed by the server when it asks for a write, which is not made."""
    context = forkserver(__name__)
    stage = race.add(0, 1e-3, cer=0.3)[-1]
    race.ledger.end_study("race")
    kept = {key for key in objects(url) if place(stage) not in key}
    for at in range(20):
        race.finish(stage)
        process = forked(context, _remove_all, race.spec.storage, url)
        process.start()
        assert process.pid
        bucket_server.forget(process.pid, at)
        process.join()
        bucket_server.forget()
        if race.there(stage):
            assert (race.store.fetch(stage) / "backbone.safetensors").stat().st_size == 1000
        gc(race, url, keep_best=0)
        assert objects(url).keys() <= kept
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert 4 < at < 19


class TestCommand:
    def test_removes_from_the_bucket_and_not_from_the_folder(
        self, race: Studied, url: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        race.add(0, 1e-3, cer=0.3)
        worst = race.add(1, 2e-3, cer=0.6)[-1]
        race.ledger.end_study("race")
        words = ("--storage", race.spec.storage, "--stages", f"{url}/", "--quota", "1kB", "--json")
        printed = []
        for more in (("--dry-run",), ()):
            there = objects(url)
            assert run_gc(*words, *more) == 0
            printed.append(json.loads(capsys.readouterr().out))
            assert (objects(url) == there) == bool(more)
        assert printed[0]["folders"] == printed[1]["folders"]
        assert f"{url}/stages/{place(worst)}" in [row["path"] for row in printed[1]["folders"] if row["removed"]]
        assert printed[1]["bytes_left"] == sum(map(len, objects(url).values()))
        assert race.store.folder(worst).is_dir()

    def test_says_what_is_wrong_with_the_bucket(self, race: Studied, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["gc", "--storage", str(race.spec.storage), "--stages", "s3://no-such-bucket"]) == 2
        assert capsys.readouterr().err.startswith("s3://no-such-bucket: Generic S3 error: ")

    def test_refuses_what_is_no_bucket(self, race: Studied) -> None:
        with pytest.raises(SettingsError, match=r"--stages must be the URL of a bucket, such as s3://bucket/prefix"):
            run_gc("--storage", race.spec.storage, "--stages", "results")
