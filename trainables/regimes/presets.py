"""Published settings of stages, by name, such as `finetune: {preset: w2v2_base_10m}`.

Any field beside it may be set or searched.

Batches are stated as the papers' over all GPUs, in seconds of audio. `accumulation` is that of their machines; more
workers and less accumulation, or the reverse, only move the boundaries of what diversity and BatchNorm see.

"fairseq" is examples/wav2vec of facebookresearch/fairseq, "SEW" asappresearch/sew, "P-SEW" arXiv:2109.06870, "P-BLJ"
the paper on bilevel joint training of wav2vec 2.0 and CNN-LSTM models, "BL-JUST" afmsaif/BL-JUST (arXiv:2401.06980).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trainables.config import merge, preset_named

StageType = Literal["pretrain", "supervised", "joint", "final", "weighted_sum", "semi_supervised"]


@dataclass(frozen=True)
class Preset:
    source: str
    settings: dict[str, Any]


# wav2vec 2.0 and SEW: pre-training

_CONTRASTIVE = {
    "kind": "contrastive",
    "equal_masks": True,
    "gumbel_decay": 0.999995,
    "extractor_gradient": 0.1,
}
_W2V2_BASE: dict[str, Any] = {
    "steps": 400_000,
    "batch_seconds": 5600,  # 1.4 M samples on each of 64 GPUs
    "accumulation": 8,  # P-SEW: 8 GPUs
    "crop": {"max_seconds": 15.625, "min_seconds": 2.0},
    "augment_speed": False,
    "learning_rate": 5e-4,
    "schedule": {"kind": "polynomial", "warmup_steps": 32_000},
    "optimiser": {"betas": [0.9, 0.98], "epsilon": 1e-6, "weight_decay": 0.01, "max_gradient_norm": None},
    "precision": "fp16",
    "report_every": 200,
    "loss": _CONTRASTIVE,
}
_W2V2_LARGE = merge(
    _W2V2_BASE,
    {
        "steps": 1_000_000,
        "batch_seconds": 9600,  # 1.2 M samples on each of 128 GPUs
        "accumulation": 16,
        "crop": {"max_seconds": 20.0},
        "learning_rate": 3e-4,
        "loss": {"gumbel_end": 0.1, "feature_penalty_weight": 0.0, "extractor_gradient": 1.0},
    },
)
_SEW_100K = merge(_W2V2_BASE, {"steps": 100_000, "schedule": {"total_steps": 400_000}})

# The small models on the embedded speech: frames of 40 ms, few of them in an utterance.
_COMPACT_CONTRASTIVE = {
    "kind": "contrastive",
    "mask_length": 5,
    "negatives": 50,
    "diversity_weight": 1.0,
    "feature_penalty_weight": 1.0,
}

# Some hundred updates of such models, on a CPU.
_SHORT = {
    "batch_seconds": 12,
    "augment_speed": False,
    "schedule": {"kind": "tri_stage", "warmup_fraction": 0.05},
}
_SHORT_LABELLED = {**_SHORT, "evaluate_every": 25}
_SHORT_SOURCE = "this project, for some hundred updates of compact_cnn_gru on the embedded speech"

# wav2vec 2.0 and SEW: fine-tuning


def _finetune(
    steps: int,
    learning_rate: float,
    frozen_steps: int,
    time_probability: float,
    channel_probability: float,
    layer_drop: float = 0.1,
) -> dict[str, Any]:
    return {
        "steps": steps,
        "batch_seconds": 1600,  # base: 3.2 M samples on 2 GPUs, 4 times
        "accumulation": 4,
        "augment_speed": False,
        "learning_rate": learning_rate,
        "frozen_backbone_steps": frozen_steps,
        "schedule": {
            "kind": "tri_stage",
            "warmup_fraction": 0.1,
            "decay_fraction": 0.5,
            "start_scale": 0.01,
            "end_scale": 0.05,
        },
        "optimiser": {"betas": [0.9, 0.98], "epsilon": 1e-8, "weight_decay": 0.0, "max_gradient_norm": None},
        "dropout": {
            "hidden": 0.0,
            "attention": 0.0,
            "activation": 0.1,
            "input": 0.0,
            "features": 0.0,
            "layer": layer_drop,
        },
        "precision": "fp16",
        "report_every": 200,
        "evaluate_every": 1000,
        "loss": {
            "kind": "ctc",
            "extractor_gradient": 0.0,
            "mask": {
                "time_probability": time_probability,
                "time_length": 10,
                "channel_probability": channel_probability,
                "channel_length": 64,
                "min_spans": 2,
                "equal": True,
            },
        },
    }


_W2V2_BASE_FINETUNE = {
    "10m": _finetune(13_000, 5e-5, 10_000, 0.65, 0.25),
    "1h": _finetune(13_000, 5e-5, 10_000, 0.65, 0.25),
    "10h": _finetune(20_000, 5e-5, 10_000, 0.65, 0.5, layer_drop=0.05),
    "100h": _finetune(80_000, 3e-5, 0, 0.65, 0.5),
    "960h": _finetune(320_000, 1e-4, 0, 0.5, 0.1),
}
_W2V2_LARGE_FINETUNE = {
    "10m": {**_finetune(13_000, 1e-4, 10_000, 0.65, 0.25), "accumulation": 5},
    "1h": {**_finetune(13_000, 3e-4, 10_000, 0.75, 0.25), "accumulation": 5},
    "10h": {**_finetune(20_000, 1e-4, 10_000, 0.75, 0.25), "accumulation": 5},
    "100h": {**_finetune(80_000, 3e-5, 10_000, 0.5, 0.5), "accumulation": 5},
    "960h": {**_finetune(320_000, 3e-5, 10_000, 0.5, 0.25), "batch_seconds": 1920},  # 1.28 M samples on 24 GPUs
}
_STABLE = {
    "frozen_backbone_steps": 0,
    "dropout": {"hidden": 0.1, "attention": 0.1, "activation": 0.0, "input": 0.1, "features": 0.0},
}
_STABLE_FINETUNE = {
    budget: merge(_W2V2_BASE_FINETUNE[budget], {**_STABLE, "learning_rate": learning_rate})
    for budget, learning_rate in {"10m": 1e-5, "1h": 1e-5, "10h": 1e-5, "100h": 3e-5}.items()
}
_XLSR_STEPS = {"babel": 26_000, "common_voice": 13_000, "voxpopuli": 50_000, "mls_10h": 20_000}

# P-BLJ's CNN-GRU: 100 hours are 2,900 batches of 10 utterances (125 s). Its SpecAugment (F 27, 10 x T 15, at most 5 %
# of an utterance each) acts on the mel; here it is translated to the features, of 20 ms and 32 channels for 2 mel bins.

_ADAMW = {"betas": [0.9, 0.999], "epsilon": 1e-8, "weight_decay": 0.01, "max_gradient_norm": 1.0}
_CONSTANT = {"kind": "constant"}
_P_BLJ_CTC = {
    "kind": "ctc",
    "mask": {"time_probability": 0.1, "time_length": 7, "channel_probability": 0.17, "channel_length": 432},
}
_P_BLJ: dict[str, Any] = {
    "batch_seconds": 125,
    "augment_speed": False,
    "schedule": _CONSTANT,
    "optimiser": _ADAMW,
    "report_every": 200,
}
_P_BLJ_EPOCH = 2900
_P_BLJ_LABELLED = {**_P_BLJ, "evaluate_every": 2 * _P_BLJ_EPOCH}

# BL-JUST's code: batches of 60 utterances (750 s), 483 of them in train-clean-100; 4 passes of exploration, then one of
# joint steps; gamma grows by 1 / 500 an epoch, so to 0.4 in its 200 epochs.
_BL_JUST_EPOCH = 483
_BL_JUST = {
    "steps": 200 * 5 * _BL_JUST_EPOCH,
    "exploration_steps": 4 * _BL_JUST_EPOCH,
    "joint_steps": _BL_JUST_EPOCH,
    "batch_seconds": 750,
    "accumulation": 4,
    "augment_speed": False,
    "schedule": _CONSTANT,
    "optimiser": {**_ADAMW, "max_gradient_norm": None},
    "lower_learning_rate": 1e-3,
    "upper_learning_rate": 1e-4,
    "report_every": 100,
    "evaluate_every": 5 * _BL_JUST_EPOCH,
    "loss": {"gamma_start": 0.0, "gamma_end": 0.4, "self_supervised": {"kind": "cpc"}},
}

# Wav2Vec2-JUST (P-BLJ Table 3): its numbers are not published. These are this project's choice, with the masks, batches
# and lengths of fine-tuning on one hour.
_WAV2VEC2_JUST = {
    **{
        k: v
        for k, v in _W2V2_BASE_FINETUNE["1h"].items()
        if k not in ("loss", "learning_rate", "frozen_backbone_steps")
    },
    "exploration_steps": 1,
    "joint_steps": 1,
    "lower_learning_rate": 1e-5,
    "upper_learning_rate": 5e-5,
    "loss": {
        "gamma_start": 0.0,
        "gamma_end": 0.2,
        "ctc": _W2V2_BASE_FINETUNE["1h"]["loss"],
        "self_supervised": merge(_CONTRASTIVE, {"extractor_gradient": 0.0, "gumbel_start": 0.5, "gumbel_decay": None}),
    },
}
_WAV2VEC2_JUST_FINAL = {
    **{k: v for k, v in _W2V2_BASE_FINETUNE["1h"].items() if k not in ("learning_rate", "frozen_backbone_steps")},
    "steps": 2_000,
    "learning_rate_scale": 0.1,
}

# wav2vec-S: its numbers are not in the text at hand. These are this project's choice.
_WAV2VEC_S = {
    **{k: v for k, v in _finetune(20_000, 5e-5, 2_000, 0.65, 0.5).items() if k != "loss"},
    "ctc": _finetune(20_000, 5e-5, 2_000, 0.65, 0.5)["loss"],
    "self_supervised": _CONTRASTIVE,
    "unlabelled_weight": 1.0,
    "teacher_decay": 0.9995,
    "teacher_warmup_steps": 4_000,
}

PRESETS: dict[StageType, dict[str, Preset]] = {
    "pretrain": {
        "w2v2_base": Preset("fairseq pretraining/wav2vec2_base_librispeech.yaml", _W2V2_BASE),
        "w2v2_large": Preset(
            "fairseq pretraining/wav2vec2_large_librivox.yaml; its learning rate, 5e-3, is taken for a slip: the "
            "paper's is 3e-4",
            _W2V2_LARGE,
        ),
        "sew_100k": Preset("SEW scripts/pt-sew.sh and pt-sew-d.sh: 100k updates of the schedule of 400k", _SEW_100K),
        "p_blj": Preset(
            "P-BLJ section 3 and its notebook", {**_P_BLJ, "steps": 100 * _P_BLJ_EPOCH, "learning_rate": 5e-3}
        ),
        "compact": Preset(
            "this project, for compact_cnn_gru on the embedded speech",
            {"learning_rate": 5e-4, "loss": _COMPACT_CONTRASTIVE},
        ),
        "short": Preset(_SHORT_SOURCE, {**_SHORT, "learning_rate": 5e-4, "loss": _COMPACT_CONTRASTIVE}),
    },
    "supervised": {
        "short": Preset(_SHORT_SOURCE, {**_SHORT_LABELLED, "learning_rate": 3e-3}),
        **{
            f"w2v2_base_{budget}": Preset(f"fairseq finetuning/base_{budget}.yaml", settings)
            for budget, settings in _W2V2_BASE_FINETUNE.items()
        },
        **{
            f"w2v2_large_{budget}": Preset(f"fairseq finetuning/vox_{budget}.yaml", settings)
            for budget, settings in _W2V2_LARGE_FINETUNE.items()
        },
        **{
            f"sew_d_stable_{budget}": Preset(f"SEW config/finetuning, base_{budget}_stable", settings)
            for budget, settings in _STABLE_FINETUNE.items()
        },
        **{
            f"xlsr_{corpus}": Preset("fairseq xlsr/finetune.yaml", _finetune(steps, 3e-4, 10_000, 0.75, 0.25))
            for corpus, steps in _XLSR_STEPS.items()
        },
        "p_blj": Preset(
            "P-BLJ section 3 and its notebook",
            {**_P_BLJ_LABELLED, "steps": 100 * _P_BLJ_EPOCH, "learning_rate": 5e-4, "loss": _P_BLJ_CTC},
        ),
    },
    "joint": {
        "short": Preset(
            _SHORT_SOURCE,
            {
                **_SHORT_LABELLED,
                "exploration_steps": 1,
                "joint_steps": 4,
                "lower_learning_rate": 1e-3,
                "upper_learning_rate": 3e-3,
                "loss": {"gamma_end": 0.3, "self_supervised": _COMPACT_CONTRASTIVE},
            },
        ),
        "bl_just": Preset("BL-JUST model/main.py", _BL_JUST),
        "p_blj": Preset(
            "P-BLJ Table 1, last row, and its notebook; alternation and gamma as in BL-JUST's code",
            {
                **_P_BLJ_LABELLED,
                "steps": 100 * 5 * _P_BLJ_EPOCH,
                "exploration_steps": 4 * _P_BLJ_EPOCH,
                "joint_steps": _P_BLJ_EPOCH,
                "lower_learning_rate": 5e-3,
                "upper_learning_rate": 5e-4,
                "evaluate_every": 5 * _P_BLJ_EPOCH,
                "loss": {"gamma_start": 0.0, "gamma_end": 0.2, "ctc": _P_BLJ_CTC},
            },
        ),
        "wav2vec2_just": Preset("this project's choice: P-BLJ prints results only (Table 3)", _WAV2VEC2_JUST),
        "compact": Preset(
            "this project, for compact_cnn_gru on the embedded speech",
            {"loss": {"self_supervised": _COMPACT_CONTRASTIVE}},
        ),
    },
    "final": {
        "short": Preset(_SHORT_SOURCE, _SHORT_LABELLED),
        "bl_just": Preset(
            "BL-JUST model/main.py: 5 epochs at 1e-5",
            {
                "steps": 5 * _BL_JUST_EPOCH,
                "batch_seconds": 750,
                "accumulation": 4,
                "augment_speed": False,
                "schedule": _CONSTANT,
                "optimiser": {**_ADAMW, "max_gradient_norm": None},
                "learning_rate_scale": 0.1,
                "evaluate_every": _BL_JUST_EPOCH,
            },
        ),
        "wav2vec2_just": Preset("this project's choice, as the joint one", _WAV2VEC2_JUST_FINAL),
        "p_blj": Preset(
            "as BL-JUST: 5 epochs at a tenth of beta",
            {
                **_P_BLJ_LABELLED,
                "steps": 5 * _P_BLJ_EPOCH,
                "learning_rate_scale": 0.1,
                "evaluate_every": _P_BLJ_EPOCH,
                "loss": _P_BLJ_CTC,
            },
        ),
    },
    "weighted_sum": {
        "short": Preset(
            _SHORT_SOURCE,
            {
                **_SHORT_LABELLED,
                "learning_rate": 3e-3,
                "self_supervised_weight": 0.3,
                "self_supervised": _COMPACT_CONTRASTIVE,
            },
        ),
        "compact": Preset(
            "this project, for compact_cnn_gru on the embedded speech", {"self_supervised": _COMPACT_CONTRASTIVE}
        ),
    },
    "semi_supervised": {
        "short": Preset(
            _SHORT_SOURCE,
            {
                **_SHORT_LABELLED,
                "learning_rate": 3e-3,
                "unlabelled_weight": 0.3,
                "teacher_decay": 0.95,
                "self_supervised": _COMPACT_CONTRASTIVE,
            },
        ),
        "wav2vec_s": Preset("this project's choice: the paper's numbers are not in the text at hand", _WAV2VEC_S),
        "compact": Preset(
            "this project, for compact_cnn_gru on the embedded speech", {"self_supervised": _COMPACT_CONTRASTIVE}
        ),
    },
}


def fill_in(stage_type: StageType) -> Callable[[Any], Any]:
    """What lays the settings that are given over those of the preset that they name. It raises ValueError."""
    return functools.partial(_fill_in, PRESETS[stage_type])


def _fill_in(presets: Mapping[str, Preset], given: Any) -> Any:
    name = given.get("preset") if isinstance(given, Mapping) else None
    if name is None:
        return given
    settings = dict(preset_named(presets, name, " of such a stage").settings)
    if given.get("steps") is not None or given.get("epochs") is not None:  # what is given is the length
        settings = {field: value for field, value in settings.items() if field not in ("steps", "epochs")}
    return merge(settings, given)
