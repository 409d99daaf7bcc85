"""Contrastive predictive coding: where windows lie, what it costs, and whom its gradient reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor, nn

from tests.conftest import SMALL_MODEL, SMALL_TRANSFORMER
from tests.trainables.builders import batch_of, corpus_of
from trainables.config import Progress
from trainables.data.batches import Batch
from trainables.data.corpus import Corpus
from trainables.losses.bilevel import bilevel_terms
from trainables.losses.config import BilevelConfig, CpcConfig, CtcConfig, Part
from trainables.losses.cpc import Windows, cpc_terms
from trainables.losses.ctc import ctc_terms
from trainables.losses.terms import Terms, total
from trainables.models.acoustic import AcousticModel
from trainables.models.config import TransformerConfig
from trainables.models.presets import ModelConfig

NO_DROPOUT = {"hidden": 0, "attention": 0, "activation": 0, "input": 0, "features": 0, "layer": 0}
MODELS: dict[str, dict[str, Any]] = {
    "compact_cnn_gru": SMALL_MODEL,
    "cnn_gru": {
        "kind": "cnn_gru",
        "mel_bins": 16,
        "channels": 8,
        "cnn_layers": 1,
        "gru_layers": 2,
        "gru_width": 12,
        "dropout": 0,
        "quantiser": {"entries": 8, "dim": 16},
    },
    "transformer": {**SMALL_TRANSFORMER, "dropout": NO_DROPOUT},
}
CONFIG = CpcConfig(context_seconds=0.64, future_seconds=0.32, hop_seconds=0.32, negatives=6)
HEAD: Part = "self_supervised_head"


def model_of(name: str) -> AcousticModel:
    config: ModelConfig = TypeAdapter(ModelConfig).validate_python(MODELS[name])
    return AcousticModel(config, 12, seed=0, self_supervision="cpc")


@pytest.fixture(scope="module")
def corpus(small_corpus: Path) -> Corpus:
    return corpus_of(small_corpus)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> AcousticModel:
    return model_of(request.param)


@pytest.fixture(scope="module")
def batch(corpus: Corpus) -> Batch:
    return batch_of(corpus, [0, 3, 5], labelled=False)


# Windows


def windows_of(num_frames: Sequence[int], seeds: Sequence[int], **settings: int) -> Windows:
    settings = {"context": 4, "future": 3, "hop": 2, "negatives": 5} | settings
    return Windows.of(num_frames, max(num_frames) + 1, seeds, **settings)


def test_windows_by_hand() -> None:
    """Of 7, 3 and 2 frames in rows of 8; windows of at most 4 end every 2, and 3 frames are predicted.

    The first utterance has windows that end before its frames 2, 4 and 6, and 3, 3 and 1 frames after them. The second
    (from index 8) has one, with one frame after it. The third ends where its first window would.
    """
    windows = windows_of([7, 3, 2], [1, 2, 3])
    assert windows.length_W.tolist() == [2, 4, 4, 2]
    assert windows.frame_WL.tolist() == [[0, 1, 1, 1], [0, 1, 2, 3], [2, 3, 4, 5], [8, 9, 9, 9]]
    assert windows.window_N.tolist() == [0, 0, 0, 1, 1, 1, 2, 3]
    assert windows.ahead_N.tolist() == [0, 1, 2, 0, 1, 2, 0, 0]
    assert windows.target_N.tolist() == [2, 3, 4, 4, 5, 6, 6, 10]
    assert windows.negative_NM.shape == (8, 5)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=5),
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 8),
    st.integers(0, 1000),
)
def test_windows_end_before_what_they_predict_and_distractors_are_other_frames_of_the_utterance(
    num_frames: list[int], context: int, future: int, hop: int, negatives: int, seed: int
) -> None:
    seeds = [seed + i for i in range(len(num_frames))]
    windows = windows_of(num_frames, seeds, context=context, future=future, hop=hop, negatives=negatives)
    row = max(num_frames) + 1
    ends = [(i, end) for i, count in enumerate(num_frames) for end in range(1, count) if end % hop == 0]
    assert len(windows.length_W) == len(windows.frame_WL) == len(ends)
    predicted: list[list[int]] = [[] for _ in ends]
    for window, ahead, target in torch.stack([windows.window_N, windows.ahead_N, windows.target_N], 1).tolist():
        utterance, end = ends[window]
        assert target == utterance * row + end + ahead
        predicted[window].append(target)
    for (utterance, end), frames, length, targets in zip(
        ends, windows.frame_WL.tolist(), windows.length_W.tolist(), predicted, strict=True
    ):
        first = utterance * row
        assert length == min(context, end)
        assert frames[:length] == list(range(first + end - length, first + end))
        assert set(frames[length:]) <= {frames[length - 1]}
        assert targets == list(range(first + end, first + min(end + future, num_frames[utterance])))
        assert not set(frames) & set(targets)
    assert windows.negative_NM.shape == (len(windows.target_N), negatives)
    for target, others in zip(windows.target_N.tolist(), windows.negative_NM.tolist(), strict=True):
        assert target not in others
        assert {other // row for other in others} == {target // row}
        assert max(other % row for other in others) < num_frames[target // row]


def test_distractors_are_uniform_over_the_other_frames_of_the_utterance() -> None:
    """Chi-squared over the 6 others of each of 7 predicted frames: 35 degrees of freedom, 99.9 % quantile 66.6."""
    k = 6000
    windows = windows_of([7], [1], negatives=k)
    chi_squared = 0.0
    for target, others in zip(windows.target_N.tolist(), windows.negative_NM.numpy(), strict=True):
        counts = np.delete(np.bincount(others, minlength=7), target)
        chi_squared += float(((counts - k / 6) ** 2 / (k / 6)).sum())
    assert len(windows.target_N) == 7
    assert chi_squared < 66.6


def test_windows_of_an_utterance_depend_on_its_own_seed_alone() -> None:
    both, first, second = windows_of([9, 6], [1, 2]), windows_of([9], [1]), windows_of([6], [2])
    split = len(first.target_N)
    assert torch.equal(both.negative_NM[:split], first.negative_NM)
    assert torch.equal(both.negative_NM[split:] - 10, second.negative_NM)
    assert not torch.equal(first.negative_NM, windows_of([9], [3]).negative_NM)


# The value


def nll_by_loops(model: AcousticModel, raw_BTD: Tensor, batch: Batch, config: CpcConfig) -> tuple[Tensor, int]:
    """(N,) of each window and each predicted frame by itself, and how often the true frame wins.

    Distractors are those that `Windows` draws; the tests above say which they may be.
    """
    backbone, head, rate_hz = model.backbone, model.self_supervised_head, model.config.frame_rate_hz
    seconds = (config.hop_seconds, config.context_seconds, config.future_seconds)
    hop, context, future = (round(s * rate_hz) for s in seconds)
    counts = [model.config.num_frames(int(samples)) for samples in batch.num_samples_B]
    settings = {"context": context, "future": future, "hop": hop, "negatives": config.negatives}
    drawn = iter(Windows.of(counts, raw_BTD.shape[1], batch.seeds, **settings).negative_NM.tolist())
    nll, correct = [], 0
    for number, (raw_TD, count) in enumerate(zip(raw_BTD, counts, strict=True)):
        features_TD = backbone.feature_norm(raw_TD)
        for end in range(hop, count, hop):
            window = features_TD[max(0, end - context) : end][None]
            prediction = head.project_context(backbone.context(window, torch.tensor([window.shape[1]]))[0, -1])
            for target in range(end, min(end + future, count)):
                if target > end:
                    prediction = head.predict(prediction)
                scores = []
                for candidate in [target, *(row - number * raw_BTD.shape[1] for row in next(drawn))]:
                    found = head.project_target(features_TD[candidate])
                    scores.append(prediction @ found / (prediction @ prediction * (found @ found)).sqrt())
                exponentials = [(score / config.temperature).exp() for score in scores]
                nll.append(-(exponentials[0] / sum(exponentials)).log())
                correct += scores[0] == max(scores)
    assert next(drawn, None) is None
    return torch.stack(nll), int(correct)


def spread_out(model: AcousticModel) -> AcousticModel:
    """With a head whose predictions and targets are far from alike."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.self_supervised_head.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_value_and_gradients_agree_with_explicit_loops_in_float64(
    name: str, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three utterances of different lengths in a padded batch, from the same features.

    For the gradients ours is in float64 too, but for the cosines: some cancel to zero, and float32 leaves noise there.
    """
    model = spread_out(model_of(name))
    terms = cpc_terms(model, batch, CONFIG)
    with torch.no_grad():
        raw_BTD, num_frames_B = model.backbone.features(batch.waveform_BS, batch.num_samples_B)
    raw_BTD, model = raw_BTD.double(), model.double()
    nll, correct = nll_by_loops(model, raw_BTD, batch, CONFIG)
    assert terms["cpc"].count.item() == terms["cpc_accuracy"].count.item() == len(nll) > 50
    assert terms["cpc"].sum.item() == pytest.approx(nll.sum().item(), rel=1e-5)
    assert terms["cpc_accuracy"].sum.item() == correct
    assert nll.std() > 0.1

    monkeypatch.setattr(model.backbone, "features", lambda *_: (raw_BTD, num_frames_B))
    parameters = [*model.backbone.parameters(), *model.self_supervised_head.parameters()]
    found, expected = (
        torch.autograd.grad(loss, parameters, allow_unused=True)
        for loss in (cpc_terms(model, batch, CONFIG)["cpc"].sum, nll.sum())
    )
    largest = max(float(gradient.abs().max()) for gradient in expected if gradient is not None)
    for one, other in zip(found, expected, strict=True):
        if other is None:  # the extractor, and the vector for masked frames
            assert one is None or not one.any()
        else:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * largest)


def test_a_head_that_says_nothing_costs_the_logarithm_of_the_choices(model: AcousticModel, batch: Batch) -> None:
    """All frames look alike to it: 1 of 1 + 6."""
    model = AcousticModel(model.config, 12, seed=0, self_supervision="cpc")
    with torch.no_grad():
        model.self_supervised_head.project_target.weight.zero_()
        model.self_supervised_head.project_target.bias.fill_(1.0)
    assert cpc_terms(model, batch, CONFIG)["cpc"].mean().item() == pytest.approx(math.log(7), rel=1e-5)


def test_terms_of_a_batch_are_the_sums_of_those_of_its_utterances(corpus: Corpus) -> None:
    model = model_of("compact_cnn_gru")
    together = cpc_terms(model, batch_of(corpus, [0, 1, 2, 3], labelled=False), CONFIG)
    alone = [cpc_terms(model, batch_of(corpus, [i], labelled=False), CONFIG) for i in range(4)]
    for name, term in together.items():
        torch.testing.assert_close(term.sum, sum(terms[name].sum for terms in alone), rtol=1e-5, atol=1e-4)
        assert term.count == sum(terms[name].count for terms in alone)


def test_frames_that_are_predicted_do_not_reach_the_prediction(
    model: AcousticModel, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other features after the end of a window leave its prediction as it is, to the last bit; earlier ones do not."""
    raw_BTD, num_frames_B = model.backbone.features(batch.waveform_BS, batch.num_samples_B)
    hop = round(CONFIG.hop_seconds * model.config.frame_rate_hz)
    windows = torch.tensor([(int(count) - 1) // hop for count in num_frames_B])
    first_B = windows.cumsum(0) - windows

    def predictions(changed: slice) -> Tensor:
        """Of the first window of each utterance, which ends at `hop`."""
        other_BTD = raw_BTD.clone()
        other_BTD[:, changed] = 1.0 - other_BTD[:, changed]
        monkeypatch.setattr(model.backbone, "features", lambda *_: (other_BTD, num_frames_B))
        seen: list[Tensor] = []
        hook = model.self_supervised_head.project_context.register_forward_hook(lambda *x: seen.append(x[2].detach()))
        cpc_terms(model, batch, CONFIG)
        hook.remove()
        return seen[0][first_B]

    plain = predictions(slice(0, 0))
    assert torch.equal(predictions(slice(hop, None)), plain)
    assert not torch.isclose(predictions(slice(hop - 1, None)), plain, atol=1e-4).all(1).any()


@pytest.mark.parametrize("squeeze", [2, 3])
@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.5])
def test_a_squeezed_model_has_a_context_for_the_last_frame_of_every_window(
    batch: Batch, squeeze: int, seconds: float
) -> None:
    """Of 5, 15 and 25 frames at 50 Hz, which fill no whole number of groups of 2, or of 3: then it would be zero."""
    config = TransformerConfig.model_validate({**MODELS["transformer"], "squeeze": squeeze})
    model = AcousticModel(config, 12, seed=0, self_supervision="cpc")
    contexts: list[Tensor] = []
    hook = model.self_supervised_head.project_context.register_forward_hook(lambda *x: contexts.append(x[1][0]))
    cpc_terms(model, batch, CONFIG.with_(hop_seconds=seconds, context_seconds=2 * seconds))
    hook.remove()
    assert len(contexts[0]) > 3
    assert contexts[0].any(1).all()


# Gradients


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True))


def vector(loss: Tensor, module: nn.Module) -> Tensor:
    """All gradients of a module in one vector; each parameter must have one."""
    found = gradients(loss, module)
    assert all(g is not None for g in found)
    return torch.cat([g.flatten() for g in found if g is not None])


def missing(model: AcousticModel, terms: Terms) -> list[str]:
    """Parameters that the loss does not reach: DistributedDataParallel would wait for them."""
    return [
        f"{part}.{name}"
        for part in ("backbone", HEAD)
        for (name, _), gradient in zip(
            model.get_submodule(part).named_parameters(),
            gradients(total(terms), model.get_submodule(part)),
            strict=True,
        )
        if gradient is None
    ]


def test_every_parameter_has_a_gradient(model: AcousticModel, batch: Batch) -> None:
    """That of the vector for masked frames is zero, for none are masked, and so is that of the backward GRU's recurrent
    weights in the last layer: at the last frame of a window it has only begun.
    """
    terms = cpc_terms(model, batch, CONFIG)
    assert missing(model, terms) == []
    unused = {"mask_embedding", "gru.0.weight_hh_l0_reverse", "gru.1.gru.weight_hh_l0_reverse"}
    for part in ("backbone", HEAD):
        module = model.get_submodule(part)
        for (name, _), gradient in zip(module.named_parameters(), gradients(total(terms), module), strict=True):
            assert gradient is not None
            assert gradient.isfinite().all()
            assert bool(gradient.any()) is (name not in unused), name


def test_every_parameter_has_a_gradient_when_one_frame_is_predicted(model: AcousticModel, batch: Batch) -> None:
    """Then nothing is predicted from a prediction."""
    terms = cpc_terms(model, batch, CONFIG.with_(future_seconds=0.01))
    assert terms["cpc"].count > 0
    assert missing(model, terms) == []


def test_utterances_that_end_before_the_first_window_predict_nothing(model: AcousticModel, batch: Batch) -> None:
    """Zero gradients and not missing ones."""
    terms = cpc_terms(model, batch, CONFIG.with_(hop_seconds=60.0))
    assert terms["cpc"].count == terms["cpc"].sum == terms["cpc_accuracy"].count == 0
    assert total(terms).item() == 0
    assert missing(model, terms) == []
    for part in ("backbone", HEAD):
        assert not vector(total(terms), model.get_submodule(part)).any()


def test_a_short_utterance_beside_longer_ones_changes_nothing(corpus: Corpus) -> None:
    model = model_of("compact_cnn_gru")
    seconds = [corpus.unlabelled[i].duration_seconds for i in range(len(corpus.unlabelled))]
    order = sorted(range(len(seconds)), key=seconds.__getitem__)
    longer, short = [order[-1], order[-2]], order[0]
    config = CONFIG.with_(hop_seconds=seconds[short] + 0.05)
    one, other = (
        cpc_terms(model, batch_of(corpus, indices, labelled=False), config) for indices in (longer, [*longer, short])
    )
    assert one["cpc"].count == other["cpc"].count > 0
    torch.testing.assert_close(one["cpc"].sum, other["cpc"].sum, rtol=1e-5, atol=0)
    for part in ("backbone", HEAD):
        assert_close(*(vector(total(terms), model.get_submodule(part)) for terms in (other, one)))


def test_a_filler_counts_for_nothing_and_moves_nothing(model: AcousticModel, batch: Batch) -> None:
    terms = cpc_terms(model, replace(batch, counted=False), CONFIG)
    assert terms["cpc"].count == terms["cpc"].sum == 0
    assert not any(vector(total(terms), model.get_submodule(part)).any() for part in ("backbone", HEAD))


def assert_close(one: Tensor, other: Tensor) -> None:
    """Float32 sums in another order: 1e-4 of the largest component."""
    scale = float(other.abs().max())
    assert scale > 0
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("factor", [0.0, 0.3, 2.5])
def test_the_factor_scales_what_reaches_the_backbone_and_not_the_head(
    model: AcousticModel, batch: Batch, factor: float
) -> None:
    plain, scaled = (total(cpc_terms(model, batch, CONFIG, f)) for f in (1.0, factor))
    assert scaled.item() == pytest.approx(plain.item(), rel=1e-5)
    backbone, head = model.backbone, model.self_supervised_head
    if factor:
        assert_close(vector(scaled, backbone), factor * vector(plain, backbone))
    else:
        assert not vector(scaled, backbone).any()
    for name, layer in head.named_children():
        one, other = vector(scaled, layer), vector(plain, layer)
        assert other.norm() > 0, name
        assert_close(one, other)


@pytest.mark.parametrize("factor", [0.0, 0.1])
def test_the_extractor_s_factor_scales_what_reaches_the_extractor_alone(
    model: AcousticModel, batch: Batch, factor: float
) -> None:
    plain, scaled = (total(cpc_terms(model, batch, CONFIG.with_(extractor_gradient=f))) for f in (1.0, factor))
    below = {id(p) for module in model.backbone.extractor_modules for p in module.parameters()}
    largest = max(g.abs().max() for g in gradients(plain, model.backbone) if g is not None)
    found = [gradients(loss, model.backbone) for loss in (scaled, plain)]
    for parameter, one, other in zip(model.backbone.parameters(), *found, strict=True):
        assert other is not None
        if id(parameter) in below:
            if factor == 0:
                assert one is None
            else:
                assert one is not None
                assert_close(one, factor * other)
        else:
            assert one is not None
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(largest))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
def test_the_joint_step_with_it_is_that_of_bl_just(model: AcousticModel, corpus: Corpus, gamma: float) -> None:
    """CTC + gamma x CPC in the backbone, CPC in its head, CTC in the CTC head."""
    labelled, unlabelled = batch_of(corpus, [1, 2]), batch_of(corpus, [4, 5], labelled=False)
    labelled = replace(labelled, tokens_BU=labelled.tokens_BU.clamp(max=11))
    config = BilevelConfig(gamma_start=gamma, gamma_end=gamma, self_supervised=CONFIG)
    joint = total(bilevel_terms(model, {"labelled": labelled, "unlabelled": unlabelled}, config, Progress(1, 2)))
    ctc = total(ctc_terms(model, labelled, CtcConfig()))
    cpc = total(cpc_terms(model, unlabelled, CONFIG))
    backbone = vector(ctc, model.backbone)
    if gamma:
        backbone = backbone + gamma * vector(cpc, model.backbone)
    assert_close(vector(joint, model.backbone), backbone)
    assert_close(vector(joint, model.self_supervised_head), vector(cpc, model.self_supervised_head))
    assert_close(vector(joint, model.ctc_head), vector(ctc, model.ctc_head))


def test_it_can_be_learnt(batch: Batch) -> None:
    """Which frames follow is not noise: 30 updates on one batch."""
    model = model_of("compact_cnn_gru")
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    values = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = total(cpc_terms(model, batch, CONFIG))
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    assert values[-1] < 0.7 * values[0]
