"""Randomness without state: every draw is a function of what it is for.

The noise of an utterance depends on (stage seed, step, utterance), never on which worker drew what before.
So a resumed stage continues bit for bit, and the same global batch split over any number of workers sees the
same masks and the same noise.
"""

from __future__ import annotations

import hashlib

import numpy as np


def fold(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part: `fold(seed, "epoch", 3)`."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def numpy_generator(*parts: int | str) -> np.random.Generator:
    return np.random.default_rng(fold(*parts))
