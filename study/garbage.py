"""What of a storage folder, or of stages in object storage, can go: `study gc`, and the quota of a study.

Curves and results are in the ledger and stay. What is removed does not exist any more: a trial that needs the stage
trains it again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ByteSize, TypeAdapter, ValidationError

from study.ledger import Ledger, Trial
from trainables.lease import Lease
from trainables.object_lease import ObjectLease
from trainables.object_storage import checked_url
from trainables.remote_stages import LISTING, RemoteStages
from trainables.settings_file import SettingsError

LOGS_KEPT_SECONDS = 24 * 3600.0
# What a stage is called in the store, and what is added to that while it is trained or removed. Others are left alone.
_STAGE_FOLDER = re.compile(r"\.?(?P<stage>[\w-]+-[0-9a-f]{16})(\.partial)?(\.[0-9a-f]{8})?")
_HELD = "a worker has it"
State = Literal["finished", "unfinished", "removed"]  # removed: what an interrupted removal has left


@dataclass(frozen=True)
class Item:
    """A folder, or a stage in object storage: what it is, its size, and why it is kept (None: it can go).

    `garbage`: nobody will ask for it, so that it goes without a quota, too.
    """

    path: Path | str  # or a URL
    what: str
    bytes: int
    kept: str | None
    garbage: bool = False


_Ranked = tuple[float, float, Item]  # less than others in rank and age: goes before them


@dataclass
class _Use:
    """What the trials of all studies want of a stage."""

    trials: list[str] = field(default_factory=list)
    unfinished: str | None = None  # a trial that needs it
    kept: str | None = None  # another reason to keep it
    rank: float = math.inf  # of its best trial within the arm, 0 for the best; trials without a result come last


def survey(ledger: Ledger, storage: Path, keep_best: int = 1) -> list[Item]:
    """Every folder of stages and of Ray's logs: first what can go, in the order in which it goes, then what is kept.

    Garbage goes first, then the stages of the worst trials, and of equally bad ones the oldest. Kept is what an
    unfinished trial needs; what trials of a study that is not over may start from; and the last stages of the best
    `keep_best` trials of each arm, and of replications.
    """
    uses, running = _uses(ledger, keep_best), _running_specs(ledger)
    found: list[_Ranked] = []
    for folder in [stage for kind in _folders(storage / "stages") for stage in _folders(kind)]:
        if match := _STAGE_FOLDER.fullmatch(folder.name):
            use = uses.get(match["stage"], _Use())
            item, modified_at = _stage_item(folder, use, named=match["stage"] in running)
            found.append((-use.rank, modified_at, item))
    training = any(item.kept == _HELD for *_, item in found)
    found += [(0.0, modified_at, item) for item, modified_at in _logs(storage / "ray", training=training)]
    return _in_order(found)


def survey_remote(ledger: Ledger, remote: RemoteStages, keep_best: int = 1) -> list[Item]:
    """Every stage in object storage, in the same order.

    Other ledgers may have stages there: what no trial of this one has is kept. Where leases are old, this takes as long
    as it takes to see whether somebody renews them. Raises ObjectStorageError.
    """
    uses, running = _uses(ledger, keep_best), _running_specs(ledger)
    found: list[_Ranked] = []
    measured = remote.measure()
    in_use = _in_use(remote, {place: objects["lease"][1] for place, objects in measured.items() if "lease" in objects})
    for place, objects in measured.items():
        kind, _, stage = place.partition("/")
        state: State = "finished" if "DONE" in objects else "unfinished"
        use = uses.get(stage, _Use())
        kept = _why_kept(use, state, named=stage in running, held=place in in_use)
        if kept != _HELD and not use.trials:
            kept = "no trial of this ledger has it"
        size = sum(num_bytes for num_bytes, _ in objects.values())
        item = _item(f"{remote.url}/stages/{place}", kind, state, use, size, kept)
        found.append((-use.rank, max(written_at for _, written_at in objects.values()), item))
    return _in_order(found)


def _in_use(remote: RemoteStages, leased_at: Mapping[str, float]) -> set[str]:
    """Those places that workers have. `leased_at`: when the lease of each was last written, in Unix time."""
    leases = {place: remote.lease(place) for place in leased_at}
    held = {place for place, lease in leases.items() if lease.held_by_another()}
    if any(time.time() - leased_at[place] > ObjectLease.STALE_SECONDS for place in held):
        time.sleep(ObjectLease.STALE_SECONDS + 1)  # clocks differ: only who does not renew it now is dead
        held = {place for place in held if leases[place].held_by_another()}
    return held


def _in_order(found: list[_Ranked]) -> list[Item]:
    found.sort(key=lambda f: (f[2].kept is not None, not f[2].garbage, f[0], f[1]))
    return [item for *_, item in found]


def fit(ledger: Ledger, storage: Path, quota_bytes: int, keep_best: int = 1) -> list[Item]:
    """Remove what can go, in the order of `survey`, until the rest is within the quota. Returns what was removed.

    What is kept may take more than the quota.
    """
    return remove(ledger, over_quota(survey(ledger, storage, keep_best), quota_bytes))


def over_quota(items: Sequence[Item], quota_bytes: int) -> list[Item]:
    """Of what `survey` found, the first ones that can go, as many as bring the rest within the quota."""
    total, chosen = sum(item.bytes for item in items), []
    for item in items:
        if item.kept is None and total > quota_bytes:
            chosen.append(item)
            total -= item.bytes
    return chosen


def remove(ledger: Ledger, items: Iterable[Item], remote: RemoteStages | None = None) -> list[Item]:
    """Remove these folders, or stages of `remote`. Returns those that went: what has come into use since stays.

    Raises ObjectStorageError.
    """
    if remote:
        return [item for item in items if _remove_remote(ledger, remote, str(item.path))]
    return [item for item in items if _remove(ledger, Path(item.path))]


def _uses(ledger: Ledger, keep_best: int) -> dict[str, _Use]:
    """What is wanted of each stage that the ledger knows, by its name."""
    uses: dict[str, _Use] = defaultdict(_Use)
    for row in ledger.studies():
        trials, over = ledger.trials(row["study"]), ledger.is_over(row["study"])
        for arm in dict.fromkeys(trial.arm for trial in trials):
            mine = [trial for trial in trials if trial.arm == arm]
            ranked = ledger.ranked(mine, row["spec"]["search"]["metric"])
            ranks = {trial.trial: rank for rank, trial in enumerate(ranked)}
            best = [trial.trial for trial in ranked if trial.origin == "search"][:keep_best]
            for trial in mine:
                stages = ledger.trial_stages(trial.study, trial.trial)
                rank = ranks.get(trial.trial, math.inf)
                _add_trial(uses, trial, stages, rank, best=trial.trial in best, over=over)
    return uses


def _add_trial(
    uses: dict[str, _Use], trial: Trial, stages: Sequence[dict[str, Any]], rank: float, *, best: bool, over: bool
) -> None:
    """Note what the trial wants of each of its stages."""
    name = f"{trial.study}/{trial.trial}"
    last_trained = max((i for i, stage in enumerate(stages) if stage["kind"] != "decode"), default=0)
    for position, stage in enumerate(stages):
        use = uses[stage["name"]]
        use.trials.append(name)
        use.rank = min(use.rank, rank)
        if trial.status == "unfinished":
            use.unfinished = name
        if not over and position < len(stages) - 1:
            use.kept = f"trials of {trial.study} may start from it"
        elif best and position >= last_trained:
            use.kept = f"the best of arm {trial.arm} of {trial.study}"
        elif trial.status == "finished" and trial.origin == "replication" and position >= last_trained:
            use.kept = f"replication {name}"


def _running_specs(ledger: Ledger) -> str:
    """The sweeps of studies that are not over. Their trials may start from a stage's folder that is named there."""
    return json.dumps([row["spec"] for row in ledger.studies() if not ledger.is_over(row["study"])])


def _stage_item(folder: Path, use: _Use, *, named: bool) -> tuple[Item, float]:
    """The folder, and when it was last modified."""
    size, modified_at = _measured(folder)
    state = _state(folder)
    kept = _why_kept(use, state, named=named, held=_lease(folder).held_by_another())
    if kept != _HELD and state == "unfinished" and (folder / LISTING).exists():
        kept = "a worker may have it: its lease is in object storage"
    return _item(folder, folder.parent.name, state, use, size, kept), modified_at


def _why_kept(use: _Use, state: State, *, named: bool, held: bool) -> str | None:
    if held:
        return _HELD
    if use.unfinished and state != "removed":
        return f"{use.unfinished} needs it"
    if state != "finished":
        return None
    if named:
        return "a study that is not over starts from it"
    return use.kept if use.trials else "no trial here has it: it was trained without a study"


def _item(path: Path | str, kind: str, state: State, use: _Use, size: int, kept: str | None) -> Item:
    what = " ".join([*([] if state == "finished" else [state]), kind, "of", _shown(use.trials)])
    return Item(path, what, size, kept, garbage=kept is None and state != "finished")


def _state(folder: Path) -> State:
    if folder.name.startswith("."):
        return "removed"
    if folder.suffix == ".partial":
        return "unfinished"
    return "finished" if (folder / "DONE").is_file() else "removed"


def _logs(folder: Path, *, training: bool) -> list[tuple[Item, float]]:
    """What Ray wrote of each run, and when that was last modified."""
    found = []
    for run in _folders(folder):
        size, modified_at = _measured(run)
        recent = time.time() - modified_at < LOGS_KEPT_SECONDS
        kept = _HELD if training else "not a day old" if recent else None
        found.append((Item(run, "logs of Ray", size, kept, garbage=kept is None), modified_at))
    return found


def _remove(ledger: Ledger, folder: Path) -> bool:
    """Remove a folder that `survey` found, unless it is in use now."""
    match = _STAGE_FOLDER.fullmatch(folder.name)
    if match is None:  # logs
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()
    away = folder.with_name(f".{match['stage']}.{uuid.uuid4().hex[:8]}")
    lease = _lease(folder)
    lease.held_by_another()  # a dead holder's is removed
    # Who looks for the stage meanwhile sees that a worker has it, and waits. A trial is in the ledger before it looks:
    # so either it is seen here, and the folder comes back, or it looks when the folder is gone.
    with lease.hold() as held:
        if held is None or not folder.is_dir():
            return False
        wanted = _state(folder) != "removed"
        folder.rename(away)
        if wanted and match["stage"] in _needed(ledger):
            away.rename(folder)
            return False
    shutil.rmtree(away, ignore_errors=True)
    return not away.exists()


def _remove_remote(ledger: Ledger, remote: RemoteStages, url: str) -> bool:
    """Remove a stage that `survey_remote` found, unless it is in use now."""
    place = url.removeprefix(f"{remote.url}/stages/")
    return remote.remove(place, lambda: place.partition("/")[2] in _needed(ledger))


def _needed(ledger: Ledger) -> set[str]:
    """Names of the stages of unfinished trials."""
    running = [row["study"] for row in ledger.studies() if ledger.count(row["study"])["unfinished"]]
    trials = [trial for study in running for trial in ledger.trials(study) if trial.status == "unfinished"]
    return {stage["name"] for trial in trials for stage in ledger.trial_stages(trial.study, trial.trial)}


def _lease(folder: Path) -> Lease:
    """That of the stage, whatever is added to the folder's name."""
    return Lease(folder.with_name(f"{folder.name.lstrip('.').partition('.')[0]}.lease"))


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.is_symlink())


def _measured(folder: Path) -> tuple[int, float]:
    """Bytes of the files below, and when the last of them, or the folder, was modified."""
    size, modified_at = 0, 0.0
    for parent, _, files in os.walk(folder):
        for path in (parent, *(os.path.join(parent, name) for name in files)):
            with contextlib.suppress(FileNotFoundError):  # others may be removing, too
                status = os.lstat(path)
                size += 0 if path == parent else status.st_size
                modified_at = max(modified_at, status.st_mtime)
    return size, modified_at


def _shown(trials: Sequence[str]) -> str:
    if not trials:
        return "no trial"
    return trials[0] if len(trials) == 1 else f"{trials[0]} and {len(trials) - 1} more"


# ---- the command ---------------------------------------------------------------------------------------------------


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    gc = verbs.add_parser("gc", help="remove weights and logs that no study needs")
    gc.add_argument("--storage", type=Path, default=Path("results"), help="storage folder (default: results)")
    gc.add_argument("--stages", metavar="URL", help="remove stages from this object storage, not from the folder")
    gc.add_argument("--quota", help="remove weights of the worst trials, too, until no more is left than e.g. 10GB")
    gc.add_argument("--keep-best", type=int, default=1, help="trials of each arm whose weights stay (default: 1)")
    gc.add_argument("--dry-run", action="store_true", help="tell what would go, and remove nothing")
    gc.add_argument("--json", action="store_true", help="print JSON, for programs")
    gc.set_defaults(command=_gc)


def _gc(options: argparse.Namespace) -> int:
    quota = None if options.quota is None else _quota(options.quota)
    if options.keep_best < 0:
        raise SettingsError([f"--keep-best must be 0 or more, got {options.keep_best}"])
    ledger = Ledger.existing(options.storage.absolute())
    remote = _remote(options.stages) if options.stages else None
    if remote:
        items = survey_remote(ledger, remote, options.keep_best)
    else:
        items = survey(ledger, options.storage.absolute(), options.keep_best)
    over = [] if quota is None else over_quota(items, quota)
    chosen = [item for item in items if item.garbage or item in over]
    gone = chosen if options.dry_run else remove(ledger, chosen, remote)
    left = sum(item.bytes for item in items if item not in gone)
    if options.json:
        rows = [asdict(item) | {"path": str(item.path), "removed": item in gone} for item in items]
        print(json.dumps({"dry_run": options.dry_run, "bytes_left": left, "folders": rows}, indent=2))
    else:
        _print(items, gone, left, quota, dry_run=options.dry_run)
    return 0


def _remote(url: str) -> RemoteStages:
    try:
        return RemoteStages(checked_url(url))
    except ValueError as error:
        raise SettingsError([f"--stages {error}"]) from None


def _quota(text: str) -> int:
    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        message = f"--quota must be a number of bytes with a unit, got {text!r}; write it as 10GB or 10GiB"
        raise SettingsError([message]) from None


def _print(items: Sequence[Item], gone: Sequence[Item], left: int, quota: int | None, *, dry_run: bool) -> None:
    from rich.table import Table

    from study.terminal import make_console

    went, rest = ("would be removed", "would be left") if dry_run else ("removed", "are left")
    table = Table("what", "size", "why it is kept")
    table.columns[1].justify = "right"
    for item in items:
        why = went if item in gone else item.kept or "can go, with a smaller quota"
        table.add_row(item.what, _size(item.bytes), why)
    console = make_console()
    console.print(table)
    freed = _size(sum(item.bytes for item in gone))
    console.print(f"{len(gone)} of {len(items)}, {freed}, {went}; {_size(left)} {rest}")
    if quota is not None and left > quota:
        console.print(f"What is kept is more than the quota of {_size(quota)}; raise it, or lower --keep-best.")


def _size(number: int) -> str:
    return ByteSize(number).human_readable(decimal=True, separator=" ")
