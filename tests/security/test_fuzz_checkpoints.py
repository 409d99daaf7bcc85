"""Whatever stands in the files of a trained model: it is read, or refused with an error that names the file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import SMALL_MODEL
from tests.security.mutations import changed_bytes, changed_trees, may_be_refused
from trainables.models import fairseq, huggingface
from trainables.models.acoustic import AcousticModel
from trainables.models.checkpoint_files import CheckpointError, described_model, fingerprint
from trainables.models.checkpoints import read_checkpoint, read_ctc_model, rename, write_huggingface
from trainables.models.config import CompactCnnGruConfig, TransformerConfig, WaveExtractorConfig

SYMBOLS = ("", " ", "a", "b")
WAV2VEC = TransformerConfig(
    width=64,
    layers=1,
    heads=1,
    feedforward_width=64,
    extractor=WaveExtractorConfig(channels=8),
    position_kernel=8,
    position_groups=2,
)
BOUNDED = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def write_stage(folder: Path) -> None:
    """As a stage leaves its model in the store."""
    folder.mkdir()
    model = AcousticModel(CompactCnnGruConfig.model_validate(SMALL_MODEL), len(SYMBOLS), seed=0)
    for part in ("backbone", "ctc_head"):
        safetensors.torch.save_file(model.get_submodule(part).state_dict(), folder / f"{part}.safetensors")
    (folder / "stage.json").write_text(json.dumps({"model": SMALL_MODEL}))
    (folder / "symbols.json").write_text(json.dumps({"symbols": SYMBOLS}))


def write_pt(path: Path) -> None:
    """As fairseq saves a pre-trained model."""
    weights = {}
    for ours, tensor in AcousticModel(WAV2VEC, len(SYMBOLS), seed=0).backbone.state_dict().items():
        theirs = rename(ours, fairseq.backbone_names(WAV2VEC))
        parts = tensor.chunk(3) if "{qkv}" in theirs else [tensor]
        for letter, part in zip(huggingface.QKV["wav2vec2"], parts, strict=False):
            weights[theirs.format(qkv=letter)] = part.clone()
    torch.save({"args": None, "model": weights}, path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_huggingface(AcousticModel(WAV2VEC, len(SYMBOLS), seed=0), SYMBOLS, root / "huggingface")
    write_stage(root / "stage")
    write_pt(root / "fairseq.pt")
    return root


def assert_read_or_refused(path: Path) -> None:
    """By each of the functions that open such files."""
    for read in (fingerprint, described_model, read_checkpoint, read_ctc_model):
        with may_be_refused(CheckpointError, path):
            read(path)


def test_what_is_changed_here_is_read_as_it_is(root: Path) -> None:
    assert read_ctc_model(root / "huggingface")[1] == SYMBOLS
    assert read_ctc_model(root / "stage")[1] == SYMBOLS
    assert read_checkpoint(root / "fairseq.pt").model.width == WAV2VEC.width


@pytest.mark.parametrize(
    "name",
    [
        *(f"huggingface/{name}" for name in ("config.json", "preprocessor_config.json", "vocab.json")),
        *("stage/stage.json", "stage/symbols.json"),
    ],
)
@given(st.data())
@BOUNDED
def test_changed_settings_are_read_or_refused(name: str, root: Path, data: st.DataObject) -> None:
    path = root / name
    kept = path.read_bytes()
    try:
        if data.draw(st.integers(0, 3)):
            path.write_text(json.dumps(data.draw(changed_trees(json.loads(kept)))), encoding="utf-8")
        else:
            path.write_bytes(data.draw(changed_bytes(kept)))
        assert_read_or_refused(path.parent)
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize("name", ["huggingface/model.safetensors", "stage/backbone.safetensors"])
@given(st.data())
@BOUNDED
def test_a_changed_header_of_safetensors_is_read_or_refused(name: str, root: Path, data: st.DataObject) -> None:
    path = root / name
    kept = path.read_bytes()
    length = int.from_bytes(kept[:8], "little")
    try:
        if data.draw(st.booleans()):
            path.write_bytes(data.draw(changed_bytes(kept, 0, 8 + length)))
        else:
            header = json.dumps(data.draw(changed_trees(json.loads(kept[8 : 8 + length])))).encode()
            path.write_bytes(len(header).to_bytes(8, "little") + header + kept[8 + length :])
        assert_read_or_refused(path.parent)
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("huggingface/config.json", {"model_type": []}, "a field has a value of the wrong kind"),
        ("huggingface/config.json", {"conv_dim": 5}, "a field has a value of the wrong kind"),
        ("huggingface/config.json", {"num_hidden_layers": 10**9}, "weights, too few for 1000000000 layers"),
        ("huggingface/config.json", {"num_conv_pos_embeddings": 2**50}, "no model can have its settings"),
        ("huggingface/config.json", {"pad_token_id": []}, "pad_token_id (the blank) is not in vocab.json"),
        ("huggingface/vocab.json", {"a": []}, "must give each token a number of its own"),
        ("huggingface/vocab.json", {"a": 10**12}, "must give each token a number of its own"),
        ("huggingface/vocab.json", {"b": 2}, "must give each token a number of its own"),
        ("huggingface/vocab.json", {"a": -1}, "must give each token a number of its own"),
        ("stage/symbols.json", {"symbols": -2}, "symbols must be a list of texts"),
        ("stage/symbols.json", {"symbols": [[], " ", "a", "b"]}, "symbols must be a list of texts"),
    ],
)
def test_settings_that_no_model_has_are_refused_at_once(
    name: str, change: dict[str, Any], message: str, root: Path
) -> None:
    path = root / name
    kept = path.read_bytes()
    path.write_text(json.dumps(json.loads(kept) | change))
    try:
        with pytest.raises(CheckpointError, match=re.escape(message)) as error:
            read_ctc_model(path.parent)
        assert str(path.parent) in str(error.value)
    finally:
        path.write_bytes(kept)


def test_deep_json_is_refused(root: Path) -> None:
    path = root / "huggingface" / "vocab.json"
    kept = path.read_bytes()
    path.write_text("[" * 100_000)
    try:
        with pytest.raises(CheckpointError, match=r"vocab\.json: is not JSON"):
            read_ctc_model(path.parent)
    finally:
        path.write_bytes(kept)


@given(st.data())
@BOUNDED
def test_a_changed_pt_file_is_read_or_refused(root: Path, data: st.DataObject) -> None:
    path = root / "fairseq.pt"
    kept = path.read_bytes()
    try:
        path.write_bytes(data.draw(changed_bytes(kept, 0, data.draw(st.sampled_from([2_000, len(kept)])))))
        assert_read_or_refused(path)
    finally:
        path.write_bytes(kept)
