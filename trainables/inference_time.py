"""How long a trained model takes to recognise a split, by the protocol of P-SEW.

Forward pass, best symbol of each frame, and their copy to the CPU, of each batch, one after another, in fp32. The
batches are on the device before: reading audio, moving it there and scoring are not timed. The time is that of the
whole split.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from trainables.data.batches import Batch, epoch_batches, make_batch
from trainables.data.config import CorpusConfig
from trainables.data.corpus import Utterance, read_corpus, total_seconds
from trainables.device import hardware_name
from trainables.models.acoustic import AcousticModel
from trainables.models.checkpoints import read_ctc_model
from trainables.models.transformer import Transformer
from trainables.stage import InferenceTime


def inference_time(
    folder: Path, corpus: CorpusConfig, split: Literal["dev", "test"], batch_seconds: float, warmup: int, repeats: int
) -> InferenceTime:
    """Of the trained model in the folder, on the GPU if there is one. The caller sees to it that nothing runs beside.

    `batch_seconds`: padded audio in a batch; utterances of like length share one. Raises CheckpointError, CorpusError.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = prepared(read_ctc_model(folder)[0], device)
    utterances = getattr(read_corpus(corpus), split)
    batches = sorted_batches(utterances, batch_seconds, device)
    passes = [_seconds_of_pass(model, batches) for _ in range(warmup + repeats)]
    return InferenceTime(
        split=split,
        batch_seconds=batch_seconds,
        device=device_name(device),
        utterances=len(utterances),
        audio_seconds=total_seconds(utterances),
        seconds=tuple(passes[warmup:]),
    )


def prepared(model: AcousticModel, device: torch.device) -> AcousticModel:
    """On the device, with what does not depend on the input done once."""
    model = model.to(device).eval()
    if isinstance(model.backbone, Transformer):
        model.backbone.prepare_for_inference()
    return model


def sorted_batches(utterances: Sequence[Utterance], batch_seconds: float, device: torch.device) -> list[Batch]:
    """Without tokens, utterances of like length together, the shortest first."""
    lengths = [utterance.duration_seconds for utterance in utterances]
    groups = epoch_batches(lengths, batch_seconds, seed=0, epoch=0)
    groups = sorted(groups, key=lambda group: max(lengths[index] for index in group))
    batches = (make_batch([utterances[index] for index in group], None, [0] * len(group)) for group in groups)
    return [batch.to(device) for batch in batches]


@torch.inference_mode()
def recognise(model: AcousticModel, batches: Sequence[Batch]) -> list[Tensor]:
    """One pass: the (B, T) best symbols of the frames of each batch, on the CPU."""
    best = []
    for batch in batches:
        features_BTD, num_frames_B = model.backbone.features(batch.waveform_BS, batch.num_samples_B)
        context_BTC = model.backbone.context(model.backbone.feature_norm(features_BTD), num_frames_B)
        best.append(model.ctc_head(context_BTC).argmax(2).cpu())
    return best


def _seconds_of_pass(model: AcousticModel, batches: Sequence[Batch]) -> float:
    began = time.perf_counter()
    recognise(model, batches)
    return time.perf_counter() - began


def device_name(device: torch.device) -> str:
    """Such as `NVIDIA H200`, or `AMD EPYC, 2 thread(s)`."""
    name = hardware_name(device)
    return name if device.type == "cuda" else f"{name}, {torch.get_num_threads()} thread(s)"
