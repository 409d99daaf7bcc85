"""What a model writes for a split, utterance by utterance."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from trainables.data.batches import epoch_batches, make_batch
from trainables.data.corpus import Utterance
from trainables.data.symbols import Symbols
from trainables.decoding.greedy import greedy_decode
from trainables.distributed import gather, rank, world_size
from trainables.losses.ctc import ctc_log_probabilities
from trainables.models.acoustic import AcousticModel
from trainables.scoring import Hypothesis, counts
from trainables.store import write_atomically

BATCH_SECONDS = 120.0


def transcribe(
    model: AcousticModel, utterances: Sequence[Utterance], symbols: Symbols, device: torch.device
) -> list[Hypothesis]:
    """The best path of every utterance, shared out over the workers; each returns the whole list, sorted by id."""
    return everywhere(
        hypothesis_of(utterance, text)
        for share, scores_BTV, num_frames_B in log_probabilities(model, utterances, device)
        for utterance, text in zip(share, greedy_decode(scores_BTV, num_frames_B, symbols), strict=True)
    )


@torch.inference_mode()
def log_probabilities(
    model: AcousticModel, utterances: Sequence[Utterance], device: torch.device
) -> Iterator[tuple[list[Utterance], Tensor, Tensor]]:
    """Batches of this worker's share: utterances, (B, T, V) log-probabilities of the CTC head, and (B,) frames."""
    was_training = model.training
    model.eval()
    batches = epoch_batches([u.duration_seconds for u in utterances], BATCH_SECONDS, seed=0, epoch=0)
    for indices in batches[rank() :: world_size()]:
        share = [utterances[i] for i in indices]
        yield share, *ctc_log_probabilities(model, make_batch(share, None, [0] * len(share)).to(device))
    model.train(was_training)


def hypothesis_of(utterance: Utterance, text: str) -> Hypothesis:
    return Hypothesis(utterance.id, utterance.text or "", text, utterance.duration_seconds, utterance.speaker)


def everywhere(mine: Iterable[Hypothesis]) -> list[Hypothesis]:
    """The hypotheses of all workers, sorted by id."""
    return sorted(gather(list(mine)), key=lambda h: h.id)


def write_hypotheses(path: Path, hypotheses: Sequence[Hypothesis]) -> None:
    """One JSON object a line: the hypothesis with its word and character errors, and the lengths of its reference."""
    lines = (json.dumps(asdict(h) | counts(h)._asdict(), ensure_ascii=False) + "\n" for h in hypotheses)
    write_atomically(path, "".join(lines).encode())


def read_hypotheses(path: Path) -> list[Hypothesis]:
    """What `write_hypotheses` wrote."""
    fields = Hypothesis.__dataclass_fields__
    rows = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    return [Hypothesis(**{name: row[name] for name in fields if name in row}) for row in rows]
