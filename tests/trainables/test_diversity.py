"""How unevenly a codebook is used, in both forms."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.trainables.builders import batch_of, corpus_of, small_model
from trainables.config import Progress
from trainables.losses.config import ContrastiveConfig
from trainables.losses.contrastive import contrastive_masks, contrastive_terms, diversity

G, V = 2, 320  # wav2vec 2.0
FORMS = ["perplexity", "entropy"]


def uniform() -> Tensor:
    return torch.full((G, V), 1 / V, dtype=torch.float64)


def one_hot() -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor([3, 319]), V).double()


def of(usage_GV: Tensor, form: str, count: float = 1.0) -> Tensor:
    return diversity(usage_GV * count, torch.tensor(count, dtype=usage_GV.dtype), form)


def gradient(usage_GV: Tensor, form: str) -> Tensor:
    usage_GV = usage_GV.clone().requires_grad_()
    (found,) = torch.autograd.grad(of(usage_GV, form), usage_GV)
    return found


def random_usage(seed: int, spread: float, codebooks: int = G, entries: int = V) -> Tensor:
    """Frames averaged: uniform for a spread of 0."""
    noise = torch.randn(codebooks, entries, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (spread * noise).softmax(1)


@pytest.mark.parametrize("count", [1.0, 50.0, 12_345.0])
@pytest.mark.parametrize(
    ("form", "of_uniform", "of_one_hot"),
    [("perplexity", 0.0, 1 - 1 / V), ("entropy", -math.log(V) / V, 0.0)],
    ids=FORMS,
)
def test_closed_forms(form: str, of_uniform: float, of_one_hot: float, count: float) -> None:
    """They are the bounds; 1e-7 within the logarithm, as in fairseq, costs up to V x 1e-7."""
    assert of(uniform(), form, count).item() == pytest.approx(of_uniform, abs=4e-5)
    assert of(one_hot(), form, count).item() == pytest.approx(of_one_hot, abs=1e-6)


def test_one_entry_of_320_gives_the_published_bound() -> None:
    assert of(one_hot(), "perplexity").item() == pytest.approx(0.996875, abs=1e-6)


@pytest.mark.parametrize("used", [1, 5, 160, 320])
def test_using_some_entries_alike(used: int) -> None:
    """Perplexity `used` in each codebook."""
    usage = torch.zeros(G, V, dtype=torch.float64)
    usage[:, :used] = 1 / used
    assert of(usage, "perplexity").item() == pytest.approx(1 - used / V, abs=4e-5)
    assert of(usage, "entropy").item() == pytest.approx(-math.log(used) / V, abs=1e-6)


def test_frames_are_averaged_before_the_entropy() -> None:
    """Each frame is certain of its entry; together they use them all, which is as even as can be."""
    frames_NGV = torch.eye(V, dtype=torch.float64)[:, None].expand(V, G, V)
    count = torch.tensor(float(V))
    assert diversity(frames_NGV.sum(0), count, "perplexity").item() == pytest.approx(0, abs=4e-5)
    assert diversity(frames_NGV.sum(0), count, "entropy").item() == pytest.approx(-math.log(V) / V, abs=1e-6)
    of_each = [diversity(frame_GV, torch.tensor(1.0), "perplexity").item() for frame_GV in frames_NGV[:5]]
    assert of_each == pytest.approx([1 - 1 / V] * 5, abs=1e-6)


@given(st.integers(0, 1000), st.floats(0, 3), st.integers(1, 3), st.integers(2, 40))
def test_the_perplexity_form_is_that_of_transformers(seed: int, spread: float, codebooks: int, entries: int) -> None:
    """Its pre-training loss is (GV - perplexity) / GV. It adds nothing within the logarithm: that is worth V x 1e-7."""
    quantisers = pytest.importorskip("transformers.models.wav2vec2.modeling_wav2vec2")
    probabilities_NGV = torch.stack([random_usage(seed + n, spread, codebooks, entries) for n in range(7)])
    perplexity = quantisers.Wav2Vec2GumbelVectorQuantizer._compute_perplexity(probabilities_NGV)
    expected = (codebooks * entries - perplexity) / (codebooks * entries)
    found = diversity(probabilities_NGV.sum(0), torch.tensor(7.0), "perplexity")
    assert found.item() == pytest.approx(expected.item(), abs=1.1e-7 * entries)


def test_near_uniform_usage_the_perplexity_form_pulls_v_times_as_hard() -> None:
    """models_and_regimes.md section 2: the factor exp(H), which is V there."""
    usage = random_usage(0, 0.01)
    perplexity, entropy = (gradient(usage, form) for form in FORMS)
    centred = [g - g.mean(1, keepdim=True) for g in (perplexity, entropy)]  # moves that keep the sum 1
    assert centred[0].norm() / centred[1].norm() == pytest.approx(V, rel=1e-3)
    torch.testing.assert_close(perplexity, V * entropy, rtol=1e-3, atol=0)


@given(st.integers(0, 1000), st.floats(0.01, 3))
def test_anywhere_it_is_the_perplexity_of_the_codebook_times_as_hard(seed: int, spread: float) -> None:
    usage = random_usage(seed, spread)
    perplexity_G = (-(usage * (usage + 1e-7).log()).sum(1)).exp()
    torch.testing.assert_close(gradient(usage, "perplexity"), perplexity_G[:, None] * gradient(usage, "entropy"))


@pytest.mark.parametrize("form", FORMS)
def test_descending_either_form_makes_usage_more_even(form: str) -> None:
    """Through the softmax, as in training."""
    logits = torch.randn(G, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    (step,) = torch.autograd.grad(of(logits.softmax(1), form), logits)
    moved = (logits - 1e-3 * step / step.norm()).softmax(1)
    entropy_before, entropy_after = (-(p * p.log()).sum() for p in (logits.softmax(1), moved))
    assert entropy_after > entropy_before


@pytest.mark.parametrize("form", FORMS)
def test_nothing_masked_is_finite(form: str) -> None:
    usage = torch.zeros(G, V, requires_grad=True)
    value = diversity(usage, torch.tensor(0.0), form)
    (found,) = torch.autograd.grad(value, usage)
    assert value.isfinite()
    assert found.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_the_term_of_a_model_is_of_the_form_that_is_chosen(small_corpus: Path, form: str) -> None:
    """From the quantiser's logits of the masked frames, without noise and temperature, in float64."""
    corpus = corpus_of(small_corpus)
    model = small_model(corpus)
    config = ContrastiveConfig(diversity=form, diversity_weight=0.3)
    batch = batch_of(corpus, [0, 1, 2], labelled=False)
    term = contrastive_terms(model, batch, config, Progress(1, 4))["diversity"]
    raw_BTD, num_frames_B = model.backbone.features(batch.waveform_BS, batch.num_samples_B)
    masked_ND = model.backbone.feature_norm(raw_BTD)[contrastive_masks(config, batch, num_frames_B, raw_BTD.shape[1])]
    entries = model.self_supervised_head.quantiser.codewords_GVd.shape[1]
    logits_NGV = model.self_supervised_head.quantiser.logits(masked_ND).unflatten(1, (-1, entries)).double()
    usage_GV = logits_NGV.softmax(2).mean(0)
    entropy_G = -(usage_GV * usage_GV.log()).sum(1)
    parts_G = 1 - entropy_G.exp() / entries if form == "perplexity" else -entropy_G / entries
    assert term.mean().item() == pytest.approx(parts_G.mean().item(), abs=1e-5)
    assert term.weight == 0.3
