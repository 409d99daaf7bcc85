"""What identifies a language model, wherever its files lie."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from trainables.decoding.config import LanguageModelConfig


def fingerprint(config: LanguageModelConfig) -> str:
    """sha256 of the content of the language model and the lexicon that the settings name."""
    paths = [path for path in (config.path, config.lexicon) if path]
    return "-".join(_sha256(path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths)


@functools.lru_cache
def _sha256(path: Path, size_bytes: int, modified_ns: int) -> str:
    """Of a file with this size and time of its last change, so that a large one is read once."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def missing(config: LanguageModelConfig) -> list[str]:
    """Why its files cannot be used."""
    named = {"path": config.path, "lexicon": config.lexicon}
    return [f"{name}: {path}: no such file" for name, path in named.items() if path and not path.is_file()]
