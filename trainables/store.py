"""The store of finished and unfinished stages."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from trainables.lease import Lease
from trainables.object_lease import ObjectLease
from trainables.object_storage import Found
from trainables.remote_stages import LISTING, DamagedObjectError, RemoteStages, mark
from trainables.stage import Stage, StageResult

TRAINING_FILES = ("checkpoint*.pt", "kept-*")  # which a finished stage does not need

logger = logging.getLogger(__name__)


class StageStore:
    """Finished and unfinished stages under one folder on storage that every node sees.

    A stage is written beside its place and renamed when complete: a folder without its DONE mark does not exist.

    With `stages`, the URL of object storage, they are kept there, and the folders are those of this machine alone:
    what it trains, and copies of what it has read. Methods then raise OSError when that storage cannot be used.
    """

    def __init__(self, root: Path, stages: str | None = None) -> None:
        self.root = root
        self.remote = RemoteStages(stages) if stages else None

    def folder(self, stage: Stage) -> Path:
        return self.named_folder(stage.kind, stage.name())

    def named_folder(self, kind: str, name: str) -> Path:
        """The folder of the stage of this kind and name."""
        return self.root / "stages" / kind / name

    def partial_folder(self, stage: Stage) -> Path:
        """Where the unfinished stage keeps its checkpoint."""
        return self.folder(stage).with_suffix(".partial")

    def lease(self, stage: Stage) -> Lease | ObjectLease:
        if self.remote:
            return self.remote.lease(_place(stage))
        return Lease(self.folder(stage).with_suffix(".lease"))

    def fetch(self, stage: Stage) -> Path:
        """The folder of the finished stage, with all its files. Raises FileNotFoundError when it is not finished."""
        return self.fetch_named(stage.kind, stage.name())

    def fetch_named(self, kind: str, name: str) -> Path:
        """That of the stage of this kind and name."""
        folder = self.named_folder(kind, name)
        if self.remote:
            listing = self.remote.finished(f"{kind}/{name}")
            if listing is None:
                raise FileNotFoundError(f"{self.remote.url}: stage {name} is not there")
            self.remote.fetch(f"{kind}/{name}", listing, folder)
        elif not (folder / "DONE").is_file():
            raise FileNotFoundError(f"{folder}: the stage is not there")
        return folder

    def read_named(self, kind: str, name: str, file: str) -> bytes:
        """The content of one file of a finished stage. Raises FileNotFoundError."""
        if self.remote is None:
            return (self.fetch_named(kind, name) / file).read_bytes()
        listing = self.remote.finished(f"{kind}/{name}")
        if listing is None:
            raise FileNotFoundError(f"{self.remote.url}: stage {name} is not there")
        return self.remote.read(f"{kind}/{name}", listing, file)

    def result(self, stage: Stage) -> StageResult | None:
        """The result of a finished stage, or None.

        A stage whose result cannot be read, as after a loss of power, is not finished; the next commit replaces it.
        """
        if self.remote:
            return self._remote_result(self.remote, stage)
        folder = self.folder(stage)
        if not (folder / "DONE").is_file():
            return None
        try:
            result = StageResult.model_validate_json((folder / "result.json").read_bytes())
        except (FileNotFoundError, ValueError):
            _warn_of_damage(folder)
            return None
        with contextlib.suppress(OSError):  # of a process that died right after its commit; it harms nobody
            _remove_training_files(folder)
            self.lease(stage).held_by_another()  # a dead holder's is removed
        return result

    def _remote_result(self, remote: RemoteStages, stage: Stage) -> StageResult | None:
        listing = remote.finished(_place(stage))
        if listing is None:
            return None
        try:
            result = StageResult.model_validate_json(remote.read(_place(stage), listing, "result.json"))
        except (FileNotFoundError, ValueError, DamagedObjectError):
            _warn_of_damage(f"{remote.url}/stages/{_place(stage)}")
            return None
        with contextlib.suppress(OSError):  # what a process that died right after its commit has left
            shutil.rmtree(self.partial_folder(stage), ignore_errors=True)
            remote.tidy(_place(stage))
        return result

    def take_up(self, stage: Stage) -> None:
        """See to it that the partial folder is as the stage was left last, on whichever machine.

        For the lease's holder.
        """
        if self.remote:
            self.remote.take_up(_place(stage), self.partial_folder(stage))

    def save(self, stage: Stage, lease: Lease | ObjectLease) -> None:
        """Keep the partial folder where other machines find it. Raises OSError, LeaseLostError."""
        if self.remote and isinstance(lease, ObjectLease):
            self.remote.save(_place(stage), self.partial_folder(stage), lease)

    def confirm(self, lease: Lease | ObjectLease) -> None:
        """Before the partial folder is changed. Raises LeaseLostError when one who sees it has taken over, OSError."""
        if self.remote:
            lease.check()  # the folder is this machine's
        else:
            lease.confirm()

    def commit(self, stage: Stage, result: StageResult) -> None:
        """Make the files in the partial folder the finished stage. The first one to do so counts."""
        partial, final = self.partial_folder(stage), self.folder(stage)
        damaged = self.remote.mark_of(_place(stage)) if self.remote else None  # unless `result` can read it
        if self.result(stage):
            shutil.rmtree(partial, ignore_errors=True)
            return
        remove_unfinished(partial)
        for left in final.parent.glob(f".{final.name}.*"):  # by an interrupted deletion
            shutil.rmtree(left, ignore_errors=True)
        write_atomically(partial / "result.json", result.model_dump_json().encode())
        write_atomically(partial / "stage.json", stage.model_dump_json(indent=1).encode())
        if self.remote and not self._publish(self.remote, stage, damaged):
            return
        write_atomically(partial / "DONE", b"")
        shutil.rmtree(final, ignore_errors=True)  # what an interrupted copy or deletion, or damage, may have left
        partial.rename(final)
        _sync_folder(final.parent)
        _remove_training_files(final)  # last: until the stage is in its place, they are needed

    def _publish(self, remote: RemoteStages, stage: Stage, damaged: Found | None) -> bool:
        """Make the partial folder the finished stage there. False when another machine was first."""
        partial = self.partial_folder(stage)
        left_out = {path for pattern in (*TRAINING_FILES, LISTING) for path in partial.glob(pattern)}
        files = [path for path in sorted(partial.iterdir()) if path not in left_out]
        listing = remote.publish(_place(stage), files, damaged)
        with contextlib.suppress(OSError):  # the stage is finished; `result` tries again
            remote.tidy(_place(stage))
        if listing is None:
            shutil.rmtree(partial, ignore_errors=True)
            return False
        mark(partial, listing)
        return True

    def discard(self, stage: Stage) -> None:
        """Remove what the unfinished stage has written. Nobody may be running it."""
        if self.remote:
            self.remote.tidy(_place(stage))
        partial = self.partial_folder(stage)
        away = partial.with_name(f".{partial.name}.{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):
            partial.rename(away)
            shutil.rmtree(away)


def _place(stage: Stage) -> str:
    return f"{stage.kind}/{stage.name()}"


def write_atomically(path: Path, content: bytes, before_replacing: Callable[[], None] = lambda: None) -> None:
    """Write beside `path`, flush to the disk, rename: a reader sees the old content or the new, never a part.

    Raises OSError naming the path, as when the disk is full; what had been written beside is then removed.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with beside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        before_replacing()
        beside.replace(path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes had begun to write there. Nobody may be writing."""
    for left in folder.glob(".*"):
        with contextlib.suppress(OSError):  # gone, or NFS's own
            left.unlink()


def _remove_training_files(folder: Path) -> None:
    for pattern in TRAINING_FILES:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


@functools.cache  # once: results are asked for again and again
def _warn_of_damage(folder: Path | str) -> None:
    logger.warning("the result in %s cannot be read; the stage counts as not finished", folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
