"""The names of the weights in fairseq's and SEW's checkpoints, and the model that their shapes describe.

Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from trainables.models.config import (
    DisentangledAttentionConfig,
    LinearProjectionConfig,
    MlpProjectionConfig,
    QuantiserConfig,
    StandardAttentionConfig,
    TransformerConfig,
)
from trainables.models.huggingface import DEBERTA_LAYERS, Names, find_extractor

Shapes = Mapping[str, Sequence[int]]

FINE_TUNED_PREFIX = "w2v_encoder.w2v_model."
STRIDES = {10: 5, 3: 2, 2: 2, 1: 1}  # of an extractor's convolution, by its kernel; shapes do not tell

_SHARED: Names = {
    r"mask_embedding": "mask_emb",
    r"extractor\.layers\.(\d+)\.conv\.(\w+)": r"feature_extractor.conv_layers.\1.0.\2",
    r"feature_norm\.(\w+)": r"layer_norm.\1",
    r"project\.(\w+)": r"post_extract_proj.\1",
    r"positions\.conv\.(.+)": r"encoder.pos_conv.0.\1",
    r"upsample\.(\w+)": r"encoder.upsample.0.\1",
}
_STANDARD_LAYERS: Names = {
    r"norm\.(\w+)": r"encoder.layer_norm.\1",
    r"layers\.(\d+)\.attention\.qkv\.(\w+)": r"encoder.layers.\1.self_attn.{qkv}_proj.\2",
    r"layers\.(\d+)\.attention\.out\.(\w+)": r"encoder.layers.\1.self_attn.out_proj.\2",
    r"layers\.(\d+)\.attention_norm\.(\w+)": r"encoder.layers.\1.self_attn_layer_norm.\2",
    r"layers\.(\d+)\.expand\.(\w+)": r"encoder.layers.\1.fc1.\2",
    r"layers\.(\d+)\.contract\.(\w+)": r"encoder.layers.\1.fc2.\2",
    r"layers\.(\d+)\.feedforward_norm\.(\w+)": r"encoder.layers.\1.final_layer_norm.\2",
}
CTC_HEAD_NAMES: Names = {r"(weight|bias)": r"w2v_encoder.proj.\1"}
SELF_SUPERVISED_HEAD_NAMES: Names = {
    r"quantiser\.logits\.(\w+)": r"quantizer.weight_proj.\1",
    r"quantiser\.codewords_GVd": "quantizer.vars",
    r"project_context\.(weight|bias)": r"final_proj.\1",
    r"project_target\.(weight|bias)": r"project_q.\1",
    r"project_context\.(\d)\.(\w+)": r"final_proj.net.\1.\2",
    r"project_target\.(\d)\.(\w+)": r"project_q.net.\1.\2",
}


def backbone_names(model: TransformerConfig) -> Names:
    norm = r"\2" if getattr(model.extractor, "norm", "group") == "group" else r"1.\2"
    layers = DEBERTA_LAYERS if model.family == "sew_d" else _STANDARD_LAYERS
    front = {r"extractor\.layers\.(\d+)\.norm\.(\w+)": r"feature_extractor.conv_layers.\1.2." + norm}
    return {**_SHARED, **layers, **front}


def read_shapes(shapes: Shapes) -> TransformerConfig:
    """The model whose weights have these shapes (names without the prefix of fine-tuned checkpoints).

    What shapes do not tell follows from what was published: heads of 64, pre-LN and normalised waveforms exactly where
    the extractor has layer norms (large-LV60, XLSR-53, XLS-R). Dropout is that of pre-training.

    Raises ValueError when the weights are of another kind of model.
    """
    try:
        return _read_shapes(shapes)
    except KeyError as error:
        raise ValueError(f"no weight {error.args[0]!r}: not a wav2vec 2.0, SEW or SEW-D checkpoint") from error


def _read_shapes(shapes: Shapes) -> TransformerConfig:
    width = shapes["mask_emb"][0]
    convs = _numbered(shapes, r"feature_extractor\.conv_layers\.(\d+)\.0\.weight")
    layer_norms = "feature_extractor.conv_layers.1.2.1.weight" in shapes
    disentangled = "encoder.encoder.rel_embeddings.weight" in shapes
    deberta = r"encoder\.encoder\.layer\.(\d+)\.intermediate\.dense\.weight"
    layers = _numbered(shapes, deberta if disentangled else r"encoder\.layers\.(\d+)\.fc1\.weight")
    kernel_name = next((n for n in shapes if re.fullmatch(r"encoder\.pos_conv\.0\.(weight_v|.*original1)", n)), "")
    position_width, position_inputs, position_kernel = shapes[kernel_name or "encoder.pos_conv.0.weight_v"]
    upsample = shapes.get("encoder.upsample.0.weight")
    return TransformerConfig(
        extractor=find_extractor(
            [(s[0], s[2], STRIDES.get(s[2], 1)) for s in convs], "layer" if layer_norms else "group"
        ),
        normalise_waveform=layer_norms,
        width=width,
        layers=len(layers),
        feedforward_width=layers[0][0],
        norm_first=layer_norms,
        attention=_read_attention(shapes) if disentangled else StandardAttentionConfig(),
        squeeze=upsample[0] // width if upsample else 1,
        position_kernel=position_kernel,
        position_groups=position_width // position_inputs,
        quantiser=_read_quantiser(shapes),
        projection=_read_projection(shapes),
    )


def _numbered(shapes: Shapes, pattern: str) -> list[Sequence[int]]:
    found = {int(m[1]): shape for name, shape in shapes.items() if (m := re.fullmatch(pattern, name))}
    if not found:
        raise KeyError(pattern.replace(r"(\d+)", "0").replace("\\", ""))
    return [found[i] for i in sorted(found)]


def _read_attention(shapes: Shapes) -> DisentangledAttentionConfig:
    return DisentangledAttentionConfig(buckets=shapes["encoder.encoder.rel_embeddings.weight"][0] // 2)


def _read_quantiser(shapes: Shapes) -> QuantiserConfig:
    if "quantizer.vars" not in shapes:
        return QuantiserConfig()
    _, total, dim = shapes["quantizer.vars"]  # all entries of both codebooks, and the width of each
    return QuantiserConfig(entries=total // 2, dim=2 * dim)


def _read_projection(shapes: Shapes) -> LinearProjectionConfig | MlpProjectionConfig:
    hidden = shapes.get("final_proj.net.0.weight")
    return MlpProjectionConfig(hidden_width=hidden[0]) if hidden else LinearProjectionConfig()
