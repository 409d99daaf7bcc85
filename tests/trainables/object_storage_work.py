"""What the tests of stages in object storage do in processes of their own, which die."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch._dynamo  # an optimiser would import it, in every process again

from trainables import loop
from trainables.stage import Stage
from trainables.store import StageStore


def train(stage: Stage, root: Path, url: str) -> None:
    """Train the stage, and upload every checkpoint, however long that takes."""
    torch.set_num_threads(1)
    loop.UPLOADING_SHARE = math.inf
    loop.run_stage(stage, StageStore(root, url), lambda report: None)
