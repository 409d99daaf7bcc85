"""Where the weights and the hypotheses of a finished trial lie."""

from __future__ import annotations

from pathlib import Path

from study.ledger import Ledger, Trial
from trainables.settings_file import SettingsError, did_you_mean
from trainables.store import StageStore


def trained_folder(ledger: Ledger, storage: Path, name: str) -> Path:
    """The folder of the last stage that trained, of a finished trial. Raises SettingsError."""
    folders = [folder for kind, folder in stage_folders(ledger, storage, name) if kind != "decode"]
    return _still_there(folders[-1], storage, name)


def decoded_folder(ledger: Ledger, storage: Path, name: str) -> Path | None:
    """The folder of what a finished trial decoded with its language model, if it has one. Raises SettingsError."""
    folders = [folder for kind, folder in stage_folders(ledger, storage, name) if kind == "decode"]
    return _still_there(folders[-1], storage, name) if folders else None


def stage_folders(ledger: Ledger, storage: Path, name: str) -> list[tuple[str, Path]]:
    """Kind and folder of each stage of a finished trial, named as STUDY/TRIAL, or TRIAL where that is unique.

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
    store = StageStore(storage)
    stages = ledger.trial_stages(trial.study, trial.trial)
    return [(stage["kind"], store.named_folder(stage["kind"], stage["name"])) for stage in stages]


def _still_there(folder: Path, storage: Path, name: str) -> Path:
    """The folder. Raises SettingsError when the trial's weights were removed from among the stages."""
    if (storage / "stages").is_dir() and not (folder / "DONE").is_file():
        raise SettingsError(
            [
                f"{name}: its weights were removed (`study gc`, or the study's quota), its curve is kept; to train it "
                f"again, give its settings to `python -m trainables FILE --storage {storage}`"
            ]
        )
    return folder


def _full_name(trial: Trial) -> str:
    return f"{trial.study}/{trial.trial}"
