"""Weights of other projects, read and written."""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCTC,
    AutoProcessor,
    SEWConfig,
    SEWDConfig,
    SEWDForCTC,
    SEWDModel,
    SEWForCTC,
    SEWModel,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Model,
    Wav2Vec2Processor,
)

from trainables.data.text import Characters
from trainables.decoding.greedy import greedy_decode
from trainables.models import checkpoint_files
from trainables.models.acoustic import AcousticModel
from trainables.models.checkpoint_files import (
    CheckpointError,
    described_model,
    differences,
    fingerprint,
    local_copy,
    locate,
)
from trainables.models.checkpoints import Checkpoint, check_fits, read_checkpoint, write_huggingface
from trainables.models.config import (
    CnnGruConfig,
    CompactCnnGruConfig,
    DisentangledAttentionConfig,
    DropoutConfig,
    FilterBankExtractorConfig,
    LinearProjectionConfig,
    MlpProjectionConfig,
    QuantiserConfig,
    TransformerConfig,
    WaveExtractorConfig,
)
from trainables.models.presets import ModelConfig

M = TypeVar("M", bound=nn.Module)
PARTS = ("backbone", "ctc_head", "self_supervised_head")
NUM_SAMPLES = (8_000, 9_037)  # 24 and 27 frames: with and without a last frame that fills no group of two


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def randomised(model: M, seed: int = 0) -> M:
    """No weight keeps what it was initialised with; the positive ones stay positive."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(1 + torch.rand(tensor.shape, generator=generator))
            tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
        else:
            tensor.fill_(17)
    return model.eval()


def drawn(kind: Any, config: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomised(kind(config))


def acoustic_model(config: ModelConfig, num_symbols: int = 5) -> AcousticModel:
    return randomised(AcousticModel(config, num_symbols, seed=0))


def loaded(checkpoint: Checkpoint, num_symbols: int, *parts: str) -> AcousticModel:
    model = AcousticModel(checkpoint.model, num_symbols, seed=1)
    for part in parts:
        checkpoint.load_into(model, part)
    return model.eval()


def waveform_of(num_samples: int, seed: int = 0) -> Tensor:
    """(1, num_samples) noise whose loudness varies, neither of zero mean nor of unit variance."""
    generator = torch.Generator().manual_seed(seed)
    loudness_S = torch.rand(num_samples // 400 + 1, generator=generator).repeat_interleave(400)[:num_samples]
    return (0.3 * torch.randn(num_samples, generator=generator) * loudness_S + 0.05)[None]


@torch.no_grad()
def context_of(model: AcousticModel, waveform_BS: Tensor) -> Tensor:
    num_samples_B = torch.full((len(waveform_BS),), waveform_BS.shape[1])
    features_BTD, num_frames_B = model.backbone.features(waveform_BS, num_samples_B)
    return model.backbone.context(model.backbone.feature_norm(features_BTD), num_frames_B)


@torch.no_grad()
def logits_of(model: AcousticModel, waveform_BS: Tensor) -> Tensor:
    return model.ctc_head(context_of(model, waveform_BS))


def assert_same_logits(ours: AcousticModel, theirs: nn.Module) -> None:
    for num_samples in NUM_SAMPLES:
        waveform_BS = waveform_of(num_samples)
        with torch.no_grad():
            expected_BTV = theirs(waveform_BS).logits
        assert expected_BTV.std() > 0.01
        torch.testing.assert_close(logits_of(ours, waveform_BS), expected_BTV, rtol=0, atol=1e-5)


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    expected = other.state_dict()
    assert one.state_dict().keys() == expected.keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, changes: Mapping[str, Tensor | None]) -> None:
    """Replace or add the weights of a folder; None removes one."""
    weights = load_file(folder / "model.safetensors") | changes
    kept = {name: tensor.contiguous() for name, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


# Reading Hugging Face folders

SHARED = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_conv_pos_embeddings": 7,
    "num_conv_pos_embedding_groups": 8,
    "hidden_dropout": 0.11,
    "attention_dropout": 0.12,
    "activation_dropout": 0.13,
    "feat_proj_dropout": 0.14,
    "layerdrop": 0.16,
    "vocab_size": 9,
}
WAV2VEC2 = {
    **SHARED,
    "conv_dim": (24,) * 7,
    "feat_quantizer_dropout": 0.15,
    "num_codevectors_per_group": 6,
    "codevector_dim": 20,
    "proj_codevector_dim": 20,
}
LAYER_NORM = {**WAV2VEC2, "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
COMPACT = (8, 16, 16, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64)
SEW = {**SHARED, "conv_dim": COMPACT}
SEW_D = {**SEW, "position_buckets": 8, "max_position_embeddings": 20}

READ_WAV2VEC2 = TransformerConfig(
    extractor=WaveExtractorConfig(channels=24),
    width=32,
    layers=2,
    heads=4,
    feedforward_width=48,
    position_kernel=7,
    position_groups=8,
    dropout=DropoutConfig(hidden=0.11, attention=0.12, activation=0.13, input=0.14, features=0.15, layer=0.16),
    quantiser=QuantiserConfig(entries=6, dim=20),
)
READ_LAYER_NORM = READ_WAV2VEC2.with_(extractor=WaveExtractorConfig(channels=24, norm="layer"), norm_first=True)
READ_SEW = READ_WAV2VEC2.with_(
    extractor=WaveExtractorConfig(channels=8, compact=True),
    squeeze=2,
    dropout=READ_WAV2VEC2.dropout.with_(features=0.0),
    quantiser=QuantiserConfig(),
)
READ_SEW_D = READ_SEW.with_(attention=DisentangledAttentionConfig(buckets=8, max_distance=20))

WITH_CTC_HEAD = {
    "wav2vec2": (Wav2Vec2ForCTC, Wav2Vec2Config(**WAV2VEC2), READ_WAV2VEC2),
    "wav2vec2 layer norm": (Wav2Vec2ForCTC, Wav2Vec2Config(**LAYER_NORM), READ_LAYER_NORM),
    "sew": (SEWForCTC, SEWConfig(**SEW), READ_SEW),
    "sew-d": (SEWDForCTC, SEWDConfig(**SEW_D), READ_SEW_D),
}
OTHERS = {
    "self-supervised": (Wav2Vec2ForPreTraining, Wav2Vec2Config(**WAV2VEC2), READ_WAV2VEC2),
    "bare": (Wav2Vec2Model, Wav2Vec2Config(**LAYER_NORM), READ_LAYER_NORM),
}


@functools.cache
def their_model(name: str) -> nn.Module:
    kind, config, _ = (WITH_CTC_HEAD | OTHERS)[name]
    return drawn(kind, config)


def save(name: str, folder: Path, **options: Any) -> Path:
    their_model(name).save_pretrained(folder, **options)
    return folder


@pytest.mark.parametrize("name", [*WITH_CTC_HEAD, *OTHERS])
def test_settings_of_a_hugging_face_folder_are_read(name: str, tmp_path: Path) -> None:
    expected = (WITH_CTC_HEAD | OTHERS)[name][2]
    assert described_model(save(name, tmp_path)) == expected
    assert read_checkpoint(tmp_path).model == expected


@pytest.mark.parametrize("name", WITH_CTC_HEAD)
def test_a_hugging_face_model_with_a_ctc_head_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save(name, tmp_path))
    model = loaded(checkpoint, 9, "backbone", "ctc_head")
    assert_same_logits(model, their_model(name))
    (theirs,) = (t for n, t in their_model(name).state_dict().items() if n.endswith("masked_spec_embed"))
    assert torch.equal(model.backbone.mask_embedding, theirs)
    assert [checkpoint.holds(model, part) for part in PARTS] == [True, True, False]


@torch.no_grad()
def test_a_hugging_face_model_with_a_self_supervised_head_quantises_and_projects_the_same(tmp_path: Path) -> None:
    theirs = their_model("self-supervised")
    checkpoint = read_checkpoint(save("self-supervised", tmp_path))
    model = loaded(checkpoint, 9, "backbone", "self_supervised_head")
    head = model.self_supervised_head
    generator = torch.Generator().manual_seed(0)
    features_ND, context_NC = (torch.randn(50, width, generator=generator) for width in (24, 32))
    vectors_BND, _ = theirs.quantizer(features_ND[None])
    assert len(vectors_BND[0].unique(dim=0)) > 5
    torch.testing.assert_close(head.quantiser(features_ND, 1.0, None).vectors_ND, vectors_BND[0])
    for (group, entry), expected in {(0, 0): 0, (0, 5): 5, (1, 0): 6, (1, 5): 11}.items():
        assert torch.equal(head.quantiser.codewords_GVd[group, entry], theirs.quantizer.codevectors[0, expected])
    torch.testing.assert_close(head.project_context(context_NC), theirs.project_hid(context_NC))
    torch.testing.assert_close(head.project_target(vectors_BND[0]), theirs.project_q(vectors_BND[0]))
    expected_BTC = theirs.wav2vec2(waveform_of(8_000)).last_hidden_state
    torch.testing.assert_close(context_of(model, waveform_of(8_000)), expected_BTC, rtol=0, atol=1e-5)
    assert [checkpoint.holds(model, part) for part in PARTS] == [True, False, True]


@torch.no_grad()
def test_a_bare_hugging_face_model_has_no_prefix_and_no_heads(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save("bare", tmp_path))
    assert "encoder.layer_norm.weight" in load_file(tmp_path / "model.safetensors")
    model = loaded(checkpoint, 9, "backbone")
    expected_BTC = their_model("bare")(waveform_of(8_000)).last_hidden_state
    torch.testing.assert_close(context_of(model, waveform_of(8_000)), expected_BTC, rtol=0, atol=1e-5)
    assert [checkpoint.holds(model, part) for part in PARTS] == [True, False, False]


@pytest.mark.parametrize("name", WITH_CTC_HEAD)
@pytest.mark.parametrize(
    "leaves",
    [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")],
    ids=["old", "new"],
)
def test_both_names_of_weight_norm_are_understood(name: str, leaves: tuple[str, str], tmp_path: Path) -> None:
    weights = load_file(save(name, tmp_path) / "model.safetensors")
    (magnitude,) = (n for n in weights if n.endswith(("weight_g", "weight.original0")))
    (direction,) = (n for n in weights if n.endswith(("weight_v", "weight.original1")))
    stem = magnitude.partition(".conv.")[0] + ".conv."
    removed = dict.fromkeys((magnitude, direction))
    edit_weights(tmp_path, removed | {stem + leaves[0]: weights[magnitude], stem + leaves[1]: weights[direction]})
    model = loaded(read_checkpoint(tmp_path), 9, "backbone", "ctc_head")
    assert_same_logits(model, their_model(name))


def test_sharded_weights_are_put_together(tmp_path: Path) -> None:
    save("wav2vec2", tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same_logits(loaded(read_checkpoint(tmp_path), 9, "backbone", "ctc_head"), their_model("wav2vec2"))


@pytest.mark.parametrize("shards", [1, 2])
def test_weights_in_pytorch_s_own_format_are_read(shards: int, tmp_path: Path) -> None:
    (save("wav2vec2", tmp_path) / "model.safetensors").unlink()
    weights = list(their_model("wav2vec2").state_dict().items())
    for i in range(shards):
        name = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{i + 1:05}-of-{shards:05}.bin"
        torch.save(OrderedDict(weights[i::shards]), tmp_path / name)
    assert_same_logits(loaded(read_checkpoint(tmp_path), 9, "backbone", "ctc_head"), their_model("wav2vec2"))


def test_weights_of_16_bits_are_read_as_32(tmp_path: Path) -> None:
    weights = load_file(save("wav2vec2", tmp_path) / "model.safetensors")
    edit_weights(tmp_path, {name: tensor.half() for name, tensor in weights.items()})
    model = loaded(read_checkpoint(tmp_path), 9, "ctc_head")
    assert torch.equal(model.ctc_head.weight, weights["lm_head.weight"].half().float())


def test_a_mask_embedding_that_transformers_left_out_stays_as_initialised(tmp_path: Path) -> None:
    config = Wav2Vec2Config(**WAV2VEC2, mask_time_prob=0.0, mask_feature_prob=0.0)
    theirs = drawn(Wav2Vec2ForCTC, config)
    theirs.save_pretrained(tmp_path)
    assert not any("masked_spec_embed" in name for name in load_file(tmp_path / "model.safetensors"))
    checkpoint = read_checkpoint(tmp_path)
    model = loaded(checkpoint, 9, "backbone", "ctc_head")
    assert_same_logits(model, theirs)
    fresh = AcousticModel(checkpoint.model, 9, seed=1)
    assert torch.equal(model.backbone.mask_embedding, fresh.backbone.mask_embedding)


def test_sew_without_a_feature_projection_is_read(tmp_path: Path) -> None:
    theirs = drawn(SEWForCTC, SEWConfig(**SEW | {"hidden_size": 64}))
    theirs.save_pretrained(tmp_path)
    assert not any("feature_projection" in name for name in load_file(tmp_path / "model.safetensors"))
    assert_same_logits(loaded(read_checkpoint(tmp_path), 9, "backbone", "ctc_head"), theirs)


@pytest.mark.parametrize(
    ("diagonal", "bias"), [(1.0, 0.0), (1.1, 0.0), (1.0, 0.1)], ids=["identity", "scaled", "shifted"]
)
def test_a_projection_between_equal_widths_is_left_out_when_it_does_nothing_and_else_refused(
    diagonal: float, bias: float, tmp_path: Path
) -> None:
    theirs = drawn(Wav2Vec2ForCTC, Wav2Vec2Config(**WAV2VEC2 | {"conv_dim": (32,) * 7}))
    projection = theirs.wav2vec2.feature_projection.projection
    projection.weight.data = diagonal * torch.eye(32)
    projection.bias.data.fill_(bias)
    theirs.save_pretrained(tmp_path)
    if (diagonal, bias) == (1.0, 0.0):
        assert_same_logits(loaded(read_checkpoint(tmp_path), 9, "backbone", "ctc_head"), theirs)
    else:
        with pytest.raises(CheckpointError, match=r"not in the model: feature_projection\.projection\."):
            loaded(read_checkpoint(tmp_path), 9, "backbone")


@pytest.mark.parametrize(("kind", "config"), [(c.model_type, c) for c in (Wav2Vec2Config, SEWConfig, SEWDConfig)])
def test_a_setting_that_is_not_given_is_the_default_of_transformers(kind: str, config: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    short = described_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config().to_dict()))
    assert short == described_model(tmp_path)


def test_sew_d_computes_with_its_own_epsilon_whatever_early_settings_say(tmp_path: Path) -> None:
    """Configs of 2021 say 1e-5 and `gelu`; the code that trained the models has 1e-7."""
    edit_json(save("sew-d", tmp_path) / "config.json", layer_norm_eps=1e-5, hidden_act="gelu")
    assert_same_logits(loaded(read_checkpoint(tmp_path), 9, "backbone", "ctc_head"), their_model("sew-d"))


@pytest.mark.parametrize("do_normalize", [True, False])
def test_whether_waveforms_are_normalised_is_read_from_the_preprocessor(do_normalize: bool, tmp_path: Path) -> None:
    Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(save("wav2vec2", tmp_path))
    assert (tmp_path / "preprocessor_config.json").is_file()
    assert read_checkpoint(tmp_path).model == READ_WAV2VEC2.with_(normalise_waveform=do_normalize)


# Vocabularies with the blank elsewhere than at 0

SPANISH = "el niño está aquí y el perro es suyo"
VOCABULARIES = {
    "blank last": ["|", "a", "b", "c", "'", "ñ", "[UNK]", "[PAD]"],
    "blank inside": ["a", "b", "|", "[PAD]", "c", "ñ", "á", "[UNK]"],
    "blank first": ["<pad>", "<unk>", "|", "E", "T", "A", "'", "N"],
}


def processor_of(tokens: Sequence[str], folder: Path, *, do_normalize: bool = True) -> Wav2Vec2Processor:
    """What transformers' own fine-tuning guide makes: the tokenizer adds <s> and </s> after the vocabulary."""
    vocabulary = folder / "tokens.json"
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (blank,) = (token for token in tokens if token in {"[PAD]", "<pad>"})
    (unknown,) = (token for token in tokens if token in {"[UNK]", "<unk>"})
    tokenizer = Wav2Vec2CTCTokenizer(
        str(vocabulary), unk_token=unknown, pad_token=blank, word_delimiter_token="|", do_lower_case=False
    )
    return Wav2Vec2Processor(Wav2Vec2FeatureExtractor(do_normalize=do_normalize), tokenizer)


@torch.no_grad()
def tell_frames_apart(head: nn.Linear, frames_TE: Tensor, blank: int) -> None:
    """Each symbol is likely at frames that resemble one of these, and the blank a little likelier."""
    mean_E = frames_TE.mean(0)
    chosen_V = torch.linspace(0, len(frames_TE) - 1, head.out_features).long()
    head.weight.copy_(nn.functional.normalize(frames_TE - mean_E)[chosen_V])
    head.bias.copy_(-head.weight @ mean_E)
    head.bias[blank] += 0.5 * head(frames_TE).std()


def save_recogniser(tokens: Sequence[str], folder: Path) -> tuple[Wav2Vec2ForCTC, Wav2Vec2Processor]:
    """A model whose head tells frames apart and never chooses what writes no text but the blank."""
    processor = processor_of(tokens, folder)
    blank = processor.tokenizer.pad_token_id
    config = Wav2Vec2Config(**LAYER_NORM | {"vocab_size": len(processor.tokenizer), "pad_token_id": blank})
    theirs = drawn(Wav2Vec2ForCTC, config)
    with torch.no_grad():
        tell_frames_apart(theirs.lm_head, theirs.wav2vec2(normalised(processor, waveform_of(40_000)))[0][0], blank)
        silent = {*processor.tokenizer.all_special_ids} - {blank, tokens.index("|")}
        theirs.lm_head.bias[[*silent]] = -1000.0
    theirs.save_pretrained(folder)
    processor.feature_extractor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    return theirs, processor


def normalised(processor: Wav2Vec2Processor, waveform_1S: Tensor) -> Tensor:
    return processor(waveform_1S[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values


def decoded(logits_TV: Tensor, symbols: Sequence[str]) -> str:
    best = torch.unique_consecutive(logits_TV.argmax(1)).tolist()
    return "".join(symbols[i] for i in best if i != 0).strip()


@pytest.mark.parametrize("tokens", VOCABULARIES.values(), ids=VOCABULARIES)
def test_text_is_that_of_transformers_wherever_the_blank_stands(tokens: list[str], tmp_path: Path) -> None:
    theirs, processor = save_recogniser(tokens, tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    model = loaded(checkpoint, theirs.config.vocab_size, "backbone", "ctc_head")
    assert checkpoint.symbols is not None
    for seed in range(3):
        waveform_1S = waveform_of(40_000, seed)
        with torch.no_grad():
            their_ids_T = theirs(normalised(processor, waveform_1S)).logits[0].argmax(1)
        expected = processor.decode(their_ids_T)
        assert len(set(expected)) > 3
        assert processor.tokenizer.pad_token_id in their_ids_T
        assert decoded(logits_of(model, waveform_1S)[0], checkpoint.symbols) == expected


def test_the_row_of_the_blank_moves_to_the_front_and_the_others_keep_their_order(tmp_path: Path) -> None:
    theirs, _ = save_recogniser(VOCABULARIES["blank inside"], tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    model = loaded(checkpoint, 10, "ctc_head")
    order = [3, 0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert torch.equal(model.ctc_head.weight, theirs.lm_head.weight[order])
    assert torch.equal(model.ctc_head.bias, theirs.lm_head.bias[order])
    assert checkpoint.symbols is not None
    assert checkpoint.symbols[1:] == ("a", "b", " ", "c", "ñ", "á", "", "", "")


def test_a_folder_without_a_vocabulary_has_no_symbols(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save("wav2vec2", tmp_path))
    assert checkpoint.symbols is None
    assert torch.equal(loaded(checkpoint, 9, "ctc_head").ctc_head.bias, their_model("wav2vec2").lm_head.bias)


def test_settings_in_a_processor_that_transformers_5_saved_whole_are_read(tmp_path: Path) -> None:
    """`Wav2Vec2Processor.save_pretrained` puts the feature extractor into processor_config.json."""
    processor = processor_of(VOCABULARIES["blank first"], tmp_path)
    processor.save_pretrained(save("wav2vec2", tmp_path))
    assert not (tmp_path / "preprocessor_config.json").exists()
    assert processor.feature_extractor.do_normalize
    assert read_checkpoint(tmp_path).model == READ_WAV2VEC2.with_(normalise_waveform=True)


# Reading the files of fairseq and SEW

FAIRSEQ = TransformerConfig(
    extractor=WaveExtractorConfig(channels=8),
    width=128,
    layers=2,
    feedforward_width=96,
    position_kernel=7,
    position_groups=4,
    quantiser=QuantiserConfig(entries=5, dim=12),
)
FAIRSEQ_LAYER_NORM = FAIRSEQ.with_(
    extractor=WaveExtractorConfig(channels=8, norm="layer"), norm_first=True, normalise_waveform=True
)
FAIRSEQ_SEW = FAIRSEQ.with_(
    extractor=WaveExtractorConfig(channels=4, compact=True), squeeze=2, projection=MlpProjectionConfig(hidden_width=10)
)
FAIRSEQ_SEW_D = FAIRSEQ_SEW.with_(width=64, attention=DisentangledAttentionConfig(buckets=6))

# Theirs -> ours; a third of the joint projection of attention is (ours, which third).
Table = dict[str, str | tuple[str, int]]
BACKBONE: Table = {
    "mask_emb": "mask_embedding",
    "layer_norm.weight": "feature_norm.weight",
    "layer_norm.bias": "feature_norm.bias",
    "post_extract_proj.weight": "project.weight",
    "post_extract_proj.bias": "project.bias",
    "encoder.pos_conv.0.bias": "positions.conv.bias",
    "encoder.pos_conv.0.weight_g": "positions.conv.parametrizations.weight.original0",
    "encoder.pos_conv.0.weight_v": "positions.conv.parametrizations.weight.original1",
}
GROUP_NORM: Table = {
    "feature_extractor.conv_layers.0.2.weight": "extractor.layers.0.norm.weight",
    "feature_extractor.conv_layers.0.2.bias": "extractor.layers.0.norm.bias",
}
UPSAMPLE: Table = {
    "encoder.upsample.0.weight": "upsample.weight",
    "encoder.upsample.0.bias": "upsample.bias",
}
ENCODER_NORM: Table = {
    "encoder.layer_norm.weight": "norm.weight",
    "encoder.layer_norm.bias": "norm.bias",
}
LAYER: Table = {
    "encoder.layers.#.self_attn.q_proj.weight": ("layers.#.attention.qkv.weight", 0),
    "encoder.layers.#.self_attn.q_proj.bias": ("layers.#.attention.qkv.bias", 0),
    "encoder.layers.#.self_attn.k_proj.weight": ("layers.#.attention.qkv.weight", 1),
    "encoder.layers.#.self_attn.k_proj.bias": ("layers.#.attention.qkv.bias", 1),
    "encoder.layers.#.self_attn.v_proj.weight": ("layers.#.attention.qkv.weight", 2),
    "encoder.layers.#.self_attn.v_proj.bias": ("layers.#.attention.qkv.bias", 2),
    "encoder.layers.#.self_attn.out_proj.weight": "layers.#.attention.out.weight",
    "encoder.layers.#.self_attn.out_proj.bias": "layers.#.attention.out.bias",
    "encoder.layers.#.self_attn_layer_norm.weight": "layers.#.attention_norm.weight",
    "encoder.layers.#.self_attn_layer_norm.bias": "layers.#.attention_norm.bias",
    "encoder.layers.#.fc1.weight": "layers.#.expand.weight",
    "encoder.layers.#.fc1.bias": "layers.#.expand.bias",
    "encoder.layers.#.fc2.weight": "layers.#.contract.weight",
    "encoder.layers.#.fc2.bias": "layers.#.contract.bias",
    "encoder.layers.#.final_layer_norm.weight": "layers.#.feedforward_norm.weight",
    "encoder.layers.#.final_layer_norm.bias": "layers.#.feedforward_norm.bias",
}
DEBERTA: Table = {
    "encoder.encoder.rel_embeddings.weight": "relative.weight",
    "encoder.encoder.LayerNorm.weight": "relative.norm.weight",
    "encoder.encoder.LayerNorm.bias": "relative.norm.bias",
}
DEBERTA_LAYER: Table = {
    "encoder.encoder.layer.#.attention.self.query_proj.weight": ("layers.#.attention.qkv.weight", 0),
    "encoder.encoder.layer.#.attention.self.query_proj.bias": ("layers.#.attention.qkv.bias", 0),
    "encoder.encoder.layer.#.attention.self.key_proj.weight": ("layers.#.attention.qkv.weight", 1),
    "encoder.encoder.layer.#.attention.self.key_proj.bias": ("layers.#.attention.qkv.bias", 1),
    "encoder.encoder.layer.#.attention.self.value_proj.weight": ("layers.#.attention.qkv.weight", 2),
    "encoder.encoder.layer.#.attention.self.value_proj.bias": ("layers.#.attention.qkv.bias", 2),
    "encoder.encoder.layer.#.attention.output.dense.weight": "layers.#.attention.out.weight",
    "encoder.encoder.layer.#.attention.output.dense.bias": "layers.#.attention.out.bias",
    "encoder.encoder.layer.#.attention.output.LayerNorm.weight": "layers.#.attention_norm.weight",
    "encoder.encoder.layer.#.attention.output.LayerNorm.bias": "layers.#.attention_norm.bias",
    "encoder.encoder.layer.#.intermediate.dense.weight": "layers.#.expand.weight",
    "encoder.encoder.layer.#.intermediate.dense.bias": "layers.#.expand.bias",
    "encoder.encoder.layer.#.output.dense.weight": "layers.#.contract.weight",
    "encoder.encoder.layer.#.output.dense.bias": "layers.#.contract.bias",
    "encoder.encoder.layer.#.output.LayerNorm.weight": "layers.#.feedforward_norm.weight",
    "encoder.encoder.layer.#.output.LayerNorm.bias": "layers.#.feedforward_norm.bias",
}
QUANTISER: Table = {
    "quantizer.vars": "quantiser.codewords_GVd",
    "quantizer.weight_proj.weight": "quantiser.logits.weight",
    "quantizer.weight_proj.bias": "quantiser.logits.bias",
}
LINEAR_HEADS: Table = {
    "project_q.weight": "project_target.weight",
    "project_q.bias": "project_target.bias",
    "final_proj.weight": "project_context.weight",
    "final_proj.bias": "project_context.bias",
}
MLP_HEADS: Table = {
    f"{theirs}.net.{leaf}": f"{ours}.{leaf}"
    for theirs, ours in (("project_q", "project_target"), ("final_proj", "project_context"))
    for leaf in (
        "0.weight",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
        "3.weight",
        "3.bias",
    )
}


def numbered(table: Table, count: int) -> Table:
    def number(ours: str | tuple[str, int], i: int) -> str | tuple[str, int]:
        return ours.replace("#", str(i)) if isinstance(ours, str) else (ours[0].replace("#", str(i)), ours[1])

    return {theirs.replace("#", str(i)): number(ours, i) for i in range(count) for theirs, ours in table.items()}


def convolutions(count: int) -> Table:
    return numbered({"feature_extractor.conv_layers.#.0.weight": "extractor.layers.#.conv.weight"}, count)


LAYER_NORM_CONVOLUTIONS: Table = numbered(
    {
        "feature_extractor.conv_layers.#.0.weight": "extractor.layers.#.conv.weight",
        "feature_extractor.conv_layers.#.0.bias": "extractor.layers.#.conv.bias",
        "feature_extractor.conv_layers.#.2.1.weight": "extractor.layers.#.norm.weight",
        "feature_extractor.conv_layers.#.2.1.bias": "extractor.layers.#.norm.bias",
    },
    7,
)
STANDARD: Table = {**BACKBONE, **ENCODER_NORM, **numbered(LAYER, 2)}
# Model, backbone, self-supervised head.
PRETRAINED: dict[str, tuple[TransformerConfig, Table, Table]] = {
    "wav2vec2": (FAIRSEQ, {**STANDARD, **convolutions(7), **GROUP_NORM}, {**QUANTISER, **LINEAR_HEADS}),
    "wav2vec2 layer norm": (
        FAIRSEQ_LAYER_NORM,
        {**STANDARD, **LAYER_NORM_CONVOLUTIONS},
        {**QUANTISER, **LINEAR_HEADS},
    ),
    "sew": (FAIRSEQ_SEW, {**STANDARD, **convolutions(13), **GROUP_NORM, **UPSAMPLE}, {**QUANTISER, **MLP_HEADS}),
    "sew-d": (
        FAIRSEQ_SEW_D,
        {**BACKBONE, **convolutions(13), **GROUP_NORM, **UPSAMPLE, **DEBERTA, **numbered(DEBERTA_LAYER, 2)},
        {**QUANTISER, **MLP_HEADS},
    ),
}


def renamed(module: nn.Module, table: Table) -> dict[str, Tensor]:
    """The weights as fairseq keeps them: codewords in one row, the layers of an MLP as convolutions of kernel 1."""
    state = module.state_dict()
    weights = {}
    for theirs, ours in table.items():
        tensor = state[ours] if isinstance(ours, str) else state[ours[0]].chunk(3)[ours[1]]
        if theirs == "quantizer.vars":
            tensor = tensor.reshape(1, -1, tensor.shape[2])
        elif re.search(r"net\.[03]\.weight", theirs):
            tensor = tensor[..., None]
        weights[theirs] = tensor.clone()
    assert sum(t.numel() for t in weights.values()) == sum(t.numel() for t in state.values())
    return weights


def pretrained(name: str) -> tuple[AcousticModel, dict[str, Tensor]]:
    config, backbone, head = PRETRAINED[name]
    model = acoustic_model(config)
    return model, renamed(model.backbone, backbone) | renamed(model.self_supervised_head, head)


def write_pt(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("name", PRETRAINED)
def test_settings_and_weights_of_a_pretrained_fairseq_file_are_read(name: str, tmp_path: Path) -> None:
    model, weights = pretrained(name)
    checkpoint = read_checkpoint(write_pt(tmp_path / "model.pt", {"model": weights}))
    assert checkpoint.model == model.config
    found = loaded(checkpoint, 5, "backbone", "self_supervised_head")
    assert_same_weights(found.backbone, model.backbone)
    assert_same_weights(found.self_supervised_head, model.self_supervised_head)
    assert [checkpoint.holds(found, part) for part in PARTS] == [True, False, True]
    assert checkpoint.symbols is None


@pytest.mark.parametrize("name", PRETRAINED)
def test_settings_and_weights_of_a_fine_tuned_fairseq_file_are_read(name: str, tmp_path: Path) -> None:
    """Fine-tuning removes the self-supervised head, so that nothing tells its sizes."""
    config, table, _ = PRETRAINED[name]
    model = acoustic_model(config, num_symbols=6)
    weights = {f"w2v_encoder.w2v_model.{n}": t for n, t in renamed(model.backbone, table).items()}
    weights |= {"w2v_encoder.proj.weight": model.ctc_head.weight, "w2v_encoder.proj.bias": model.ctc_head.bias}
    checkpoint = read_checkpoint(write_pt(tmp_path / "model.pt", {"model": weights}))
    assert checkpoint.model == config.with_(quantiser=QuantiserConfig(), projection=LinearProjectionConfig())
    found = loaded(checkpoint, 6, "backbone", "ctc_head")
    assert_same_weights(found.backbone, model.backbone)
    assert_same_weights(found.ctc_head, model.ctc_head)
    assert [checkpoint.holds(found, part) for part in PARTS] == [True, True, False]


@pytest.mark.parametrize("name", ["wav2vec2", "sew"])
def test_a_fairseq_file_without_a_projection_of_the_features_is_read(name: str, tmp_path: Path) -> None:
    config, table, _ = PRETRAINED[name]
    extractor = config.extractor.with_(channels=16 if config.extractor.compact else 128)
    model = acoustic_model(config.with_(extractor=extractor))
    without = {theirs: ours for theirs, ours in table.items() if "post_extract_proj" not in theirs}
    checkpoint = read_checkpoint(write_pt(tmp_path / "model.pt", renamed(model.backbone, without)))
    assert_same_weights(loaded(checkpoint, 5, "backbone").backbone, model.backbone)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("layout", ["bare", "2020", "2021"])
def test_whatever_stands_around_the_weights_in_a_fairseq_file_is_read(
    layout: str, legacy: bool, tmp_path: Path
) -> None:
    model, weights = pretrained("wav2vec2")
    args = argparse.Namespace(arch="wav2vec2", conv_feature_layers="[(512, 10, 5)]", lr=[0.0005], seed=1)
    history = [{"criterion_name": "Wav2vecCriterion", "num_updates": 400_000, "best_loss": 1.9}]
    content: Any = {
        "bare": OrderedDict(weights),
        "2020": {"args": args, "model": OrderedDict(weights), "optimizer_history": history, "extra_state": {}},
        "2021": {"args": None, "cfg": {"model": {"_name": "wav2vec2"}}, "model": weights, "task_state": {}},
    }[layout]
    path = write_pt(tmp_path / "model.pt", content, _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(path)
    assert checkpoint.model == model.config
    assert_same_weights(loaded(checkpoint, 5, "backbone").backbone, model.backbone)


WIDER = {"hidden_size": 128, "num_attention_heads": 2}
TO_FAIRSEQ = {
    r"^(wav2vec2|sew|sew_d)\.": "",
    r"^masked_spec_embed": "mask_emb",
    r"^(feature_extractor\.conv_layers\.\d+)\.conv\.": r"\1.0.",
    r"^feature_projection\.layer_norm\.": "layer_norm.",
    r"^feature_projection\.(projection\.)?": "post_extract_proj.",
    r"^encoder\.pos_conv_embed\.conv\.": "encoder.pos_conv.0.",
    r"parametrizations\.weight\.original0$": "weight_g",
    r"parametrizations\.weight\.original1$": "weight_v",
    r"^encoder\.upsample\.projection\.": "encoder.upsample.0.",
    r"^(encoder\.layers\.\d+)\.attention\.": r"\1.self_attn.",
    r"^(encoder\.layers\.\d+)\.layer_norm\.": r"\1.self_attn_layer_norm.",
    r"^(encoder\.layers\.\d+)\.feed_forward\.intermediate_dense\.": r"\1.fc1.",
    r"^(encoder\.layers\.\d+)\.feed_forward\.output_dense\.": r"\1.fc2.",
}


@pytest.mark.parametrize(
    ("kind", "config", "norm"),
    [
        (Wav2Vec2Model, Wav2Vec2Config(**WAV2VEC2 | WIDER), "2"),
        (Wav2Vec2Model, Wav2Vec2Config(**LAYER_NORM | WIDER), "2.1"),
        (SEWModel, SEWConfig(**SEW | WIDER), "2"),
        (SEWDModel, SEWDConfig(**SEW_D | WIDER), "2"),
    ],
    ids=WITH_CTC_HEAD,
)
@torch.no_grad()
def test_a_model_of_transformers_under_the_names_of_fairseq_computes_the_same(
    kind: Any, config: Any, norm: str, tmp_path: Path
) -> None:
    """Short enough that no distance reaches the last buckets, whose range the weights do not tell."""
    theirs, weights = drawn(kind, config), {}
    for name, tensor in theirs.state_dict().items():
        name = re.sub(r"^(feature_extractor\.conv_layers\.\d+)\.layer_norm\.", rf"\1.{norm}.", name)
        for pattern, replacement in TO_FAIRSEQ.items():
            name = re.sub(pattern, replacement, name)
        weights[name] = tensor
    model = loaded(read_checkpoint(write_pt(tmp_path / "model.pt", weights)), 5, "backbone")
    waveform_BS = waveform_of(3_000)
    inputs_BS = waveform_BS
    if model.config.normalise_waveform:
        inputs_BS = (waveform_BS - waveform_BS.mean()) / waveform_BS.var(correction=0).add(1e-7).sqrt()
    expected_BTC = theirs(inputs_BS).last_hidden_state
    assert expected_BTC.std() > 0.01
    torch.testing.assert_close(context_of(model, waveform_BS), expected_BTC, rtol=0, atol=1e-5)


class RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["model.pt", "folder/pytorch_model.bin"])
@pytest.mark.parametrize("place", ["args", "model", "top"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(name: str, place: str, tmp_path: Path) -> None:
    path, marker = tmp_path / name, tmp_path / "ran"
    if path.suffix == ".bin":
        (save("wav2vec2", path.parent) / "model.safetensors").unlink()
    bomb: Any = RunsCode(marker)
    content = {"args": {"args": bomb, "model": pretrained("wav2vec2")[1]}, "model": {"model": bomb}, "top": bomb}[place]
    write_pt(path, content)
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: cannot be read as weights")):
        read_checkpoint(path if path.suffix == ".pt" else path.parent)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "holds no weights but a list"),
        ({}, "no weight 'mask_emb': not a wav2vec 2.0, SEW or SEW-D checkpoint"),
        ({"model": None}, "holds no weights, neither under 'model' nor at its top"),
        ({"cfg": {"lr": 1}, "weights": {}}, "holds no weights, neither under 'model' nor at its top"),
        ({"model": {"mask_emb": torch.zeros(64)}}, "no weight 'feature_extractor.conv_layers."),
        ({"model": {"encoder.weight": torch.zeros(64)}}, "no weight 'mask_emb': not a wav2vec 2.0"),
    ],
)
def test_a_pt_file_of_something_else_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = write_pt(tmp_path / "other.pt", content)
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: {message}")):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("feature_extractor.conv_layers.3.0.weight", torch.zeros(8, 8, 4), "convolutions are neither WFE-O nor WFE-C"),
        ("mask_emb", torch.zeros(96), "width must be a multiple of 64"),
    ],
)
def test_a_fairseq_file_whose_shapes_make_no_model_is_refused(
    name: str, tensor: Tensor, message: str, tmp_path: Path
) -> None:
    path = write_pt(tmp_path / "model.pt", pretrained("wav2vec2")[1] | {name: tensor})
    with pytest.raises(CheckpointError, match=f"(?s){re.escape(str(path))}: .*{message}"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 cut off"])
def test_a_corrupt_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (save("wav2vec2", tmp_path) / "model.safetensors").unlink()
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: cannot be read as weights")):
        read_checkpoint(path if path.suffix == ".pt" else tmp_path)


# Strictness

K_PROJECTION = "wav2vec2.encoder.layers.1.attention.k_proj.weight"
EXPAND = "wav2vec2.encoder.layers.0.feed_forward.intermediate_dense.weight"
LAST_LAYER = "wav2vec2.encoder.layers.1."


def assert_refused(folder: Path, part: str, *expected: str, num_symbols: int = 9) -> None:
    with pytest.raises(CheckpointError) as caught:
        loaded(read_checkpoint(folder), num_symbols, part)
    for text in (f"{folder}: does not fit the model's {part}; ", *expected):
        assert text in str(caught.value)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    edit_weights(save("wav2vec2", tmp_path), {K_PROJECTION: None, "wav2vec2.encoder.layer_norm.bias": None})
    assert_refused(tmp_path, "backbone", "missing: norm.bias, layers.1.attention.qkv.weight")
    loaded(read_checkpoint(tmp_path), 9, "ctc_head")


def test_a_long_list_of_missing_weights_is_shortened(tmp_path: Path) -> None:
    """A layer has twelve: two of the joint projection, two each of the other three linear layers and two norms."""
    names = load_file(save("wav2vec2", tmp_path) / "model.safetensors")
    edit_weights(tmp_path, {name: None for name in names if name.startswith(LAST_LAYER)})
    assert_refused(tmp_path, "backbone", "missing: layers.1.", ", and 7 more")


def test_a_missing_head_is_named(tmp_path: Path) -> None:
    assert_refused(save("bare", tmp_path), "ctc_head", "missing: weight, bias")
    assert_refused(tmp_path, "self_supervised_head", "missing: quantiser.codewords_GVd, ", ", and 2 more")


def test_half_a_head_is_held_and_refused(tmp_path: Path) -> None:
    edit_weights(save("wav2vec2", tmp_path), {"lm_head.bias": None})
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.holds(AcousticModel(checkpoint.model, 9, seed=0), "ctc_head")
    assert_refused(tmp_path, "ctc_head", "missing: bias")


def test_weights_that_have_no_place_are_named(tmp_path: Path) -> None:
    edit_weights(save("wav2vec2", tmp_path), {"wav2vec2.adapter.weight": torch.zeros(3)})
    assert_refused(tmp_path, "backbone", "not in the model: adapter.weight")
    loaded(read_checkpoint(tmp_path), 9, "ctc_head")


def test_a_long_list_of_weights_that_have_no_place_is_shortened(tmp_path: Path) -> None:
    edit_weights(save("wav2vec2", tmp_path), {f"wav2vec2.adapter.{i}": torch.zeros(3) for i in range(9)})
    assert_refused(tmp_path, "backbone", "not in the model: adapter.0, ", ", and 4 more")


def test_layers_that_the_settings_do_not_know_are_named(tmp_path: Path) -> None:
    edit_json(save("wav2vec2", tmp_path) / "config.json", num_hidden_layers=1)
    assert_refused(tmp_path, "backbone", "not in the model: encoder.layers.1.", ", and 11 more")


def test_weights_of_another_size_are_named(tmp_path: Path) -> None:
    edit_json(save("wav2vec2", tmp_path) / "config.json", intermediate_size=40)
    sizes = "layers.0.expand.weight is (48, 32), not (40, 32), layers.0.expand.bias is (48,), not (40,)"
    assert_refused(tmp_path, "backbone", f"of another size: {sizes}", ", and 1 more")


def test_a_head_for_another_number_of_symbols_is_named(tmp_path: Path) -> None:
    expected = "of another size: weight is (9, 32), not (12, 32), bias is (9,), not (12,)"
    assert_refused(save("wav2vec2", tmp_path), "ctc_head", expected, num_symbols=12)


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    changes = {EXPAND: None, "wav2vec2.more": torch.zeros(1), "wav2vec2.encoder.layer_norm.bias": torch.zeros(3)}
    edit_weights(save("wav2vec2", tmp_path), changes)
    expected = ("missing: layers.0.expand.weight;", "not in the model: more;", "norm.bias is (3,), not (32,)")
    assert_refused(tmp_path, "backbone", *expected)


def test_a_refused_checkpoint_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    edit_weights(save("wav2vec2", tmp_path), {K_PROJECTION: None})
    checkpoint = read_checkpoint(tmp_path)
    model, fresh = (AcousticModel(checkpoint.model, 9, seed=1) for _ in range(2))
    with pytest.raises(CheckpointError):
        checkpoint.load_into(model, "backbone")
    assert_same_weights(model, fresh)


def test_a_transposed_matrix_is_of_another_size(tmp_path: Path) -> None:
    weights = load_file(save("wav2vec2", tmp_path) / "model.safetensors")
    edit_weights(tmp_path, {EXPAND: weights[EXPAND].T})
    assert_refused(tmp_path, "backbone", "layers.0.expand.weight is (32, 48), not (48, 32)")


def test_a_narrower_part_of_the_joint_projection_is_of_another_size(tmp_path: Path) -> None:
    weights = load_file(save("wav2vec2", tmp_path) / "model.safetensors")
    edit_weights(tmp_path, {K_PROJECTION: weights[K_PROJECTION][:, :16]})
    assert_refused(tmp_path, "backbone", "layers.1.attention.qkv.weight")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"width": 64}, ["width: 32, not 64"]),
        ({"layers": 3}, ["layers: 2, not 3"]),
        ({"heads": 8}, ["heads: 4, not 8"]),
        ({"feedforward_width": None}, ["feedforward_width: 48, not 128"]),
        ({"norm_first": True}, ["norm_first: False, not True"]),
        ({"squeeze": 2}, ["squeeze: 1, not 2"]),
        ({"position_kernel": 9, "position_groups": 4}, ["position_kernel: 7, not 9", "position_groups: 8, not 4"]),
        ({"extractor": WaveExtractorConfig(channels=40)}, ["extractor: ", "'channels': 24", "'channels': 40"]),
        ({"attention": DisentangledAttentionConfig()}, ["attention: {'kind': 'standard'}, not ", "'disentangled'"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_architecture_is_refused_naming_what_differs(
    changes: dict[str, Any], expected: list[str], tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(save("wav2vec2", tmp_path))
    with pytest.raises(CheckpointError) as caught:
        check_fits(checkpoint, checkpoint.model.with_(**changes))
    for text in (f"{tmp_path}: is of another model; ", *expected):
        assert text in str(caught.value)
    assert len(re.findall(r", not ", str(caught.value))) == len(changes)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save("wav2vec2", tmp_path))
    with pytest.raises(CheckpointError, match="kind: transformer, not compact_cnn_gru"):
        check_fits(checkpoint, CompactCnnGruConfig())


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": DropoutConfig()},
        {"quantiser": QuantiserConfig()},
        {"projection": MlpProjectionConfig()},
        {"normalise_waveform": True},
        {"extractor": WaveExtractorConfig(channels=24, masked_statistics=True)},
        {"preset": "w2v2_base"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_has_no_weights_in_the_backbone_may_differ(changes: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save("wav2vec2", tmp_path))
    model = checkpoint.model.with_(**changes)
    assert model != checkpoint.model
    check_fits(checkpoint, model)


def test_a_size_that_is_given_fits_the_same_size_by_rule(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_pt(tmp_path / "model.pt", pretrained("wav2vec2")[1]))
    check_fits(checkpoint, checkpoint.model.with_(heads=2))
    with pytest.raises(CheckpointError, match="heads: 2, not 4"):
        check_fits(checkpoint, checkpoint.model.with_(heads=4))


REFUSED_SETTINGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "model_type": (
        "wav2vec2",
        {"model_type": "hubert"},
        "model_type must be one of wav2vec2, sew, sew-d, got 'hubert'",
    ),
    "no model_type": ("wav2vec2", {"model_type": None}, "model_type must be one of"),
    "add_adapter": ("wav2vec2", {"add_adapter": True}, "add_adapter is set; adapters are not supported"),
    "adapter_attn_dim": ("wav2vec2", {"adapter_attn_dim": 16}, "adapter_attn_dim is set; adapters are not supported"),
    "hidden_act": ("wav2vec2", {"hidden_act": "relu"}, "hidden_act must be gelu, got 'relu'"),
    "approximate gelu": ("sew", {"hidden_act": "gelu_new"}, "hidden_act must be gelu, got 'gelu_new'"),
    "feat_extract_activation": (
        "sew",
        {"feat_extract_activation": "silu"},
        "feat_extract_activation must be gelu, got 'silu'",
    ),
    "conv_dim": ("wav2vec2", {"conv_dim": [24] * 6 + [32]}, "the extractor's convolutions are neither WFE-O nor WFE-C"),
    "conv_kernel": ("sew", {"conv_kernel": [7, *[1, 3] * 6]}, "the extractor's convolutions are neither"),
    "conv_stride": ("wav2vec2", {"conv_stride": [5, 2, 2]}, "conv_stride"),
    "conv_bias": ("wav2vec2", {"conv_bias": True}, "conv_bias goes with feat_extract_norm layer"),
    "no conv_bias": ("wav2vec2 layer norm", {"conv_bias": False}, "conv_bias goes with feat_extract_norm layer"),
    "feat_extract_norm": (
        "sew",
        {"feat_extract_norm": "batch", "conv_bias": False},
        "Input should be 'group' or 'layer'",
    ),
    "share_att_key": ("sew-d", {"share_att_key": False}, "share_att_key must be True, got False"),
    "relative_attention": ("sew-d", {"relative_attention": False}, "relative_attention must be True, got False"),
    "norm_rel_ebd": ("sew-d", {"norm_rel_ebd": "none"}, "norm_rel_ebd must be 'layer_norm', got 'none'"),
    "pos_att_type": ("sew-d", {"pos_att_type": ["c2p"]}, "pos_att_type must be p2c and c2p, got ['c2p']"),
    "hidden_size": ("wav2vec2", {"hidden_size": 30}, "width 30 is not a multiple of heads 4"),
    "layer_norm_eps": ("wav2vec2", {"layer_norm_eps": 0.001}, "layer_norm_eps"),
    "pad_token_id": ("wav2vec2", {"pad_token_id": None}, "pad_token_id"),
    "pad_token_id too large": ("wav2vec2", {"pad_token_id": 9}, "pad_token_id"),
}


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED_SETTINGS.values(), ids=REFUSED_SETTINGS)
def test_settings_of_another_model_are_refused(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate("_|abcdefg")}))
    edit_json(save(name, tmp_path) / "config.json", **changes)
    with pytest.raises(CheckpointError, match=f"(?s)^{re.escape(str(tmp_path))}.*: .*{re.escape(message)}"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1, 2]"], ids=["cut off", "list"])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "vocab.json"])
def test_a_file_that_is_no_json_object_is_refused(name: str, content: str, tmp_path: Path) -> None:
    (save("wav2vec2", tmp_path) / name).write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / name}: is not ")):
        read_checkpoint(tmp_path)


def test_a_folder_without_settings_or_without_weights_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match=re.escape(f"{folder}: neither config.json (Hugging Face) nor")):
            read_checkpoint(folder)
    (save("wav2vec2", tmp_path) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path}: no weights here (looked for *.safetensors, ")):
        read_checkpoint(tmp_path)


# Export

SYMBOLS = Characters([SPANISH, "don't"]).symbols
EXPORTED = TransformerConfig(
    extractor=WaveExtractorConfig(channels=24),
    width=32,
    layers=2,
    heads=4,
    feedforward_width=48,
    position_kernel=7,
    position_groups=8,
)
EXPORTED_SEW = EXPORTED.with_(extractor=WaveExtractorConfig(channels=8, compact=True), squeeze=2)
LAYER_NORMS = WaveExtractorConfig(channels=24, norm="layer")
DISENTANGLED = DisentangledAttentionConfig(buckets=8, max_distance=20)
EXPORTS = {
    "projection": EXPORTED,
    "one width": EXPORTED.with_(extractor=WaveExtractorConfig(channels=32), normalise_waveform=True),
    "one width, even kernel": EXPORTED.with_(extractor=WaveExtractorConfig(channels=32), position_kernel=8),
    "layer norm, pre-LN": EXPORTED.with_(extractor=LAYER_NORMS, norm_first=True, normalise_waveform=True),
    "layer norm, post-LN": EXPORTED.with_(extractor=LAYER_NORMS),
    "group norm, pre-LN": EXPORTED.with_(norm_first=True),
    "compact": EXPORTED.with_(extractor=WaveExtractorConfig(channels=8, compact=True, pointwise_layers=2)),
    "squeezed": EXPORTED.with_(squeeze=2),
    "squeezed by three": EXPORTED.with_(squeeze=3),
    "sew": EXPORTED_SEW.with_(projection=MlpProjectionConfig(hidden_width=10)),
    "sew, one width": EXPORTED_SEW.with_(width=64),
    "sew-d": EXPORTED_SEW.with_(attention=DISENTANGLED),
    "sew-d, one width": EXPORTED_SEW.with_(attention=DISENTANGLED, width=64),
}


def recogniser_of(config: TransformerConfig) -> AcousticModel:
    """A model whose head tells the frames of its input apart."""
    model = acoustic_model(config, len(SYMBOLS))
    tell_frames_apart(model.ctc_head, context_of(model, waveform_of(40_000))[0], blank=0)
    return model


@pytest.mark.parametrize("config", EXPORTS.values(), ids=EXPORTS)
def test_transformers_opens_an_exported_folder_and_writes_the_same_text(
    config: TransformerConfig, tmp_path: Path
) -> None:
    model = recogniser_of(config)
    folder = tmp_path / "models" / "folder"
    write_huggingface(model, SYMBOLS, folder)
    theirs, report = AutoModelForCTC.from_pretrained(folder, output_loading_info=True)
    assert {name: list(problems) for name, problems in report.items() if problems} == {}
    processor = AutoProcessor.from_pretrained(folder)
    for seed in range(3):
        waveform_1S = waveform_of(40_000, seed)
        inputs = processor(waveform_1S[0].numpy(), sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            their_logits_1TV = theirs.eval()(**inputs).logits
        logits_1TV = logits_of(model, waveform_1S)
        torch.testing.assert_close(logits_1TV, their_logits_1TV, rtol=0, atol=1e-5)
        num_frames_1 = torch.tensor([config.num_frames(40_000)])
        characters = Characters([SPANISH, "don't"])
        (text,) = greedy_decode(logits_1TV.log_softmax(2), num_frames_1, characters)
        assert len(set(text)) > 5
        assert processor.batch_decode(their_logits_1TV.argmax(2)) == [text]


@pytest.mark.parametrize("config", EXPORTS.values(), ids=EXPORTS)
def test_an_exported_folder_is_read_back(config: TransformerConfig, tmp_path: Path) -> None:
    model = acoustic_model(config, len(SYMBOLS))
    write_huggingface(model, SYMBOLS, tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert differences(config, checkpoint.model) == []
    assert checkpoint.model.normalise_waveform == config.normalise_waveform
    assert checkpoint.model.dropout.with_(features=0.0) == config.dropout.with_(features=0.0)
    assert checkpoint.symbols is not None
    assert checkpoint.symbols[1:] == SYMBOLS[1:]
    found = loaded(checkpoint, len(SYMBOLS), "backbone", "ctc_head")
    assert_same_weights(found.backbone, model.backbone)
    assert_same_weights(found.ctc_head, model.ctc_head)


@pytest.mark.parametrize(
    ("spoken", "text"),
    [
        (" ñ á'a ", "ñ á'a"),
        ("aa", "a"),
        ("a-a", "aa"),
        ("do n't", "do n't"),
        ("it 's  a 'm", "it 's a 'm"),
        ("a - a", "a  a"),
        ("-", ""),
        ("", ""),
    ],
)
def test_the_exported_tokenizer_joins_symbols_and_changes_nothing(spoken: str, text: str, tmp_path: Path) -> None:
    """By hand: neighbours that are equal merge, `-` stands for the blank and goes, outer spaces go."""
    symbols = ("<blank>", *sorted(set(" 'aditmnosáñ")))
    write_huggingface(acoustic_model(EXPORTED, len(symbols)), symbols, tmp_path)
    ids = [0 if character == "-" else symbols.index(character) for character in spoken]
    assert AutoProcessor.from_pretrained(tmp_path).decode(ids) == text


def test_the_exported_tokenizer_spells_text_in_the_symbols_of_the_head(tmp_path: Path) -> None:
    """A character that is no symbol becomes the padding, which is the blank: no token lies outside the head."""
    write_huggingface(acoustic_model(EXPORTED, len(SYMBOLS)), SYMBOLS, tmp_path)
    tokenizer = AutoProcessor.from_pretrained(tmp_path).tokenizer
    assert len(tokenizer) == len(SYMBOLS)
    assert tokenizer(SPANISH).input_ids == [SYMBOLS.index(character) for character in SPANISH]
    assert tokenizer("w").input_ids == [0]


def test_a_model_read_from_transformers_can_be_written_again(tmp_path: Path) -> None:
    theirs, processor = save_recogniser(VOCABULARIES["blank last"], tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.symbols is not None
    model = loaded(checkpoint, len(checkpoint.symbols), "backbone", "ctc_head")
    write_huggingface(model, checkpoint.symbols, tmp_path / "again")
    again, processor_again = (c.from_pretrained(tmp_path / "again") for c in (AutoModelForCTC, AutoProcessor))
    with torch.no_grad():
        one, two = (
            p.decode(m.eval()(normalised(p, waveform_of(40_000))).logits[0].argmax(1))
            for m, p in ((theirs, processor), (again, processor_again))
        )
    assert len(set(one)) > 3
    assert one == two


CANNOT_BE_EXPORTED: dict[str, tuple[ModelConfig, str]] = {
    "cnn_gru": (CnnGruConfig(mel_bins=8, channels=8, cnn_layers=1, gru_layers=1, gru_width=8), "cnn_gru"),
    "compact_cnn_gru": (CompactCnnGruConfig(mel_bins=8, cnn_width=8, gru_width=8), "compact_cnn_gru"),
    "filter bank": (
        EXPORTED_SEW.with_(extractor=FilterBankExtractorConfig(channels=4, mel_bins=16, width=16)),
        "filter-bank",
    ),
    "masked statistics": (
        EXPORTED.with_(extractor=WaveExtractorConfig(channels=24, masked_statistics=True)),
        "masked_statistics",
    ),
    "SEW-D that is not squeezed": (EXPORTED_SEW.with_(attention=DISENTANGLED, squeeze=1), "SEW-D"),
}


@pytest.mark.parametrize(("config", "message"), CANNOT_BE_EXPORTED.values(), ids=CANNOT_BE_EXPORTED)
def test_a_model_that_transformers_lacks_is_not_exported(config: ModelConfig, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"transformers has no .*{message}"):
        write_huggingface(AcousticModel(config, 5, seed=0), ("<blank>", *"abcd"), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    "symbols", [("<blank>", *"abc"), ("<blank>", *"abcde"), ("<blank>", " ", "|", *"ab")], ids=["few", "many", "twice"]
)
def test_symbols_that_do_not_fit_the_head_are_not_exported(symbols: tuple[str, ...], tmp_path: Path) -> None:
    """Five rows; a space and `|` would be one token."""
    with pytest.raises(ValueError, match="symbols"):
        write_huggingface(acoustic_model(EXPORTED, 5), symbols, tmp_path / "folder")


def test_a_model_prepared_for_inference_is_exported_whole_or_refused(tmp_path: Path) -> None:
    model = acoustic_model(EXPORTED, 5)
    expected_BTV = logits_of(model, waveform_of(8_000))
    model.backbone.prepare_for_inference()
    try:
        write_huggingface(model, ("<blank>", *"abcd"), tmp_path)
    except ValueError:
        return
    theirs = AutoModelForCTC.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(waveform_of(8_000)).logits, expected_BTV, rtol=0, atol=1e-5)


# Where weights lie, and what identifies them


def test_what_exists_is_located_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some" / "model").mkdir(parents=True)
    (tmp_path / "model.pt").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("some/model", "model.pt", "~/model.pt", str(tmp_path / "model.pt")):
        assert locate(name) == tmp_path / name.replace("~/", "")


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such", "./no/such.pt", "missing.pt"])
def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointError, match=f"^{re.escape(name)}: no such file or folder$"):
        locate(name)


@pytest.mark.parametrize("offline", [True, False], ids=["offline", "no network"])
def test_a_name_that_is_neither_here_nor_on_the_hub_is_refused(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("socket.socket.connect", no_network)
    with pytest.raises(CheckpointError) as caught:
        locate("nobody/no-such-model")
    message = str(caught.value)
    assert message.startswith(
        "nobody/no-such-model: neither a file or folder here, nor to be had from the Hugging Face"
    )
    assert ("no network here" in message) != offline
    assert "\n" not in message


@pytest.mark.parametrize("held", ["model.safetensors", "pytorch_model.bin"])
def test_a_name_of_the_hub_is_downloaded_with_one_kind_of_weights(
    held: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def hub(name: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        assert name == "asapp/sew-d-tiny-100k"
        if not local_files_only:
            asked.append(allow_patterns)
            if Path(held).match(allow_patterns[1]):
                (tmp_path / held).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    assert local_copy("asapp/sew-d-tiny-100k") is None
    assert locate("asapp/sew-d-tiny-100k") == tmp_path
    assert asked == [["*.json", pattern] for pattern in checkpoint_files.WEIGHT_FILES][: len(asked)]
    assert len(asked) == 1 + held.endswith(".bin")
    assert local_copy("asapp/sew-d-tiny-100k") == tmp_path


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["one file", "shards"])
def test_the_fingerprint_is_that_of_the_content(options: dict[str, Any], tmp_path: Path) -> None:
    one, other = save("wav2vec2", tmp_path / "one", **options), tmp_path / "other"
    shutil.copytree(one, other)
    file = sorted(other.glob("*.safetensors"))[-1]
    os.utime(file, (1, 1))
    assert fingerprint(one) == fingerprint(other)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, (2, 2))
    assert fingerprint(one) != fingerprint(other)


def test_the_fingerprint_of_a_pt_file_is_that_of_the_content(tmp_path: Path) -> None:
    for folder, content in {"a": b"weights", "b": b"weights", "c": b"weightz", "d": b"weight"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.pt").write_bytes(content)
    prints = [fingerprint(tmp_path / folder / "model.pt") for folder in "abcd"]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in prints)


def test_a_folder_without_weights_has_no_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no weights here"):
        fingerprint(tmp_path)


def test_settings_that_no_file_tells_are_not_described(tmp_path: Path) -> None:
    assert described_model(write_pt(tmp_path / "model.pt", {})) is None
    with pytest.raises(CheckpointError, match=r"neither config\.json"):
        described_model(tmp_path)


@pytest.mark.parametrize(
    "config", [EXPORTED_SEW, CompactCnnGruConfig(mel_bins=8, cnn_width=8, gru_width=8)], ids=["sew", "compact_cnn_gru"]
)
def test_the_folder_of_a_stage_is_a_checkpoint(config: ModelConfig, tmp_path: Path) -> None:
    model = acoustic_model(config, 3)
    (tmp_path / "stage.json").write_text(json.dumps({"model": config.model_dump(mode="json")}))
    (tmp_path / "symbols.json").write_text(json.dumps({"symbols": ["<blank>", "a", "ñ"]}))
    for part in PARTS:
        save_file(model.get_submodule(part).state_dict(), tmp_path / f"{part}.safetensors")
    assert described_model(tmp_path) == config
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.model == config
    assert checkpoint.symbols == ("<blank>", "a", "ñ")
    assert_same_weights(loaded(checkpoint, 3, *PARTS), model)
