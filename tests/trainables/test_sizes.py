"""Numbers of parameters in closed form, against the modules that torch makes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from trainables.losses.config import Part, SelfSupervision
from trainables.models import sizes
from trainables.models.acoustic import AcousticModel, count_parameters
from trainables.models.inventory import measure
from trainables.models.presets import PRESETS, ModelConfig
from trainables.models.sizes import num_constants, num_extractor_parameters, num_parameters

MODELS: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)

QUANTISERS = st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(1, 6)).map(
    lambda q: {"codebooks": q[0], "entries": q[1], "dim": q[0] * q[2]}
)
PROJECTIONS = st.one_of(
    st.just({"kind": "linear"}), st.fixed_dictionaries({"kind": st.just("mlp"), "hidden_width": st.integers(1, 9)})
)
SELF_SUPERVISED = {"quantiser": QUANTISERS, "projection": PROJECTIONS}
WAVE = st.fixed_dictionaries(
    {
        "kind": st.just("wave"),
        "channels": st.integers(1, 6),
        "compact": st.booleans(),
        "pointwise_layers": st.integers(0, 2),
        "norm": st.sampled_from(["group", "layer"]),
        "masked_statistics": st.booleans(),
    }
)
FILTER_BANK = st.fixed_dictionaries(
    {
        "kind": st.just("filter_bank"),
        "channels": st.integers(1, 6),
        "mel_bins": st.integers(8, 24),
        "width": st.sampled_from([7, 12]),
    }
)
DISENTANGLED = st.integers(1, 6).map(
    lambda half: {"kind": "disentangled", "buckets": 2 * half, "max_distance": 2 * half + 4}
)
TRANSFORMERS = st.fixed_dictionaries(
    {
        "kind": st.just("transformer"),
        "extractor": st.one_of(WAVE, FILTER_BANK),
        "width": st.sampled_from([12, 24]),
        "heads": st.sampled_from([1, 4]),
        "layers": st.integers(1, 3),
        "feedforward_width": st.one_of(st.none(), st.integers(1, 9)),
        "attention": st.one_of(st.just({"kind": "standard"}), DISENTANGLED),
        "squeeze": st.integers(1, 3),
        "position_kernel": st.integers(1, 6),
        "position_groups": st.sampled_from([1, 3, 4]),
        **SELF_SUPERVISED,
    }
)
NORM_FIRST = TRANSFORMERS.map(lambda t: {**t, "norm_first": True, "squeeze": 1, "attention": {"kind": "standard"}})
CNN_GRUS = st.fixed_dictionaries(
    {
        "kind": st.just("cnn_gru"),
        "variant": st.sampled_from(["fixed", "compat"]),
        "mel_bins": st.integers(8, 24),
        "channels": st.sampled_from([8, 16]),
        "cnn_layers": st.integers(0, 2),
        "gru_layers": st.integers(1, 3),
        "gru_width": st.integers(1, 9),
        **SELF_SUPERVISED,
    }
)
COMPACT_CNN_GRUS = st.fixed_dictionaries(
    {
        "kind": st.just("compact_cnn_gru"),
        "mel_bins": st.integers(8, 24),
        "cnn_width": st.integers(8, 16),
        "cnn_layers": st.integers(0, 2),
        "gru_width": st.integers(8, 16),
        "gru_layers": st.integers(1, 3),
        **SELF_SUPERVISED,
    }
)
SETTINGS = st.one_of(TRANSFORMERS, NORM_FIRST, CNN_GRUS, COMPACT_CNN_GRUS)


def built(config: ModelConfig, num_symbols: int, self_supervision: SelfSupervision) -> AcousticModel:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return AcousticModel(config, num_symbols, seed=0, self_supervision=self_supervision)


def check(config: ModelConfig, num_symbols: int) -> None:
    for self_supervision in get_args(SelfSupervision):
        model = built(config, num_symbols, self_supervision)
        for part in get_args(Part):
            module = model.get_submodule(part)
            assert num_parameters(config, part, num_symbols, self_supervision) == count_parameters(module), part
            stored = sum(tensor.numel() for tensor in module.state_dict().values())
            assert num_constants(config, part, self_supervision) == stored - count_parameters(module), part
        extractor = sum(map(count_parameters, model.backbone.extractor_modules))
        assert num_extractor_parameters(config) == extractor


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_the_numbers_of_its_modules(name: str) -> None:
    check(PRESETS[name], 32)


@settings(max_examples=150, deadline=None)
@given(given_settings=SETTINGS, num_symbols=st.integers(1, 50))
def test_any_settings_have_the_numbers_of_their_modules(given_settings: dict[str, Any], num_symbols: int) -> None:
    check(MODELS.validate_python(given_settings), num_symbols)


def test_by_hand_for_a_transformer_of_one_layer() -> None:
    """Convolutions of 4 channels and a norm; norm, projection and mask; positions; one norm, one layer of width 8."""
    config = MODELS.validate_python(
        {
            "kind": "transformer",
            "extractor": {"kind": "wave", "channels": 4},
            "width": 8,
            "heads": 1,
            "layers": 1,
            "position_kernel": 3,
            "position_groups": 2,
        }
    )
    extractor = 10 * 4 + 4 * (3 * 4 * 4) + 2 * (2 * 4 * 4) + 2 * 4
    positions = 8 * 4 * 3 + 8 + 3
    layer = 4 * (8 * 8 + 8) + (8 * 32 + 32) + (32 * 8 + 8) + 4 * 8
    expected = extractor + 2 * 4 + (4 * 8 + 8) + 8 + positions + 2 * 8 + layer
    assert num_parameters(config, "backbone", 1) == expected
    assert num_parameters(config, "ctc_head", 5) == 8 * 5 + 5


def test_the_parts_are_those_of_the_losses() -> None:
    assert (sizes.Part, sizes.SelfSupervision) == (Part, SelfSupervision)


@pytest.mark.parametrize("name", PRESETS)
def test_the_inventory_has_the_numbers_of_a_recogniser_and_of_a_model_in_pretraining(name: str) -> None:
    size = measure(name)
    model = built(PRESETS[name], size.outputs, "contrastive")
    assert size.parameters_ctc == model.num_recogniser_parameters
    backbone, head = count_parameters(model.backbone), count_parameters(model.self_supervised_head)
    assert size.parameters_pretraining == backbone + head


def test_the_inventory_needs_no_torch() -> None:
    """In a process of its own, for this one has imported it."""
    program = "import sys, trainables.models.inventory as i; i.measure('sew_tiny'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
