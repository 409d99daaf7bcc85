from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.processes import run_two_workers
from trainables.models.acoustic import count_parameters
from trainables.models.config import LinearProjectionConfig, MlpProjectionConfig, QuantiserConfig
from trainables.models.self_supervised import FrameBatchNorm, SelfSupervisedHead, make_projection

WIDTH = 5
# Rows of either worker, step by step.
SHARES = {
    "uneven": [(7, 3), (2, 6)],
    "the second has none": [(6, 0), (4, 0)],
    "the first has none": [(0, 5), (0, 2)],
    "one row each": [(1, 1), (1, 1)],
    "one row in all": [(1, 0), (0, 1)],
    "none at first": [(0, 4), (4, 0), (3, 3)],
}


def test_a_linear_projection_is_one_linear_layer() -> None:
    projection = make_projection(LinearProjectionConfig(), 7, 3)
    assert isinstance(projection, nn.Linear)
    assert count_parameters(projection) == 7 * 3 + 3


def test_an_mlp_projection_has_4096_hidden_channels_and_a_bias_at_its_end_only() -> None:
    """Two matrices, weight and bias of the norm, one bias: that of MLPv3 in SEW's code, for SEW-tiny's context."""
    projection = make_projection(MlpProjectionConfig(), 512, 256)
    assert count_parameters(projection) == 512 * 4096 + 2 * 4096 + 4096 * 256 + 256
    first, norm, _, last = projection
    assert first.bias is None
    assert not last.bias.any()
    assert torch.equal(norm.weight, torch.ones(4096))
    for linear in (first, last):
        assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / sum(linear.weight.shape)), rel=0.01)


@pytest.mark.parametrize("training", [True, False])
def test_an_mlp_projection_is_linear_batch_norm_relu_linear(training: bool) -> None:
    torch.manual_seed(0)
    projection = make_projection(MlpProjectionConfig(hidden_width=11), WIDTH, 3)
    first, norm, _, last = projection
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    nn.init.normal_(last.bias)
    reference = nn.BatchNorm1d(11)
    reference.load_state_dict(norm.state_dict())
    projection.train(training)
    reference.train(training)
    for _ in range(3):
        x = torch.randn(9, WIDTH)
        expected = reference(x @ first.weight.T).clamp(min=0) @ last.weight.T + last.bias
        torch.testing.assert_close(projection(x), expected, rtol=0, atol=1e-5)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[name], tensor, rtol=0, atol=1e-6)
    assert bool(norm.running_mean.any()) == training


def test_heads_have_the_widths_that_they_join() -> None:
    """Features 6, context 10, compared width 4: quantiser 6 -> 2 x 3 entries, codewords of 2, then 10 -> 4, 4 -> 4."""
    head = SelfSupervisedHead(QuantiserConfig(codebooks=2, entries=3, dim=4), LinearProjectionConfig(), 6, 10, 0.1)
    assert count_parameters(head) == (6 * 6 + 6) + 2 * 3 * 2 + (10 * 4 + 4) + (4 * 4 + 4)
    assert head.feature_dropout.p == 0.1


def norm_with_weights() -> FrameBatchNorm:
    torch.manual_seed(3)
    norm = FrameBatchNorm(WIDTH)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.train()


def rows_and_weights(step: int, count: int) -> tuple[Tensor, Tensor]:
    """The rows of a step, far from standardised, and what their outputs are weighted by in the loss."""
    torch.manual_seed(100 + step)
    return 3 * torch.randn(count, WIDTH) + 2, torch.randn(count, WIDTH)


def run_share(norm: FrameBatchNorm, step: int, count: int, share: slice) -> dict[str, Tensor]:
    x, weights = (tensor[share] for tensor in rows_and_weights(step, count))
    x.requires_grad_()
    norm.zero_grad()
    y = norm(x)
    (y * weights).sum().backward()
    return {
        "outputs": y.detach(),
        "gradient": x.grad,
        "weight_gradient": norm.weight.grad.clone(),
        "bias_gradient": norm.bias.grad.clone(),
        "mean": norm.running_mean.clone(),
        "variance": norm.running_var.clone(),
    }


def _worker(place: int, root: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root / 'rendezvous'}", rank=place, world_size=2)
    seen = {}
    for name, steps in SHARES.items():
        norm = norm_with_weights()
        seen[name] = [
            run_share(norm, step, sum(counts), [slice(counts[0]), slice(counts[0], None)][place])
            for step, counts in enumerate(steps)
        ]
    torch.save(seen, root / f"{place}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[dict[str, Tensor]]]]:
    root = tmp_path_factory.mktemp("workers")
    run_two_workers(_worker, root)
    return [torch.load(root / f"{place}.pt", weights_only=True) for place in range(2)]


@pytest.mark.parametrize("name", SHARES)
def test_two_workers_normalise_as_one_does_on_all_rows(
    seen: list[dict[str, list[dict[str, Tensor]]]], name: str
) -> None:
    norm = norm_with_weights()
    for step, counts in enumerate(SHARES[name]):
        whole = run_share(norm, step, sum(counts), slice(None))
        first, second = (worker[name][step] for worker in seen)
        for key in ("outputs", "gradient"):
            assert (len(first[key]), len(second[key])) == counts
            torch.testing.assert_close(torch.cat([first[key], second[key]]), whole[key], rtol=1e-4, atol=1e-5)
        for key in ("weight_gradient", "bias_gradient"):
            torch.testing.assert_close(first[key] + second[key], whole[key], rtol=1e-4, atol=1e-5)
        for key in ("mean", "variance"):
            assert torch.equal(first[key], second[key])
            torch.testing.assert_close(first[key], whole[key], rtol=1e-5, atol=1e-6)


def test_one_row_alone_is_finite_and_has_no_gradient() -> None:
    """It is its own mean: what comes out is the bias."""
    norm = norm_with_weights()
    seen = run_share(norm, 0, 1, slice(None))
    torch.testing.assert_close(seen["outputs"][0], norm.bias.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(seen["gradient"], torch.zeros(1, WIDTH), rtol=0, atol=1e-6)
    assert seen["variance"].isfinite().all()


def test_no_rows_at_all_leave_the_running_statistics_alone() -> None:
    norm = norm_with_weights()
    before = run_share(norm, 0, 6, slice(None))
    after = run_share(norm, 1, 0, slice(None))
    assert after["outputs"].shape == (0, WIDTH)
    assert not after["weight_gradient"].any()
    assert torch.equal(after["mean"], before["mean"])
    assert torch.equal(after["variance"], before["variance"])


def test_statistics_are_of_32_bits_under_autocast() -> None:
    norm, (x, _) = norm_with_weights(), rows_and_weights(0, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x.bfloat16())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, norm_with_weights()(x.bfloat16().float()), rtol=0, atol=1e-6)
