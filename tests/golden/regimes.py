"""Each regime on embedded Spanish speech, in seconds. `python -m tests.golden.regimes` writes `regimes.json` again.

One thread, fp32.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from trainables.loop import run_stage
from trainables.store import StageStore
from trainables.trial import TrialConfig, stages_of

FILE = Path(__file__).with_suffix(".json")
PRETRAIN = {"preset": "short", "batch_seconds": 8, "steps": 40}


def labelled(steps: int, **settings: Any) -> dict[str, Any]:
    return {"preset": "short", "batch_seconds": 8, "steps": steps, **settings}


def wav2vec_s(steps: int = 80, **settings: Any) -> dict[str, Any]:
    semi_supervised = labelled(steps, **settings)
    return {
        "kind": "wav2vec_s",
        "pretrain": PRETRAIN,
        "semi_supervised": semi_supervised,
        "finetune": labelled(120),
    }


OTHER_LANGUAGES = {
    "kind": "mixture",
    "labelled": {"kind": "prompts", "language": "es"},
    "unlabelled": [{"kind": "prompts", "language": "it"}, {"kind": "prompts", "language": "fr"}],
}
REGIMES: dict[str, dict[str, Any]] = {
    "supervised": {"kind": "supervised", "train": labelled(160)},
    "pretrain_finetune": {"kind": "pretrain_finetune", "pretrain": PRETRAIN, "finetune": labelled(160)},
    "cpc_finetune": {
        "kind": "pretrain_finetune",
        "pretrain": {**PRETRAIN, "loss": {"kind": "cpc"}},
        "finetune": labelled(160),
    },
    "joint": {"kind": "joint", "train": labelled(160)},
    "bl_just": {"kind": "bl_just", "joint": labelled(220), "finetune": labelled(60)},
    "wav2vec_s": wav2vec_s(),
    "wav2vec_s_contrastive": wav2vec_s(unlabelled="contrastive"),
    "wav2vec_s_pseudo_labels": wav2vec_s(150, unlabelled="pseudo_labels", teacher_warmup_steps=110),
    "wav2vec_s_phones": wav2vec_s(labels="phones"),
    "cross_lingual": {
        "kind": "pretrain_finetune",
        "pretrain": {**PRETRAIN, "corpus": OTHER_LANGUAGES},
        "finetune": labelled(160),
    },
}


def train(regime: dict[str, Any], storage: Path) -> list[float]:
    """The error rate of characters (in a stage on phones, of phones) at each evaluation on dev, all stages in a row."""
    model = {"preset": "compact_cnn_gru", "cnn_width": 96, "cnn_layers": 1, "gru_width": 96}
    settings = {"corpus": {"kind": "prompts", "language": "es"}, "model": model, "regime": regime}
    torch.set_num_threads(1)
    curve: list[float] = []
    for stage in stages_of(TrialConfig.model_validate(settings)):
        error = f"{stage.dev_name}_{'per' if stage.outputs.kind == 'phones' else 'cer'}"
        reports = run_stage(stage, StageStore(storage), lambda report: None).reports
        curve += [report.metrics[error] for report in reports if error in report.metrics]
    return curve


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        curves = {}
        for name, regime in REGIMES.items():
            curves[name] = [round(cer, 4) for cer in train(regime, Path(folder))]
            print(name, curves[name], flush=True)
    FILE.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
