"""Masked frames and distractors of a batch, with as many masked frames in each utterance or with their own number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.trainables.builders import batch_of, corpus_of, small_model
from trainables.data.batches import Batch
from trainables.losses import masks
from trainables.losses.config import ContrastiveConfig, MaskConfig
from trainables.losses.contrastive import MaskedFrames, contrastive_masks, draw_negatives
from trainables.losses.ctc import ctc_log_probabilities
from trainables.losses.masks import channel_masks, equalise

FRAMES = st.lists(st.integers(30, 150), min_size=1, max_size=6)
SEEDS = st.integers(0, 10_000)


def batch_with(seeds: Sequence[int], *, counted: bool = True) -> Batch:
    """Utterances of which masks need only the seeds."""
    nothing = torch.zeros(len(seeds), 0)
    lengths = torch.zeros(len(seeds), dtype=torch.long)
    return Batch(nothing, lengths, nothing.long(), lengths, tuple(seeds), seed=0, counted=counted)


def masks_of(num_frames: Sequence[int], seeds: Sequence[int], *, counted: bool = True, **settings: Any) -> Tensor:
    config = ContrastiveConfig(**settings)
    batch = batch_with(seeds, counted=counted)
    return contrastive_masks(config, batch, torch.tensor(num_frames), max(num_frames) + 3)


def consecutive(seed: int, num_frames: Sequence[int]) -> list[int]:
    return [seed + i for i in range(len(num_frames))]


@given(FRAMES, SEEDS)
def test_equal_masks_have_the_smallest_count_of_the_batch_and_are_parts_of_the_unequal_ones(
    num_frames: list[int], seed: int
) -> None:
    seeds = consecutive(seed, num_frames)
    own, equal = masks_of(num_frames, seeds), masks_of(num_frames, seeds, equal_masks=True)
    assert equal.sum(1).tolist() == [int(own.sum(1).min())] * len(seeds)
    assert not (equal & ~own).any()
    fewest = own.sum(1).argmin()
    assert torch.equal(equal[fewest], own[fewest])
    for row, valid in zip(equal, num_frames, strict=True):
        assert not row[valid:].any()


def test_equal_masks_make_a_difference() -> None:
    """Lengths differ, so that counts do."""
    counts = masks_of([40, 100, 150], [1, 2, 3]).sum(1).tolist()
    assert len(set(counts)) == 3
    assert len(set(masks_of([40, 100, 150], [1, 2, 3], equal_masks=True).sum(1).tolist())) == 1


@given(FRAMES, SEEDS)
def test_equal_masks_are_decided_by_the_seeds(num_frames: list[int], seed: int) -> None:
    seeds = consecutive(seed, num_frames)
    one = masks_of(num_frames, seeds, equal_masks=True)
    assert torch.equal(one, masks_of(num_frames, seeds, equal_masks=True))
    reordered = masks_of(num_frames[::-1], seeds[::-1], equal_masks=True)
    assert torch.equal(one, reordered.flip(0))
    assert not torch.equal(one, masks_of(num_frames, [s + 77 for s in seeds], equal_masks=True))


def test_the_frames_that_stay_are_drawn_alike_from_all_masked_ones() -> None:
    """10 of 40 frames of each of 2000 utterances: each frame 500 times, and 4.5 standard errors of 19 are 87."""
    mask_BT = torch.zeros(2001, 60, dtype=torch.bool)
    mask_BT[:, 10:50] = True
    mask_BT[0, 20:] = False  # the one with the fewest
    equal = equalise(mask_BT, range(2001), counted=True, device=torch.device("cpu"))
    times = equal[1:].sum(0)
    assert times.sum() == 2000 * 10
    assert not times[:10].any()
    assert not times[50:].any()
    assert (times[10:50] - 500).abs().max() < 87


def test_the_smallest_count_is_that_of_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without a share says nothing about it."""
    heard: list[int] = []

    def smallest(value: int, device: torch.device) -> int:
        heard.append(value)
        return min(value, 7)

    monkeypatch.setattr(masks, "min_over_workers", smallest)
    assert masks_of([60, 90], [1, 2], equal_masks=True).sum(1).tolist() == [7, 7]
    assert heard == [int(masks_of([60, 90], [1, 2]).sum(1).min())]
    assert not masks_of([60, 90], [1, 2], equal_masks=True, counted=False).any()
    assert heard[1] >= 90


@pytest.mark.parametrize("equal", [False, True])
def test_an_utterance_without_two_masked_frames_is_not_masked(equal: bool) -> None:
    """One alone would have no distractor. With equal masks it takes the others with it, as in fairseq."""
    counts = masks_of([2, 80], [1, 2], equal_masks=equal).sum(1).tolist()
    assert counts[0] == 0
    assert (counts[1] > 2) is not equal


def test_masks_of_wav2vec2_cover_49_percent() -> None:
    """15 s at 50 Hz: 1 - (1 - 0.065)^10 = 0.489, less what the edges lose."""
    coverage = masks_of([750] * 1000, range(1000)).float().sum(1) / 750
    assert coverage.mean().item() == pytest.approx(0.489, abs=0.01)
    standard_error = coverage.std().item() / 1000**0.5
    assert standard_error < 0.001


def test_a_filler_is_not_masked() -> None:
    assert not masks_of([80, 90], [1, 2], counted=False).any()


@given(FRAMES, SEEDS, st.booleans(), st.integers(1, 30))
def test_distractors_are_other_masked_frames_of_the_own_utterance(
    num_frames: list[int], seed: int, equal: bool, negatives: int
) -> None:
    """Rows of the masked frames, of which each belongs to an utterance and a frame of it."""
    seeds = consecutive(seed, num_frames)
    mask_BT = masks_of(num_frames, seeds, equal_masks=equal)
    frames = MaskedFrames.of(mask_BT)
    rows_NK = draw_negatives(frames.counts, negatives, seeds)
    utterance_N = np.repeat(np.arange(len(seeds)), frames.counts)
    assert rows_NK.shape == (int(mask_BT.sum()), negatives)
    assert int(rows_NK.min()) >= 0
    assert int(rows_NK.max()) < len(utterance_N)
    assert not (rows_NK == torch.arange(len(rows_NK))[:, None]).any()
    assert (utterance_N[rows_NK.numpy()] == utterance_N[:, None]).all()
    assert mask_BT.flatten()[frames.frame_N[rows_NK]].all()
    assert (frames.frame_N[rows_NK] // mask_BT.shape[1] == torch.from_numpy(utterance_N)[:, None]).all()


def test_without_masked_frames_there_are_no_distractors() -> None:
    assert draw_negatives([0, 0], 5, [1, 2]).shape == (0, 5)


def test_two_masked_frames_are_each_other_s_only_distractor() -> None:
    assert draw_negatives([2, 0, 2], 3, [1, 2, 3]).tolist() == [[1] * 3, [0] * 3, [3] * 3, [2] * 3]


def test_equal_masks_of_ctc(small_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the context network gets: equal counts of frames and of channels, parts of the unequal masks."""
    corpus = corpus_of(small_corpus)
    model = small_model(corpus)
    batch = batch_of(corpus, range(6))
    seen: list[tuple[Tensor, Tensor]] = []
    context = model.backbone.context

    def watched(features: Tensor, num_frames: Tensor, mask: Tensor, channels: Tensor, seed: int) -> Tensor:
        seen.append((mask, channels))
        return context(features, num_frames, mask, channels, seed=seed)

    monkeypatch.setattr(model.backbone, "context", watched)
    settings = MaskConfig(time_probability=0.65, channel_probability=0.5, channel_length=3)
    outputs = [ctc_log_probabilities(model, batch, settings.with_(equal=equal))[0] for equal in (False, True, True)]
    (own, own_channels), (equal, channels), (again, _) = seen
    spans = channel_masks(
        model.backbone.mask_width,
        batch.seeds,
        probability=settings.channel_probability,
        length=settings.channel_length,
        batch_seed=batch.seed,
    )
    for unequal, equalised in ((own, equal), (spans, channels)):
        assert len(set(unequal.sum(1).tolist())) > 1
        assert equalised.sum(1).tolist() == [int(unequal.sum(1).min())] * 6
        assert 0 < int(equalised.sum()) < int(unequal.sum())
        assert not (equalised & ~unequal).any()
    assert len(set(own_channels.sum(1).tolist())) > 1
    assert torch.equal(equal, again)
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[1], outputs[2])
