from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.trainables.builders import batch_of, corpus_of, small_model
from trainables.config import Progress
from trainables.data.batches import Batch
from trainables.data.corpus import Corpus
from trainables.losses.bilevel import bilevel_terms, gamma
from trainables.losses.build import TrainingLoss
from trainables.losses.config import BilevelConfig, LossConfig, Part, Stream
from trainables.losses.contrastive import contrastive_terms
from trainables.losses.ctc import ctc_terms
from trainables.losses.terms import total
from trainables.models.acoustic import AcousticModel

Batches = Mapping[Stream, Batch]
PROGRESS = Progress(50, 100)


@pytest.fixture(scope="module")
def corpus(small_corpus: Path) -> Corpus:
    return corpus_of(small_corpus)


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> AcousticModel:
    return small_model(corpus)


@pytest.fixture(scope="module")
def batches(corpus: Corpus) -> Batches:
    return {"labelled": batch_of(corpus, [0, 1, 2]), "unlabelled": batch_of(corpus, [5, 6, 7, 8], labelled=False)}


def fixed(gamma: float) -> BilevelConfig:
    return BilevelConfig(gamma_start=gamma, gamma_end=gamma)


def gradient(loss: Tensor, part: nn.Module) -> Tensor:
    """All gradients of a part in one vector."""
    parameters = list(part.parameters())
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, gradients, strict=True)]
    )


def joint_gradient(model: AcousticModel, batches: Batches, config: BilevelConfig, part: Part) -> Tensor:
    return gradient(total(bilevel_terms(model, batches, config, PROGRESS)), model.get_submodule(part))


def ctc_gradient(model: AcousticModel, batches: Batches, part: Part) -> Tensor:
    return gradient(total(ctc_terms(model, batches["labelled"], BilevelConfig().ctc)), model.get_submodule(part))


def self_supervised_gradient(model: AcousticModel, batches: Batches, part: Part) -> Tensor:
    terms = contrastive_terms(model, batches["unlabelled"], BilevelConfig().self_supervised, PROGRESS)
    return gradient(total(terms), model.get_submodule(part))


def assert_close(one: Tensor, other: Tensor) -> None:
    """Float32 sums in another order: 1e-5 of the largest component."""
    scale = float(other.abs().max())
    assert scale > 0
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("part", ["backbone", "ctc_head"])
def test_with_gamma_0_the_gradient_is_that_of_ctc_alone(model: AcousticModel, batches: Batches, part: Part) -> None:
    assert torch.equal(joint_gradient(model, batches, fixed(0.0), part), ctc_gradient(model, batches, part))


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.5])
def test_the_backbone_descends_ctc_plus_gamma_times_the_self_supervised_loss(
    model: AcousticModel, batches: Batches, gamma: float
) -> None:
    ctc, self_supervised = (f(model, batches, "backbone") for f in (ctc_gradient, self_supervised_gradient))
    joint = joint_gradient(model, batches, fixed(gamma), "backbone")
    assert_close(joint, ctc + gamma * self_supervised)
    assert_close(joint - ctc, gamma * self_supervised)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.5])
def test_the_self_supervised_head_descends_its_own_loss_whatever_gamma_is(
    model: AcousticModel, batches: Batches, gamma: float
) -> None:
    expected = self_supervised_gradient(model, batches, "self_supervised_head")
    assert_close(joint_gradient(model, batches, fixed(gamma), "self_supervised_head"), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.5])
def test_the_ctc_head_descends_ctc_whatever_gamma_is(model: AcousticModel, batches: Batches, gamma: float) -> None:
    joint = joint_gradient(model, batches, fixed(gamma), "ctc_head")
    assert torch.equal(joint, ctc_gradient(model, batches, "ctc_head"))


def test_the_gradients_of_the_levels_are_not_alike(model: AcousticModel, batches: Batches) -> None:
    """Else the decompositions above would hold for a wrong gamma, too."""
    ctc, self_supervised = (f(model, batches, "backbone") for f in (ctc_gradient, self_supervised_gradient))
    assert abs(float(torch.cosine_similarity(ctc, self_supervised, dim=0))) < 0.9
    assert self_supervised.norm() > 1e-3 * ctc.norm()


def weights_after_steps(corpus: Corpus, batches: Batches, config: LossConfig, steps: int) -> AcousticModel:
    model = small_model(corpus)
    loss_of = TrainingLoss(model, config)
    optimiser = torch.optim.AdamW(loss_of.parameters(), lr=1e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        loss_of(batches, PROGRESS)[0].backward()
        optimiser.step()
    return model


def test_with_gamma_0_optimiser_steps_equal_supervised_ones(corpus: Corpus, batches: Batches) -> None:
    """Without clipping, whose norm is over all parts."""
    joint = weights_after_steps(corpus, batches, fixed(0.0), 3)
    supervised = weights_after_steps(corpus, batches, BilevelConfig().ctc, 3)
    for part in ("backbone", "ctc_head"):
        expected = supervised.get_submodule(part).state_dict()
        for name, tensor in joint.get_submodule(part).state_dict().items():
            assert torch.equal(tensor, expected[name])
    assert not torch.equal(supervised.ctc_head.weight, small_model(corpus).ctc_head.weight)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.2), (10, 0.5), (20, 0.8), (40, 1.4)])
def test_gamma_rises_linearly(step: int, expected: float) -> None:
    assert gamma(BilevelConfig(gamma_start=0.2, gamma_end=1.4), Progress(step, 40)) == pytest.approx(expected)


@pytest.mark.parametrize("step", [0, 4, 10])
def test_the_joint_step_uses_the_gamma_of_its_progress(model: AcousticModel, batches: Batches, step: int) -> None:
    """With a constant Gumbel temperature, progress enters by gamma alone."""
    contrastive = BilevelConfig().self_supervised.with_(gumbel_start=1.0, gumbel_end=1.0)
    rising = BilevelConfig(gamma_start=0.2, gamma_end=1.4, self_supervised=contrastive)
    progress = Progress(step, 10)
    at = gamma(rising, progress)
    constant = BilevelConfig(gamma_start=at, gamma_end=at, self_supervised=contrastive)
    one, other = (
        gradient(total(bilevel_terms(model, batches, config, p)), model.backbone)
        for config, p in ((rising, progress), (constant, Progress(77, 100)))
    )
    assert torch.equal(one, other)


def test_the_terms_are_those_of_both_losses(model: AcousticModel, batches: Batches) -> None:
    terms = bilevel_terms(model, batches, fixed(0.7), PROGRESS)
    both = ctc_terms(model, batches["labelled"], BilevelConfig().ctc) | contrastive_terms(
        model, batches["unlabelled"], BilevelConfig().self_supervised, PROGRESS
    )
    assert set(terms) == {"ctc", "contrastive", "diversity", "feature_penalty", "contrastive_accuracy"} == set(both)
    for name, term in terms.items():
        torch.testing.assert_close(term.sum, both[name].sum, rtol=1e-4, atol=1e-5)
        assert term.count == both[name].count
