from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.models.acoustic import AcousticModel, count_parameters
from trainables.models.cnn_gru import CnnGru, CnnLayer
from trainables.models.config import CnnGruConfig

SMALL = {"mel_bins": 16, "channels": 8, "cnn_layers": 2, "gru_layers": 3, "gru_width": 12}
CHANNELS, MEL, GRU = 8, 8, 12  # mel bins after the stem


def small_model(variant: str, **settings: Any) -> AcousticModel:
    """Norms scale and shift, so that none of them can be left out unseen."""
    config = CnnGruConfig.model_validate({**SMALL, "variant": variant, **settings})
    model = AcousticModel(config, 20, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def waveforms_of(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(n, generator=generator) * torch.linspace(0.1, 1, n) for n in lengths]


UNEQUAL = (16_000, 9_123, 12_400, 400)
EQUAL = (8_000, 8_000, 8_000)


@torch.no_grad()
def outputs(backbone: CnnGru, waveforms: list[Tensor], *, padding: int = 0) -> list[Tensor]:
    """Valid context of each utterance of a batch, padded to the longest and `padding` samples more."""
    waveform_BS = F.pad(nn.utils.rnn.pad_sequence(waveforms, batch_first=True), (0, padding))
    features_BTD, num_frames_B = backbone.features(waveform_BS, torch.tensor([len(w) for w in waveforms]))
    context_BTE = backbone.context(backbone.feature_norm(features_BTD), num_frames_B)
    return [context_BTE[i, :n] for i, n in enumerate(num_frames_B.tolist())]


def assert_close(one: Tensor, other: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    """Norms over 8 mel bins enlarge rounding to 6e-5; in float64 it is 4e-15."""
    for x, y in zip(one, other, strict=True):
        assert_close(x, y, 3e-4)


def assert_another(one: Tensor, other: Tensor) -> None:
    assert one.shape == other.shape
    assert (one - other).abs().max() > 0.01


@pytest.mark.parametrize("padding", [1, 399, 640, 16_001])
def test_fixed_zero_padding_changes_no_valid_frame(padding: int) -> None:
    backbone = small_model("fixed").backbone
    for waveform in waveforms_of(*UNEQUAL):
        assert_same(outputs(backbone, [waveform]), outputs(backbone, [waveform], padding=padding))


@pytest.mark.parametrize("lengths", [UNEQUAL, EQUAL], ids=str)
def test_fixed_neighbours_and_their_order_change_no_valid_frame(lengths: tuple[int, ...]) -> None:
    backbone, waveforms = small_model("fixed").backbone, waveforms_of(*lengths)
    together = outputs(backbone, waveforms)
    assert_same(together, [outputs(backbone, [w])[0] for w in waveforms])
    assert_same(together, outputs(backbone, waveforms[::-1])[::-1])


def test_compat_padding_changes_valid_frames() -> None:
    backbone, (waveform,) = small_model("compat").backbone, waveforms_of(8000)
    assert_another(outputs(backbone, [waveform])[0], outputs(backbone, [waveform], padding=3200)[0])


def test_compat_the_order_of_the_batch_changes_every_utterance() -> None:
    """The bug of the published code: its recurrent layers but the first run from one utterance to the next."""
    backbone, waveforms = small_model("compat").backbone, waveforms_of(*EQUAL)
    order = [1, 2, 0]
    together, permuted = outputs(backbone, waveforms), outputs(backbone, [waveforms[i] for i in order])
    for place, i in enumerate(order):
        assert_another(permuted[place], together[i])


@pytest.mark.parametrize(
    ("layers", "mixes"),
    [
        ({"cnn_layers": 0, "gru_layers": 1}, False),
        ({"cnn_layers": 1, "gru_layers": 1}, True),
        ({"cnn_layers": 0, "gru_layers": 2}, True),
    ],
    ids=["first recurrent layer", "attention", "later recurrent layer"],
)
def test_compat_utterances_of_one_length_are_mixed_by_attention_and_by_later_recurrent_layers(
    layers: dict[str, int], mixes: bool
) -> None:
    backbone, waveforms = small_model("compat", **layers).backbone, waveforms_of(*EQUAL)
    together, alone = outputs(backbone, waveforms), [outputs(backbone, [w])[0] for w in waveforms]
    if not mixes:
        assert_same(together, alone)
        return
    for one, other in zip(together, alone, strict=True):
        assert_another(one, other)


def test_both_variants_have_the_same_weights() -> None:
    fixed, compat = small_model("fixed"), small_model("compat")
    assert count_parameters(fixed) == count_parameters(compat)
    state, other = fixed.state_dict(), compat.state_dict()
    assert list(state) == list(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())
    assert_another(*(outputs(model.backbone, waveforms_of(8000))[0] for model in (fixed, compat)))


def multihead_attention(layer: CnnLayer, *, batch_first: bool) -> nn.MultiheadAttention:
    attention = nn.MultiheadAttention(CHANNELS, 8, batch_first=batch_first)
    ours = layer.attention
    attention.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    return attention


@torch.no_grad()
def logits_as_published(
    model: AcousticModel, waveform_BS: Tensor, num_samples_B: Tensor, *, right_axes: bool
) -> Tensor:
    """The table of section 3 of shared/models_and_regimes.md, line by line, without any mask.

    As published, attention takes (batch, mel x time, channels) for (time, batch, channels), and recurrent layers but
    the first take (batch, time, width) for (time, batch, width). `right_axes`: over the mel bins of each frame, over
    time.
    """
    backbone = model.backbone
    assert isinstance(backbone, CnnGru)
    mel_BMT, _ = backbone.log_mel(waveform_BS, num_samples_B)
    x = F.conv2d(mel_BMT.unsqueeze(1), backbone.stem.weight, backbone.stem.bias, stride=2, padding=1)
    B, C, M, T = x.shape
    assert (C, M) == (CHANNELS, MEL)
    for layer in backbone.cnn:
        if right_axes:
            frames = x.permute(0, 3, 2, 1).reshape(B * T, M, C)
            y, _ = multihead_attention(layer, batch_first=True)(frames, frames, frames)
            y = y.reshape(B, T, M, C).permute(0, 3, 2, 1)
        else:
            flat = x.reshape(B, C, M * T).permute(0, 2, 1)
            y, _ = multihead_attention(layer, batch_first=False)(flat, flat, flat)
            y = y.permute(0, 2, 1).reshape(B, C, M, T)
        for norm, conv in zip(layer.norms, layer.convs, strict=True):
            y = F.layer_norm(y.permute(0, 1, 3, 2), (MEL,), norm.weight, norm.bias).permute(0, 1, 3, 2)
            y = F.conv2d(F.gelu(y), conv.weight, conv.bias, padding=1)
        x = x + y
    x = F.linear(x.reshape(B, C * M, T).transpose(1, 2), backbone.project.weight, backbone.project.bias)
    for i, layer in enumerate(backbone.gru):
        width = GRU if i == 0 else 2 * GRU
        gru = nn.GRU(width, GRU, bidirectional=True, batch_first=right_axes or i == 0)
        gru.load_state_dict(layer.gru.state_dict())
        x, _ = gru(F.gelu(F.layer_norm(x, (width,), layer.norm.weight, layer.norm.bias)))
    expand, _, _, classify = model.ctc_head
    return F.linear(F.gelu(F.linear(x, expand.weight, expand.bias)), classify.weight, classify.bias)


@torch.no_grad()
def logits_of(model: AcousticModel, waveform_BS: Tensor, num_samples_B: Tensor) -> Tensor:
    features_BTD, num_frames_B = model.backbone.features(waveform_BS, num_samples_B)
    return model.ctc_head(model.backbone.context(model.backbone.feature_norm(features_BTD), num_frames_B))


@pytest.mark.parametrize("lengths", [(8000,), EQUAL, (9000, 5000, 7777)], ids=str)
def test_compat_does_what_the_published_code_does(lengths: tuple[int, ...]) -> None:
    model = small_model("compat")
    batch = nn.utils.rnn.pad_sequence(waveforms_of(*lengths), batch_first=True), torch.tensor(lengths)
    expected = logits_as_published(model, *batch, right_axes=False)
    assert_close(logits_of(model, *batch), expected)
    assert expected.std() > 0.05


@pytest.mark.parametrize("lengths", [(8000,), (7777,), EQUAL], ids=str)
def test_fixed_does_what_the_published_code_would_do_with_the_right_axes(lengths: tuple[int, ...]) -> None:
    model = small_model("fixed")
    batch = nn.utils.rnn.pad_sequence(waveforms_of(*lengths), batch_first=True), torch.tensor(lengths)
    expected = logits_as_published(model, *batch, right_axes=True)
    assert_close(logits_of(model, *batch), expected)


@pytest.mark.parametrize("variant", ["fixed", "compat"])
@torch.no_grad()
def test_masked_frames_and_channels_are_zero_to_the_context(variant: str) -> None:
    backbone = small_model(variant).backbone
    features_BTD, num_frames_B = torch.randn(2, 20, MEL * CHANNELS), torch.tensor([20, 13])
    mask_BT, channels_BD = torch.zeros(2, 20, dtype=torch.bool), torch.zeros(2, MEL * CHANNELS, dtype=torch.bool)
    mask_BT[:, 4:9] = channels_BD[1, 10:20] = True
    zeroed = features_BTD.clone()
    zeroed[:, 4:9] = zeroed[1, :, 10:20] = 0
    masked = backbone.context(features_BTD, num_frames_B, mask_BT, channels_BD)
    assert torch.equal(masked, backbone.context(zeroed, num_frames_B))
    assert_another(masked, backbone.context(features_BTD, num_frames_B))


def test_features_of_a_frame_have_the_channels_of_a_mel_bin_side_by_side() -> None:
    backbone = small_model("fixed").backbone
    assert isinstance(backbone, CnnGru)
    waveform_BS, num_samples_B = torch.randn(1, 8000), torch.tensor([8000])
    features_BTD, num_frames_B = backbone.features(waveform_BS, num_samples_B)
    stem_BCMT = backbone.stem(backbone.log_mel(waveform_BS, num_samples_B)[0][:, None])
    assert features_BTD.shape == (1, int(num_frames_B), MEL * CHANNELS)
    for m in (0, 5):
        assert torch.equal(features_BTD[0, :, m * CHANNELS : (m + 1) * CHANNELS], stem_BCMT[0, :, m].T)
