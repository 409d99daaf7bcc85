"""The masked contrastive loss of wav2vec 2.0 (arXiv:2006.11477, section 3.2).

Legend: B utterances, T frames, D feature width, N masked frames of this worker's share, K negatives, G codebooks,
V entries, P compared width, M most masked frames of an utterance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.config import Progress
from trainables.data.batches import Batch
from trainables.data.seeds import numpy_generator
from trainables.distributed import sum_over_workers
from trainables.losses.config import ContrastiveConfig
from trainables.losses.features import local_features, scale_gradient
from trainables.losses.masks import equalise, time_masks
from trainables.losses.terms import Term, Terms
from trainables.models.acoustic import AcousticModel
from trainables.models.frames import frame_mask, full_precision
from trainables.models.self_supervised import SelfSupervisedHead


@dataclass(frozen=True)
class MaskedFrames:
    """Where the masked frames of a batch are, as indices made on the CPU, so that no step waits for the device."""

    counts: Sequence[int]  # of each utterance
    frame_N: Tensor  # index into (B x T)
    slot_N: Tensor  # index into (B x M): utterances one after another, each padded to the most masked frames M
    first_N: Tensor  # row of the first masked frame of the same utterance
    most: int  # M

    @classmethod
    def of(cls, mask_BT: Tensor) -> MaskedFrames:
        """From a mask on the CPU."""
        count_B = mask_BT.sum(1)
        most = int(count_B.max())
        row_N, frame_N = mask_BT.nonzero()[:, 0], mask_BT.flatten().nonzero()[:, 0]
        first_N = (count_B.cumsum(0) - count_B)[row_N]
        slot_N = row_N * most + torch.arange(len(row_N)) - first_N
        return cls(count_B.tolist(), frame_N, slot_N, first_N, most)

    def take(self, x_BTC: Tensor) -> Tensor:
        """(N, C) rows of the masked frames."""
        return x_BTC.flatten(0, 1)[self.frame_N.to(x_BTC.device, non_blocking=True)]

    def by_utterance(self, x_NC: Tensor) -> Tensor:
        """(B, M, C) with zeros beyond each utterance's own masked frames."""
        slot_N = self.slot_N.to(x_NC.device, non_blocking=True)
        flat = x_NC.new_zeros(len(self.counts) * self.most, x_NC.shape[1]).index_copy(0, slot_N, x_NC)
        return flat.view(len(self.counts), self.most, x_NC.shape[1])


def draw_negatives(masked_per_utterance: Sequence[int], negatives: int, seeds: Sequence[int]) -> Tensor:
    """(N, K) rows of distractors: drawn with replacement from the other masked frames of the same utterance."""
    rows, offset = [np.zeros((0, negatives), dtype=np.int64)], 0
    for count, seed in zip(masked_per_utterance, seeds, strict=True):
        if count:
            drawn = numpy_generator(seed, "negatives").integers(count - 1, size=(count, negatives))
            rows.append(offset + drawn + (drawn >= np.arange(count)[:, None]))
        offset += count
    return torch.from_numpy(np.concatenate(rows))


def contrastive_logits(
    prediction_NP: Tensor,
    target_NP: Tensor,
    codes_NG: Tensor,
    negatives_NK: Tensor,
    temperature: float,
    frames: MaskedFrames,
) -> Tensor:
    """(N, 1 + K) logits: cosine similarity / temperature, the true target first (equation 3).

    All pairs within an utterance are compared in one matrix product, from which the similarities of the distractors
    are read: the (N, K, P) distractors themselves never exist.

    A distractor of the same codes as the target gets -inf: it is no distractor. The codes are compared, not the vectors
    as in fairseq: those are products of matrices, and equal rows need not come out equal to the last bit.
    """
    device = prediction_NP.device
    prediction_NP, unit_NP = F.normalize(prediction_NP.float(), dim=1), F.normalize(target_NP.float(), dim=1)
    with full_precision():
        similarity_BMM = frames.by_utterance(prediction_NP) @ frames.by_utterance(unit_NP).transpose(1, 2)
    similarity_NM = similarity_BMM.flatten(0, 1)[frames.slot_N.to(device, non_blocking=True)]
    positive_N1 = (prediction_NP * unit_NP).sum(1, keepdim=True)
    within_NK = (negatives_NK - frames.first_N[:, None]).to(device, non_blocking=True)
    same_NK = (codes_NG[negatives_NK.to(device, non_blocking=True)] == codes_NG[:, None]).all(2)
    negative_NK = similarity_NM.gather(1, within_NK).masked_fill(same_NK, -torch.inf)
    return torch.cat([positive_N1, negative_NK], dim=1) / temperature


def diversity(probability_sum_GV: Tensor, count: Tensor, form: Literal["perplexity", "entropy"]) -> Tensor:
    """How unevenly the entries of the codebooks are used, from the sum over `count` frames of their probabilities.

    perplexity: (GV - sum_g exp H_g) / GV, in [0, 1), 0 when all entries are used alike. What fairseq runs.
    entropy: -(sum_g H_g) / GV, in [-(ln V) / V, 0]. What wav2vec 2.0 and P-BLJ (equation 5) print. Near uniform usage
    its gradient is V times smaller, so that it needs a larger weight.

    H_g is the entropy of the usage of codebook g, averaged over the frames first.
    """
    mean_GV = probability_sum_GV / count.clamp(min=1)
    entropy_G = -(mean_GV * (mean_GV + 1e-7).log()).sum(1)
    if form == "entropy":
        return -entropy_G.sum() / mean_GV.numel()
    return 1.0 - entropy_G.exp().sum() / mean_GV.numel()


def gumbel_temperature(config: ContrastiveConfig, progress: Progress) -> float:
    """Falling geometrically from gumbel_start to gumbel_end, by a factor an update or over the whole stage."""
    if config.gumbel_decay is None:
        return float(config.gumbel_start * (config.gumbel_end / config.gumbel_start) ** progress.share)
    return max(config.gumbel_start * config.gumbel_decay**progress.step, config.gumbel_end)


def contrastive_masks(config: ContrastiveConfig, batch: Batch, num_frames_B: Tensor, max_frames: int) -> Tensor:
    """(B, T) masked frames, on the CPU. An utterance with a single one has no distractor: it is not masked at all."""
    mask_BT = time_masks(
        num_frames_B,
        max_frames,
        batch.seeds,
        purpose="contrastive",
        probability=config.mask_probability,
        length=config.mask_length,
        min_spans=2,
    )
    if config.equal_masks:
        mask_BT = equalise(mask_BT, batch.seeds, batch.counted, batch.waveform_BS.device)
    mask_BT[mask_BT.sum(1) < 2] = False
    if not batch.counted:
        mask_BT[:] = False
    return mask_BT


def contrastive_terms(
    model: AcousticModel, batch: Batch, config: ContrastiveConfig, progress: Progress, backbone_gradient: float = 1.0
) -> Terms:
    """Contrastive + diversity + feature penalty, each per masked (or per valid) frame.

    `progress` of the stage sets the Gumbel temperature. `backbone_gradient` scales the gradient that reaches the
    backbone, and not that of the self-supervised head (BL-JUST's gamma).
    """
    backbone, head = model.backbone, model.self_supervised_head
    assert isinstance(head, SelfSupervisedHead)
    raw_BTD, num_frames_B = local_features(backbone, batch, config.extractor_gradient)
    features_BTD = backbone.feature_norm(raw_BTD)
    mask_BT = contrastive_masks(config, batch, num_frames_B, raw_BTD.shape[1])
    frames = MaskedFrames.of(mask_BT)
    device = raw_BTD.device

    context_BTC = backbone.context(features_BTD, num_frames_B, mask_BT.to(device, non_blocking=True), seed=batch.seed)
    context_NC = scale_gradient(frames.take(context_BTC), backbone_gradient)
    features_ND = head.feature_dropout(scale_gradient(frames.take(features_BTD), backbone_gradient))

    temperature = gumbel_temperature(config, progress)
    noise_NGV = _gumbel_noise(frames.counts, head.quantiser.codewords_GVd, batch.seeds) if model.training else None
    quantised = head.quantiser(features_ND, temperature, noise_NGV)
    logits_NK1 = contrastive_logits(
        head.project_context(context_NC),
        head.project_target(quantised.vectors_ND),
        quantised.codes_NG,
        draw_negatives(frames.counts, config.negatives, batch.seeds),
        config.temperature,
        frames,
    )
    nll_N = F.cross_entropy(logits_NK1, logits_NK1.new_zeros(len(logits_NK1), dtype=torch.long), reduction="none")

    count = nll_N.new_full((), float(len(nll_N)))
    usage_GV = quantised.logits_NGV.float().softmax(2).sum(0)
    valid_BT1 = frame_mask(num_frames_B, raw_BTD.shape[1], device)[..., None]
    num_valid = valid_BT1.sum() * float(batch.counted)
    penalty = (raw_BTD.float().square() * valid_BT1).mean(2).sum() * float(batch.counted)
    usage = diversity(sum_over_workers(usage_GV), sum_over_workers(count.clone()), config.diversity)
    penalty_weight = config.feature_penalty_weight * backbone_gradient
    return {
        "contrastive": Term(nll_N.sum(), count, batch.share),
        "diversity": Term(usage, torch.ones_like(count), config.diversity_weight * batch.share),
        "feature_penalty": Term(penalty, num_valid, penalty_weight * batch.share),
        "contrastive_accuracy": Term((logits_NK1.argmax(1) == 0).float().sum().detach(), count, weight=0.0),
    }


def _gumbel_noise(masked_per_utterance: Sequence[int], codewords_GVd: Tensor, seeds: Sequence[int]) -> Tensor:
    G, V, _ = codewords_GVd.shape
    noise = [
        numpy_generator(seed, "gumbel").gumbel(size=(count, G, V)).astype(np.float32)
        for count, seed in zip(masked_per_utterance, seeds, strict=True)
    ]
    return torch.from_numpy(np.concatenate(noise)).to(codewords_GVd.device, non_blocking=True)
