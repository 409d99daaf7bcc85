"""The store of finished and unfinished stages."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import uuid
from pathlib import Path

from trainables.lease import Lease
from trainables.stage import Stage, StageResult

TRAINING_FILES = ("checkpoint*.pt", "kept-*.safetensors")  # which a finished stage does not need

logger = logging.getLogger(__name__)


class StageStore:
    """Finished and unfinished stages under one folder on storage that every node sees.

    A stage is written beside its place and renamed when complete: a folder without its DONE mark does not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, stage: Stage) -> Path:
        return self.named_folder(stage.kind, stage.name())

    def named_folder(self, kind: str, name: str) -> Path:
        """The folder of the stage of this kind and name."""
        return self.root / "stages" / kind / name

    def partial_folder(self, stage: Stage) -> Path:
        """Where the unfinished stage keeps its checkpoint."""
        return self.folder(stage).with_suffix(".partial")

    def lease(self, stage: Stage) -> Lease:
        return Lease(self.folder(stage).with_suffix(".lease"))

    def result(self, stage: Stage) -> StageResult | None:
        """The result of a finished stage, or None.

        A stage whose result cannot be read, as after a loss of power, is not finished; the next commit replaces it.
        """
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

    def commit(self, stage: Stage, result: StageResult) -> None:
        """Make the files in the partial folder the finished stage. The first one to do so counts."""
        partial, final = self.partial_folder(stage), self.folder(stage)
        if self.result(stage):
            shutil.rmtree(partial, ignore_errors=True)
            return
        remove_unfinished(partial)
        for left in final.parent.glob(f".{final.name}.*"):  # by an interrupted deletion
            shutil.rmtree(left, ignore_errors=True)
        write_atomically(partial / "result.json", result.model_dump_json().encode())
        write_atomically(partial / "stage.json", stage.model_dump_json(indent=1).encode())
        write_atomically(partial / "DONE", b"")
        shutil.rmtree(final, ignore_errors=True)  # what an interrupted copy or deletion, or damage, may have left
        partial.rename(final)
        _sync_folder(final.parent)
        _remove_training_files(final)  # last: until the stage is in its place, they are needed

    def discard(self, stage: Stage) -> None:
        """Remove what the unfinished stage has written. Nobody may be running it."""
        partial = self.partial_folder(stage)
        away = partial.with_name(f".{partial.name}.{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):
            partial.rename(away)
            shutil.rmtree(away)


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to the disk, rename: a reader sees the old content or the new, never a part.

    Raises OSError naming the path, as when the disk is full; what had been written beside is then removed.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with beside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
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
def _warn_of_damage(folder: Path) -> None:
    logger.warning("the result in %s cannot be read; the stage counts as not finished", folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
