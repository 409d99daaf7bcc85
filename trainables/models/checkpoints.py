"""Weights of trained models: reading those of Hugging Face, fairseq and SEW, and writing Hugging Face folders."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainables.models import fairseq, huggingface
from trainables.models.acoustic import AcousticModel
from trainables.models.checkpoint_files import CheckpointError, described_model, misfit, read_json, weight_files
from trainables.models.config import TransformerConfig
from trainables.models.huggingface import Names
from trainables.models.presets import ModelConfig
from trainables.models.self_supervised import SelfSupervisedHead

Weights = Mapping[str, Tensor]
MOST_SYMBOLS = 1_000_000  # of a vocabulary; a list of the symbols is made
_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


# What the names of weights outside the backbone begin with, in all layouts.
HEADS = ("lm_head", "w2v_encoder.", "quantizer", "project_", "final_proj", "ctc_head", "self_supervised_head")


@dataclass(frozen=True)
class Checkpoint:
    """Weights under the names of a layout, and which of our weights each name stands for."""

    path: Path
    model: ModelConfig
    weights: Weights
    names: Mapping[str, Names]  # of each part that the layout can hold
    qkv: tuple[str, str, str]
    symbols: tuple[str, ...] | None  # of its CTC head, the blank first

    def holds(self, model: AcousticModel, part: str) -> bool:
        """Whether any of the part's weights is here."""
        return any(self._find(ours, part) is not None for ours in model.get_submodule(part).state_dict())

    def load_into(self, model: AcousticModel, part: str) -> None:
        """Put the part's weights into the model. Raises CheckpointError naming all that is missing or does not fit."""
        model.get_submodule(part).load_state_dict(self.state_of(model, part))

    def state_of(self, model: AcousticModel, part: str) -> dict[str, Tensor]:
        """The part's weights under our names; the model may be on the meta device. Raises CheckpointError."""
        module = model.get_submodule(part)
        state, missing, misfits = {}, [], []
        for ours, tensor in module.state_dict().items():
            found = self._find(ours, part)
            if found is None:
                missing.append(ours)
            elif not _same_shape(found, tensor, ours):
                misfits.append(f"{ours} is {tuple(found.shape)}, not {tuple(tensor.shape)}")
            else:
                state[ours] = found.reshape(tensor.shape)
        if missing == ["mask_embedding"]:  # transformers leaves it out of models whose config masks nothing
            state["mask_embedding"] = module.state_dict()[missing.pop()]
        problems = [f"missing: {', '.join(_shortened(missing))}"] if missing else []
        if unused := self._unused(module, part):
            problems.append(f"not in the model: {', '.join(_shortened(unused))}")
        problems += [f"of another size: {', '.join(_shortened(misfits))}"] if misfits else []
        if problems:
            raise CheckpointError(f"{self.path}: does not fit the model's {part}; {'; '.join(problems)}")
        return state

    def _theirs(self, ours: str, part: str) -> list[str]:
        """The names of one of our weights in the checkpoint: three for the joint projection of attention."""
        name = rename(ours, self.names[part])
        return list(dict.fromkeys(name.format(qkv=letter) for letter in self.qkv))

    def _find(self, ours: str, part: str) -> Tensor | None:
        theirs = self._theirs(ours, part)
        found = [self.weights[name] for name in theirs if name in self.weights]
        if len(found) < len(theirs):
            return None
        alike = all(tensor.shape == found[0].shape for tensor in found)
        return torch.cat(found) if len(found) > 1 and alike else found[0]

    def _unused(self, module: nn.Module, part: str) -> list[str]:
        """Weights of the backbone that have no place in ours."""
        if part != "backbone":
            return []
        used = {name for ours in module.state_dict() for name in self._theirs(ours, part)}
        return [name for name in self.weights if name not in used and not name.startswith(HEADS)]


def _same_shape(found: Tensor, tensor: Tensor, ours: str) -> bool:
    """Apart from axes of size 1, which convolutions of kernel 1 have; codewords may be in one row for all codebooks."""
    if ours.endswith("codewords_GVd"):
        return found.numel() == tensor.numel() and found.shape[-1] == tensor.shape[-1]
    return [n for n in found.shape if n > 1] == [n for n in tensor.shape if n > 1]


def rename(name: str, names: Names) -> str:
    """The name in the other layout; the name itself where no pattern matches."""
    for pattern, replacement in names.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name


def _shortened(items: list[str], most: int = 5) -> list[str]:
    return items if len(items) <= most else [*items[:most], f"and {len(items) - most} more"]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read weights of any of the three layouts. Nothing in the file is executed. Raises CheckpointError."""
    if path.is_file():
        return _read_fairseq(path)
    return _read_stage(path) if (path / "stage.json").is_file() else _read_huggingface(path)


def _read_stage(path: Path) -> Checkpoint:
    model = described_model(path)
    assert model is not None
    weights = {f"{file.stem}.{name}": t for file in weight_files(path) for name, t in _read_tensors(file).items()}
    names = {part: {r"(.+)": rf"{part}.\1"} for part in ("backbone", "ctc_head", "self_supervised_head")}
    symbols = read_json(path / "symbols.json").get("symbols") or ()
    if not isinstance(symbols, Sequence) or not all(isinstance(symbol, str) for symbol in symbols):
        raise CheckpointError(f"{path / 'symbols.json'}: symbols must be a list of texts, got {symbols!r}")
    return Checkpoint(path, model, weights, names, ("", "", ""), tuple(symbols) or None)


def _read_huggingface(path: Path) -> Checkpoint:
    model = described_model(path)
    assert isinstance(model, TransformerConfig)
    prefix = huggingface.MODEL_TYPES[read_json(path / "config.json")["model_type"]]
    found = {name: tensor for file in weight_files(path) for name, tensor in _read_tensors(file).items()}
    weights: Weights = {_modern(name.removeprefix(f"{prefix}.")): tensor for name, tensor in found.items()}
    if prefix == "wav2vec2" and model.width == model.extractor.width:
        weights = _without_identity(weights)
    names = {
        "backbone": huggingface.BACKBONE_NAMES[prefix],
        "ctc_head": huggingface.CTC_HEAD_NAMES,
        "self_supervised_head": huggingface.SELF_SUPERVISED_HEAD_NAMES,
    }
    symbols = None
    if vocabulary := read_json(path / "vocab.json"):
        weights, symbols = _blank_first(path, weights, vocabulary)
    return Checkpoint(path, model, weights, names, huggingface.QKV[prefix], symbols)


def _without_identity(weights: Weights) -> Weights:
    """Transformers projects the features even where no width changes. A projection that does nothing is left out."""
    names = ("feature_projection.projection.weight", "feature_projection.projection.bias")
    matrix, bias = (weights.get(name) for name in names)
    if matrix is None or bias is None or bias.any() or not torch.equal(matrix, torch.eye(len(matrix))):
        return weights
    return {name: tensor for name, tensor in weights.items() if name not in names}


def _blank_first(path: Path, weights: Weights, vocabulary: Mapping[str, Any]) -> tuple[Weights, tuple[str, ...]]:
    """The CTC head's rows and the symbols, with the blank (the padding token) moved to the front."""
    numbers = set(vocabulary.values()) if all(type(number) is int for number in vocabulary.values()) else set()
    if len(numbers) < len(vocabulary) or min(numbers) < 0 or max(numbers) >= MOST_SYMBOLS:
        rule = f"must give each token a number of its own, from 0 on and below {MOST_SYMBOLS}"
        raise CheckpointError(f"{path / 'vocab.json'}: {rule}")
    blank = read_json(path / "config.json").get("pad_token_id", 0)
    by_id = {index: token for token, index in vocabulary.items()}
    if type(blank) is not int or blank not in by_id:
        raise CheckpointError(f"{path / 'config.json'}: pad_token_id (the blank) is not in vocab.json, got {blank!r}")
    symbols = huggingface.read_symbols(vocabulary, by_id.get(blank, ""))
    head = {name: weights[name] for name in ("lm_head.weight", "lm_head.bias") if name in weights}
    sizes = {len(tensor) if tensor.ndim else 0 for tensor in head.values()} or {len(symbols)}
    if blank >= (size := min(sizes)) or len(sizes) > 1:
        rule = f"has {size} outputs, of which none is the blank (pad_token_id {blank})"
        raise CheckpointError(f"{path}: its CTC head {rule}")
    symbols = (*symbols, *[""] * (size - len(symbols)))[:size]
    order = [blank, *(i for i in range(size) if i != blank)]
    return {**weights, **{name: t[order] for name, t in head.items()}}, tuple(symbols[i] for i in order)


def _read_fairseq(path: Path) -> Checkpoint:
    content = _read_tensors(path)
    model_weights: Any = content.get("model", content)
    if not isinstance(model_weights, Mapping) or not all(isinstance(t, Tensor) for t in model_weights.values()):
        raise CheckpointError(f"{path}: holds no weights, neither under 'model' nor at its top")
    weights = {_modern(name.removeprefix(fairseq.FINE_TUNED_PREFIX)): t for name, t in model_weights.items()}
    try:
        model = fairseq.read_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()})
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    names = {
        "backbone": fairseq.backbone_names(model),
        "ctc_head": fairseq.CTC_HEAD_NAMES,
        "self_supervised_head": fairseq.SELF_SUPERVISED_HEAD_NAMES,
    }
    return Checkpoint(path, model, weights, names, huggingface.QKV[model.family], None)


def _modern(name: str) -> str:
    """Weight norm was `weight_g` and `weight_v` before it became a parametrisation."""
    stem, _, leaf = name.rpartition(".")
    return f"{stem}.{_WEIGHT_NORM[leaf]}" if leaf in _WEIGHT_NORM else name


def _read_tensors(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace]):  # fairseq keeps its arguments so; they are inert
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{path}: cannot be read as weights ({type(error).__name__}: {reason})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no weights but a {type(content).__name__}")
    return content


def read_ctc_model(path: Path) -> tuple[AcousticModel, tuple[str, ...]]:
    """A trained recogniser and its symbols. Raises CheckpointError when the weights are not those of one."""
    checkpoint = read_checkpoint(path)
    if checkpoint.symbols is None:
        raise CheckpointError(f"{path}: has no symbols (symbols.json or vocab.json) to write its outputs with")
    _check_backbone(checkpoint, checkpoint.model)
    model = AcousticModel(checkpoint.model, len(checkpoint.symbols), seed=0)
    for part in ("backbone", "ctc_head"):
        checkpoint.load_into(model, part)
    return model, checkpoint.symbols


def _check_backbone(checkpoint: Checkpoint, model: ModelConfig) -> None:
    """Raises CheckpointError when the weights are not those of the model's backbone.

    No memory is taken for the model: its settings may come from the same file, and be as large as anyone wrote.
    """
    for name, value in model:
        if name.endswith("layers") and isinstance(value, int) and value > len(checkpoint.weights):
            held = len(checkpoint.weights)
            raise CheckpointError(f"{checkpoint.path}: has {held} weights, too few for {value} {name}")
    try:
        with torch.device("meta"):
            built = AcousticModel(model, num_symbols=2, seed=0)
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{checkpoint.path}: no model can have its settings: {reason}") from error
    checkpoint.state_of(built, "backbone")


def check_fits(checkpoint: Checkpoint, model: ModelConfig) -> None:
    """Raises CheckpointError naming the fields in which the model is not the checkpoint's, or the weights amiss."""
    if message := misfit(model, checkpoint.model):
        raise CheckpointError(f"{checkpoint.path}: {message}")
    _check_backbone(checkpoint, model)


def take_over(checkpoint: Checkpoint, model: AcousticModel, parts: Collection[str]) -> None:
    """Start the model from the checkpoint: its backbone, and its contrastive head where it is wanted and there.

    Raises CheckpointError.
    """
    check_fits(checkpoint, model.config)
    checkpoint.load_into(model, "backbone")
    contrastive = isinstance(model.self_supervised_head, SelfSupervisedHead)
    if "self_supervised_head" in parts and contrastive and checkpoint.holds(model, "self_supervised_head"):
        checkpoint.load_into(model, "self_supervised_head")


def write_huggingface(model: AcousticModel, symbols: tuple[str, ...], folder: Path) -> None:
    """Write a folder that `transformers.AutoModelForCTC` and `AutoProcessor` open; logits are the same.

    Raises ValueError for a model that transformers cannot express.
    """
    config = model.config
    if not isinstance(config, TransformerConfig):
        raise ValueError(f"transformers has no model like {config.family}")
    if not parametrize.is_parametrized(model.backbone.positions.conv):  # type: ignore[union-attr, arg-type]
        raise ValueError("the model was prepared for inference, its weight norm is folded; export it before that")
    outputs = len(model.ctc_head.bias)  # type: ignore[arg-type]
    if len(symbols) != outputs:
        raise ValueError(f"{outputs} outputs need as many symbols, got {len(symbols)}")
    files: dict[str, dict[str, Any]] = {
        "config.json": huggingface.write_config(config, len(symbols)),
        "preprocessor_config.json": huggingface.write_preprocessor(config),
        **huggingface.write_tokenizer(symbols),
    }
    weights = _huggingface_weights(model)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _huggingface_weights(model: AcousticModel) -> dict[str, Tensor]:
    config = model.config
    weights: dict[str, Tensor] = {}
    for ours, tensor in model.backbone.state_dict().items():
        theirs = f"{config.family}.{rename(ours, huggingface.BACKBONE_NAMES[config.family])}"
        if "{qkv}" in theirs:
            parts = zip(huggingface.QKV[config.family], tensor.chunk(3), strict=True)
            weights |= {theirs.format(qkv=letter): part for letter, part in parts}
        else:
            weights[theirs] = tensor
    if isinstance(config, TransformerConfig) and config.family == "wav2vec2" and config.width == config.extractor.width:
        # transformers always projects; the identity changes nothing.
        weights["wav2vec2.feature_projection.projection.weight"] = torch.eye(config.width)
        weights["wav2vec2.feature_projection.projection.bias"] = torch.zeros(config.width)
    weights |= {f"lm_head.{name}": tensor for name, tensor in model.ctc_head.state_dict().items()}
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
