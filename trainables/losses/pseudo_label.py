"""CTC on what a teacher writes for unlabelled speech."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from trainables.config import Progress
from trainables.data.batches import Batch
from trainables.data.text import BLANK
from trainables.decoding.greedy import best_path
from trainables.losses.config import PseudoLabelConfig, Stream
from trainables.losses.ctc import ctc_log_probabilities, ctc_losses, ctc_terms
from trainables.losses.terms import Term, Terms
from trainables.models.acoustic import AcousticModel, Backbone


class Teacher(nn.Module):
    """An exponential moving average of a model, without gradients and dropout."""

    backbone: Backbone
    ctc_head: nn.Module

    def __init__(self, model: AcousticModel, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.backbone = copy.deepcopy(model.backbone)
        self.ctc_head = copy.deepcopy(model.ctc_head)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """A teacher is never trained: it stays in evaluation, whatever the loss that it belongs to does."""
        return super().train(False)

    @torch.no_grad()
    def update(self, model: AcousticModel) -> None:
        """Move towards the model by 1 - decay."""
        for mine, its in ((self.backbone, model.backbone), (self.ctc_head, model.ctc_head)):
            torch._foreach_lerp_(list(mine.parameters()), list(its.parameters()), 1.0 - self.decay)
            for buffer, source in zip(mine.buffers(), its.buffers(), strict=True):
                buffer.copy_(source)

    @torch.no_grad()
    def label(self, batch: Batch) -> Batch:
        """The batch with the teacher's best path as tokens."""
        log_probabilities_BTV, num_frames_B = ctc_log_probabilities(self, batch)
        paths = best_path(log_probabilities_BTV, num_frames_B)
        tokens = [torch.tensor([index for index in path if index != BLANK], dtype=torch.long) for path in paths]
        return replace(
            batch,
            tokens_BU=nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(batch.waveform_BS.device),
            num_tokens_B=torch.tensor([len(t) for t in tokens]),
        )


def pseudo_label_terms(
    model: AcousticModel,
    batches: Mapping[Stream, Batch],
    config: PseudoLabelConfig,
    progress: Progress,
    teacher: Teacher,
) -> Terms:
    """CTC on both streams, each per utterance. On the unlabelled one, those without a pseudo-label add nothing."""
    terms = ctc_terms(model, batches["labelled"], config.ctc)
    if progress.step < config.warmup_steps:
        return terms
    batch = teacher.label(batches["unlabelled"])
    found_B = (batch.num_tokens_B > 0).to(batch.waveform_BS.device, torch.float32) * float(batch.counted)
    nll_B: Tensor = ctc_losses(model, batch, config.ctc)
    count = found_B.new_full((), len(found_B) * float(batch.counted))
    return terms | {
        "pseudo_ctc": Term((nll_B * found_B).sum(), count, config.weight * batch.share),
        "pseudo_labelled": Term(found_B.sum(), count, weight=0.0),
    }
