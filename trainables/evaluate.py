"""Word and character error rates of a model on a split, with greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import torch

from trainables.data.batches import epoch_batches, make_batch
from trainables.data.corpus import Utterance
from trainables.data.phones import pronounce
from trainables.data.symbols import Symbols
from trainables.decoding.greedy import greedy_decode
from trainables.distributed import gather, rank, world_size
from trainables.losses.ctc import ctc_log_probabilities
from trainables.models.acoustic import AcousticModel

BATCH_SECONDS = 120.0


@dataclass(frozen=True)
class Hypothesis:
    id: str
    reference: str
    hypothesis: str


@torch.inference_mode()
def transcribe(
    model: AcousticModel, utterances: Sequence[Utterance], symbols: Symbols, device: torch.device
) -> list[Hypothesis]:
    """Decode every utterance, shared out over the workers; each worker returns the whole list, sorted by id."""
    was_training = model.training
    model.eval()
    mine: list[Hypothesis] = []
    batches = epoch_batches([u.duration_seconds for u in utterances], BATCH_SECONDS, seed=0, epoch=0)
    for indices in batches[rank() :: world_size()]:
        share = [utterances[i] for i in indices]
        batch = make_batch(share, symbols, [0] * len(share)).to(device)
        texts = greedy_decode(*ctc_log_probabilities(model, batch), symbols)
        mine += [Hypothesis(u.id, u.text or "", text) for u, text in zip(share, texts, strict=True)]
    model.train(was_training)
    return sorted(gather(mine), key=lambda h: h.id)


def error_rates(hypotheses: Sequence[Hypothesis]) -> dict[str, float]:
    """`wer` and `cer` as fractions: errors / reference length of the whole split, not a mean of utterances' ratios."""
    references, texts = [h.reference for h in hypotheses], [h.hypothesis for h in hypotheses]
    return {"wer": float(jiwer.wer(references, texts)), "cer": float(jiwer.cer(references, texts))}


def phone_error_rate(hypotheses: Sequence[Hypothesis], language: str) -> dict[str, float]:
    """`per` as a fraction: phone errors / phones of the references' pronunciations. Hypotheses are phones."""
    references = [" ".join(pronounce(h.reference, language)) for h in hypotheses]
    return {"per": float(jiwer.wer(references, [h.hypothesis for h in hypotheses]))}
