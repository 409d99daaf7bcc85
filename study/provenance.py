"""What a study was run with: versions, machine and data; and the refusal to go on with other ones."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from study.ledger import Ledger
from study.spec import StudySpec
from trainables.data.config import CorpusConfig
from trainables.decoding.files import fingerprint
from trainables.settings_file import SettingsError
from trainables.trial import corpora_of, corpus_of

PACKAGES = (  # that decide results
    "torch",
    "torchaudio",
    "ray",
    "optuna",
    "mlflow",
    "numpy",
    "soundfile",
    "jiwer",
    "sentencepiece",
    "flashlight-text",
)


def refuse_drift(spec: StudySpec, ledger: Ledger) -> None:
    """Raise SettingsError when the study of this name asked something else before, or on other data."""
    known = {row["study"]: row for row in ledger.studies()}.get(spec.study)
    if known is None:
        return
    before, now = StudySpec.model_validate(known["spec"]), spec
    decisive = ("trial", "arms", "early_stopping")
    changed = [name for name in decisive if getattr(before, name) != getattr(now, name)]
    searched = ("metric", "also_minimise", "sampler", "constraints", "warm_start", "seed")
    changed += [f"search.{name}" for name in searched if getattr(before.search, name) != getattr(now.search, name)]
    if known["environment"]["data"] != data_hashes(spec):
        changed.append("the content of the corpus or the language model")
    if changed:
        raise SettingsError(
            [
                f"study {spec.study!r} in {spec.storage} was run with other settings: {', '.join(changed)} changed "
                f"since, so its trials would not compare with new ones; name this one differently "
                f"(study={spec.study}-2), or undo the change"
            ]
        )


def data_hashes(spec: StudySpec) -> dict[str, dict[str, str]]:
    """For each corpus of the study, the hashes of its parts; and of each language model, that of its files."""
    corpora = dict.fromkeys(corpus for arm in spec.arms for corpus in corpora_of(spec.trial_config(arm)))
    hashes: dict[str, dict[str, str]] = {}
    for corpus in corpora:
        name, found = _named(corpus), corpus_of(corpus).split_hashes()
        while hashes.setdefault(name, found) != found:  # another folder of the same name
            name += " (another)"
    for trial in map(spec.trial_config, spec.arms):
        if (model := trial.language_model) and model.path:
            hashes[f"language model {model.path.name}"] = {"files": fingerprint(model)}
    return hashes


def _named(corpus: CorpusConfig) -> str:
    """The settings as JSON, with the names of folders in the place of their paths, which may change."""

    def without_paths(settings: Any) -> Any:
        if isinstance(settings, list):
            return [without_paths(inner) for inner in settings]
        if not isinstance(settings, dict):
            return settings
        return {k: Path(v).name if k == "root" else without_paths(v) for k, v in settings.items() if v is not None}

    return json.dumps(without_paths(corpus.model_dump(mode="json")))


def environment(spec: StudySpec) -> dict[str, Any]:
    """What a reader needs to judge or repeat the results: versions, the source's commit, hashes of the data."""
    versions = {
        "python": platform.python_version(),
        "study": metadata.version("asr-scaling-studies"),
        "commit": _commit(),
        **{name: metadata.version(name) for name in PACKAGES},
    }
    machine = {"cpus": os.cpu_count(), "platform": platform.platform()}
    return {"versions": versions, "data": data_hashes(spec), "machine": machine}


def _commit() -> str:
    """The commit of the source tree, with a mark when it was changed since; empty outside a repository."""
    command = ["git", "describe", "--always", "--dirty"]
    described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return described.stdout.strip()
