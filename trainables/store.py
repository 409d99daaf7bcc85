"""The store of finished and unfinished stages."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path

from trainables.lease import Lease
from trainables.stage import Stage, StageResult


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
        """The result of a finished stage, or None."""
        folder = self.folder(stage)
        if not (folder / "DONE").is_file():
            return None
        return StageResult.model_validate_json((folder / "result.json").read_text())

    def commit(self, stage: Stage, result: StageResult) -> None:
        """Make the files in the partial folder the finished stage. The first one to do so counts."""
        partial, final = self.partial_folder(stage), self.folder(stage)
        if (final / "DONE").is_file():
            shutil.rmtree(partial, ignore_errors=True)
            return
        write_atomically(partial / "result.json", result.model_dump_json().encode())
        write_atomically(partial / "stage.json", stage.model_dump_json(indent=1).encode())
        write_atomically(partial / "DONE", b"")
        shutil.rmtree(final, ignore_errors=True)  # what an interrupted copy or deletion may have left
        partial.rename(final)
        _sync_folder(final.parent)
        for checkpoint in final.glob("checkpoint*.pt"):  # last: until the stage is in its place, they are needed
            checkpoint.unlink(missing_ok=True)

    def discard(self, stage: Stage) -> None:
        """Remove what the unfinished stage has written. Nobody may be running it."""
        partial = self.partial_folder(stage)
        away = partial.with_name(f".{partial.name}.{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):
            partial.rename(away)
            shutil.rmtree(away)


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to the disk, rename: a reader sees the old content or the new, never a part."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with beside.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
