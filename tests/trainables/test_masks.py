from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainables.losses.masks import channel_masks, span_mask, time_masks

SIZES = st.integers(1, 200)


def mask_of(
    size: int, probability: float, length: int, min_spans: int = 0, seed: int | np.random.Generator = 0
) -> np.ndarray:
    return span_mask(size, probability, length, min_spans, np.random.default_rng(seed))


def masks(num_frames: list[int], seeds: list[int], *, max_frames: int | None = None, purpose: str = "a") -> np.ndarray:
    return time_masks(
        torch.tensor(num_frames),
        max_frames or max(num_frames),
        seeds,
        purpose=purpose,
        probability=0.65,
        length=5,
        min_spans=2,
    ).numpy()


def exact_coverage(size: int, probability: float, length: int) -> float:
    """Expected share of masked positions, when n distinct starts are drawn from `size - length` and n is
    probability x size / length rounded up or down at random: by counting the draws that miss each position."""
    exact, starts = probability * size / length, size - length
    covering = [min(j, starts - 1) - max(0, j - length + 1) + 1 for j in range(size)]

    def coverage(n: int) -> float:
        return 1 - sum(comb(starts - c, n) / comb(starts, n) for c in covering) / size

    up = exact - int(exact)
    return (1 - up) * coverage(int(exact)) + up * coverage(int(exact) + 1)


def test_coverage_of_wav2vec_masking_is_49_percent() -> None:
    """15 s at 50 Hz: 1 - (1 - 0.065)^10 = 0.489 (models_and_regimes.md section 2), less what the edges lose."""
    random = np.random.default_rng(0)
    coverage = np.mean([mask_of(750, 0.65, 10, seed=random) for _ in range(4000)])
    assert coverage == pytest.approx(1 - (1 - 0.065) ** 10, abs=0.01)


@pytest.mark.parametrize(
    ("size", "probability", "length"), [(750, 0.65, 10), (120, 0.65, 5), (75, 0.2, 5), (16, 0.1, 8)]
)
def test_coverage_equals_its_expectation(size: int, probability: float, length: int) -> None:
    """The expectation by combinatorics; the tolerance is four standard errors."""
    random = np.random.default_rng(1)
    shares = [mask_of(size, probability, length, seed=random).mean() for _ in range(4000)]
    error = float(np.std(shares)) / np.sqrt(len(shares))
    assert np.mean(shares) == pytest.approx(exact_coverage(size, probability, length), abs=4 * error)


@given(SIZES, st.floats(0, 1), st.integers(1, 30), st.integers(0, 5), st.integers(0, 10_000))
def test_at_least_one_position_stays_unmasked(
    size: int, probability: float, length: int, min_spans: int, seed: int
) -> None:
    mask = mask_of(size, probability, length, min_spans, seed)
    assert mask.shape == (size,)
    assert not mask.all()


@given(st.integers(20, 200), st.floats(0.01, 1), st.integers(1, 10), st.integers(0, 10_000))
def test_every_masked_run_is_at_least_one_span_long(size: int, probability: float, length: int, seed: int) -> None:
    mask = mask_of(size, probability, length, 1, seed)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    assert len(edges)
    assert all(stop - start >= length for start, stop in edges.reshape(-1, 2))


@pytest.mark.parametrize("min_spans", [1, 2, 5])
def test_there_are_at_least_min_spans(min_spans: int) -> None:
    """Spans of one frame at a probability near zero: the masked frames are the spans."""
    assert {int(mask_of(50, 1e-9, 1, min_spans, seed).sum()) for seed in range(50)} == {min_spans}


def test_probability_0_masks_nothing() -> None:
    assert not mask_of(100, 0.0, 10, 2).any()


def test_an_utterance_of_one_frame_is_never_masked() -> None:
    assert not mask_of(1, 1.0, 5, 2).any()


@given(st.lists(SIZES, min_size=1, max_size=6), st.integers(0, 1000))
def test_frames_beyond_the_utterance_are_never_masked(num_frames: list[int], seed: int) -> None:
    mask_BT = masks(num_frames, [seed + i for i in range(len(num_frames))], max_frames=max(num_frames) + 7)
    for row, valid in zip(mask_BT, num_frames, strict=True):
        assert not row[valid:].any()


@given(st.permutations(range(5)))
def test_the_mask_of_an_utterance_depends_on_its_seed_and_length_alone(order: list[int]) -> None:
    frames, seeds = [40, 80, 15, 60, 80], [5, 6, 7, 8, 9]
    mask_BT = masks([frames[i] for i in order], [seeds[i] for i in order])
    for row, i in zip(mask_BT, order, strict=True):
        assert (row[: frames[i]] == masks([frames[i]], [seeds[i]])[0]).all()


def test_masks_differ_between_seeds_and_purposes() -> None:
    drawn = [masks([200], [seed], purpose=purpose).tobytes() for seed in (1, 2) for purpose in ("a", "b")]
    assert len(set(drawn)) == 4


def test_channel_masks_depend_on_the_seed_alone_and_differ_from_utterance_to_utterance() -> None:
    seeds = list(range(20))
    mask_BD = channel_masks(144, seeds, probability=0.3, length=8)
    assert mask_BD.shape == (20, 144)
    assert torch.equal(mask_BD.flip(0), channel_masks(144, seeds[::-1], probability=0.3, length=8))
    assert len({row.numpy().tobytes() for row in mask_BD}) > 15


def test_channel_masks_of_a_batch_have_the_same_number_of_spans_as_often_as_asked() -> None:
    """Spans of one channel cannot overlap, so that the sums are the numbers of spans: here 0.8 on average."""
    drawn = [
        channel_masks(8, range(4 * batch, 4 * batch + 4), probability=0.1, length=1, batch_seed=batch).sum(1)
        for batch in range(400)
    ]
    assert all(len(set(spans.tolist())) == 1 for spans in drawn)
    assert 0.74 < np.mean([int(spans[0]) for spans in drawn]) < 0.86  # three standard errors
