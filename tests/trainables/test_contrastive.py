from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.trainables.builders import batch_of, corpus_of, small_model
from trainables.config import Progress
from trainables.data.corpus import Corpus
from trainables.losses.config import ContrastiveConfig
from trainables.losses.contrastive import (
    MaskedFrames,
    contrastive_logits,
    contrastive_terms,
    diversity,
    draw_negatives,
    scale_gradient,
)
from trainables.losses.masks import time_masks
from trainables.losses.terms import Terms, total
from trainables.models.acoustic import AcousticModel
from trainables.models.config import QuantiserConfig
from trainables.models.self_supervised import Quantiser

COUNTS = st.lists(st.sampled_from([0, 2, 3, 10]), min_size=1, max_size=5)


def nll_by_loops(
    prediction_NP: np.ndarray, target_NP: np.ndarray, codes_NG: np.ndarray, negatives_NK: np.ndarray, temperature: float
) -> np.ndarray:
    """Equation 3 of wav2vec 2.0, one frame and one distractor at a time, in float64."""
    nll = []
    for n in range(len(prediction_NP)):
        candidates = [n] + [k for k in negatives_NK[n] if tuple(codes_NG[k]) != tuple(codes_NG[n])]
        scores = []
        for k in candidates:
            dot = sum(a * b for a, b in zip(prediction_NP[n], target_NP[k], strict=True))
            lengths = math.sqrt(sum(a * a for a in prediction_NP[n])) * math.sqrt(sum(b * b for b in target_NP[k]))
            scores.append(dot / lengths / temperature)
        nll.append(math.log(sum(math.exp(score) for score in scores)) - scores[0])
    return np.array(nll)


def frames_of(counts: list[int]) -> MaskedFrames:
    """The first frames of each utterance are masked."""
    return MaskedFrames.of(torch.arange(max(counts) + 2) < torch.tensor(counts)[:, None])


def nll(prediction: Tensor, target: Tensor, codes: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    counts = [3, 5] if len(prediction) == 8 else [len(prediction)]
    logits = contrastive_logits(prediction, target, codes, negatives, temperature, frames_of(counts))
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="none")


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """8 frames of two utterances, 6 distractors, few enough codes that some distractors are the target itself."""
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.randn(2, 8, 4, generator=generator)
    codes = torch.randint(2, (8, 2), generator=generator)
    return prediction, target, codes, draw_negatives([3, 5], 6, [seed, seed + 1])


def test_three_frames_by_hand() -> None:
    """Cosines: frame 0 (1; 0, -1), frame 1 (1; 0, 0), frame 2 (-1; 1, 0); divided by 0.5."""
    prediction = torch.tensor([[1.0, 0.0], [0.0, 3.0], [5.0, 0.0]])
    target = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    codes = torch.tensor([[0, 0], [0, 1], [1, 1]])
    negatives = torch.tensor([[1, 2], [0, 2], [0, 1]])
    expected = [
        -2 + math.log(math.exp(2) + math.exp(0) + math.exp(-2)),
        -2 + math.log(math.exp(2) + math.exp(0) + math.exp(0)),
        +2 + math.log(math.exp(-2) + math.exp(2) + math.exp(0)),
    ]
    assert nll(prediction, target, codes, negatives, 0.5).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_distractor_with_all_codes_of_the_target_gets_minus_infinity() -> None:
    prediction, target = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    codes = torch.tensor([[0, 5], [0, 5], [0, 6]])  # frame 2 shares one code of two
    logits = contrastive_logits(prediction, target, codes, torch.tensor([[1, 2], [0, 2], [0, 1]]), 0.1, frames_of([3]))
    assert torch.isneginf(logits).tolist() == [[False, True, False], [False, True, False], [False, False, False]]


def test_a_frame_whose_distractors_all_equal_the_target_costs_nothing() -> None:
    prediction, target = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0))
    prediction.requires_grad_()
    value = nll(prediction, target, torch.zeros(2, 2), torch.tensor([[1], [0]]), 0.1)
    value.sum().backward()
    assert value.tolist() == [0, 0]
    assert prediction.grad is not None
    assert not prediction.grad.any()


@pytest.mark.parametrize("seed", range(5))
def test_value_agrees_with_explicit_loops(seed: int) -> None:
    prediction, target, codes, negatives = random_case(seed)
    assert (codes[negatives] == codes[:, None]).all(2).any()
    expected = nll_by_loops(prediction.double().numpy(), target.double().numpy(), codes.numpy(), negatives.numpy(), 0.1)
    np.testing.assert_allclose(nll(prediction, target, codes, negatives, 0.1).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_gradients_agree_with_finite_differences_of_the_loops() -> None:
    """Gradients flow into the predictions, the targets and the distractors."""
    prediction, target, codes, negatives = random_case(0)
    prediction.requires_grad_()
    target.requires_grad_()
    nll(prediction, target, codes, negatives, 0.5).sum().backward()
    arrays = [prediction.detach().double().numpy(), target.detach().double().numpy()]
    for which, parameter in enumerate((prediction, target)):
        numeric = np.zeros_like(arrays[which])
        for index in np.ndindex(numeric.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = [array.copy() for array in arrays]
                moved[which][index] += step
                values.append(nll_by_loops(moved[0], moved[1], codes.numpy(), negatives.numpy(), 0.5).sum())
            numeric[index] = (values[0] - values[1]) / 2e-5
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad.numpy(), numeric, rtol=1e-3, atol=1e-5)


@given(COUNTS, st.integers(1, 20), st.integers(0, 1000))
def test_distractors_are_other_masked_frames_of_the_same_utterance(counts: list[int], k: int, seed: int) -> None:
    negatives = draw_negatives(counts, k, [seed + i for i in range(len(counts))])
    owner = np.repeat(np.arange(len(counts)), counts)
    assert negatives.shape == (sum(counts), k)
    for frame, row in enumerate(negatives.tolist()):
        assert frame not in row
        assert {owner[other] for other in row} == {owner[frame]}


def test_distractors_are_uniform_over_the_other_frames() -> None:
    """Chi-squared over 4 others of each of 5 frames: 15 degrees of freedom, 99.9 % quantile 37.7."""
    k = 4000
    counts = np.stack([np.bincount(row, minlength=5) for row in draw_negatives([5], k, [3]).numpy()])
    expected = k / 4
    others = counts[~np.eye(5, dtype=bool)]
    assert (others > 0).all()
    assert ((others - expected) ** 2 / expected).sum() < 37.7


def test_distractors_of_an_utterance_depend_on_its_seed_alone() -> None:
    both = draw_negatives([4, 6], 9, [1, 2])
    assert torch.equal(both[:4], draw_negatives([4], 9, [1]))
    assert torch.equal(both[4:] - 4, draw_negatives([6], 9, [2]))
    assert not torch.equal(both[:4], draw_negatives([4], 9, [3]))


@pytest.mark.parametrize(("codebooks", "entries"), [(1, 2), (2, 64), (3, 320)])
def test_diversity_closed_forms(codebooks: int, entries: int) -> None:
    """Perplexity V of uniform usage gives 0, perplexity 1 of a single entry gives 1 - 1 / V."""
    count = torch.tensor(50.0)
    uniform = torch.full((codebooks, entries), 50.0 / entries)
    single = F.one_hot(torch.arange(codebooks) % entries, entries) * 50.0
    assert diversity(uniform, count, "perplexity").item() == pytest.approx(0, abs=1e-4)
    assert diversity(single, count, "perplexity").item() == pytest.approx(1 - 1 / entries, abs=1e-6)


def test_diversity_of_half_the_entries_is_one_half() -> None:
    usage = torch.tensor([[10.0] * 4 + [0.0] * 4] * 2)
    assert diversity(usage, torch.tensor(40.0), "perplexity").item() == pytest.approx(0.5, abs=1e-5)


def test_diversity_averages_over_frames_before_the_entropy() -> None:
    """Frames that each use one entry with certainty are diverse together."""
    certain = torch.eye(8)[None].sum(1)
    assert diversity(certain, torch.tensor(8.0), "perplexity").item() == pytest.approx(0, abs=1e-5)


def quantiser_case() -> tuple[Quantiser, Tensor, Tensor]:
    torch.manual_seed(0)
    quantiser = Quantiser(QuantiserConfig(codebooks=2, entries=5, dim=6), in_width=4)
    noise = torch.from_numpy(np.random.default_rng(0).gumbel(size=(30, 2, 5)).astype(np.float32))
    return quantiser, torch.randn(30, 4), noise


def test_evaluation_chooses_exactly_the_codewords_of_the_largest_logits() -> None:
    quantiser, features, _ = quantiser_case()
    quantised = quantiser(features, 1.0, None)
    logits = (features @ quantiser.logits.weight.T + quantiser.logits.bias).reshape(30, 2, 5)
    for n in range(30):
        chosen = [int(logits[n, g].argmax()) for g in range(2)]
        assert quantised.codes_NG[n].tolist() == chosen
        expected = torch.cat([quantiser.codewords_GVd[g, v] for g, v in enumerate(chosen)])
        assert torch.equal(quantised.vectors_ND[n], expected)


def test_training_chooses_the_entry_of_the_largest_noisy_logit() -> None:
    quantiser, features, noise = quantiser_case()
    quantised = quantiser(features, 0.7, noise)
    plain = quantiser(features, 0.7, None)
    assert torch.equal(quantised.codes_NG, (quantised.logits_NGV + noise).argmax(2))
    assert not torch.equal(quantised.codes_NG, plain.codes_NG)
    assert torch.equal(quantised.logits_NGV, plain.logits_NGV)
    expected = torch.stack([quantiser.codewords_GVd[g, quantised.codes_NG[:, g]] for g in range(2)], dim=1).flatten(1)
    torch.testing.assert_close(quantised.vectors_ND, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_straight_through_gradient_of_the_logits_is_that_of_the_softmax(temperature: float) -> None:
    """d (w . q) / d l_v = p_v (w . c_v - sum_u p_u w . c_u) / temperature."""
    quantiser, features, noise = quantiser_case()
    weight = torch.randn(30, 2, 3)
    quantised = quantiser(features, temperature, noise)
    (gradient,) = torch.autograd.grad((quantised.vectors_ND.reshape(30, 2, 3) * weight).sum(), quantised.logits_NGV)
    p = ((quantised.logits_NGV + noise) / temperature).softmax(2)
    score = torch.einsum("ngd,gvd->ngv", weight, quantiser.codewords_GVd)
    expected = p * (score - (p * score).sum(2, keepdim=True)) / temperature
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().max() > 0.01


def test_codewords_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"dim must be a multiple of codebooks, got 7 and 2"):
        QuantiserConfig(codebooks=2, entries=4, dim=7)


@pytest.fixture(scope="module")
def corpus(small_corpus: Path) -> Corpus:
    return corpus_of(small_corpus)


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> AcousticModel:
    return small_model(corpus)


CONFIG = ContrastiveConfig(negatives=20)
START = Progress(0, 1)


def terms_of(model: AcousticModel, corpus: Corpus, indices: list[int], **changes: float) -> Terms:
    batch = batch_of(corpus, indices, labelled=False)
    return contrastive_terms(model, batch, CONFIG.with_(**changes), Progress(3, 10))


def head_gradient(model: AcousticModel, corpus: Corpus, progress: Progress, **changes: float) -> Tensor:
    terms = contrastive_terms(model, batch_of(corpus, [0, 1], labelled=False), CONFIG.with_(**changes), progress)
    return torch.autograd.grad(terms["contrastive"].sum, model.self_supervised_head.quantiser.logits.weight)[0]


@pytest.mark.parametrize(("step", "temperature"), [(0, 2.0), (5, 1.0), (10, 0.5)])
def test_gumbel_temperature_falls_geometrically_from_start_to_end(
    model: AcousticModel, corpus: Corpus, step: int, temperature: float
) -> None:
    """The temperature shows in the gradient of the logits alone; that of a constant temperature is the reference."""
    scheduled = head_gradient(model, corpus, Progress(step, 10), gumbel_start=2.0, gumbel_end=0.5)
    constant = head_gradient(model, corpus, Progress(123, 1000), gumbel_start=temperature, gumbel_end=temperature)
    other = head_gradient(
        model, corpus, Progress(123, 1000), gumbel_start=1.1 * temperature, gumbel_end=1.1 * temperature
    )
    torch.testing.assert_close(scheduled, constant, rtol=1e-5, atol=1e-6 * float(constant.abs().max()))
    assert not torch.allclose(scheduled, other, rtol=1e-3, atol=1e-3 * float(constant.abs().max()))


def test_terms_of_a_batch_are_the_sums_of_the_terms_of_its_utterances(model: AcousticModel, corpus: Corpus) -> None:
    """Masks, noise and distractors belong to the utterance, and padding counts for nothing."""
    together = terms_of(model, corpus, [0, 1, 2, 3])
    alone = [terms_of(model, corpus, [i]) for i in range(4)]
    for name in ("contrastive", "feature_penalty", "contrastive_accuracy"):
        torch.testing.assert_close(together[name].sum, sum(terms[name].sum for terms in alone), rtol=1e-5, atol=1e-4)
        assert together[name].count == sum(terms[name].count for terms in alone)


def test_feature_penalty_is_the_mean_square_of_the_raw_features(model: AcousticModel, corpus: Corpus) -> None:
    squares, frames = 0.0, 0
    for i in range(3):
        batch = batch_of(corpus, [i])
        features, _ = model.backbone.features(batch.waveform_BS, batch.num_samples_B)
        squares += features[0].double().square().mean(1).sum().item()
        frames += features.shape[1]
    term = terms_of(model, corpus, [0, 1, 2])["feature_penalty"]
    assert term.mean().item() == pytest.approx(squares / frames, rel=1e-5)


def test_the_total_is_the_weighted_sum_and_accuracy_is_no_part_of_it(model: AcousticModel, corpus: Corpus) -> None:
    terms = terms_of(model, corpus, [0, 1], diversity_weight=0.25, feature_penalty_weight=3.0)
    means = {name: (term.sum / term.count).item() for name, term in terms.items()}
    expected = means["contrastive"] + 0.25 * means["diversity"] + 3.0 * means["feature_penalty"]
    assert total(terms).item() == pytest.approx(expected, rel=1e-6)


def test_the_contrastive_term_of_a_model_agrees_with_explicit_loops(corpus: Corpus) -> None:
    """Predictions come from the context of the masked features, targets from the features before masking."""
    model = small_model(corpus).eval()
    backbone, head = model.backbone, model.self_supervised_head
    batch = batch_of(corpus, [0, 3], labelled=False)
    raw, frames = backbone.features(batch.waveform_BS, batch.num_samples_B)
    features = backbone.feature_norm(raw)
    mask = time_masks(
        frames, raw.shape[1], batch.seeds, purpose="contrastive", probability=0.65, length=10, min_spans=2
    )
    quantised = head.quantiser(features[mask], 1.0, None)
    expected = nll_by_loops(
        head.project_context(backbone.context(features, frames, mask)[mask]).detach().double().numpy(),
        head.project_target(quantised.vectors_ND).detach().double().numpy(),
        quantised.codes_NG.numpy(),
        draw_negatives(mask.sum(1).tolist(), 20, batch.seeds).numpy(),
        0.1,
    )
    term = contrastive_terms(model, batch, CONFIG, START)["contrastive"]
    assert term.count == len(expected)
    assert term.sum.item() == pytest.approx(expected.sum(), rel=1e-4)


def test_a_filler_counts_for_nothing_and_moves_nothing(model: AcousticModel, corpus: Corpus) -> None:
    batch = replace(batch_of(corpus, [0, 1], labelled=False), counted=False)
    terms = contrastive_terms(model, batch, CONFIG, START)
    for name in ("contrastive", "feature_penalty", "contrastive_accuracy"):
        assert (terms[name].sum.item(), terms[name].count.item()) == (0, 0)
    gradients = torch.autograd.grad(
        terms["contrastive"].sum + terms["feature_penalty"].sum, model.backbone.parameters()
    )
    assert not any(gradient.any() for gradient in gradients)


def test_evaluation_draws_no_noise(corpus: Corpus) -> None:
    model = small_model(corpus).eval()
    batch = batch_of(corpus, [0, 1], labelled=False)
    one, two = (contrastive_terms(model, batch, CONFIG, Progress(step, 1))["contrastive"].sum for step in (0, 1))
    noisy = contrastive_terms(model.train(), batch, CONFIG, START)["contrastive"].sum
    assert torch.equal(one, two)
    assert not torch.equal(one, noisy)


def test_scale_gradient_keeps_the_value_and_scales_the_gradient() -> None:
    x = torch.randn(50, requires_grad=True)
    y = scale_gradient(x, 0.3)
    torch.testing.assert_close(y, x, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 0.3))
