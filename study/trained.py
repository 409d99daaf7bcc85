"""Where the weights and the hypotheses of a finished trial lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from study.ledger import Ledger, Trial
from trainables.object_storage import ObjectStorageError
from trainables.settings_file import SettingsError, did_you_mean
from trainables.store import StageStore


def trained_folder(ledger: Ledger, storage: Path, name: str) -> Path:
    """The folder of the last stage that trained, of a finished trial, with all its files. Raises SettingsError."""
    store, stages = _stages(ledger, storage, name)
    return _folder(store, [stage for stage in stages if stage["kind"] != "decode"][-1], name)


def decoded_folder(ledger: Ledger, storage: Path, name: str) -> Path | None:
    """That of what a finished trial decoded with its language model, if it has one. Raises SettingsError."""
    store, stages = _stages(ledger, storage, name)
    decoded = [stage for stage in stages if stage["kind"] == "decode"]
    return _folder(store, decoded[-1], name) if decoded else None


def _stages(ledger: Ledger, storage: Path, name: str) -> tuple[StageStore, list[dict[str, Any]]]:
    """The stages of a finished trial, named as STUDY/TRIAL, or TRIAL where that is unique, and where they are kept.

    Raises SettingsError.
    """
    trials = [trial for row in ledger.studies() for trial in ledger.trials(row["study"])]
    found = [trial for trial in trials if name in (trial.trial, f"{trial.study}/{trial.trial}")]
    if not found:
        known = {trial.trial for trial in trials}
        raise SettingsError([f"{name}: no such folder, and no such trial in {storage}{did_you_mean(name, known)}"])
    if len(found) > 1:
        raise SettingsError([f"{name}: several studies have it; name one of {', '.join(map(_full_name, found))}"])
    trial = found[0]
    if trial.status != "finished":
        raise SettingsError([f"{_full_name(trial)}: is {trial.status}; only a finished trial has results"])
    store = StageStore(storage, ledger.study(trial.study)["spec"].get("stages"))
    return store, ledger.trial_stages(trial.study, trial.trial)


def _folder(store: StageStore, stage: dict[str, Any], name: str) -> Path:
    """Raises SettingsError when the trial's weights were removed from among the stages."""
    if store.remote is None and not (store.root / "stages").is_dir():
        return store.named_folder(stage["kind"], stage["name"])
    try:
        return store.fetch_named(stage["kind"], stage["name"])
    except FileNotFoundError:
        where = f"{store.root} --stages {store.remote.url}" if store.remote else store.root
        raise SettingsError(
            [
                f"{name}: its weights were removed (`study gc`, or the study's quota), its curve is kept; to train it "
                f"again, give its settings to `python -m trainables FILE --storage {where}`"
            ]
        ) from None
    except ObjectStorageError as error:
        raise SettingsError([f"{name}: {error}"]) from error


def _full_name(trial: Trial) -> str:
    return f"{trial.study}/{trial.trial}"
