"""Frame-level contrastive predictive coding (van den Oord et al. 2018, arXiv:1807.03748), as BL-JUST uses it.

Legend: B utterances, T frames, D width of the features, C width of the context, W windows, L frames of a window,
K frames of the future, N predicted frames, M distractors of each, P compared width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.data.batches import Batch
from trainables.data.seeds import numpy_generator
from trainables.losses.config import CpcConfig
from trainables.losses.features import local_features, scale_gradient
from trainables.losses.terms import Term, Terms
from trainables.models.acoustic import AcousticModel
from trainables.models.frames import full_precision
from trainables.models.self_supervised import CpcHead


@dataclass(frozen=True)
class Windows:
    """Where windows lie and what is predicted from them, as indices made on the CPU."""

    frame_WL: Tensor  # index into (B x T), the window first; what follows its length repeats its last frame
    length_W: Tensor
    window_N: Tensor  # of each predicted frame: its window,
    ahead_N: Tensor  # how many frames after the first one that follows,
    target_N: Tensor  # its index into (B x T),
    negative_NM: Tensor  # and those of its distractors

    @classmethod
    def of(
        cls,
        num_frames: Sequence[int],
        max_frames: int,
        seeds: Sequence[int],
        *,
        context: int,
        future: int,
        hop: int,
        negatives: int,
    ) -> Windows:
        """Windows of at most `context` frames that end every `hop` frames, and up to `future` frames after each."""
        frames: list[np.ndarray] = []
        lengths: list[int] = []
        windows: list[int] = []
        aheads: list[int] = []
        targets: list[int] = []
        distractors = [np.zeros((0, negatives), dtype=np.int64)]
        for row, (count, seed) in enumerate(zip(num_frames, seeds, strict=True)):
            random = numpy_generator(seed, "cpc")
            for end in range(hop, count, hop):
                length, ahead = min(context, end), np.arange(min(future, count - end))
                window = end - length + np.minimum(np.arange(context), length - 1)
                frames.append(row * max_frames + window)
                windows += [len(lengths)] * len(ahead)
                lengths.append(length)
                aheads += ahead.tolist()
                targets += (row * max_frames + end + ahead).tolist()
                drawn = random.integers(count - 1, size=(len(ahead), negatives))
                distractors.append(row * max_frames + drawn + (drawn >= (end + ahead)[:, None]))
        tensor = torch.tensor
        return cls(
            torch.from_numpy(np.array(frames, dtype=np.int64).reshape(len(frames), context)),
            tensor(lengths, dtype=torch.long),
            tensor(windows, dtype=torch.long),
            tensor(aheads, dtype=torch.long),
            tensor(targets, dtype=torch.long),
            torch.from_numpy(np.concatenate(distractors)),
        )


def cpc_terms(model: AcousticModel, batch: Batch, config: CpcConfig, backbone_gradient: float = 1.0) -> Terms:
    """InfoNCE per predicted frame. `backbone_gradient` scales the gradient that reaches the backbone (BL-JUST's gamma).

    Utterances that end within the first `hop_seconds` predict nothing.
    """
    backbone, head = model.backbone, model.self_supervised_head
    assert isinstance(head, CpcHead)
    raw_BTD, num_frames_B = local_features(backbone, batch, config.extractor_gradient)
    features_BTD = backbone.feature_norm(raw_BTD)
    rate_hz, unit = model.config.frame_rate_hz, model.config.min_frames
    windows = Windows.of(
        num_frames_B.tolist() if batch.counted else [0] * len(num_frames_B),
        raw_BTD.shape[1],
        batch.seeds,
        context=_frames(config.context_seconds, rate_hz, unit),
        future=_frames(config.future_seconds, rate_hz),
        hop=_frames(config.hop_seconds, rate_hz, unit),
        negatives=config.negatives,
    )
    prediction_NP = _predictions(model, features_BTD, windows, batch.seed, backbone_gradient)
    targets_BTP = head.project_target(scale_gradient(features_BTD, backbone_gradient))
    logits_NM1 = _logits(prediction_NP, targets_BTP.flatten(0, 1), windows, config.temperature)
    nll_N = F.cross_entropy(logits_NM1, logits_NM1.new_zeros(len(logits_NM1), dtype=torch.long), reduction="none")
    count = nll_N.new_full((), float(len(nll_N)))
    return {
        "cpc": Term(nll_N.sum(), count, batch.share),
        "cpc_accuracy": Term((logits_NM1.argmax(1) == 0).float().sum().detach(), count, weight=0.0),
    }


def _frames(seconds: float, rate_hz: float, unit: int = 1) -> int:
    """Frames, a multiple of the unit: a squeezed model has no context for a last frame that fills no group of them."""
    return max(1, round(seconds * rate_hz / unit)) * unit


def _predictions(
    model: AcousticModel, features_BTD: Tensor, windows: Windows, seed: int, backbone_gradient: float
) -> Tensor:
    """(N, P) predictions of the frames that follow the windows."""
    head, device = model.self_supervised_head, features_BTD.device
    assert isinstance(head, CpcHead)
    if not len(windows.length_W):  # nothing to predict: but every parameter has a gradient, zero
        zero = 0.0 * sum(p.sum() for p in (*model.backbone.parameters(), *head.parameters()))
        return features_BTD.new_zeros(0, head.width) + zero
    window_WLD = features_BTD.flatten(0, 1)[windows.frame_WL.to(device, non_blocking=True)]
    # A mask of nothing: then the vector that stands for masked frames has a gradient too, for workers wait for each.
    nothing_WL = torch.zeros(window_WLD.shape[:2], dtype=torch.bool, device=device)
    context_WLC = model.backbone.context(window_WLD, windows.length_W, nothing_WL, seed=seed)
    last_W = (windows.length_W - 1).to(device, non_blocking=True)
    last_WC = scale_gradient(context_WLC[torch.arange(len(last_W), device=device), last_W], backbone_gradient)
    steps = [head.project_context(last_WC)]
    for _ in range(max(1, int(windows.ahead_N.max()))):  # at least once: then `predict` has a gradient too
        steps.append(head.predict(steps[-1]))
    steps_WKP = torch.stack(steps, dim=1)
    return steps_WKP[windows.window_N.to(device, non_blocking=True), windows.ahead_N.to(device, non_blocking=True)]


def _logits(prediction_NP: Tensor, target_FP: Tensor, windows: Windows, temperature: float) -> Tensor:
    """(N, 1 + M) cosine similarities / temperature, the true frame first. F counts the frames of all utterances."""
    device = prediction_NP.device
    with full_precision():
        prediction_NP = F.normalize(prediction_NP.float(), dim=1)
        unit_FP = F.normalize(target_FP.float(), dim=1)
        chosen_NM1 = torch.cat([windows.target_N[:, None], windows.negative_NM], dim=1).to(device, non_blocking=True)
        return torch.einsum("np,nmp->nm", prediction_NP, unit_FP[chosen_NM1]) / temperature
