from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainables.models.acoustic import AcousticModel
from trainables.models.attention import DisentangledAttention, RelativeEmbeddings
from trainables.models.checkpoints import read_checkpoint
from trainables.models.config import DisentangledAttentionConfig, TransformerConfig, bucket
from trainables.models.linear import Linear
from trainables.models.transformer import Transformer, TransformerLayer, normalise_waveform

SYMBOLS = 32
CONVOLUTIONS = {"conv_dim": (24,) * 7}
COMPACT = {"conv_dim": (8, 16, 16, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64)}
LAYER_NORM = {"feat_extract_norm": "layer", "conv_bias": True}
WAV2VEC2, SEW, SEW_D = ("Wav2Vec2", CONVOLUTIONS), ("SEW", COMPACT), ("SEWD", COMPACT)
# Of 64 features, SEW's width of 64 needs no projection and SEW-D's width of 48 does.
REFERENCES: dict[str, tuple[tuple[str, dict[str, Any]], dict[str, Any]]] = {
    "wav2vec2": (WAV2VEC2, {}),
    "wav2vec2, layer norm": (WAV2VEC2, LAYER_NORM),
    "wav2vec2, layer norm, pre-LN": (WAV2VEC2, {**LAYER_NORM, "do_stable_layer_norm": True}),
    "sew": (SEW, {"num_conv_pos_embeddings": 31}),
    "sew, even kernel": (SEW, {"num_conv_pos_embeddings": 128}),
    "sew, squeezed by 3": (SEW, {"num_conv_pos_embeddings": 31, "squeeze_factor": 3}),
    "sew, layer norm": (SEW, {"num_conv_pos_embeddings": 31, **LAYER_NORM}),
    "sew_d": (SEW_D, {"num_conv_pos_embeddings": 31, "hidden_size": 48}),
    "sew_d, layer norm": (SEW_D, {"num_conv_pos_embeddings": 31, "hidden_size": 48, **LAYER_NORM}),
    "sew_d, few buckets": (SEW_D, {"position_buckets": 8, "max_position_embeddings": 16}),
}
SMALL = {"width": 32, "heads": 2, "layers": 2, "feedforward_width": 48, "position_kernel": 7, "position_groups": 4}
FEW_BUCKETS = {"kind": "disentangled", "buckets": 8, "max_distance": 16}
CONTEXTS: dict[str, dict[str, Any]] = {
    "standard": {},
    "even kernel": {"position_kernel": 8},
    "pre-LN": {"norm_first": True},
    "squeezed": {"squeeze": 2},
    "squeezed by 3": {"squeeze": 3, "position_kernel": 8},
    "disentangled": {"squeeze": 2, "attention": FEW_BUCKETS},
    "disentangled, not squeezed": {"attention": FEW_BUCKETS},
}
EXTRACTORS: dict[str, dict[str, Any]] = {
    "layer norm": {"kind": "wave", "channels": 8, "norm": "layer"},
    "masked statistics": {"kind": "wave", "channels": 4, "compact": True, "masked_statistics": True},
    "filter bank": {"kind": "filter_bank", "channels": 4, "mel_bins": 16, "width": 32},
}


def perturbed(module: nn.Module) -> nn.Module:
    """Norms that scale and shift, biases that are not zero, and attention that is far from uniform."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            elif parameter.ndim == 2:
                parameter.mul_(4)
    return module.eval()


def reference_model(name: str) -> Any:
    """A random model of transformers with a CTC head."""
    (family, convolutions), settings = REFERENCES[name]
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    config = getattr(transformers, f"{family}Config")(**{**sizes, "vocab_size": SYMBOLS, **convolutions, **settings})
    torch.manual_seed(0)
    return perturbed(getattr(transformers, f"{family}ForCTC")(config))


def loaded(reference: Any, folder: Path) -> AcousticModel:
    reference.save_pretrained(folder)
    checkpoint = read_checkpoint(folder)
    model = AcousticModel(checkpoint.model, SYMBOLS, seed=0).eval()
    for part in ("backbone", "ctc_head"):
        checkpoint.load_into(model, part)
    return model


@pytest.fixture(scope="module", params=REFERENCES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, AcousticModel]:
    """A model of transformers and ours with its weights."""
    reference = reference_model(request.param)
    return reference, loaded(reference, tmp_path_factory.mktemp("reference"))


def samples_of(frames: int) -> int:
    return 400 + 320 * (frames - 1)


def random_batch(frames: Sequence[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise of these numbers of frames, padded with zeros."""
    generator = torch.Generator().manual_seed(seed)
    waveforms = [torch.randn(samples_of(n), generator=generator) for n in frames]
    return nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor([len(w) for w in waveforms])


def hidden_and_logits(
    model: AcousticModel, waveform_BS: Tensor, num_samples_B: Tensor, mask_BT: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    backbone = model.backbone
    with torch.no_grad():
        raw_BTD, num_frames_B = backbone.features(waveform_BS, num_samples_B)
        hidden_BTE = backbone.context(backbone.feature_norm(raw_BTD), num_frames_B, mask_BT)
        return hidden_BTE, model.ctc_head(hidden_BTE), num_frames_B


@torch.no_grad()
def reference_hidden_and_logits(
    reference: Any, waveform_BS: Tensor, num_samples_B: Tensor | None = None, mask_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    attention_mask = None
    if num_samples_B is not None:
        attention_mask = (torch.arange(waveform_BS.shape[1]) < num_samples_B[:, None]).long()
    hidden_BTE = reference.base_model(waveform_BS, attention_mask, mask_time_indices=mask_BT).last_hidden_state
    return hidden_BTE, reference.lm_head(hidden_BTE)


def assert_close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("frames", [3, 49, 50, 323, 1101])
def test_one_utterance_gives_what_transformers_gives(pair: tuple[Any, AcousticModel], frames: int) -> None:
    """1101 frames are 550 squeezed ones: beyond the last bucket of relative distance, 512."""
    reference, model = pair
    waveform_BS, num_samples_B = random_batch([frames])
    hidden, logits, num_frames_B = hidden_and_logits(model, waveform_BS, num_samples_B)
    expected_hidden, expected_logits = reference_hidden_and_logits(reference, waveform_BS)
    assert num_frames_B.tolist() == [frames]
    assert expected_logits.std() > 0.1
    assert_close(hidden, expected_hidden)
    assert_close(logits, expected_logits)


def test_gradients_are_those_of_transformers(pair: tuple[Any, AcousticModel]) -> None:
    """Of the waveform, which all layers shape, and of the head; relative to the largest."""
    reference, model = pair
    waveform_BS, num_samples_B = random_batch([60])
    ours, theirs = waveform_BS.clone().requires_grad_(), waveform_BS.clone().requires_grad_()
    backbone = model.backbone
    raw_BTD, num_frames_B = backbone.features(ours, num_samples_B)
    logits = model.ctc_head(backbone.context(backbone.feature_norm(raw_BTD), num_frames_B))
    expected_logits = reference(theirs).logits
    assert_close(logits, expected_logits)
    torch.manual_seed(0)
    weight = torch.randn_like(logits)
    gradients = torch.autograd.grad((logits * weight).sum(), [ours, model.ctc_head.weight])
    expected = torch.autograd.grad((expected_logits * weight).sum(), [theirs, reference.lm_head.weight])
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert_close(gradient / expected_gradient.abs().max(), expected_gradient / expected_gradient.abs().max())


def test_a_padded_batch_gives_what_transformers_gives(pair: tuple[Any, AcousticModel]) -> None:
    """Numbers of frames that squeezing divides, the longest apart: transformers rounds others up, see below."""
    reference, model = pair
    waveform_BS, num_samples_B = random_batch([103, 60, 36, 96])
    hidden, logits, num_frames_B = hidden_and_logits(model, waveform_BS, num_samples_B)
    expected_hidden, expected_logits = reference_hidden_and_logits(reference, waveform_BS, num_samples_B)
    for i, n in enumerate(num_frames_B.tolist()):
        assert_close(hidden[i, :n], expected_hidden[i, :n])
        assert_close(logits[i, :n], expected_logits[i, :n])


def test_masked_frames_are_those_of_transformers(pair: tuple[Any, AcousticModel]) -> None:
    reference, model = pair
    waveform_BS, num_samples_B = random_batch([60, 36])
    mask_BT = torch.zeros(2, 60, dtype=torch.bool)
    mask_BT[0, 5:25] = mask_BT[1, 30:33] = True
    hidden, _, _ = hidden_and_logits(model, waveform_BS, num_samples_B, mask_BT)
    expected, _ = reference_hidden_and_logits(reference, waveform_BS, num_samples_B, mask_BT)
    unmasked, _, _ = hidden_and_logits(model, waveform_BS, num_samples_B)
    for i, n in enumerate((60, 36)):
        assert_close(hidden[i, :n], expected[i, :n])
        assert (hidden[i, :n] - unmasked[i, :n]).abs().max() > 0.1


@pytest.mark.parametrize("name", ["sew, layer norm", "sew_d, layer norm"])
def test_an_odd_number_of_frames_in_a_padded_batch_is_rounded_down_and_not_up_as_in_transformers(
    name: str, tmp_path: Path
) -> None:
    """The published code floors the length, and so padding changes nothing; transformers pools its mask, which ceils.

    An extractor with layer norm, so that nothing else lets padding in.
    """
    reference = reference_model(name)
    model = loaded(reference, tmp_path)
    waveform_BS, num_samples_B = random_batch([100, 61])
    hidden, _, _ = hidden_and_logits(model, waveform_BS, num_samples_B)
    theirs, _ = reference_hidden_and_logits(reference, waveform_BS, num_samples_B)
    alone, _ = reference_hidden_and_logits(reference, waveform_BS[1:, : num_samples_B[1]])
    assert_close(hidden[0], theirs[0])
    assert_close(hidden[1, :61], alone[0])
    assert (theirs[1, :60] - alone[0, :60]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2, layer norm, pre-LN"])
@pytest.mark.parametrize("frames", [[49], [50], [700], [103, 60, 37]], ids=str)
def test_wav2vec2_gives_what_torchaudio_gives(name: str, frames: list[int], tmp_path: Path) -> None:
    from torchaudio.models.wav2vec2.utils import import_huggingface_model

    reference = reference_model(name)
    theirs, model = import_huggingface_model(reference).eval(), loaded(reference, tmp_path)
    waveform_BS, num_samples_B = random_batch(frames)
    hidden, logits, num_frames_B = hidden_and_logits(model, waveform_BS, num_samples_B)
    with torch.no_grad():
        features_BTD, lengths_B = theirs.feature_extractor(waveform_BS, num_samples_B)
        expected_hidden = theirs.encoder(features_BTD, lengths_B)
        expected_logits, _ = theirs(waveform_BS, num_samples_B)
    assert lengths_B.tolist() == num_frames_B.tolist() == frames
    for i, n in enumerate(frames):
        assert_close(hidden[i, :n], expected_hidden[i, :n])
        assert_close(logits[i, :n], expected_logits[i, :n])


def bucket_by_formula(distance: int, buckets: int = 256, longest: int = 512) -> int:
    """Section 1.1 of shared/models_and_regimes.md."""
    middle = buckets // 2
    if abs(distance) <= middle:
        return distance
    ratio = math.log(abs(distance) / middle) / math.log((longest - 1) / middle)
    return (1 if distance > 0 else -1) * (math.ceil(ratio * (middle - 1)) + middle)


@pytest.mark.parametrize(
    ("distance", "expected"), [(0, 0), (127, 127), (128, 128), (200, 169), (300, 207), (511, 255), (1000, 317)]
)
def test_buckets_of_relative_distance(distance: int, expected: int) -> None:
    """Check values of section 1.1, derived there from DeBERTa's formula."""
    config = DisentangledAttentionConfig()
    assert bucket(config, distance) == bucket_by_formula(distance) == expected
    assert bucket(config, -distance) == -expected


@pytest.mark.parametrize("num_frames", [1, 5, 129, 257, 513, 700])
def test_each_pair_of_frames_has_the_row_of_its_distance_in_the_table(num_frames: int) -> None:
    relative = RelativeEmbeddings(DisentangledAttentionConfig(), 4)
    positions = relative(num_frames)
    rows = torch.arange(512)[positions.rows][positions.index_TT]
    for i in range(0, num_frames, 64):
        expected = [min(max(bucket_by_formula(i - j) + 256, 0), 511) for j in range(num_frames)]
        assert rows[i].tolist() == expected
    assert_close(positions.embeddings_RE, relative.table()[positions.rows], 0)


def disentangled_case(
    config: DisentangledAttentionConfig, num_frames: int
) -> tuple[DisentangledAttention, RelativeEmbeddings, Tensor]:
    """Two heads of size 3 in float64, and two utterances."""
    torch.manual_seed(0)
    attention, relative = DisentangledAttention(6, 2, 0.0, 0.0).double(), RelativeEmbeddings(config, 6).double()
    for module in (attention, relative):
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    return attention, relative, torch.randn(2, num_frames, 6, dtype=torch.float64)


def attention_by_loops(
    attention: DisentangledAttention,
    relative: RelativeEmbeddings,
    x_BTE: Tensor,
    queries: Sequence[int],
    num_valid: Sequence[int],
) -> Tensor:
    """Equation 4 of DeBERTa with shared keys, one pair of frames at a time: the outputs of these queries."""
    config, width, size = relative.config, 6, 3
    table = F.layer_norm(relative.weight, (width,), relative.norm.weight, relative.norm.bias, 1e-7)
    w_q, w_k, w_v = attention.qkv.weight.split(width)
    b_q, b_k, b_v = attention.qkv.bias.split(width)
    position_queries, position_keys = table @ w_q.T + b_q, table @ w_k.T + b_k
    outputs = []
    for x_TE, valid in zip(x_BTE, num_valid, strict=True):
        q, k, v = x_TE @ w_q.T + b_q, x_TE @ w_k.T + b_k, x_TE @ w_v.T + b_v
        for i in queries:
            heads = []
            for head in (slice(0, size), slice(size, 2 * size)):
                scores = []
                for j in range(valid):
                    distance = bucket_by_formula(i - j, config.buckets, config.max_distance)
                    row = min(max(distance + config.buckets, 0), 2 * config.buckets - 1)
                    content = torch.dot(q[i, head], k[j, head])
                    to_position = torch.dot(q[i, head], position_keys[row, head])
                    from_position = torch.dot(k[j, head], position_queries[row, head])
                    scores.append((content + to_position + from_position) / math.sqrt(3 * size))
                heads.append(torch.stack(scores).softmax(0) @ v[:valid, head])
            outputs.append(torch.cat(heads) @ attention.out.weight.T + attention.out.bias)
    return torch.stack(outputs).unflatten(0, (len(x_BTE), len(queries)))


@pytest.mark.parametrize(
    ("config", "num_frames"),
    [
        (DisentangledAttentionConfig(buckets=8, max_distance=16), 24),
        (DisentangledAttentionConfig(buckets=8, max_distance=64), 12),
        (DisentangledAttentionConfig(), 9),
    ],
    ids=["to beyond the last bucket", "not to the last bucket", "exact distances"],
)
def test_disentangled_attention_and_its_gradient_agree_with_loops(
    config: DisentangledAttentionConfig, num_frames: int
) -> None:
    attention, relative, x_BTE = disentangled_case(config, num_frames)
    x_BTE.requires_grad_()
    num_valid = [num_frames, num_frames - 3]
    valid_BT = torch.arange(num_frames) < torch.tensor(num_valid)[:, None]
    ours = attention(x_BTE, valid_BT, relative(num_frames))
    expected = attention_by_loops(attention, relative, x_BTE, range(num_frames), num_valid)
    assert_close(ours, expected, 1e-12)

    weight = torch.randn_like(ours)
    inputs = [x_BTE, *attention.parameters(), *relative.parameters()]
    gradients = torch.autograd.grad((ours * weight).sum(), inputs)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), inputs)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert expected_gradient.abs().max() > 1e-3
        assert_close(gradient, expected_gradient, 1e-11)


def test_disentangled_attention_of_a_long_utterance_agrees_with_loops_at_some_frames() -> None:
    """600 frames: exact, logarithmic and clamped distances of the published table."""
    attention, relative, x_BTE = disentangled_case(DisentangledAttentionConfig(), 600)
    queries = [0, 300, 599]
    with torch.no_grad():
        ours = attention(x_BTE[:1], None, relative(600))
        assert_close(ours[:, queries], attention_by_loops(attention, relative, x_BTE[:1], queries, [600]), 1e-12)


def test_a_length_seen_in_inference_mode_can_be_trained_on() -> None:
    """Rows of the table are remembered by length."""
    config = DisentangledAttentionConfig(buckets=8, max_distance=17)
    attention, relative, x_BTE = disentangled_case(config, 11)
    with torch.inference_mode():
        attention(x_BTE, None, relative(11))
    attention(x_BTE, None, relative(11)).sum().backward()
    assert relative.weight.grad is not None


def small_backbone(*parts: dict[str, Any], **settings: Any) -> Transformer:
    given = {**SMALL, "extractor": EXTRACTORS["layer norm"]}
    for part in (*parts, settings):
        given |= part
    torch.manual_seed(0)
    backbone = perturbed(Transformer(TransformerConfig.model_validate(given)))
    assert isinstance(backbone, Transformer)
    return backbone


@torch.no_grad()
def outputs(backbone: Transformer, waveforms: list[Tensor], *, padding: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Valid features and context of each utterance of a batch, padded to the longest and `padding` samples more."""
    waveform_BS = F.pad(nn.utils.rnn.pad_sequence(waveforms, batch_first=True), (0, padding))
    raw_BTD, num_frames_B = backbone.features(waveform_BS, torch.tensor([len(w) for w in waveforms]))
    context_BTE = backbone.context(backbone.feature_norm(raw_BTD), num_frames_B)
    assert context_BTE.shape == (*raw_BTD.shape[:2], 32)
    return [(raw_BTD[i, :n], context_BTE[i, :n]) for i, n in enumerate(num_frames_B.tolist())]


def waveforms_of(*frames: int) -> list[Tensor]:
    """Noise under a slow swell, not a whole number of frames, of different loudness and offset."""
    generator = torch.Generator().manual_seed(2)
    waveforms = []
    for index, n in enumerate(frames):
        noise = torch.randn(samples_of(n) + 100 * (index + 1), generator=generator)
        waveforms.append((0.3 + index) * noise * torch.linspace(0.2, 1, len(noise)) + 0.1 * index)
    return waveforms


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_padding_changes_no_valid_frame(extractor: str, context: str) -> None:
    """Neighbours that are longer, with odd and even numbers of frames, and zeros after the longest.

    Outputs of up to 16: rounding was measured to give up to 8e-5, and 1e-14 in float64; a leak gives 0.01 and more.
    """
    backbone = small_backbone({"extractor": EXTRACTORS[extractor]}, CONTEXTS[context])
    waveforms = waveforms_of(49, 36, 25, 7)
    alone = [outputs(backbone, [w])[0] for w in waveforms]
    for padding in (0, 320, 5000):
        for (features, frames), (padded_features, padded_frames) in zip(
            alone, outputs(backbone, waveforms, padding=padding), strict=True
        ):
            assert_close(padded_features, features, 2e-5)
            assert_close(padded_frames, frames, 3e-4)
            assert frames.std() > 0.05


def test_padding_changes_no_valid_frame_of_normalised_waveforms() -> None:
    backbone = small_backbone(normalise_waveform=True)
    waveforms = waveforms_of(30, 17)
    for (_, together), waveform in zip(outputs(backbone, waveforms, padding=999), waveforms, strict=True):
        assert_close(together, outputs(backbone, [waveform])[0][1], 2e-5)
        assert_close(together, outputs(backbone, [3 * waveform + 1])[0][1], 1e-4)


@pytest.mark.parametrize("compact", [False, True])
def test_padding_changes_valid_frames_of_group_norm_unless_statistics_are_masked(compact: bool) -> None:
    extractor = {"kind": "wave", "channels": 8, "compact": compact}
    published = small_backbone({"extractor": extractor})
    masked = small_backbone({"extractor": {**extractor, "masked_statistics": True}})
    masked.load_state_dict(published.state_dict())
    waveforms = waveforms_of(40, 21)
    for waveform in waveforms:
        ((features, context),) = outputs(published, [waveform])
        ((masked_features, masked_context),) = outputs(masked, [waveform])
        assert_close(masked_features, features)
        assert_close(masked_context, context)
    together, alone = outputs(published, waveforms)[1], outputs(published, waveforms[1:])[0]
    assert (together[0] - alone[0]).abs().max() > 0.1
    assert (together[1] - alone[1]).abs().max() > 0.1


@pytest.mark.parametrize("context", CONTEXTS)
@torch.no_grad()
def test_masked_frames_are_hidden_from_the_context_and_others_are_not(context: str) -> None:
    backbone = small_backbone(CONTEXTS[context])
    features_BTD, num_frames_B = torch.randn(2, 30, 8), torch.tensor([30, 21])
    mask_BT = torch.zeros(2, 30, dtype=torch.bool)
    mask_BT[:, 5:12] = True
    hidden = backbone.context(features_BTD, num_frames_B, mask_BT)
    elsewhere = torch.where(mask_BT[..., None], 100 * torch.randn_like(features_BTD), features_BTD)
    assert torch.equal(backbone.context(elsewhere, num_frames_B, mask_BT), hidden)
    visible = features_BTD.clone()
    visible[0, 12] += 1
    changed = backbone.context(visible, num_frames_B, mask_BT)
    assert not torch.allclose(changed[0], hidden[0], atol=1e-3)
    assert torch.equal(changed[1], hidden[1])


@torch.no_grad()
def test_masks_act_on_the_projected_features_and_channels_win_over_frames() -> None:
    backbone = small_backbone()
    seen: list[Tensor] = []
    backbone.positions.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    features_BTD, num_frames_B = torch.randn(2, 10, 8), torch.tensor([10, 7])
    mask_BT, channels_BE = torch.zeros(2, 10, dtype=torch.bool), torch.zeros(2, 32, dtype=torch.bool)
    mask_BT[0, 3] = mask_BT[1, 6:] = channels_BE[0, 4:6] = channels_BE[1, 31] = True
    backbone.context(features_BTD, num_frames_B, mask_BT, channels_BE)
    expected = backbone.project(features_BTD)
    expected[0, 3] = expected[1, 6] = backbone.mask_embedding
    expected[0, :, 4:6] = expected[1, :, 31] = expected[1, 7:] = 0
    assert torch.equal(seen[0], expected)
    assert backbone.mask_width == 32


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_outputs_are_the_same_with_and_without_gradients(extractor: str, context: str) -> None:
    """Without, activations are made in place, and an extractor takes 20 s of audio at a time: here two rows, one."""
    backbone = small_backbone({"extractor": EXTRACTORS[extractor]}, CONTEXTS[context])
    waveforms = waveforms_of(450, 20, 9)
    waveform_BS = nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    num_samples_B = torch.tensor([len(w) for w in waveforms])
    raw_BTD, num_frames_B = backbone.features(waveform_BS, num_samples_B)
    context_BTE = backbone.context(backbone.feature_norm(raw_BTD), num_frames_B)
    with torch.no_grad():
        raw, frames = backbone.features(waveform_BS, num_samples_B)
        assert torch.equal(frames, num_frames_B)
        assert_close(raw, raw_BTD, 2e-5)
        valid_BT = torch.arange(raw.shape[1]) < frames[:, None]
        hidden = backbone.context(backbone.feature_norm(raw), frames)
        assert_close(hidden[valid_BT], context_BTE[valid_BT], 3e-4)


@pytest.mark.parametrize("shape", [(5,), (2, 7), (2, 3, 4), (0,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_and_their_gradients_are_those_of_torch(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = Linear(48, 33, bias=bias), nn.Linear(48, 33, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(*shape, 48, requires_grad=True)
    weight = torch.randn(*shape, 33)
    results = [layer(x) for layer in (ours, theirs)]
    assert_close(*results)
    with torch.no_grad():
        assert_close(ours(x), results[1])
    gradients, expected = (
        torch.autograd.grad((result * weight).sum(), [x, *layer.parameters()])
        for layer, result in zip((ours, theirs), results, strict=True)
    )
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert_close(gradient, expected_gradient)


def layers_run(backbone: Transformer, seed: int | None) -> list[int]:
    run: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda *_, index=index: run.append(index))
        for index, layer in enumerate(backbone.layers)
    ]
    with torch.no_grad():
        backbone.context(torch.ones(1, 3, 8), torch.tensor([3]), seed=seed)
    for hook in hooks:
        hook.remove()
    return run


NO_DROPOUT = {"hidden": 0, "attention": 0, "activation": 0, "input": 0, "features": 0}


def layer_drop_backbone(probability: float, *, layers: int = 4) -> Transformer:
    return small_backbone(layers=layers, dropout={**NO_DROPOUT, "layer": probability}).train()


def test_layer_drop_depends_on_the_seed_alone() -> None:
    one, two = layer_drop_backbone(0.5, layers=6), layer_drop_backbone(0.5, layers=6)
    torch.manual_seed(5)
    runs = [layers_run(one, seed) for seed in range(20)]
    assert runs == [layers_run(two, seed) for seed in range(20)]
    assert len({tuple(run) for run in runs}) > 10


@pytest.mark.parametrize("probability", [0.05, 0.3])
def test_layer_drop_leaves_out_its_share_of_each_layer(probability: float) -> None:
    """Of 500 seeds, within 4 standard deviations."""
    backbone = layer_drop_backbone(probability)
    runs = [layers_run(backbone, seed) for seed in range(500)]
    tolerance = 4 * math.sqrt(probability * (1 - probability) / 500)
    for layer in range(4):
        share = sum(layer not in run for run in runs) / 500
        assert share == pytest.approx(probability, abs=tolerance)


def test_no_layer_is_dropped_in_evaluation_or_without_a_seed() -> None:
    backbone = layer_drop_backbone(0.9)
    assert all(layers_run(backbone, None) == [0, 1, 2, 3] for _ in range(5))
    backbone.eval()
    assert all(layers_run(backbone, seed) == [0, 1, 2, 3] for seed in range(20))


def test_a_dropped_layer_passes_its_input_on_and_has_a_gradient_of_zero() -> None:
    backbone = layer_drop_backbone(0.5)
    kept = layers_run(backbone, 3)
    assert 0 < len(kept) < 4
    features_BTD, num_frames_B = torch.randn(2, 12, 8), torch.tensor([12, 9])
    hidden = backbone.context(features_BTD, num_frames_B, seed=3)
    shorter = copy.deepcopy(backbone)
    shorter.layers = nn.ModuleList([shorter.layers[index] for index in kept])
    assert torch.equal(hidden, shorter.context(features_BTD, num_frames_B))
    hidden.square().sum().backward()
    for index, layer in enumerate(backbone.layers):
        for parameter in layer.parameters():
            assert parameter.grad is not None
        assert any(bool(parameter.grad.any()) for parameter in layer.parameters()) == (index in kept)


@pytest.mark.parametrize("context", CONTEXTS)
@torch.no_grad()
def test_preparing_for_inference_changes_no_output(context: str) -> None:
    backbone, prepared = small_backbone(CONTEXTS[context]), small_backbone(CONTEXTS[context])
    for _ in range(2):
        prepared.prepare_for_inference()
        assert not parametrize.is_parametrized(prepared.positions.conv)
        if prepared.relative is not None:
            assert all(layer.attention.projected_positions is not None for layer in prepared.layers)
        assert not any("parametrizations" in name for name in prepared.state_dict())
        for frames in ([3], [40], [25, 12]):
            features_BTD, num_frames_B = torch.randn(len(frames), frames[0], 8), torch.tensor(frames)
            assert_close(
                prepared.context(features_BTD, num_frames_B), backbone.context(features_BTD, num_frames_B), 1e-6
            )
    assert parametrize.is_parametrized(backbone.positions.conv)


def test_a_normalised_waveform_has_zero_mean_and_unit_variance_over_its_own_samples() -> None:
    torch.manual_seed(0)
    waveforms = [3 * torch.randn(5000) + 2, 0.1 * torch.randn(3001) - 1]
    waveform_BS, num_samples_B = nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor([5000, 3001])
    normalised = normalise_waveform(waveform_BS, num_samples_B)
    for row, n in zip(normalised, (5000, 3001), strict=True):
        assert row[:n].mean().item() == pytest.approx(0, abs=1e-5)
        assert row[:n].std(correction=0).item() == pytest.approx(1, abs=1e-3)
        assert not row[n:].any()
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    expected = extractor([w.numpy() for w in waveforms], sampling_rate=16_000, padding=True, return_tensors="pt")
    assert_close(normalised, expected.input_values)


@pytest.mark.parametrize("attention", [{"kind": "standard"}, FEW_BUCKETS], ids=["standard", "disentangled"])
@pytest.mark.parametrize("squeeze", [2, 3])
@torch.no_grad()
def test_a_squeezed_context_has_as_many_frames_as_the_features(squeeze: int, attention: dict[str, Any]) -> None:
    """Frames that fill no group of the squeeze factor are zero."""
    backbone = small_backbone(squeeze=squeeze, attention=attention)
    for frames in range(squeeze, 14):
        context_BTE = backbone.context(torch.randn(1, frames, 8), torch.tensor([frames]))
        assert context_BTE.shape == (1, frames, 32)
        filled = frames // squeeze * squeeze
        assert context_BTE[0, :filled].any(1).all()
        assert not context_BTE[0, filled:].any()


@pytest.mark.parametrize(("name", "tolerance"), [("wav2vec2", 0.062), ("sew_d", 0.02)])
def test_log_probabilities_under_bfloat16_autocast_are_near_those_of_float32(
    name: str, tolerance: float, tmp_path: Path
) -> None:
    """Twice the largest differences measured, 0.031 and 0.010; 0.45 with oneDNN's narrow groups on Intel AMX."""
    model = loaded(reference_model(name), tmp_path)
    waveform_BS, num_samples_B = random_batch([60, 41])
    _, logits, num_frames_B = hidden_and_logits(model, waveform_BS, num_samples_B)
    with torch.autocast("cpu", torch.bfloat16):
        _, rough, _ = hidden_and_logits(model, waveform_BS, num_samples_B)
    differences = [
        (rough[i, :n].float().log_softmax(1) - logits[i, :n].log_softmax(1)).abs().max().item()
        for i, n in enumerate(num_frames_B.tolist())
    ]
    assert 0 < max(differences) < tolerance


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("context", ["standard", "disentangled"])
@torch.no_grad()
def test_a_compiled_layer_gives_what_it_gives_uncompiled(context: str) -> None:
    backbone = small_backbone(CONTEXTS[context])
    layer = backbone.layers[0]
    assert isinstance(layer, TransformerLayer)
    x_BTE, valid_BT = torch.randn(2, 20, 32), torch.arange(20) < torch.tensor([20, 13])[:, None]
    positions = backbone.relative(20) if backbone.relative is not None else None
    compiled = torch.compile(layer)
    assert_close(compiled(x_BTE, valid_BT, positions), layer(x_BTE, valid_BT, positions))
