"""Where the weights of a trained model lie, what identifies them, and which model they are of. Needs no torch.

Three layouts: a Hugging Face folder (config.json beside the weights), a stage's folder in the store of a study
(stage.json beside the weights), and a `.pt` file of fairseq or SEW.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trainables.models import huggingface
from trainables.models.config import TransformerConfig
from trainables.models.presets import PRESETS, ModelConfig

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")


class CheckpointError(ValueError):
    """Weights that cannot be used; the message names the file and the rule."""


def locate(name: str) -> Path:
    """The file or folder of weights: a path, or the name of a model on the Hugging Face hub, which is downloaded.

    Raises CheckpointError.
    """
    found = local_copy(name)
    if found is None:
        try:
            found = _from_hub(name, local_files_only=False)
        except _HUB_ERRORS as error:
            reason = str(error).split("\n")[0]
            raise CheckpointError(
                f"{name}: neither a file or folder here, nor to be had from the Hugging Face hub ({reason})"
            ) from error
    return found


def local_copy(name: str) -> Path | None:
    """The same without a download: None for a model of the hub that is not on this machine. Raises CheckpointError."""
    path = Path(name).expanduser()
    if path.exists():
        return path.absolute()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise CheckpointError(f"{name}: no such file or folder")
    try:
        found = _from_hub(name, local_files_only=True)
        weight_files(found)
    except (*_HUB_ERRORS, CheckpointError):  # not here, or only its settings
        return None
    return found


# HfHubHTTPError is an OSError; a name that the hub cannot have is a ValueError.
_HUB_ERRORS = (OSError, ValueError)


def _from_hub(name: str, *, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download  # takes half a second to import

    for pattern in WEIGHT_FILES:  # the older kind only where the newer one is not
        folder = Path(snapshot_download(name, allow_patterns=["*.json", pattern], local_files_only=local_files_only))
        if any(folder.glob(pattern)):
            break
    return folder


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights. Raises CheckpointError."""
    if path.is_file():
        return [path]
    for pattern in WEIGHT_FILES:
        if files := sorted(path.glob(pattern)):
            return files
    raise CheckpointError(f"{path}: no weights here (looked for {', '.join(WEIGHT_FILES)})")


def fingerprint(path: Path) -> str:
    """sha256 of the weights: their content is part of a stage's identity, their place is not."""
    files = weight_files(path)
    return _hash(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@functools.lru_cache
def _hash(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, size, _ in files:
        digest.update(f"{size}\n".encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The content of the file, empty when it does not exist. Raises CheckpointError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is not a JSON object but a {type(content).__name__}")
    return content


def described_model(path: Path) -> ModelConfig | None:
    """The settings of the model, where a file tells them; None for a `.pt` file, whose weights must be looked at.

    Raises CheckpointError.
    """
    if path.is_file():
        return None
    if stage := read_json(path / "stage.json"):
        return _stage_model(stage, path / "stage.json")
    config = read_json(path / "config.json")
    if not config:
        raise CheckpointError(f"{path}: neither config.json (Hugging Face) nor stage.json (a study's stage) is here")
    preprocessor = _preprocessor(path)
    try:
        return huggingface.read_config(config, preprocessor)
    except ValueError as error:
        raise CheckpointError(f"{path / 'config.json'}: {error}") from error
    except (TypeError, OverflowError) as error:
        raise CheckpointError(f"{path / 'config.json'}: a field has a value of the wrong kind: {error}") from error


def _stage_model(stage: dict[str, Any], path: Path) -> ModelConfig:
    try:
        return TypeAdapter[ModelConfig](ModelConfig).validate_python(stage.get("model"))
    except ValidationError as error:
        raise CheckpointError(f"{path}: its `model` is of another version of this project") from error


def _preprocessor(path: Path) -> dict[str, Any]:
    """transformers 5 saves a processor as one file, with the feature extractor inside."""
    nested = read_json(path / "processor_config.json").get("feature_extractor")
    return read_json(path / "preprocessor_config.json") or (nested if isinstance(nested, dict) else {})


# What may differ between a checkpoint and the model that starts from it: nothing that has weights in the backbone.
_FREE = {"preset", "dropout", "quantiser", "projection", "normalise_waveform", "variant"}


def differences(model: ModelConfig, found: ModelConfig) -> list[str]:
    """The fields in which the backbone of the model is not the one found, as `field: found, not the model's`."""
    if model.kind != found.kind:
        return [f"kind: {found.kind}, not {model.kind}"]
    mine, theirs = _architecture(model), _architecture(found)
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    return [f"{name}: {theirs.get(name)}, not {mine.get(name)}" for name in names]


def misfit(model: ModelConfig, found: ModelConfig) -> str | None:
    """Why the model cannot start from the weights of the one found, and the preset that can; None when it can."""
    different = differences(model, found)
    if not different:
        return None
    fitting = [name for name, preset in PRESETS.items() if not differences(preset, found)]
    advice = f"; they are of `model: {{preset: {fitting[0]}}}`" if fitting else ""
    return f"is of another model; {'; '.join(different)}{advice}"


def _architecture(model: ModelConfig) -> dict[str, Any]:
    fields: dict[str, Any] = model.model_dump(mode="json", exclude=_FREE)
    if isinstance(model, TransformerConfig):
        fields |= {"heads": model.num_heads, "feedforward_width": model.inner_width}
        fields["extractor"].pop("masked_statistics", None)
    return fields
