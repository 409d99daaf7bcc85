"""The Hugging Face layout of wav2vec 2.0, SEW and SEW-D checkpoints: config.json and the names of the weights.

Needs no torch. Read at transformers 5.23; both ways of naming weight norm are understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainables.models.config import (
    DisentangledAttentionConfig,
    DropoutConfig,
    QuantiserConfig,
    StandardAttentionConfig,
    TransformerConfig,
    WaveExtractorConfig,
)

# Ours -> theirs, by pattern; `{qkv}` stands for three weights that are one here.
Names = Mapping[str, str]
MODEL_TYPES = {"wav2vec2": "wav2vec2", "sew": "sew", "sew-d": "sew_d"}  # of config.json -> prefix of the weights

_SHARED: Names = {
    r"mask_embedding": "masked_spec_embed",
    r"extractor\.layers\.(\d+)\.conv\.(\w+)": r"feature_extractor.conv_layers.\1.conv.\2",
    r"extractor\.layers\.(\d+)\.norm\.(\w+)": r"feature_extractor.conv_layers.\1.layer_norm.\2",
    r"positions\.conv\.(.+)": r"encoder.pos_conv_embed.conv.\1",
    r"upsample\.(\w+)": r"encoder.upsample.projection.\1",
}
_STANDARD_LAYERS: Names = {
    r"norm\.(\w+)": r"encoder.layer_norm.\1",
    r"layers\.(\d+)\.attention\.qkv\.(\w+)": r"encoder.layers.\1.attention.{qkv}_proj.\2",
    r"layers\.(\d+)\.attention\.out\.(\w+)": r"encoder.layers.\1.attention.out_proj.\2",
    r"layers\.(\d+)\.attention_norm\.(\w+)": r"encoder.layers.\1.layer_norm.\2",
    r"layers\.(\d+)\.expand\.(\w+)": r"encoder.layers.\1.feed_forward.intermediate_dense.\2",
    r"layers\.(\d+)\.contract\.(\w+)": r"encoder.layers.\1.feed_forward.output_dense.\2",
    r"layers\.(\d+)\.feedforward_norm\.(\w+)": r"encoder.layers.\1.final_layer_norm.\2",
}
_SEW_FRONT: Names = {r"feature_norm\.(\w+)": r"layer_norm.\1", r"project\.(\w+)": r"feature_projection.\1"}
# The encoder inside SEW-D is DeBERTa's, whose names fairseq and Hugging Face share.
DEBERTA_LAYERS: Names = {
    r"relative\.weight": "encoder.encoder.rel_embeddings.weight",
    r"relative\.norm\.(\w+)": r"encoder.encoder.LayerNorm.\1",
    r"layers\.(\d+)\.attention\.qkv\.(\w+)": r"encoder.encoder.layer.\1.attention.self.{qkv}_proj.\2",
    r"layers\.(\d+)\.attention\.out\.(\w+)": r"encoder.encoder.layer.\1.attention.output.dense.\2",
    r"layers\.(\d+)\.attention_norm\.(\w+)": r"encoder.encoder.layer.\1.attention.output.LayerNorm.\2",
    r"layers\.(\d+)\.expand\.(\w+)": r"encoder.encoder.layer.\1.intermediate.dense.\2",
    r"layers\.(\d+)\.contract\.(\w+)": r"encoder.encoder.layer.\1.output.dense.\2",
    r"layers\.(\d+)\.feedforward_norm\.(\w+)": r"encoder.encoder.layer.\1.output.LayerNorm.\2",
}
BACKBONE_NAMES: dict[str, Names] = {
    "wav2vec2": {
        **_SHARED,
        **_STANDARD_LAYERS,
        r"feature_norm\.(\w+)": r"feature_projection.layer_norm.\1",
        r"project\.(\w+)": r"feature_projection.projection.\1",
    },
    "sew": {**_SHARED, **_STANDARD_LAYERS, **_SEW_FRONT},
    "sew_d": {**_SHARED, **DEBERTA_LAYERS, **_SEW_FRONT},
}
QKV = {"wav2vec2": ("q", "k", "v"), "sew": ("q", "k", "v"), "sew_d": ("query", "key", "value")}
CTC_HEAD_NAMES: Names = {r"(weight|bias)": r"lm_head.\1"}
SELF_SUPERVISED_HEAD_NAMES: Names = {
    r"quantiser\.logits\.(\w+)": r"quantizer.weight_proj.\1",
    r"quantiser\.codewords_GVd": "quantizer.codevectors",
    r"project_context\.(\w+)": r"project_hid.\1",
    r"project_target\.(\w+)": r"project_q.\1",
}


def read_config(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> TransformerConfig:
    """The model that config.json and preprocessor_config.json (empty where there is none) describe.

    Raises ValueError, naming the field, for a model that is not of the families here.
    """
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(f"model_type must be one of {', '.join(MODEL_TYPES)}, got {kind!r}")
    for field in ("add_adapter", "adapter_attn_dim"):
        if config.get(field):
            raise ValueError(f"{field} is set; adapters are not supported")
    for field in ("hidden_act", "feat_extract_activation"):
        if config.get(field, "gelu") not in ("gelu", "gelu_python"):
            raise ValueError(f"{field} must be gelu, got {config[field]!r}")
    disentangled = kind == "sew-d"
    # SEW-D's encoder has its own, 1e-7; early files on the hub name another, which no code uses.
    norm_epsilon = "feature_layer_norm_eps" if disentangled else "layer_norm_eps"
    if config.get(norm_epsilon, 1e-5) != 1e-5:
        raise ValueError(f"{norm_epsilon} must be 1e-5, got {config[norm_epsilon]!r}")
    return TransformerConfig(
        extractor=_read_extractor(config),
        normalise_waveform=bool(preprocessor.get("do_normalize", False)),
        width=config.get("hidden_size", 768),
        layers=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", 12),
        feedforward_width=config.get("intermediate_size", 3072),
        norm_first=bool(config.get("do_stable_layer_norm", False)),
        attention=_read_disentangled(config) if disentangled else StandardAttentionConfig(),
        squeeze=1 if kind == "wav2vec2" else config.get("squeeze_factor", 2),
        position_kernel=config.get("num_conv_pos_embeddings", 128),
        position_groups=config.get("num_conv_pos_embedding_groups", 16),
        dropout=DropoutConfig(
            hidden=config.get("hidden_dropout", 0.1),
            attention=config.get("attention_dropout", 0.1),
            activation=config.get("activation_dropout", 0.1),
            input=config.get("feat_proj_dropout", 0.0),
            features=config.get("feat_quantizer_dropout", 0.0),
            layer=config.get("layerdrop", 0.1),
        ),
        quantiser=QuantiserConfig(
            codebooks=config.get("num_codevector_groups", 2),
            entries=config.get("num_codevectors_per_group", 320),
            dim=config.get("codevector_dim", 256),
        ),
    )


_ORIGINAL = WaveExtractorConfig().layers  # the defaults of Wav2Vec2Config
_COMPACT = WaveExtractorConfig(channels=64, compact=True).layers  # those of SEWConfig and SEWDConfig


def _read_extractor(config: Mapping[str, Any]) -> WaveExtractorConfig:
    default = _ORIGINAL if config["model_type"] == "wav2vec2" else _COMPACT
    columns = [
        config.get(name, [layer[i] for layer in default])
        for i, name in enumerate(("conv_dim", "conv_kernel", "conv_stride"))
    ]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"conv_dim, conv_kernel and conv_stride must be of one length, got {columns}")
    layers = list(zip(*columns, strict=True))
    norm = config.get("feat_extract_norm", "group")
    if bool(config.get("conv_bias", False)) != (norm == "layer"):
        raise ValueError(f"conv_bias goes with feat_extract_norm layer, and with it only; got {norm!r}")
    return find_extractor(layers, norm)


def find_extractor(layers: list[tuple[int, ...]], norm: str) -> WaveExtractorConfig:
    """The settings that give these (channels, kernel, stride). Raises ValueError when none do."""
    plain = {"channels": layers[0][0], "norm": norm}
    candidates = [plain, *({**plain, "compact": True, "pointwise_layers": count} for count in range(4))]
    for candidate in candidates:
        extractor = WaveExtractorConfig.model_validate(candidate)
        if list(extractor.layers) == [tuple(layer) for layer in layers]:
            return extractor
    raise ValueError(f"the extractor's convolutions are neither WFE-O nor WFE-C: {layers}")


def _read_disentangled(config: Mapping[str, Any]) -> DisentangledAttentionConfig:
    expected = {"share_att_key": True, "relative_attention": True, "norm_rel_ebd": "layer_norm"}
    for field, value in expected.items():
        if config.get(field, value) != value:
            raise ValueError(f"{field} must be {value!r}, got {config[field]!r}")
    if set(config.get("pos_att_type", ("p2c", "c2p"))) != {"p2c", "c2p"}:
        raise ValueError(f"pos_att_type must be p2c and c2p, got {config['pos_att_type']!r}")
    return DisentangledAttentionConfig(
        buckets=config.get("position_buckets", 256), max_distance=config.get("max_position_embeddings", 512)
    )


def write_config(model: TransformerConfig, num_symbols: int) -> dict[str, Any]:
    """config.json of the model with a CTC head. Raises ValueError for one that transformers cannot express."""
    extractor = model.extractor
    if not isinstance(extractor, WaveExtractorConfig):
        raise ValueError("transformers has no model with a filter-bank extractor")
    if extractor.masked_statistics:
        raise ValueError("transformers has no masked group-norm statistics (extractor.masked_statistics)")
    kind = {prefix: kind for kind, prefix in MODEL_TYPES.items()}[model.family]
    if kind == "sew-d" and model.squeeze == 1:
        raise ValueError("transformers has no SEW-D without squeeze")
    channels, kernels, strides = zip(*extractor.layers, strict=True)
    config: dict[str, Any] = {
        "model_type": kind,
        "architectures": [{"wav2vec2": "Wav2Vec2ForCTC", "sew": "SEWForCTC", "sew-d": "SEWDForCTC"}[kind]],
        "vocab_size": num_symbols,
        "pad_token_id": 0,  # the CTC blank
        "bos_token_id": None,
        "eos_token_id": None,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.inner_width,
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "feat_extract_norm": extractor.norm,
        "conv_bias": extractor.norm == "layer",
        "conv_dim": channels,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "num_conv_pos_embeddings": model.position_kernel,
        "num_conv_pos_embedding_groups": model.position_groups,
        "hidden_dropout": model.dropout.hidden,
        "attention_dropout": model.dropout.attention,
        "activation_dropout": model.dropout.activation,
        "feat_proj_dropout": model.dropout.input,
        "layerdrop": model.dropout.layer,
        "final_dropout": 0.0,
        "ctc_loss_reduction": "mean",
        "ctc_zero_infinity": True,
    }
    if kind == "wav2vec2":
        config |= {"do_stable_layer_norm": model.norm_first, "feat_quantizer_dropout": model.dropout.features}
    else:
        config |= {"squeeze_factor": model.squeeze}
    if isinstance(model.attention, DisentangledAttentionConfig):
        config |= {
            "position_buckets": model.attention.buckets,
            "max_position_embeddings": model.attention.max_distance,
            "share_att_key": True,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "layer_norm_eps": 1e-7,
        }
    return config


def write_preprocessor(model: TransformerConfig) -> dict[str, Any]:
    """preprocessor_config.json."""
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16000,
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": model.normalise_waveform,
        "return_attention_mask": True,
    }


def write_tokenizer(symbols: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Files of the tokenizer: symbol 0 is the blank, a space becomes `|`, outputs that write nothing get names.

    Raises ValueError for symbols that are not all different.
    """
    names = ("<pad>", *(f"<unused{i}>" if not s else "|" if s == " " else s for i, s in enumerate(symbols[1:], 1)))
    vocabulary = {name: i for i, name in enumerate(names)}
    if len(vocabulary) < len(names):
        raise ValueError(f"the symbols must all be different (a space is written |), got {names}")
    tokens = {"pad_token": "<pad>", "unk_token": "<pad>", "bos_token": None, "eos_token": None}
    config = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        **tokens,
        "word_delimiter_token": "|",
        "do_lower_case": False,
    }
    return {"vocab.json": vocabulary, "tokenizer_config.json": config, "special_tokens_map.json": tokens}


def read_symbols(vocabulary: Mapping[str, int], blank: str) -> tuple[str, ...]:
    """The symbols of vocab.json in the order of their ids; special tokens write nothing."""
    by_id = {index: token for token, index in vocabulary.items()}
    special = {blank, "<s>", "</s>", "<unk>", "<pad>", "[UNK]", "[PAD]"}
    tokens = [by_id.get(index, "") for index in range(max(by_id) + 1)]
    silent = [token in special or token.startswith("<unused") for token in tokens]
    return tuple("" if quiet else token.replace("|", " ") for token, quiet in zip(tokens, silent, strict=True))
