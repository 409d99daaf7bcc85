"""What identifies a language model, wherever its files lie."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from trainables.decoding.config import LanguageModelConfig


def fingerprint(config: LanguageModelConfig) -> str:
    """sha256 of the content of the language model and the lexicon that the settings name.

    A file that is not on this machine is known by its name, so that a study can be planned before it is there.
    """
    return "-".join(_content(path) for path in (config.path, config.lexicon) if path)


def _content(path: Path) -> str:
    if not path.is_file():
        return f"absent:{path.name}"
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache
def _sha256(path: Path, size_bytes: int, modified_ns: int) -> str:
    """Of a file with this size and time of its last change, so that a large one is read once."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def missing(config: LanguageModelConfig) -> list[str]:
    """Why its files cannot be used."""
    named = {"path": config.path, "lexicon": config.lexicon}
    return [
        f"{path}: no such file ({name} of the language model)"
        for name, path in named.items()
        if path and not path.is_file()
    ]
