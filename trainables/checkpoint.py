"""The checkpoint of an unfinished stage, and the one before it, should storage lose or spoil the newest."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainables.store import remove_unfinished, write_atomically

NEWEST, BEFORE = "checkpoint.pt", "checkpoint-before.pt"
DIGEST_BYTES = 32  # of sha256, at the end of the file

logger = logging.getLogger(__name__)


def save_checkpoint(folder: Path, state: dict[str, Any], confirm: Callable[[], None] = lambda: None) -> None:
    """Write the state. The newest checkpoint so far becomes the one before it.

    `confirm` is called when all is ready, just before anything is changed, and may raise.

    Raises OSError, as when the disk is full; the newest checkpoint so far is then the one that is read.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).digest()
    buffer.seek(0, io.SEEK_END)
    buffer.write(digest)

    def set_aside() -> None:
        confirm()
        if (folder / NEWEST).exists():
            (folder / NEWEST).replace(folder / BEFORE)  # which is read if this process dies here

    write_atomically(folder / NEWEST, buffer.getvalue(), set_aside)


def load_checkpoint(
    folder: Path, is_whole: Callable[[dict[str, Any]], bool] = lambda state: True
) -> dict[str, Any] | None:
    """The newest state that is as it was written; None when there is none. What is spoilt is removed, with a warning.

    `is_whole` says whether the files beside it that a state needs are there.
    Nothing of the file is run: it holds tensors and plain values. Nobody may be writing to the folder.
    """
    remove_unfinished(folder)
    for path in (folder / NEWEST, folder / BEFORE):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        except IsADirectoryError:
            content = b""
        state, digest = memoryview(content)[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
        if hashlib.sha256(state).digest() == digest:
            with contextlib.suppress(Exception):  # whatever torch raises for a file that holds something else
                found: dict[str, Any] = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
                if is_whole(found):
                    return found
        logger.warning("%s is not as it was written, and is left out; training goes on from an earlier state", path)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return None
