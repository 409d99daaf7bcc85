"""Greedy CTC decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.data.symbols import Symbols


def best_path(log_probabilities_BTV: Tensor, num_frames_B: Tensor) -> list[list[int]]:
    """The likeliest symbol of each valid frame, repeats merged; blanks are still there."""
    best_BT = log_probabilities_BTV.argmax(2).cpu()
    return [
        torch.unique_consecutive(best_T[:num_frames]).tolist()
        for best_T, num_frames in zip(best_BT, num_frames_B.tolist(), strict=True)
    ]


def greedy_decode(log_probabilities_BTV: Tensor, num_frames_B: Tensor, symbols: Symbols) -> list[str]:
    """The text of the best path: repeats merged, then blanks dropped."""
    return [symbols.decode(path).strip() for path in best_path(log_probabilities_BTV, num_frames_B)]
