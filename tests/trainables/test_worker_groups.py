"""Worker groups on a real Ray cluster of several nodes, all on this machine, with stages that wait, hang and crash."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from cluster import fair_share
from cluster.connect import connect
from cluster.fair_share import FairShare
from cluster.nodes import GroupSize, Node
from tests.processes import eventually, is_alive, parent
from tests.trainables.misbehaving import Behaviour, Started, misbehaving, started
from tests.trainables.test_loop import run, without_times
from tests.trainables.test_resume import supervised
from trainables.ray_train import NODES_SECONDS, GroupSettings, GroupsState, News, start_worker_groups
from trainables.stage import Report, Stage
from trainables.stage_process import Outcome
from trainables.store import StageStore

pytestmark = pytest.mark.slow

ONE_CPU = GroupSize(1, 1, 0)
TWO_CPUS = GroupSize(1, 2, 0)
THREE_CPUS = GroupSize(1, 3, 0)
TWO_NODES = GroupSize(2, 2, 0)  # no node holds two such workers
HALF_GPU = GroupSize(1, 1, 0.5)

FINISHED, STOPPED = Outcome("finished"), Outcome("stopped")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, and two nodes of two CPUs each, one of them with a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_DISABLE_MEMORY_MONITOR", "1")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
        cluster.add_node(num_cpus=2, num_gpus=1)
        cluster.add_node(num_cpus=2, num_gpus=0)
        patch.setenv("RAY_ADDRESS", cluster.address)
        with connect():
            yield cluster
        cluster.shutdown()


class Groups:
    """The actor, with calls that wait."""

    def __init__(self, storage: Path, **settings: Any) -> None:
        given = {"idle_seconds": 60.0, "module": "tests.trainables.misbehaving", **settings}
        self.storage = storage
        self.actor = start_worker_groups(GroupSettings(storage, **given))

    def submit(self, stage: Stage, size: GroupSize = ONE_CPU, trial: str = "trial") -> None:
        ray.get(self.actor.submit.remote(stage, size, trial))

    def follow(self, stage: Stage, trial: str = "trial") -> tuple[Outcome, list[Report]]:
        """How the stage ends, and all its reports."""
        reports: list[Report] = []
        deadline = time.monotonic() + 180
        while True:
            assert time.monotonic() < deadline, f"the stage does not end: {self.state()}"
            news: News = ray.get(self.actor.follow.remote(stage.fingerprint(), trial, len(reports)), timeout=90)
            reports += news.reports
            if news.outcome:
                return news.outcome, reports

    def run(self, stage: Stage, size: GroupSize = ONE_CPU) -> Outcome:
        self.submit(stage, size)
        return self.follow(stage)[0]

    def stop(self, trial: str) -> None:
        ray.get(self.actor.stop.remote(trial))

    def state(self) -> GroupsState:
        state: GroupsState = ray.get(self.actor.state.remote())
        return state

    def started(self) -> list[Started]:
        return started(self.storage)

    def wait_for_starts(self, count: int) -> None:
        assert eventually(lambda: len(self.started()) >= count), f"{len(self.started())} of {count} stages began"

    def stays_at(self, count: int) -> bool:
        """Whether no further stage begins while the driver looks a few times."""
        for _ in range(4):
            self.state()
            time.sleep(0.5)
        return len(self.started()) == count

    def let_go(self) -> None:
        """End the stages that wait."""
        (self.storage / "go").touch()


def all_is_free() -> bool:
    free, total = ray.available_resources(), ray.cluster_resources()
    return all(free.get(name, 0) == total[name] for name in ("CPU", "GPU"))


@pytest.fixture
def make_groups(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Groups]]:
    made: list[Groups] = []

    def make(**settings: Any) -> Groups:
        made.append(Groups(settings.pop("storage", tmp_path), **settings))
        return made[-1]

    yield make
    for groups in made:
        ray.get(groups.actor.leave.remote())
        ray.kill(groups.actor)
    assert eventually(all_is_free)


# How many groups there are


def test_groups_grow_with_demand_and_not_beyond_what_the_cluster_holds(make_groups: Callable[..., Groups]) -> None:
    groups = make_groups()
    waiting = [misbehaving(Behaviour.WAITS, number) for number in range(3)]
    groups.submit(waiting[0], TWO_CPUS)
    groups.wait_for_starts(1)
    assert ray.available_resources()["CPU"] == 2
    for stage in waiting[1:]:
        groups.submit(stage, TWO_CPUS)
    groups.wait_for_starts(2)
    assert groups.stays_at(2), "two nodes hold two groups"
    groups.let_go()
    assert [groups.follow(stage)[0] for stage in waiting] == [FINISHED] * 3
    assert len({one.server for one in groups.started()}) == 2, "the third went to a warm group"


@pytest.mark.long
def test_groups_of_two_sizes_run_side_by_side_but_no_more_than_the_study_allows(
    make_groups: Callable[..., Groups],
) -> None:
    groups = make_groups(max_groups=2)
    sizes = [ONE_CPU, TWO_CPUS, ONE_CPU]
    waiting = [misbehaving(Behaviour.WAITS, number) for number in range(len(sizes))]
    for stage, size in zip(waiting, sizes, strict=True):
        groups.submit(stage, size)
    groups.wait_for_starts(2)
    assert {one.stage for one in groups.started()} == {stage.fingerprint() for stage in waiting[:2]}
    assert groups.stays_at(2), "the cluster has another CPU"
    groups.let_go()
    assert [groups.follow(stage)[0] for stage in waiting] == [FINISHED] * 3


def test_two_groups_share_a_gpu_and_a_third_waits_and_what_they_hold_is_accounted(
    make_groups: Callable[..., Groups],
) -> None:
    """At 3600 an hour for the node with the one GPU, a second of half of it costs 0.5."""
    groups = make_groups(node_prices={"default": 3600.0})
    waiting = [misbehaving(Behaviour.WAITS, number) for number in range(3)]
    for stage in waiting:
        groups.submit(stage, HALF_GPU)
    groups.wait_for_starts(2)
    began, before = time.monotonic(), groups.state()
    assert groups.stays_at(2)
    after, seconds = groups.state(), time.monotonic() - began
    assert after.accelerator_seconds - before.accelerator_seconds == pytest.approx(2 * 0.5 * seconds, rel=0.2)
    assert after.cost == pytest.approx(after.accelerator_seconds, rel=1e-3)
    assert len({one.raylet for one in groups.started()}) == 1
    groups.let_go()
    assert [groups.follow(stage)[0] for stage in waiting] == [FINISHED] * 3


@pytest.mark.long
def test_groups_that_are_idle_make_room_for_another_size_at_once(make_groups: Callable[..., Groups]) -> None:
    """They would stay for an hour otherwise. Two sizes that exclude each other are both served."""
    groups = make_groups(idle_seconds=3600.0)
    sizes = [TWO_CPUS, TWO_NODES, TWO_CPUS]
    stages = [misbehaving(Behaviour.REPORTS, number) for number in range(len(sizes))]
    for stage, size in zip(stages, sizes, strict=True):
        groups.submit(stage, size)
    assert [groups.follow(stage)[0] for stage in stages] == [FINISHED] * len(sizes)


def test_a_group_that_cannot_start_is_shown(make_groups: Callable[..., Groups]) -> None:
    groups = make_groups()
    holders = [_Holder.remote() for _ in range(2)]  # type: ignore[attr-defined]
    ray.get([holder.ready.remote() for holder in holders])
    stage = misbehaving(Behaviour.REPORTS)
    groups.submit(stage, TWO_CPUS)
    assert eventually(lambda: groups.state().starting_seconds > 2)
    assert groups.state().starting == TWO_CPUS
    assert groups.state().accelerator_seconds == 0
    for holder in holders:
        ray.kill(holder)
    assert groups.follow(stage)[0] == FINISHED
    assert groups.state().starting is None


@ray.remote(num_cpus=2)
class _Holder:
    """Somebody else's work."""

    def ready(self) -> None:
        """It holds its CPUs."""


# Stages of a warm group


@pytest.fixture(scope="module")
def warm(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Groups:
    """Groups that wait long enough for the next test, and have ended soon after the last one."""
    groups = Groups(tmp_path_factory.mktemp("warm"), idle_seconds=5.0)
    assert groups.run(misbehaving(Behaviour.REPORTS)) == FINISHED
    return groups


def test_reports_reach_every_follower_complete_and_in_order(warm: Groups) -> None:
    stage, before = misbehaving(Behaviour.REPORTS, amount=200), len(warm.started())
    for trial in ("one", "other"):
        warm.submit(stage, trial=trial)
    for trial in ("one", "other"):
        outcome, reports = warm.follow(stage, trial)
        assert outcome == FINISHED
        assert [report.step for report in reports] == list(range(1, 201))
    assert len(warm.started()) == before + 1


def test_a_failed_stage_leaves_its_group_warm_and_can_be_tried_again(warm: Groups) -> None:
    first = len(warm.started())
    assert warm.run(misbehaving(Behaviour.SEGFAULTS)) == Outcome("failed", "its process was killed by SIGSEGV")
    assert warm.run(misbehaving(Behaviour.RAISES)).status == "failed"
    assert warm.run(misbehaving(Behaviour.SEGFAULTS)).status == "failed"
    assert warm.run(misbehaving(Behaviour.REPORTS, 1)) == FINISHED
    assert len({one.server for one in warm.started()[first:]}) == 1


def test_a_stage_ends_when_the_last_trial_that_follows_it_is_stopped(warm: Groups) -> None:
    stage, before = misbehaving(Behaviour.HANGS), len(warm.started())
    warm.submit(stage, trial="one")
    warm.submit(stage, trial="other")
    warm.wait_for_starts(before + 1)
    running = warm.started()[-1]
    warm.stop("one")
    assert warm.follow(stage, "one")[0] == STOPPED
    time.sleep(2.5)  # a stage is asked about once a second
    assert is_alive(running.pid)
    warm.stop("other")
    assert eventually(lambda: not is_alive(running.pid))
    warm.submit(stage, trial="one")
    assert warm.follow(stage, "one")[0] == STOPPED, "a trial stays stopped"
    assert warm.run(misbehaving(Behaviour.REPORTS, 2)) == FINISHED
    assert warm.started()[-1].server == running.server


def test_a_group_without_work_gives_its_machines_back(warm: Groups) -> None:
    assert eventually(all_is_free)
    assert eventually(lambda: warm.state() == warm.state()), "nothing is held, so nothing is spent"
    assert warm.state().accelerator_seconds >= 5.0
    before = warm.started()[-1]
    assert warm.run(misbehaving(Behaviour.REPORTS, 3)) == FINISHED
    assert warm.started()[-1].server != before.server


# Several workers


def test_two_workers_on_two_nodes_train_as_one_and_are_stopped_together(
    make_groups: Callable[..., Groups], small_corpus: Path, tmp_path: Path
) -> None:
    """Over gloo. Tolerance 2e-3 relative: the order of float32 sums differs."""
    groups, store = make_groups(module="trainables.stage_process"), StageStore(tmp_path)
    stage, long = supervised(small_corpus, 2), supervised(small_corpus, 100_000)
    groups.submit(stage, TWO_NODES)
    outcome, two = groups.follow(stage)
    assert outcome == FINISHED
    for ours, theirs in zip(two, run(stage, StageStore(tmp_path / "one")), strict=True):
        assert ours.step == theirs.step
        assert ours.metrics == pytest.approx(theirs.metrics, rel=2e-3, abs=2e-3)
        assert ours.accelerator_seconds == pytest.approx(2 * ours.elapsed_seconds)

    groups.submit(long, TWO_NODES)
    assert eventually((store.partial_folder(long) / "checkpoint.pt").exists)
    groups.stop("trial")
    assert eventually(lambda: not store.partial_folder(long).exists() and not store.lease(long).path.exists())


def test_when_one_worker_crashes_the_others_are_stopped_and_the_group_goes_on(
    make_groups: Callable[..., Groups],
) -> None:
    groups = make_groups()
    crash = misbehaving(Behaviour.SECOND_WORKER_SEGFAULTS)
    assert groups.run(crash, TWO_NODES) == Outcome("failed", "its process was killed by SIGSEGV")
    assert groups.run(misbehaving(Behaviour.REPORTS), TWO_NODES) == FINISHED
    first, second = (one for one in groups.started() if one.stage == crash.fingerprint())
    assert first.raylet != second.raylet
    assert not is_alive(first.pid)
    assert not is_alive(second.pid)
    assert len({one.server for one in groups.started()}) == 2


# Several studies on one cluster, and a study that is paused


@pytest.mark.long
def test_two_studies_share_the_cluster_and_what_gives_way_goes_on_later(
    make_groups: Callable[..., Groups], tmp_path: Path
) -> None:
    """Without a single retry allowed: giving way is no failure."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    first, second = (make_groups(storage=folder, study=folder.name, patience_seconds=1.0) for folder in folders)
    mine = [misbehaving(Behaviour.WAITS, number) for number in range(3)]
    for stage in mine:
        first.submit(stage, TWO_CPUS)
    assert eventually(lambda: first.state().accelerators_busy == 2)
    assert first.stays_at(2)
    others = [misbehaving(Behaviour.WAITS, number) for number in range(3, 5)]
    for stage in others:
        second.submit(stage, TWO_CPUS)
    assert eventually(lambda: first.state().groups == 1 and len(second.started()) == 1)
    assert second.stays_at(1)
    assert first.state().accelerators_busy == second.state().accelerators_busy == 1
    assert first.state().stages_waiting == 2
    second.let_go()
    assert [second.follow(stage)[0] for stage in others] == [FINISHED] * 2
    assert eventually(lambda: first.state().accelerators_busy == 2), "what the other does not want is free again"
    first.let_go()
    assert [first.follow(stage)[0] for stage in mine] == [FINISHED] * 3


def test_a_study_that_wants_nothing_for_a_moment_has_its_group_again(
    make_groups: Callable[..., Groups], tmp_path: Path
) -> None:
    folders = tmp_path / "first", tmp_path / "second"
    for folder in folders:
        folder.mkdir()
    first, second = (make_groups(storage=folder, study=folder.name) for folder in folders)
    second.state()  # it tells of itself
    assert first.run(misbehaving(Behaviour.REPORTS, 1)) == FINISHED
    time.sleep(NODES_SECONDS + 0.1)
    first.state()  # it looks at its share, which is nothing, for it wants nothing
    assert first.run(misbehaving(Behaviour.REPORTS, 2)) == FINISHED
    assert len({one.server for one in first.started()}) == 1, "the group that was there"


def test_studies_know_of_each_other_until_they_leave_or_fall_silent(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fair_share, "_PREFIX", "study-demand-of-this-test:")
    nodes, wanted = [Node(4, 0)], [ONE_CPU] * 4
    low, high = FairShare("low", 0), FairShare("high", 1)
    assert low.allotment(wanted, nodes) is None
    assert high.allotment(wanted[:3], nodes) == {ONE_CPU: 3}
    assert low.allotment(wanted, nodes) == {ONE_CPU: 1}
    high.leave()
    assert high.allotment(wanted[:3], nodes) is None
    assert low.allotment(wanted, nodes) is None
    assert FairShare("other", 1).allotment(wanted[:1], nodes) == {ONE_CPU: 1}
    assert low.allotment(wanted, nodes) == {ONE_CPU: 3}
    monkeypatch.setattr(fair_share, "SILENT_SECONDS", 0.0)
    assert eventually(lambda: low.allotment(wanted, nodes) is None)
    low.leave()


@pytest.mark.long
def test_a_paused_study_holds_nothing_and_goes_on_without_losing_a_step(
    make_groups: Callable[..., Groups], small_corpus: Path, tmp_path: Path
) -> None:
    groups, store = make_groups(module="trainables.stage_process"), StageStore(tmp_path)
    stage = supervised(small_corpus, 120, checkpoint_seconds=1000.0)
    groups.submit(stage)
    assert eventually(store.lease(stage).path.exists)
    ray.get(groups.actor.pause.remote(True))
    assert eventually(lambda: groups.state().groups == 0)
    assert eventually(all_is_free)
    assert (store.partial_folder(stage) / "checkpoint.pt").exists()
    ray.get(groups.actor.pause.remote(False))
    outcome, reports = groups.follow(stage)
    assert outcome == FINISHED
    assert without_times(reports) == without_times(run(stage, StageStore(tmp_path / "whole")))
    assert groups.state().told == []


# Stages and groups that die


def test_a_stage_whose_process_is_killed_is_tried_again_as_often_as_allowed(make_groups: Callable[..., Groups]) -> None:
    groups = make_groups(retries=2)
    cause = "its process was killed by SIGKILL; the machine may have run out of memory"
    assert groups.run(misbehaving(Behaviour.IS_KILLED)) == Outcome("failed", f"{cause}, 3 times")
    assert len(groups.started()) == 3
    first, second = groups.state().told
    assert first.endswith(f"{cause}; it goes on from its checkpoint (1 of 2)")
    assert second.endswith("(2 of 2)")
    assert groups.state().told == []
    assert groups.run(misbehaving(Behaviour.RAISES)).status == "failed"
    assert len(groups.started()) == 4, "an error comes again"


def test_a_stage_that_is_killed_goes_on_and_its_followers_see_the_curve_of_an_uninterrupted_one(
    make_groups: Callable[..., Groups], small_corpus: Path, tmp_path: Path
) -> None:
    groups, store = make_groups(module="trainables.stage_process", retries=1), StageStore(tmp_path)
    stage = supervised(small_corpus, 200, checkpoint_seconds=0.05)
    groups.submit(stage)
    assert eventually((store.partial_folder(stage) / "checkpoint.pt").exists)
    os.kill(int(store.lease(stage).path.read_text().split()[1]), signal.SIGKILL)
    outcome, reports = groups.follow(stage)
    assert outcome == FINISHED
    assert len(groups.state().told) == 1
    assert without_times(reports) == without_times(run(stage, StageStore(tmp_path / "whole")))


def test_a_stage_that_loses_its_group_is_tried_again_in_another(make_groups: Callable[..., Groups]) -> None:
    groups, stage = make_groups(preemptions=1), misbehaving(Behaviour.WAITS)
    groups.submit(stage)
    groups.wait_for_starts(1)
    os.kill(parent(groups.started()[0].server), signal.SIGKILL)
    groups.wait_for_starts(2)
    groups.let_go()
    assert groups.follow(stage)[0] == FINISHED
    assert groups.started()[0].server != groups.started()[1].server


@pytest.mark.long
def test_a_node_that_is_drained_costs_no_step(
    make_groups: Callable[..., Groups], cluster: Cluster, small_corpus: Path, tmp_path: Path
) -> None:
    """As clouds announce that they take a machine back. The stage goes on elsewhere from where it was."""
    groups, lease = make_groups(module="trainables.stage_process", preemptions=1), StageStore(tmp_path).lease
    stage = supervised(small_corpus, 120, checkpoint_seconds=1000.0)
    nodes = run_on_one_of_two(groups, cluster, stage, lease(stage).path)
    drain(nodes.busy)
    outcome, reports = groups.follow(stage)
    assert outcome == FINISHED
    (told,) = groups.state().told
    left = re.search(r"its machine goes away; it left at step (\d+) of 120; it goes on from its checkpoint", told)
    assert left
    later = reports[int(left[1])].reported_at - reports[int(left[1]) - 1].reported_at
    assert later > 1.0, "what came next was computed by another group, which took a while to start"
    assert [report.step for report in reports] == list(range(1, 121))
    assert groups.run(supervised(small_corpus, 2), THREE_CPUS) == FINISHED
    cluster.remove_node(nodes.other)


@pytest.mark.long
def test_a_node_that_is_lost_costs_the_steps_since_the_last_checkpoint(
    make_groups: Callable[..., Groups], cluster: Cluster, small_corpus: Path, tmp_path: Path
) -> None:
    groups, partial = make_groups(module="trainables.stage_process", preemptions=1), StageStore(tmp_path).partial_folder
    stage = supervised(small_corpus, 120, checkpoint_seconds=0.05)
    nodes = run_on_one_of_two(groups, cluster, stage, partial(stage) / "checkpoint-before.pt")
    cluster.remove_node(nodes.busy, allow_graceful=False)
    lost_at = time.time()
    outcome, reports = groups.follow(stage)
    assert outcome == FINISHED
    assert [report.step for report in reports] == list(range(1, 121))
    assert reports[0].reported_at < lost_at < reports[-1].reported_at, "the first steps are those of the lost node"
    (told,) = groups.state().told
    assert "the worker group died" in told
    cluster.remove_node(nodes.other)


@dataclass(frozen=True)
class TwoNodes:
    busy: Any
    other: Any


def run_on_one_of_two(groups: Groups, cluster: Cluster, stage: Stage, is_under_way: Path) -> TwoNodes:
    """Run the stage until the file is there; no other nodes than these two have room for it."""
    first, second = (cluster.add_node(num_cpus=3, num_gpus=0) for _ in range(2))
    groups.submit(stage, THREE_CPUS)
    assert eventually(is_under_way.exists)
    stage_pid = int(StageStore(groups.storage).lease(stage).path.read_text().split()[1])
    raylet = parent(parent(parent(stage_pid)))
    return TwoNodes(first, second) if raylet == raylet_of(first) else TwoNodes(second, first)


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def drain(node: Any) -> None:
    """Tell the node that it will be taken away in ten minutes."""
    reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    deadline_ms = round((time.time() + 600) * 1000)
    accepted, why_not = ray._private.worker.global_worker.gcs_client.drain_node(node.node_id, reason, "", deadline_ms)
    assert accepted, why_not


@pytest.mark.long
def test_when_a_group_dies_its_stage_fails_and_the_next_runs_in_another(make_groups: Callable[..., Groups]) -> None:
    groups = make_groups()
    assert_dies_with(groups, misbehaving(Behaviour.HANGS, 0), lambda running: running.server)
    assert_dies_with(groups, misbehaving(Behaviour.HANGS, 1), lambda running: parent(running.server))
    assert groups.run(misbehaving(Behaviour.REPORTS)) == FINISHED
    assert len({one.server for one in groups.started()}) == 3


def assert_dies_with(groups: Groups, stage: Stage, victim: Callable[[Started], int]) -> None:
    """The stage, when this process of its group is killed."""
    before = len(groups.started())
    groups.submit(stage)
    groups.wait_for_starts(before + 1)
    running = groups.started()[-1]
    os.kill(victim(running), signal.SIGKILL)
    outcome, _ = groups.follow(stage)
    assert outcome.status == "failed"
    assert (outcome.cause or "").startswith("the worker group died: ")
    assert eventually(lambda: not is_alive(running.pid))


@pytest.mark.long
def test_when_a_node_dies_its_stage_fails_and_the_next_runs_elsewhere(
    make_groups: Callable[..., Groups], cluster: Cluster
) -> None:
    added = [cluster.add_node(num_cpus=3, num_gpus=0) for _ in range(2)]
    nodes = {node.all_processes["raylet"][0].process.pid: node for node in added}
    groups, stage = make_groups(), misbehaving(Behaviour.HANGS)
    groups.submit(stage, THREE_CPUS)
    groups.wait_for_starts(1)
    (running,) = groups.started()
    cluster.remove_node(nodes.pop(running.raylet), allow_graceful=False)
    outcome, _ = groups.follow(stage)
    assert outcome.status == "failed"
    assert (outcome.cause or "").startswith("the worker group died: ")
    assert eventually(lambda: not is_alive(running.pid))
    assert groups.run(misbehaving(Behaviour.REPORTS), THREE_CPUS) == FINISHED
    assert groups.started()[-1].raylet in nodes
