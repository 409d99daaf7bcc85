"""What can go of a storage folder, with real ledgers, folders and leases."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from study import garbage
from study.garbage import Item, fit, over_quota, remove, survey
from study.ledger import Ledger, LedgerError, Status
from study.spec import StudySpec
from study.trained import decoded_folder, trained_folder
from tests.conftest import small_trial
from tests.study.builders import (
    LEARNING_RATE,
    add_trial,
    dev_curve,
    open_study,
    pretrain_finetune,
    run_trial,
    spec_of,
    supervised,
)
from trainables.__main__ import main as train
from trainables.loop import run_stage
from trainables.settings_file import SettingsError
from trainables.stage import Stage, StageResult
from trainables.store import StageStore
from trainables.trial import TrialConfig, stages_of

WEIGHTS_BYTES = 1000
FINETUNE_RATE = "regime.finetune.learning_rate"
SPACE = {FINETUNE_RATE: {"kind": "log_uniform", "low": 1e-4, "high": 1e-2}}
ARMS = {"slow": {"trial": pretrain_finetune(), "space": SPACE}}


class Studied:
    """A study with trials that have folders; the arm pre-trains once and fine-tunes with several rates."""

    def __init__(self, storage: Path, name: str = "race", url: str | None = None) -> None:
        self.spec: StudySpec = spec_of(storage, study=name, arms=ARMS, stages=url)
        self.ledger = open_study(self.spec)
        self.store = StageStore(storage, url)

    def add(
        self, number: int, rate: float, *, cer: float | None = None, status: Status = "finished"
    ) -> Sequence[Stage]:
        """A trial, with the folders of all its stages where it has finished."""
        name, stages = add_trial(self.ledger, self.spec, "slow", number, point={FINETUNE_RATE: rate})
        if cer is not None:
            self.ledger.append(stages[-1].fingerprint(), dev_curve({10: cer}))
        if status != "unfinished":
            self.ledger.end_trial(self.spec.study, name, status)
        for stage in stages if status == "finished" else stages[:1]:
            self.finish(stage)
        return stages

    def finish(self, stage: Stage) -> Path:
        folder = self.store.partial_folder(stage)
        if not self.store.result(stage):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "backbone.safetensors").write_bytes(bytes(WEIGHTS_BYTES))
            self.store.commit(stage, StageResult(reports=(), num_parameters=1))
        return self.store.folder(stage)

    def leave_unfinished(self, stage: Stage) -> Path:
        folder = self.store.partial_folder(stage)
        folder.mkdir(parents=True)
        (folder / "checkpoint.pt").write_bytes(bytes(WEIGHTS_BYTES))
        return folder

    def there(self, stage: Stage) -> bool:
        return self.store.result(stage) is not None

    def reasons(self, keep_best: int = 1) -> dict[Path, str | None]:
        return {item.path: item.kept for item in survey(self.ledger, self.spec.storage, keep_best)}

    def fit(self, quota_bytes: int = 0, keep_best: int = 1) -> list[Item]:
        return fit(self.ledger, self.spec.storage, quota_bytes, keep_best)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def race(storage: Path) -> Iterator[Studied]:
    studied = Studied(storage)
    yield studied
    studied.ledger.close()


@contextlib.contextmanager
def held_elsewhere(store: StageStore, stage: Stage) -> Iterator[None]:
    """Another process holds the stage's lease."""
    program = (
        "import sys, time, pathlib, trainables.lease as s\n"
        "with s.Lease(pathlib.Path(sys.argv[1])).hold() as lease:\n"
        "    print('ready' if lease else 'refused', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", program, str(store.folder(stage).with_suffix(".lease"))]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            yield
        finally:
            holder.kill()


class TestKept:
    def test_all_stages_of_an_unfinished_trial(self, race: Studied) -> None:
        pretrain, finetune = race.add(0, 1e-3, status="unfinished")
        race.leave_unfinished(finetune)
        race.ledger.end_study("race")
        assert race.fit() == []
        assert set(race.reasons().values()) == {"race/slow-000 needs it"}
        assert race.there(pretrain)

    def test_what_trials_of_a_study_may_still_start_from(self, race: Studied) -> None:
        pretrain, finetune = race.add(0, 1e-3, cer=0.5)
        assert race.reasons(keep_best=0)[race.store.folder(pretrain)] == "trials of race may start from it"
        assert [item.path for item in race.fit(keep_best=0)] == [race.store.folder(finetune)]
        race.ledger.end_study("race")
        assert [item.path for item in race.fit(keep_best=0)] == [race.store.folder(pretrain)]

    def test_what_another_study_may_still_start_from(self, race: Studied) -> None:
        pretrain, finetune = race.add(0, 1e-3, cer=0.5)
        race.ledger.end_study("race")
        other = Studied(race.spec.storage, "again")
        assert other.add(0, 2e-3, cer=0.6)[0] == pretrain
        race.fit(keep_best=0)
        assert race.there(pretrain)
        assert not race.there(finetune)
        other.ledger.end_study("again")
        race.fit(keep_best=0)
        assert not race.there(pretrain)

    def test_what_another_study_s_unfinished_trial_needs(self, race: Studied) -> None:
        _, finetune = race.add(0, 1e-3, cer=0.5)
        race.ledger.end_study("race")
        other = Studied(race.spec.storage, "again")
        assert other.add(7, 1e-3, status="unfinished")[-1] == finetune
        assert race.fit(keep_best=0) == []
        assert race.reasons(keep_best=0)[race.store.folder(finetune)] == "again/slow-007 needs it"

    def test_the_last_stages_of_the_best_trials_of_an_arm(self, race: Studied) -> None:
        trials = [race.add(number, 1e-3 * (number + 1), cer=cer) for number, cer in enumerate((0.5, 0.3, 0.4))]
        race.ledger.end_study("race")
        race.fit(keep_best=2)
        assert [race.there(trial[-1]) for trial in trials] == [False, True, True]
        race.fit(keep_best=1)
        assert [race.there(trial[-1]) for trial in trials] == [False, True, False]

    def test_each_arm_has_its_own_best_trial(self, storage: Path) -> None:
        spec = spec_of(storage)
        ledger, store = open_study(spec), StageStore(storage)
        for arm, cer in (("slow", 0.9), ("fast", 0.1)):
            run_trial(ledger, spec, arm, curve={10: cer})
        for trial in ledger.trials("race"):
            stage = stages_of(TrialConfig.model_validate(trial.config))[0]
            store.partial_folder(stage).mkdir(parents=True)
            store.commit(stage, StageResult(reports=(), num_parameters=1))
        ledger.end_study("race")
        kept = [item.kept for item in survey(ledger, storage)]
        assert sorted(map(str, kept)) == ["the best of arm fast of race", "the best of arm slow of race"]

    def test_the_trained_stage_of_the_best_trial_beside_what_it_decoded(self, storage: Path) -> None:
        spec = spec_of(storage, arms={"one": {"trial": {**supervised(), "language_model": {}}}})
        ledger, store = open_study(spec), StageStore(storage)
        name, stages = add_trial(ledger, spec, "one")
        for stage in stages:
            store.partial_folder(stage).mkdir(parents=True)
            store.commit(stage, StageResult(reports=(), num_parameters=1))
        ledger.append(stages[0].fingerprint(), dev_curve({10: 0.5}))
        ledger.end_trial("race", name, "finished")
        ledger.end_study("race")
        assert fit(ledger, storage, 0) == []
        assert len(fit(ledger, storage, 0, keep_best=0)) == 2

    def test_replications(self, storage: Path) -> None:
        spec = spec_of(storage)
        ledger, store = open_study(spec), StageStore(storage)
        name, stages = add_trial(ledger, spec, "slow", origin="replication", seed=3, point={LEARNING_RATE: 1e-3})
        store.partial_folder(stages[0]).mkdir(parents=True)
        store.commit(stages[0], StageResult(reports=(), num_parameters=1))
        ledger.end_trial("race", name, "finished")
        ledger.end_study("race")
        assert fit(ledger, storage, 0, keep_best=0) == []
        assert [item.kept for item in survey(ledger, storage)] == [f"replication race/{name}"]

    def test_what_a_running_study_names_as_its_start(self, race: Studied) -> None:
        pretrain, _ = race.add(0, 1e-3, cer=0.5)
        race.ledger.end_study("race")
        folder = race.store.folder(pretrain)
        arms = {"one": {"trial": {**supervised(), "init": str(folder)}}}
        open_study(spec_of(race.spec.storage, study="later", arms=arms))
        assert race.reasons()[folder] == "a study that is not over starts from it"
        race.ledger.end_study("later")
        assert race.reasons()[folder] is None

    def test_what_a_worker_has(self, race: Studied) -> None:
        _, finetune = race.add(0, 1e-3, status="stopped")
        race.ledger.end_study("race")
        folder = race.leave_unfinished(finetune)
        with held_elsewhere(race.store, finetune):
            items = survey(race.ledger, race.spec.storage)
            assert {item.kept for item in items if item.path == folder} == {"a worker has it"}
            assert folder not in [item.path for item in race.fit()]
            assert folder.is_dir()
        assert folder in [item.path for item in race.fit()]
        assert not folder.exists()

    def test_what_a_worker_takes_after_the_survey(self, race: Studied) -> None:
        _, finetune = race.add(0, 1e-3, status="stopped")
        folder = race.leave_unfinished(finetune)
        (item,) = [item for item in survey(race.ledger, race.spec.storage) if item.path == folder]
        assert item.kept is None
        with held_elsewhere(race.store, finetune):
            assert remove(race.ledger, [item]) == []
        assert (folder / "checkpoint.pt").is_file()

    def test_what_a_trial_needs_that_came_after_the_survey(self, race: Studied) -> None:
        _, finetune = race.add(0, 1e-3, cer=0.5)
        items = [item for item in survey(race.ledger, race.spec.storage, keep_best=0) if item.kept is None]
        Studied(race.spec.storage, "again").add(0, 1e-3, status="unfinished")
        assert remove(race.ledger, items) == []
        assert race.there(finetune)
        folder = race.store.folder(finetune)
        assert folder.name in os.listdir(folder.parent)
        assert len(os.listdir(folder.parent)) == 1

    def test_folders_that_are_no_stages(self, race: Studied) -> None:
        own = race.spec.storage / "stages" / "finetune" / "my-notes"
        own.mkdir(parents=True)
        race.ledger.end_study("race")
        assert race.reasons() == {}
        assert own.is_dir()


class TestGarbage:
    def test_is_an_unfinished_stage_that_no_unfinished_trial_needs(self, race: Studied) -> None:
        _, failed = race.add(0, 1e-3, status="failed")
        _, stopped = race.add(1, 2e-3, status="stopped")
        _, unfinished = race.add(2, 3e-3, status="unfinished")
        folders = [race.leave_unfinished(stage) for stage in (failed, stopped, unfinished)]
        garbage = {item.path for item in survey(race.ledger, race.spec.storage) if item.garbage}
        assert garbage == set(folders[:2])

    def test_is_an_unfinished_stage_of_no_trial_but_not_what_was_trained_without_a_study(self, race: Studied) -> None:
        _, finetune = race.add(0, 1e-3, cer=0.5)
        trained, unfinished = race.finish(finetune.with_(seed=98)), race.leave_unfinished(finetune.with_(seed=99))
        items = {item.path: item for item in survey(race.ledger, race.spec.storage)}
        assert [path for path, item in items.items() if item.garbage] == [unfinished]
        assert items[trained].kept == "no trial here has it: it was trained without a study"

    def test_is_what_an_interrupted_removal_left_even_of_a_stage_that_is_needed(self, race: Studied) -> None:
        pretrain, finetune = race.add(0, 1e-3, status="unfinished")
        folder = race.finish(finetune)
        away, cut_short = folder.with_name(f".{folder.name}.0123abcd"), race.store.folder(pretrain)
        folder.rename(away)
        (cut_short / "DONE").unlink()
        discarded = race.leave_unfinished(finetune)
        discarded = discarded.rename(discarded.with_name(f".{discarded.name}.0123abcd"))
        items = [item for item in survey(race.ledger, race.spec.storage) if item.garbage]
        assert {item.path for item in items} == {away, cut_short, discarded}
        assert remove(race.ledger, items) == items
        assert [name for kind in ("pretrain", "finetune") for name in os.listdir(folder.parents[1] / kind)] == []

    def test_is_ray_s_log_of_a_run_a_day_ago_while_nobody_trains(self, race: Studied) -> None:
        pretrain, _ = race.add(0, 1e-3, status="unfinished")
        old, new = race.spec.storage / "ray" / "race-1", race.spec.storage / "ray" / "race-2"
        for folder in (old, new):
            (folder / "deep").mkdir(parents=True)
            (folder / "deep" / "log").write_text("line")
        day_ago = time.time() - 25 * 3600
        for path in (old / "deep" / "log", old / "deep", old, new / "deep", new):
            os.utime(path, (day_ago, day_ago))
        with held_elsewhere(race.store, pretrain):
            assert not [item for item in survey(race.ledger, race.spec.storage) if item.garbage]
        items = [item for item in survey(race.ledger, race.spec.storage) if item.garbage]
        assert [item.path for item in items] == [old]
        remove(race.ledger, items)
        assert (old.exists(), (new / "deep" / "log").exists()) == (False, True)


class TestQuota:
    def test_takes_the_worst_trials_first_and_stops_when_the_rest_fits(self, race: Studied) -> None:
        trials = [race.add(number, 1e-3 * (number + 1), cer=cer) for number, cer in enumerate((0.5, 0.2, 0.7, 0.4))]
        race.ledger.end_study("race")
        total = sum(item.bytes for item in survey(race.ledger, race.spec.storage))
        assert race.fit(total) == []
        assert [item.path for item in race.fit(total - 1)] == [race.store.folder(trials[2][-1])]
        race.fit()
        assert [race.there(trial[-1]) for trial in trials] == [False, True, False, False]

    def test_takes_garbage_and_trials_without_a_result_before_all_others(self, race: Studied) -> None:
        _, good = race.add(0, 1e-3, cer=0.3)
        _, bad = race.add(1, 2e-3, cer=0.6)
        _, without = race.add(2, 3e-3)
        orphan = race.leave_unfinished(good.with_(seed=99))
        order = [item.path for item in survey(race.ledger, race.spec.storage, keep_best=0) if item.kept is None]
        assert order == [orphan, *(race.store.folder(stage) for stage in (without, bad, good))]

    def test_takes_the_older_of_equally_bad_trials_first(self, race: Studied) -> None:
        folders = [race.store.folder(race.add(number, 1e-3 * (number + 1))[-1]) for number in range(3)]
        for folder, age in zip(folders, (1, 3, 2), strict=True):
            for path in (*folder.iterdir(), folder):
                os.utime(path, (1e9 - age, 1e9 - age))
        order = [item.path for item in survey(race.ledger, race.spec.storage) if item.kept is None]
        assert order == [folders[1], folders[2], folders[0]]

    def test_takes_a_stage_that_trials_share_when_it_takes_the_best_of_them(self, race: Studied) -> None:
        pretrain, good = race.add(0, 1e-3, cer=0.3)
        _, bad = race.add(1, 2e-3, cer=0.6)
        race.ledger.end_study("race")
        order = [item.path for item in survey(race.ledger, race.spec.storage, keep_best=0)]
        assert order[0] == race.store.folder(bad)
        assert set(order[1:]) == {race.store.folder(pretrain), race.store.folder(good)}

    def test_counts_the_bytes_of_all_files(self, race: Studied) -> None:
        race.add(0, 1e-3, cer=0.3)
        expected = sum(p.stat().st_size for p in (race.spec.storage / "stages").rglob("*") if p.is_file())
        assert sum(item.bytes for item in survey(race.ledger, race.spec.storage)) == expected

    @pytest.mark.parametrize(("quota", "number"), [(100, 0), (99, 1), (80, 1), (79, 2), (60, 2), (59, 2), (0, 2)])
    def test_chooses_as_few_as_it_can(self, quota: int, number: int) -> None:
        sizes = [(20, None), (20, None), (60, "needed")]
        items = [Item(Path(str(i)), "stage", size, kept) for i, (size, kept) in enumerate(sizes)]
        assert over_quota(items, quota) == items[:number]

    def test_leaves_curves_and_a_later_trial_trains_the_stage_again(self, race: Studied) -> None:
        _, finetune = race.add(0, 1e-3, cer=0.3)
        race.fit(keep_best=0)
        assert race.store.result(finetune) is None
        assert race.ledger.final("race", "slow-000")["dev_cer"] == 0.3
        race.finish(finetune)
        assert race.there(finetune)


class TestTrained:
    def test_removed_weights_are_told_and_can_be_trained_again(self, small_corpus: Path, storage: Path) -> None:
        brief = {"steps": 1, "batch_seconds": 6, "report_every": 1, "evaluate_every": 1}
        trial = small_trial(small_corpus, {"kind": "supervised", "train": brief}, language_model={})
        spec = spec_of(storage, arms={"one": {"trial": trial}})
        ledger, store = open_study(spec), StageStore(storage)
        name, stages = add_trial(ledger, spec, "one")
        for stage in stages:
            run_stage(stage, store, lambda report: None)
        ledger.end_trial("race", name, "finished")
        ledger.end_study("race")
        assert trained_folder(ledger, storage, name) == store.folder(stages[0])
        fit(ledger, storage, 0, keep_best=0)
        for folder_of in (trained_folder, decoded_folder):
            with pytest.raises(SettingsError, match=r"one-000: its weights were removed .*python -m trainables FILE"):
                folder_of(ledger, storage, name)
        file = storage / "trial.json"
        file.write_text(json.dumps(ledger.trial("race", name).config))
        assert train([str(file), "--storage", str(storage)]) == 0
        assert trained_folder(ledger, storage, name) == store.folder(stages[0])
        assert decoded_folder(ledger, storage, name) == store.folder(stages[1])


def run_gc(*words: object) -> int:
    parser = argparse.ArgumentParser()
    garbage.add_parser(parser.add_subparsers())
    options = parser.parse_args(["gc", *map(str, words)])
    return int(options.command(options))


class TestCommand:
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Path:
        """Two finished trials of a study that is over, and an unfinished stage of no trial."""
        studied = Studied(tmp_path / "results")
        studied.add(0, 1e-3, cer=0.3)
        _, finetune = studied.add(1, 2e-3, cer=0.6)
        studied.leave_unfinished(finetune.with_(seed=99))
        studied.ledger.end_study("race")
        studied.ledger.close()
        return studied.spec.storage

    def folders(self, storage: Path) -> int:
        return len(list((storage / "stages").glob("*/*")))

    def found(self, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str | None]]:
        """The bytes that are left, and what became of each folder."""
        printed = json.loads(capsys.readouterr().out)
        return printed["bytes_left"], ["removed" if row["removed"] else row["kept"] for row in printed["folders"]]

    def test_without_a_quota_removes_garbage_only(self, storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run_gc("--storage", storage, "--json") == 0
        assert self.found(capsys)[1] == ["removed", None, None, "the best of arm slow of race"]
        assert self.folders(storage) == 3

    def test_with_a_quota_removes_what_is_not_kept(self, storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run_gc("--storage", storage, "--quota", "1kB", "--json") == 0
        left, rows = self.found(capsys)
        assert rows == ["removed"] * 3 + ["the best of arm slow of race"]
        assert left == sum(path.stat().st_size for path in (storage / "stages").rglob("*") if path.is_file())

    def test_a_dry_run_tells_the_same_and_removes_nothing(
        self, storage: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run_gc("--storage", storage, "--quota", "1kB", "--dry-run", "--json") == 0
        would = self.found(capsys)
        assert self.folders(storage) == 4
        run_gc("--storage", storage, "--quota", "1kB", "--json")
        assert self.found(capsys) == would

    def test_prints_a_table_and_says_when_a_quota_cannot_be_met(
        self, storage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "160")
        run_gc("--storage", storage, "--quota", "1kB", "--dry-run")
        printed = capsys.readouterr().out
        assert "finetune of no trial" in printed
        assert "pretrain of race/slow-000 and 1 more" in printed
        assert "3 of 4, " in printed
        assert "would be removed" in printed
        assert "What is kept is more than the quota of 1.0 KB" in printed

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--quota", "ten"), "--quota must be a number of bytes with a unit, got 'ten'; write it as 10GB or 10GiB"),
            (("--quota", "10 apples"), "--quota must be a number of bytes with a unit, got '10 apples'"),
            (("--keep-best", "-1"), "--keep-best must be 0 or more, got -1"),
        ],
    )
    def test_refuses_what_cannot_be(self, storage: Path, words: tuple[str, str], message: str) -> None:
        with pytest.raises(SettingsError, match=message.replace("-", r"\-")):
            run_gc("--storage", storage, *words)
        assert self.folders(storage) == 4

    def test_refuses_a_folder_without_a_ledger(self, tmp_path: Path) -> None:
        with pytest.raises(LedgerError, match="no such file; --storage is the folder of studies that have run"):
            run_gc("--storage", tmp_path / "empty")

    @pytest.mark.parametrize(
        ("text", "expected"), [("10GB", 10**10), ("10GiB", 10 * 2**30), ("1.5 TB", 1.5e12), ("7", 7)]
    )
    def test_knows_units(self, text: str, expected: int) -> None:
        assert garbage._quota(text) == expected


def test_needs_no_torch() -> None:
    """In a process of its own, for this one has imported it."""
    program = "import sys, study.garbage; assert not {'torch', 'ray', 'optuna'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_empty_storage_has_nothing(storage: Path) -> None:
    ledger = Ledger.in_folder(storage)
    assert survey(ledger, storage) == fit(ledger, storage, 0) == []
