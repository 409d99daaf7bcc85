"""Greedy CTC decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.data.text import Characters


def greedy_decode(log_probabilities_BTV: Tensor, num_frames_B: Tensor, characters: Characters) -> list[str]:
    """The likeliest symbol of each valid frame, repeats merged, then blanks dropped."""
    best_BT = log_probabilities_BTV.argmax(2).cpu()
    return [
        characters.decode(torch.unique_consecutive(best_T[:num_frames]).tolist()).strip()
        for best_T, num_frames in zip(best_BT, num_frames_B.tolist(), strict=True)
    ]
