"""Studies that cover published tables, with ledgers made by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from search_spaces.space import Point
from study.ledger import Ledger
from study.spec import StudySpec
from tests.study.builders import add_trial, open_study, pretrain_finetune, report, spec_of
from trainables.trial import stages_of

BL_JUST = {"regime": {"kind": "bl_just", "joint": {"steps": 30}, "finetune": {"steps": 40}}}
LAYERS = {
    "model.cnn_layers": {"kind": "grid", "choices": [2, 3, 4]},
    "model.gru_layers": {"kind": "grid", "choices": [4, 5, 6]},
}
SIZES = [(cnn, gru) for gru in (4, 5, 6) for cnn in (2, 3, 4)]
METHODS = {"two_stages": "PT+FT", "bilevel": "BL-JUST"}
TABLE_2 = {"P-BLJ-T2": {"cnn_layers": "model.cnn_layers", "gru_layers": "model.gru_layers", "method": METHODS}}
LANGUAGES = {"es": "Dutch", "it": "Mongolian", "ru": "Arabic"}


def layers_sweep() -> dict[str, Any]:
    """P-BLJ's Table 2 with small models: both methods at nine sizes."""
    return {
        "arms": {
            "two_stages": {"trial": pretrain_finetune(), "space": LAYERS},
            "bilevel": {"trial": BL_JUST, "space": LAYERS},
        },
        "tables": TABLE_2,
    }


def layers_study(storage: Path, wer: Callable[[str, int, int, int], float | None], seeds: int = 3) -> StudySpec:
    """`wer(arm, cnn_layers, gru_layers, seed)` is the test WER; None: that trial has not finished."""
    spec = spec_of(storage, **layers_sweep())
    ledger = open_study(spec)
    for arm in spec.arms:
        for number, (cnn, gru) in enumerate(SIZES):
            for seed in range(seeds):
                value = wer(arm, cnn, gru, seed)
                if value is not None:
                    point = {"model.cnn_layers": cnn, "model.gru_layers": gru}
                    finish(ledger, spec, arm, 10 * number + seed, point=point, seed=seed, test_wer=value)
    return spec


def languages_sweep(tables: bool = True) -> dict[str, Any]:
    """P-BLJ's Table 3 in three other languages."""
    arms: dict[str, Any] = {}
    for language in LANGUAGES:
        corpus = {"corpus": {"kind": "prompts", "language": language}}
        arms[f"{language}_ft"] = {"trial": corpus | pretrain_finetune()}
        arms[f"{language}_just"] = {"trial": corpus | BL_JUST, "baseline": f"{language}_ft"}
    mapping = {
        "language": {f"{code}_{end}": name for code, name in LANGUAGES.items() for end in ("ft", "just")},
        "method": {f"{code}_{end}": end.upper() for code in LANGUAGES for end in ("ft", "just")},
    }
    return {"arms": arms, "tables": {"P-BLJ-T3": mapping} if tables else {}}


def wav2vec_s(*, labels: str = "characters", source: str | None = None, minutes: float | None = 60) -> dict[str, Any]:
    """A trial of wav2vec-S with so many labelled minutes; `source`: the language of its semi-supervised stage."""
    semi_supervised: dict[str, Any] = {"steps": 20, "labels": labels}
    if source:
        semi_supervised["corpus"] = {"kind": "prompts", "language": source}
    return {
        "corpus": {"kind": "prompts", "language": "es", "labelled_minutes": minutes},
        "regime": {
            "kind": "wav2vec_s",
            "pretrain": {"steps": 100},
            "semi_supervised": semi_supervised,
            "finetune": {"steps": 40},
        },
    }


def task_agnostic(minutes: float | None = 60) -> dict[str, Any]:
    return {"corpus": {"kind": "prompts", "language": "es", "labelled_minutes": minutes}} | pretrain_finetune()


def claims_sweep(arms: Mapping[str, Any]) -> dict[str, Any]:
    """Each arm is a trial, or a trial and the name of its baseline."""
    return {
        "arms": {
            name: {"trial": arm[0], "baseline": arm[1]} if isinstance(arm, tuple) else {"trial": arm}
            for name, arm in arms.items()
        }
    }


def claims_study(storage: Path, arms: Mapping[str, Any], wers: Mapping[str, list[float]]) -> tuple[StudySpec, Ledger]:
    """Arms as in `claims_sweep`, with a test WER for each seed."""
    spec = spec_of(storage, **claims_sweep(arms))
    ledger = open_study(spec)
    for arm, values in wers.items():
        for seed, wer in enumerate(values):
            finish(ledger, spec, arm, seed, seed=seed, test_wer=wer)
    return spec, ledger


def finish(
    ledger: Ledger,
    spec: StudySpec,
    arm: str,
    number: int,
    *,
    seed: int,
    point: Point | None = None,
    parameters: int | None = None,
    stage_seconds: Mapping[str, float] | None = None,
    source_dev_wer: float | None = None,
    **metrics: float,
) -> str:
    """Record a finished trial with these metrics at its end; `stage_seconds`: what stages cost, by kind (100 s)."""
    name, stages = add_trial(ledger, spec, arm, number, point=point, seed=seed)
    for stage in stages:
        last = stage is stages[-1]
        values = {"dev_cer": 0.5, "dev_wer": 0.5, "test_cer": 0.5, **metrics} if last else {"loss": 1.0}
        if stage.kind == "semi_supervised" and source_dev_wer is not None:
            values |= {"source_dev_wer": source_dev_wer}
        seconds = (stage_seconds or {}).get(stage.kind, 100.0)
        found = report(stage.steps, seconds_a_step=seconds / stage.steps, **values)
        ledger.append(stage.fingerprint(), [found.with_(parameters=parameters if last else None)])
    ledger.end_trial(spec.study, name, "finished")
    return name


def last_stage(spec: StudySpec, arm: str, point: Point | None = None, seed: int = 0) -> str:
    """The fingerprint of the last stage of such a trial."""
    return stages_of(spec.trial_config(arm, point, seed))[-1].fingerprint()
