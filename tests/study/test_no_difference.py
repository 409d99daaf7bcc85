"""Real arms that do not differ: seeds of one arm, split in two at random, are called different in 5 % at most.

The splits are of the same 24 seeds, so that their number says little of how sure the share is: what is asked is that
it stays below the promised 5 % and a margin for this one set of seeds, at several targets, with and without censoring.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from study.convergence import duration
from study.ledger import CurvePoint
from study.significance import Scored, paired_bootstrap
from study.survival import Duration, log_rank, ratio_of_durations
from tests.golden.seeds import FILE

SEEDS: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
SPLITS = 400
MOST = 0.06


def curve(points: list[list[float]]) -> list[CurvePoint]:
    return [
        CurvePoint(
            id=0,
            stage="",
            kind="supervised",
            metric="dev_cer",
            value=value,
            step=int(step),
            audio_seconds=step,
            epochs=step,
            elapsed_seconds=step,
            accelerator_seconds=step,
            reported_at=0.0,
        )
        for step, value in points
    ]


def splits(size: int) -> Iterator[tuple[list[int], list[int]]]:
    """Two disjoint sets of seeds of this size, again and again."""
    generator = np.random.default_rng(5)
    for _ in range(SPLITS):
        drawn = generator.permutation(len(SEEDS))[: 2 * size].tolist()
        yield drawn[:size], drawn[size:]


def durations(target: float) -> list[Duration]:
    found = [duration(curve(seed["curve"]), target, "step") for seed in SEEDS]
    assert all(found)
    return [d for d in found if d]


@pytest.mark.parametrize(("target", "reaching"), [(0.8, 24), (0.6, 22), (0.5, 16)])
def test_the_targets_are_reached_by_all_by_most_and_by_some(target: float, reaching: int) -> None:
    assert sum(d.reached for d in durations(target)) == reaching


@pytest.mark.parametrize("target", [0.8, 0.6, 0.5])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_ratios_of_convergence(target: float, size: int) -> None:
    spent = durations(target)
    ratios = [ratio_of_durations([spent[i] for i in a], [spent[i] for i in b]) for a, b in splits(size)]
    p_values = [ratio.p_value for ratio in ratios if ratio]
    assert len(p_values) > SPLITS / 2
    assert np.mean(np.array(p_values) <= 0.05) <= MOST


@pytest.mark.parametrize("target", [0.8, 0.6, 0.5])
@pytest.mark.parametrize("size", [3, 5])
def test_log_rank_tests(target: float, size: int) -> None:
    spent = durations(target)
    p_values = [log_rank([spent[i] for i in a], [spent[i] for i in b]) for a, b in splits(size)]
    assert np.mean(np.array(p_values) <= 0.05) <= MOST


@pytest.mark.parametrize("size", [2, 3, 5])
def test_differences_of_word_error_rates(size: int) -> None:
    ids = [str(place) for place in range(len(SEEDS[0]["words"]))]
    scored = [Scored(ids, np.array(seed["errors"]), np.array(seed["words"])) for seed in SEEDS]
    found = [
        paired_bootstrap([scored[i] for i in a], [scored[i] for i in b], [""] * len(ids), replicates=150)
        for a, b in splits(size)
    ]
    assert np.mean([difference.p_value <= 0.05 for difference in found]) <= MOST
