"""What fits on which nodes, against brute force, and what an autoscaler may add."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import cluster.nodes
from cluster.fair_share import Demand, allot
from cluster.nodes import (
    GroupSize,
    InfeasibleError,
    Node,
    autoscales,
    fit_together,
    groups_that_fit,
    possible_nodes,
    refuse_infeasible,
)

PARTS = [0, 0.25, 1 / 3, 0.4, 0.5, 0.6, 1, 2]

sizes = st.builds(GroupSize, st.integers(1, 3), st.integers(1, 2), st.sampled_from(PARTS))
nodes = st.builds(Node, st.integers(0, 4), st.integers(0, 2))


def packs(workers: Sequence[GroupSize], nodes: Sequence[tuple[float, tuple[float, ...]]]) -> bool:
    """Whether each worker finds its CPUs and GPUs on one node, tried in every way. A node: its CPUs, its GPUs."""
    if not workers:
        return True
    first, *others = workers
    for index, (cpus, gpus) in enumerate(nodes):
        if cpus < first.cpus_per_worker:
            continue
        for left in gpus_left(gpus, first.gpus_per_worker):
            changed = [*nodes[:index], (cpus - first.cpus_per_worker, left), *nodes[index + 1 :]]
            if packs(others, changed):
                return True
    return False


def gpus_left(gpus: tuple[float, ...], needed: float) -> list[tuple[float, ...]]:
    """What may be left of the GPUs when one worker has taken whole ones, or a part of one."""
    if needed >= 1:
        whole = [index for index, free in enumerate(gpus) if free == 1]
        taken = whole[: int(needed)]
        return [tuple(0.0 if i in taken else g for i, g in enumerate(gpus))] if len(taken) == needed else []
    return [
        tuple(free - needed if i == index else free for i, free in enumerate(gpus))
        for index, free_here in enumerate(gpus)
        if free_here >= needed - 1e-9
    ] or ([gpus] if not needed else [])


def free(nodes: Sequence[Node]) -> list[tuple[float, tuple[float, ...]]]:
    return [(node.cpus, (1.0,) * int(node.gpus)) for node in nodes]


def workers_of(groups: Sequence[GroupSize]) -> list[GroupSize]:
    return [size for size in groups for _ in range(size.workers)]


@given(sizes, nodes)
def test_a_node_holds_as_many_workers_as_can_be_packed_on_it(size: GroupSize, node: Node) -> None:
    count = node.holds(size)
    assert packs([size] * count, free([node]))
    assert not packs([size] * (count + 1), free([node]))


@given(sizes, st.lists(nodes, max_size=2))
def test_as_many_groups_fit_as_can_be_packed_on_the_nodes(size: GroupSize, nodes: list[Node]) -> None:
    count = groups_that_fit(size, nodes)
    assert packs(workers_of([size] * count), free(nodes))
    assert not packs(workers_of([size] * (count + 1)), free(nodes))


@given(sizes, st.lists(nodes, max_size=3), st.integers(0, 6))
def test_groups_of_one_size_fit_together_up_to_the_number_that_fits(
    size: GroupSize, nodes: list[Node], count: int
) -> None:
    assert fit_together([size] * count, nodes) == (count <= groups_that_fit(size, nodes))


@given(st.lists(sizes, max_size=3), st.lists(nodes, max_size=2))
def test_what_is_said_to_fit_together_can_be_packed(sizes: list[GroupSize], nodes: list[Node]) -> None:
    if fit_together(sizes, nodes):
        assert packs(workers_of(sizes), free(nodes))


@pytest.mark.parametrize(
    ("parts", "gpus", "fits"),
    [
        ([0.5, 0.5], 1, True),
        ([0.5, 0.5, 0.5], 1, False),
        ([1 / 3] * 3, 1, True),
        ([0.6, 0.6], 1, False),
        ([0.6, 0.6], 2, True),
        ([0.6, 0.6, 0.6], 2, False),  # 0.4 + 0.4 of two GPUs are no 0.6 of one
        ([0.6, 0.6, 0.4, 0.4], 2, True),
        ([0.5, 1], 1, False),
        ([0.5, 1], 2, True),
        ([0.5, 2], 2, False),
        ([1, 0, 0], 1, True),
    ],
)
def test_a_worker_gets_a_part_of_one_gpu_or_whole_ones(parts: list[float], gpus: int, fits: bool) -> None:
    assert fit_together([GroupSize(1, 1, part) for part in parts], [Node(8, gpus)]) == fits


def test_the_workers_of_a_group_may_be_on_several_nodes_but_none_is_split() -> None:
    assert fit_together([GroupSize(2, 2, 0)], [Node(3, 0), Node(3, 0)])
    assert not fit_together([GroupSize(3, 2, 0)], [Node(3, 0), Node(3, 0)])
    assert groups_that_fit(GroupSize(1, 4, 0), [Node(3, 0), Node(3, 0)]) == 0


def test_a_worker_takes_its_share_of_the_gpus_or_else_of_the_cpus() -> None:
    assert Node(16, 4).share(GroupSize(1, 2, 1)) == 1 / 4
    assert Node(16, 4).share(GroupSize(1, 2, 0.5)) == 1 / 8
    assert Node(16, 0).share(GroupSize(1, 2, 0)) == 1 / 8


# Autoscaling

LAUNCHED = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 4}},
        "small": {"resources": {"CPU": 8}, "max_workers": 2},
        "large": {"resources": {"CPU": 32, "GPU": 4}, "max_workers": 1},
        "any": {"resources": {"CPU": 1}},
        "unknown": {"resources": {}},
    },
}
ADDABLE = [*[Node(8, 0, "small", 3)] * 2, Node(32, 4, "large", 3), *[Node(1, 0, "any", 3)] * 3]


@pytest.fixture
def cluster_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of the launcher's settings, with nothing there."""
    monkeypatch.setattr(cluster.nodes, "CLUSTER_FILE", tmp_path / "ray_bootstrap_config.yaml")
    return tmp_path / "ray_bootstrap_config.yaml"


def present(monkeypatch: pytest.MonkeyPatch, *nodes: Node) -> None:
    monkeypatch.setattr(cluster.nodes, "present_nodes", lambda: list(nodes))


def test_without_the_launchers_settings_there_is_what_is_there(cluster_file: Path) -> None:
    here = [Node(4, 0), Node(8, 1, "workers")]
    assert possible_nodes(here) == here


def test_what_the_launcher_may_add_stands_for_what_it_has_added(cluster_file: Path) -> None:
    cluster_file.write_text(yaml.safe_dump(LAUNCHED, sort_keys=False))
    assert possible_nodes([Node(4, 0)]) == [Node(4, 0), *ADDABLE]
    assert possible_nodes([Node(4, 0), Node(8, 0, "small")]) == [Node(4, 0), *ADDABLE]
    assert possible_nodes([Node(4, 0, "head")]) == [Node(4, 0, "head"), *ADDABLE]


def test_of_all_types_together_no_more_count_than_there_can_be(cluster_file: Path) -> None:
    """Three of the six: the largest for what is asked for."""
    cluster_file.write_text(yaml.safe_dump(LAUNCHED, sort_keys=False))
    nodes = possible_nodes([Node(2, 0)])
    assert groups_that_fit(GroupSize(1, 1, 0), nodes) == 2 + 32 + 8 + 8
    assert groups_that_fit(GroupSize(1, 4, 1), nodes) == 4
    wide, small = GroupSize(1, 8, 0), GroupSize(1, 1, 1)
    assert fit_together([wide, wide, small], nodes)
    assert fit_together([wide, wide, *[wide] * 4], nodes)
    assert not fit_together([*[GroupSize(1, 1, 0)] * 2, *[wide] * 6, GroupSize(1, 1, 0)], nodes)
    assert fit_together([GroupSize(3, 5, 0)], nodes)
    assert not fit_together([GroupSize(1, 2, 0), *[GroupSize(1, 5, 0)] * 2, GroupSize(7, 5, 0)], nodes)


def test_a_study_of_high_priority_gets_its_groups_where_no_node_can_be_added(cluster_file: Path) -> None:
    """All 16 machines of AWS's file are there, and the other study holds them."""
    settings = yaml.safe_load((Path(cluster.__file__).parent / "aws.yaml").read_text())
    cluster_file.write_text(yaml.safe_dump(settings, sort_keys=False))
    one, nodes = GroupSize(1, 8, 1), possible_nodes([Node(0, 0, "head"), *[Node(8, 1, "gpu-1")] * 16])
    assert groups_that_fit(one, nodes) >= 16
    held = allot([Demand("low", 0, (one,) * 26), Demand("high", 1, (one,) * 8)], nodes)
    assert held["high"][one] == 8
    assert held["low"][one] == 8


def test_a_cluster_autoscales_when_its_nodes_have_types() -> None:
    assert not autoscales([Node(4, 0)])
    assert autoscales([Node(4, 0), Node(8, 0, "workers")])


# What can never run


def test_a_group_that_no_cluster_of_this_size_holds_is_refused_with_the_numbers(
    cluster_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present(monkeypatch, Node(4, 0), Node(8, 1))
    refuse_infeasible(GroupSize(3, 4, 0))
    refuse_infeasible(GroupSize(2, 1, 0.5))
    expected = (
        r"a worker group needs 2 worker\(s\) of 2 CPU\(s\) and 1 GPU\(s\) each, and the cluster holds 1 such "
        r"worker\(s\): 2 node\(s\), the largest with 8 CPU\(s\) and 1 GPU\(s\)"
    )
    with pytest.raises(InfeasibleError, match=expected):
        refuse_infeasible(GroupSize(2, 2, 1))


def test_an_empty_cluster_holds_nothing(cluster_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present(monkeypatch)
    with pytest.raises(InfeasibleError, match=r"the cluster holds 0 such worker\(s\): 0 node\(s\)"):
        refuse_infeasible(GroupSize(1, 1, 0))


def test_what_may_be_added_is_not_refused(cluster_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster_file.write_text(yaml.safe_dump(LAUNCHED, sort_keys=False))
    present(monkeypatch, Node(4, 0))
    refuse_infeasible(GroupSize(1, 8, 4))
    with pytest.raises(InfeasibleError):
        refuse_infeasible(GroupSize(1, 8, 5))


def test_what_an_autoscaler_of_unknown_settings_may_add_is_not_refused(
    cluster_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present(monkeypatch, Node(4, 0), Node(8, 0, "workers"))
    refuse_infeasible(GroupSize(1, 64, 8))
