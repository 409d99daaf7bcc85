"""Two workers with gloo: what they add up, and what they report.

The workers run once for the whole file and leave what they saw in files.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.conftest import pretrain_finetune
from tests.processes import run_two_workers
from tests.trainables.test_loop import run, stages, weights
from tests.trainables.test_resume import supervised
from trainables.distributed import agree, gather, rank, sum_over_workers, world_size
from trainables.loop import LeavingError, StageBusyError, run_stage
from trainables.losses.terms import Term
from trainables.stage import Report, Stage
from trainables.store import StageStore

Seen = dict[str, Any]


def sums() -> Seen:
    """y = total^2 / 2 on both workers, total = 1 x + 2 x: dy / d(own x) = 2 workers x total."""
    x = torch.tensor([rank() + 1.0], requires_grad=True)
    total = sum_over_workers(x)
    (gradient,) = torch.autograd.grad(total.square().sum() / 2, x)
    share = torch.tensor([1.0, 2.0, 3.0][rank() :: 2])
    mean = Term(share.sum(), torch.tensor(float(len(share)))).mean()
    return {
        "place": (rank(), world_size()),
        "total": total.item(),
        "gradient": gradient.item(),
        "gathered": gather([f"{rank()}a", f"{rank()}b"][: 1 + rank()]),
        "agreed": agree(f"from {rank()}"),
        "mean": mean.item(),
    }


def left(stage: Stage, store: StageStore, reports: list[Report]) -> str:
    """The stage is told to leave when it has begun, on the worker whose rank is its seed, and goes on afterwards."""
    asked = itertools.count()
    reports.clear()
    try:
        run_stage(stage, store, reports.append, leave=lambda: rank() == stage.seed and next(asked) > 0)
    except LeavingError as error:
        run_stage(stage, store, reports.append)
        return str(error)
    return "it did not leave"


def _worker(place: int, one_at_a_time: list[Stage], busy: Stage, leaving: list[Stage], root: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root / 'rendezvous'}", rank=place, world_size=2)
    store, seen = StageStore(root / "together"), sums()
    reports: list[Report] = []
    for stage in one_at_a_time:
        run_stage(stage, store, reports.append)
    seen["trained"] = [r.step for r in reports]
    reports.clear()
    run_stage(one_at_a_time[0], store, reports.append)
    seen["finished"] = [r.step for r in reports]
    try:
        run_stage(busy, store, reports.append)
    except StageBusyError as error:
        seen["busy"] = str(error)
    seen["left"] = [left(stage, StageStore(root / f"left-{stage.seed}"), reports) for stage in leaving]
    torch.save(seen, root / f"{place}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def one_at_a_time(small_corpus: Path) -> list[Stage]:
    """Global batches of one utterance: the second worker has none of them."""
    regime = pretrain_finetune(5)
    return stages(
        small_corpus,
        {"kind": regime["kind"], **{name: {**regime[name], "batch_seconds": 0.1} for name in ("pretrain", "finetune")}},
    )


@pytest.fixture(scope="module")
def busy(small_corpus: Path) -> Stage:
    return supervised(small_corpus)


@pytest.fixture(scope="module")
def leaving(small_corpus: Path) -> list[Stage]:
    """They report but once, at their end."""
    settings = {"batch_seconds": 3, "report_every": 40}
    return [supervised(small_corpus, 40, seed=seed, **settings) for seed in range(2)]


@pytest.fixture(scope="module")
def root(
    tmp_path_factory: pytest.TempPathFactory, one_at_a_time: list[Stage], busy: Stage, leaving: list[Stage]
) -> Path:
    root = tmp_path_factory.mktemp("workers")
    with StageStore(root / "together").lease(busy).hold() as lease:
        assert lease
        run_two_workers(_worker, one_at_a_time, busy, leaving, root)
    return root


@pytest.fixture(scope="module")
def seen(root: Path) -> list[Seen]:
    return [torch.load(root / f"{place}.pt", weights_only=True) for place in range(2)]


def test_each_worker_knows_its_place(seen: list[Seen]) -> None:
    assert [s["place"] for s in seen] == [(0, 2), (1, 2)]


def test_sums_are_the_same_on_every_worker_and_gradients_come_from_all(seen: list[Seen]) -> None:
    assert [s["total"] for s in seen] == [3, 3]
    assert [s["gradient"] for s in seen] == [6, 6]


def test_lists_are_gathered_in_the_order_of_the_workers(seen: list[Seen]) -> None:
    assert [s["gathered"] for s in seen] == [["0a", "1a", "1b"]] * 2


def test_all_agree_on_the_value_of_the_first(seen: list[Seen]) -> None:
    assert [s["agreed"] for s in seen] == ["from 0"] * 2


def test_the_average_of_the_workers_means_is_the_global_mean_of_uneven_shares(seen: list[Seen]) -> None:
    """1 and 3 fall to the first worker, 2 to the second."""
    assert sum(s["mean"] for s in seen) / 2 == pytest.approx(2.0)
    assert [s["mean"] for s in seen] == pytest.approx([2 / 3 * 4, 2 / 3 * 2])


def test_alone_sums_lists_and_agreement_are_the_identity() -> None:
    x = torch.tensor([1.0, 2.0])
    assert (rank(), world_size()) == (0, 1)
    assert sum_over_workers(x) is x
    assert (gather([1]), agree("a")) == ([1], "a")


def test_only_the_first_worker_reports_in_training(seen: list[Seen]) -> None:
    assert [s["trained"] for s in seen] == [[1, 2, 3, 4, 5] * 2, []]


def test_only_the_first_worker_reports_a_finished_stage(seen: list[Seen]) -> None:
    assert [s["finished"] for s in seen] == [[1, 2, 3, 4, 5], []]


def test_all_workers_learn_that_the_stage_is_busy(seen: list[Seen], busy: Stage) -> None:
    assert [s.get("busy") for s in seen] == [f"another worker is running {busy.name()}"] * 2


def test_workers_leave_together_between_reports_whichever_is_told_to(seen: list[Seen]) -> None:
    """At the second step at which they ask one another."""
    assert [s["left"] for s in seen] == [["its machine goes away; it left at step 16 of 40"] * 2] * 2


def test_what_workers_had_summed_up_before_they_left_counts_once(
    root: Path, leaving: list[Stage], tmp_path: Path
) -> None:
    """Tolerance 1e-4 relative, the same as one worker that was not told to leave."""
    for stage in leaving:
        (expected,) = run(stage, StageStore(tmp_path))
        result = StageStore(root / f"left-{stage.seed}").result(stage)
        assert result
        assert result.last.metrics == pytest.approx(expected.metrics, rel=1e-4, abs=1e-5)
        assert result.last.audio_seconds == expected.audio_seconds


def test_a_worker_without_utterances_changes_nothing(root: Path, one_at_a_time: list[Stage], tmp_path: Path) -> None:
    """Tolerance 1e-4 relative, the same as one worker but for the order of float32 sums in gloo."""
    alone, together = StageStore(tmp_path), StageStore(root / "together")
    for stage in one_at_a_time:
        expected = run(stage, alone)
        result = together.result(stage)
        assert result
        for one, two in zip(expected, result.reports, strict=True):
            assert two.metrics == pytest.approx(one.metrics, rel=1e-4, abs=1e-5)
            assert two.audio_seconds == one.audio_seconds
            assert two.accelerator_seconds == 2 * two.elapsed_seconds
        ours, theirs = weights(stage, alone), weights(stage, together)
        for name, tensor in ours.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-5)
