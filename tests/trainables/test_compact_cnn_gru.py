from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.conftest import SMALL_MODEL
from tests.trainables.builders import batch_of, corpus_of, small_model
from trainables.data.audio import load_audio
from trainables.data.config import SAMPLE_RATE_HZ
from trainables.data.corpus import Corpus
from trainables.models.acoustic import AcousticModel, count_parameters
from trainables.models.compact_cnn_gru import CompactCnnGru
from trainables.models.config import CompactCnnGruConfig
from trainables.models.extractors import LogMel


@pytest.fixture(scope="module")
def corpus(small_corpus: Path) -> Corpus:
    return corpus_of(small_corpus)


@pytest.fixture(scope="module", params=[{}, {"cnn_layers": 0}, {"gru_layers": 3}], ids=["small", "no residual", "deep"])
def backbone(request: pytest.FixtureRequest) -> CompactCnnGru:
    torch.manual_seed(0)
    return CompactCnnGru(CompactCnnGruConfig.model_validate({**SMALL_MODEL, **request.param})).eval()


@torch.no_grad()
def outputs(backbone: CompactCnnGru, waveforms: list[Tensor], *, padding: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Valid features and context of each utterance of a batch, padded to the longest and `padding` samples more."""
    batch_BS = torch.nn.functional.pad(torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), (0, padding))
    raw_BTD, num_frames_B = backbone.features(batch_BS, torch.tensor([len(w) for w in waveforms]))
    features_BTD = backbone.feature_norm(raw_BTD)
    context_BTC = backbone.context(features_BTD, num_frames_B, torch.zeros(raw_BTD.shape[:2], dtype=torch.bool))
    return [(raw_BTD[i, :n], context_BTC[i, :n]) for i, n in enumerate(num_frames_B.tolist())]


def waveforms_of(corpus: Corpus, count: int = 4) -> list[Tensor]:
    """Real audio of unlike length, the shortest one window of 25 ms."""
    audio = [torch.from_numpy(load_audio(u.path)).float() for u in corpus.train[:count]]
    return [*audio, audio[0][5000:5400]]


def assert_same_outputs(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> None:
    for (features, context), (other_features, other_context) in zip(one, other, strict=True):
        assert features.shape == other_features.shape
        torch.testing.assert_close(features, other_features, rtol=0, atol=2e-5)
        torch.testing.assert_close(context, other_context, rtol=0, atol=2e-5)


@pytest.mark.parametrize("padding", [1, 399, 640, 16_001])
def test_zero_padding_changes_no_valid_frame(backbone: CompactCnnGru, corpus: Corpus, padding: int) -> None:
    for waveform in waveforms_of(corpus):
        assert_same_outputs(outputs(backbone, [waveform]), outputs(backbone, [waveform], padding=padding))


def test_longer_neighbours_in_the_batch_change_no_valid_frame(backbone: CompactCnnGru, corpus: Corpus) -> None:
    waveforms = waveforms_of(corpus)
    assert len({len(w) for w in waveforms}) == len(waveforms)
    assert_same_outputs(outputs(backbone, waveforms), [outputs(backbone, [w])[0] for w in waveforms])


def test_the_order_of_the_batch_does_not_matter(backbone: CompactCnnGru, corpus: Corpus) -> None:
    waveforms = waveforms_of(corpus)
    assert_same_outputs(outputs(backbone, waveforms), outputs(backbone, waveforms[::-1])[::-1])


@given(st.integers(400, 60_000))
def test_the_number_of_frames_is_that_of_the_windows_halved_twice(num_samples: int) -> None:
    """Windows of 400 samples 160 apart that lie inside the utterance, halved twice, rounding up."""
    windows = len(range(0, num_samples - 400 + 1, 160))
    expected = math.ceil(math.ceil(windows / 2) / 2)
    backbone = CompactCnnGru(CompactCnnGruConfig(mel_bins=8, cnn_width=8, gru_width=8, cnn_layers=0))
    features, num_frames = backbone.features(torch.randn(1, num_samples), torch.tensor([num_samples]))
    assert num_frames.tolist() == [expected]
    assert features.shape[1] == expected


@pytest.mark.parametrize("seconds", [1, 4, 15])
def test_features_come_at_25_hz(backbone: CompactCnnGru, seconds: int) -> None:
    samples = seconds * SAMPLE_RATE_HZ
    _, num_frames = backbone.features(torch.randn(1, samples), torch.tensor([samples]))
    assert num_frames.item() == 25 * seconds


def test_log_mel_is_zero_mean_and_unit_variance_per_utterance_and_bin(corpus: Corpus) -> None:
    batch = batch_of(corpus, [0, 1, 2])
    mel_BMT, num_frames = LogMel(20)(batch.waveform_BS, batch.num_samples_B)
    for mel_MT, n in zip(mel_BMT, num_frames.tolist(), strict=True):
        torch.testing.assert_close(mel_MT[:, :n].mean(1), torch.zeros(20), rtol=0, atol=1e-4)
        torch.testing.assert_close(mel_MT[:, :n].std(1, correction=0), torch.ones(20), rtol=0, atol=1e-3)
        assert not mel_MT[:, n:].any()


def test_features_do_not_depend_on_loudness(backbone: CompactCnnGru, corpus: Corpus) -> None:
    """But for the floor of the logarithm: half as loud is within 5 % of the features' spread."""
    waveform = waveforms_of(corpus)[0]
    (loud, _), (quiet, _) = (outputs(backbone, [w])[0] for w in (waveform, waveform / 2))
    assert (loud - quiet).abs().mean() < 0.05 * loud.std()


@torch.no_grad()
def test_masked_frames_are_hidden_from_the_context_and_others_are_not(backbone: CompactCnnGru, corpus: Corpus) -> None:
    batch = batch_of(corpus, [0, 1])
    features_BTD, num_frames = backbone.features(batch.waveform_BS, batch.num_samples_B)
    mask_BT = torch.zeros(features_BTD.shape[:2], dtype=torch.bool)
    mask_BT[:, 5:12] = True
    context = backbone.context(features_BTD, num_frames, mask_BT)
    elsewhere = torch.where(mask_BT[..., None], 100 * torch.randn_like(features_BTD), features_BTD)
    assert torch.equal(backbone.context(elsewhere, num_frames, mask_BT), context)
    visible = features_BTD.clone()
    visible[0, 12] += 1
    changed = backbone.context(visible, num_frames, mask_BT)
    assert not torch.allclose(changed[0], context[0], atol=1e-4)
    assert torch.equal(changed[1], context[1])


@torch.no_grad()
def test_a_masked_frame_is_replaced_by_the_mask_embedding(backbone: CompactCnnGru, corpus: Corpus) -> None:
    batch = batch_of(corpus, [0])
    features_BTD, num_frames = backbone.features(batch.waveform_BS, batch.num_samples_B)
    mask_BT = torch.zeros(features_BTD.shape[:2], dtype=torch.bool)
    mask_BT[0, 3] = True
    replaced = features_BTD.clone()
    replaced[0, 3] = backbone.mask_embedding
    unmasked = backbone.context(replaced, num_frames, torch.zeros_like(mask_BT))
    assert torch.equal(backbone.context(features_BTD, num_frames, mask_BT), unmasked)
    assert not torch.equal(backbone.context(features_BTD, num_frames, torch.zeros_like(mask_BT)), unmasked)


def test_the_context_sees_the_whole_utterance_in_both_directions(backbone: CompactCnnGru, corpus: Corpus) -> None:
    batch = batch_of(corpus, [0])
    features, num_frames = backbone.features(batch.waveform_BS, batch.num_samples_B)
    features = features.detach().requires_grad_()
    context = backbone.context(features, num_frames, torch.zeros(features.shape[:2], dtype=torch.bool))
    for frame in (0, int(num_frames) - 1):
        (gradient,) = torch.autograd.grad(context[0, frame].square().sum(), features, retain_graph=True)
        assert gradient[0].abs().sum(1).gt(0).all()


def parameters_by_formula(config: CompactCnnGruConfig, symbols: int) -> tuple[int, int]:
    """Backbone and CTC head: convolutions of width 5 with bias, LayerNorms, GRU gates with both biases, one Linear."""
    mel, d, h = config.mel_bins, config.cnn_width, config.gru_width
    convolutions = (5 * mel * d + d + 2 * d) + (1 + config.cnn_layers) * (5 * d * d + d + 2 * d)
    widths = [d, *[2 * h] * (config.gru_layers - 1)]
    gru = sum(2 * (3 * h * width + 3 * h * h + 2 * 3 * h) + 2 * 2 * h for width in widths)
    feature_norm, mask_embedding = 2 * d, d
    return convolutions + feature_norm + mask_embedding + gru, 2 * h * symbols + symbols


@pytest.mark.parametrize(
    "config",
    [
        CompactCnnGruConfig(),
        CompactCnnGruConfig(cnn_layers=0, gru_layers=3),
        CompactCnnGruConfig(mel_bins=40, cnn_width=64, gru_width=96),
    ],
)
def test_parameters_are_as_many_as_the_formula_says(config: CompactCnnGruConfig) -> None:
    model = AcousticModel(config, 30, seed=0)
    assert (count_parameters(model.backbone), count_parameters(model.ctc_head)) == parameters_by_formula(config, 30)


def test_the_default_model_has_622_thousand_parameters() -> None:
    """By hand: 58,032 + 3 x 104,112 + 288 + 144 + 250,560 + 576 in the backbone, 289 x 30 in the head."""
    assert parameters_by_formula(CompactCnnGruConfig(), 30) == (621_936, 8_670)


def test_initial_weights_of_a_part_do_not_depend_on_the_size_of_the_others() -> None:
    config = CompactCnnGruConfig.model_validate(SMALL_MODEL)
    other = config.with_(quantiser=config.quantiser.with_(entries=32))
    one, two = AcousticModel(config, 30, seed=3), AcousticModel(other, 55, seed=3)
    for (name, tensor), same in zip(one.backbone.state_dict().items(), two.backbone.state_dict().values(), strict=True):
        assert torch.equal(tensor, same), name
    assert torch.equal(
        one.self_supervised_head.project_target.bias,
        AcousticModel(config, 55, seed=3).self_supervised_head.project_target.bias,
    )


def test_initial_weights_depend_on_the_seed_and_leave_the_global_generator_alone(corpus: Corpus) -> None:
    torch.manual_seed(7)
    one, two = small_model(corpus, seed=1), small_model(corpus, seed=2)
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))
    for part in ("backbone", "ctc_head", "self_supervised_head"):
        pairs = zip(one.get_submodule(part).parameters(), two.get_submodule(part).parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)
