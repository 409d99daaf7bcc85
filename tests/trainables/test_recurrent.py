"""The bidirectional GRU against torch's, packed: results and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainables.models.recurrent import BidirectionalGru

IN, WIDTH = 7, 5
LENGTHS = [[9], [9, 9], [4, 9, 1], [1, 1]]


@pytest.fixture
def gru() -> BidirectionalGru:
    torch.manual_seed(0)
    return BidirectionalGru(IN, WIDTH).double()


def batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(len(lengths), max(lengths), IN, dtype=torch.float64), torch.tensor(lengths)


def torchs(gru: nn.GRU, x_BTE: Tensor, num_frames_B: Tensor) -> Tensor:
    reference = nn.GRU(IN, WIDTH, batch_first=True, bidirectional=True).to(x_BTE.dtype)
    parameters = dict(gru.named_parameters())
    packed = nn.utils.rnn.pack_padded_sequence(x_BTE, num_frames_B, batch_first=True, enforce_sorted=False)
    output = torch.func.functional_call(reference, parameters, (packed,))[0]
    return nn.utils.rnn.pad_packed_sequence(output, batch_first=True)[0]


def assert_as_torchs(gru: BidirectionalGru, x_BTE: Tensor, num_frames_B: Tensor, ours_BTE: Tensor) -> None:
    """Results, and the gradients of a loss that weighs every output differently."""
    theirs_BTE = torchs(gru, x_BTE, num_frames_B)
    torch.testing.assert_close(ours_BTE, theirs_BTE, rtol=1e-12, atol=1e-12)
    weights_BTE = torch.randn_like(ours_BTE)
    leaves = [x_BTE, *gru.parameters()]
    ours, theirs = (torch.autograd.grad((weights_BTE * y).sum(), leaves) for y in (ours_BTE, theirs_BTE))
    for name, one, other in zip(["input", *dict(gru.named_parameters())], ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("lengths", LENGTHS)
def test_results_and_gradients_are_those_of_torch(gru: BidirectionalGru, lengths: list[int]) -> None:
    x_BTE, num_frames_B = batch(lengths)
    x_BTE.requires_grad_()
    assert_as_torchs(gru, x_BTE, num_frames_B, gru(x_BTE, num_frames_B))


def test_without_lengths_every_frame_is_valid(gru: BidirectionalGru) -> None:
    x_BTE, _ = batch([9, 9])
    x_BTE.requires_grad_()
    assert_as_torchs(gru, x_BTE, torch.tensor([9, 9]), gru(x_BTE))


def test_what_stands_in_the_padding_matters_to_nothing(gru: BidirectionalGru) -> None:
    x_BTE, num_frames_B = batch([4, 9, 1])
    padding_BT = torch.arange(9) >= num_frames_B[:, None]
    other_BTE = x_BTE.masked_fill(padding_BT[..., None], 1e6)
    ours_BTE, theirs_BTE = gru(x_BTE, num_frames_B), gru(other_BTE, num_frames_B)
    assert torch.equal(ours_BTE, theirs_BTE)
    assert not ours_BTE[padding_BT].any()
    ours, theirs = (torch.autograd.grad(y.sum(), gru.parameters()) for y in (ours_BTE, theirs_BTE))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_recognising_gives_what_training_gives_to_the_last_bit(gru: BidirectionalGru) -> None:
    x_BTE, num_frames_B = batch([4, 9, 1])
    with torch.inference_mode():
        recognised_BTE = gru(x_BTE, num_frames_B)
    assert torch.equal(recognised_BTE, gru(x_BTE, num_frames_B))


def test_frozen_weights_pass_the_gradient_on(gru: BidirectionalGru) -> None:
    x_BTE, num_frames_B = batch([4, 9, 1])
    x_BTE.requires_grad_()
    expected = torch.autograd.grad(torchs(gru, x_BTE, num_frames_B).sum(), x_BTE)[0]
    gru.requires_grad_(False)
    found = torch.autograd.grad(gru(x_BTE, num_frames_B).sum(), x_BTE)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_mixed_precision_the_states_stay_in_fp32(gru: BidirectionalGru, dtype: torch.dtype) -> None:
    gru = gru.float()
    x_BTE, num_frames_B = batch([4, 9, 1])
    exact_BTE = gru(x_BTE.float(), num_frames_B)
    with torch.autocast("cpu", dtype):
        found_BTE = gru(x_BTE.to(dtype), num_frames_B)
    assert found_BTE.dtype == torch.float32
    torch.testing.assert_close(found_BTE, exact_BTE, rtol=0, atol=0.02)
    found_BTE.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in gru.parameters())


@pytest.mark.parametrize("lengths", [[4, 9, 1], None])
def test_what_accelerators_use_gives_the_same(gru: BidirectionalGru, lengths: list[int] | None) -> None:
    x_BTE, _ = batch([4, 9, 1])
    num_frames_B = torch.tensor(lengths) if lengths else None
    torch.testing.assert_close(gru._torchs(x_BTE, num_frames_B), gru(x_BTE, num_frames_B), rtol=1e-12, atol=1e-12)
