"""Who gets which part of a cluster: closed forms, and what holds for any studies on any nodes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster.fair_share import Demand, allot
from cluster.nodes import GroupSize, Node, Packing

CPU = GroupSize(1, 1, 0)
GPU = GroupSize(1, 1, 1)
HALF_GPU = GroupSize(1, 1, 0.5)
EIGHT_GPUS = GroupSize(1, 8, 8)


def demand(study: str, wanted: int, size: GroupSize = CPU, priority: int = 0) -> Demand:
    return Demand(study, priority, (size,) * wanted)


def shares(*demands: Demand, nodes: list[Node]) -> list[int]:
    """Groups of each study, in the order of the demands."""
    found = allot(demands, nodes)
    return [found[demand.study].total() for demand in demands]


class TestClosedForms:
    def test_equal_studies_share_alike(self) -> None:
        assert shares(demand("a", 20), demand("b", 20), nodes=[Node(8, 0)] * 2) == [8, 8]
        assert shares(demand("a", 20), demand("b", 20), demand("c", 20), nodes=[Node(16, 0)]) == [6, 5, 5]

    def test_what_one_does_not_want_the_others_have(self) -> None:
        assert shares(demand("a", 20), demand("b", 2), demand("c", 20), nodes=[Node(16, 0)]) == [7, 2, 7]

    def test_a_higher_priority_comes_first(self) -> None:
        assert shares(demand("a", 20), demand("b", 6, priority=1), nodes=[Node(8, 0)]) == [2, 6]
        assert shares(demand("a", 20), demand("b", 20, priority=1), nodes=[Node(8, 0)]) == [0, 8]
        assert shares(demand("a", 3, priority=-1), demand("b", 5), nodes=[Node(8, 0)]) == [3, 5]

    def test_the_example_of_the_paper(self) -> None:
        """Ghodsi et al., section 4.1: 9 CPUs and 18 GB; A's tasks take 1 CPU and 4 GB, B's 3 CPUs and 1 GB.

        A gets three of them, and B two. GPUs stand for the memory here.
        """
        a, b = GroupSize(1, 1, 4), GroupSize(1, 3, 1)
        assert shares(demand("a", 9, a), demand("b", 9, b), nodes=[Node(9, 18)]) == [3, 2]

    def test_studies_on_gpus_and_on_cpus_do_not_stand_in_each_others_way(self) -> None:
        assert shares(demand("gpus", 8, GPU), demand("cpus", 24), nodes=[Node(32, 8)]) == [8, 24]

    def test_what_does_not_fit_any_more_leaves_its_place_to_what_does(self) -> None:
        assert shares(demand("a", 2, EIGHT_GPUS), demand("b", 3, GPU), nodes=[Node(16, 8), Node(16, 4)]) == [1, 3]

    def test_nothing_is_wanted_of_nothing(self) -> None:
        assert shares(demand("a", 2), demand("b", 0), nodes=[]) == [0, 0]


sizes = st.sampled_from([CPU, GPU, HALF_GPU, GroupSize(2, 1, 1), GroupSize(1, 3, 0), EIGHT_GPUS])
nodes_of = st.lists(st.builds(Node, st.integers(0, 16), st.integers(0, 8)), max_size=4)
demands_of = st.lists(st.tuples(st.integers(-1, 1), st.lists(sizes, max_size=8)), min_size=1, max_size=4).map(
    lambda found: [Demand(f"study {i}", priority, tuple(groups)) for i, (priority, groups) in enumerate(found)]
)


class TestWhatAlwaysHolds:
    @given(demands_of, nodes_of)
    def test_nobody_gets_more_than_wanted_and_all_of_it_fits(self, demands: list[Demand], nodes: list[Node]) -> None:
        found = allot(demands, nodes)
        for wanted in demands:
            assert found[wanted.study] <= Counter(wanted.groups)
        groups = [size for held in found.values() for size in held.elements()]
        assert sum(size.workers * size.cpus_per_worker for size in groups) <= sum(node.cpus for node in nodes)
        assert sum(size.workers * size.gpus_per_worker for size in groups) <= sum(node.gpus for node in nodes) + 1e-9

    @given(st.lists(sizes, max_size=12), nodes_of)
    def test_a_study_that_is_alone_has_all_that_there_is_room_for(
        self, groups: list[GroupSize], nodes: list[Node]
    ) -> None:
        packing = Packing(nodes)
        expected = Counter(size for size in groups if packing.take(size))
        assert allot([Demand("only", 0, tuple(groups))], nodes)["only"] == expected

    @given(demands_of, nodes_of)
    def test_the_order_of_the_studies_does_not_matter(self, demands: list[Demand], nodes: list[Node]) -> None:
        assert allot(demands, nodes) == allot(demands[::-1], nodes)

    @given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(0, 40))
    def test_with_groups_of_one_size_it_is_max_min_fair(self, wanted: list[int], cpus: int) -> None:
        """Nobody could have one more but at the cost of somebody who has no more than one beyond it."""
        got = shares(*(demand(f"study {i}", n) for i, n in enumerate(wanted)), nodes=[Node(cpus, 0)])
        assert sum(got) == min(cpus, sum(wanted))
        for mine, want in zip(got, wanted, strict=True):
            assert mine <= want
            assert mine == want or max(got) <= mine + 1

    @given(demands_of, nodes_of, st.lists(sizes, max_size=8))
    def test_a_lower_priority_changes_nothing_above_it(
        self, demands: list[Demand], nodes: list[Node], groups: list[GroupSize]
    ) -> None:
        lower = Demand("lower", -2, tuple(groups))
        found = allot([*demands, lower], nodes)
        del found["lower"]
        assert found == allot(demands, nodes)
