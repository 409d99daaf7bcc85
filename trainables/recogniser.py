"""A trained model with its symbols: from an audio file to text."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch

from trainables.data.batches import Batch, load_audio
from trainables.data.config import SAMPLE_RATE_HZ
from trainables.data.corpus import CorpusError
from trainables.data.text import Characters
from trainables.decoding.greedy import greedy_decode
from trainables.losses.ctc import ctc_log_probabilities
from trainables.models.acoustic import AcousticModel
from trainables.models.checkpoint_files import CheckpointError
from trainables.models.checkpoints import read_checkpoint, write_huggingface
from trainables.models.transformer import Transformer


class Recogniser:
    def __init__(self, model: AcousticModel, characters: Characters) -> None:
        self.model = model.eval()
        self.characters = characters

    @classmethod
    def open(cls, path: Path) -> Self:
        """From a finished stage or a Hugging Face folder. Raises CheckpointError when it has no CTC head or symbols."""
        checkpoint = read_checkpoint(path)
        if checkpoint.symbols is None:
            raise CheckpointError(f"{path}: has no symbols (symbols.json or vocab.json); it was not trained with CTC")
        model = AcousticModel(checkpoint.model, len(checkpoint.symbols), seed=0)
        for part in ("backbone", "ctc_head"):
            checkpoint.load_into(model, part)
        if isinstance(model.backbone, Transformer):
            model.backbone.prepare_for_inference()
        return cls(model, Characters.of_symbols(checkpoint.symbols))

    def export(self, folder: Path) -> None:
        """Write the model as a Hugging Face folder. Raises ValueError for one that transformers cannot express."""
        write_huggingface(self.model, self.characters.symbols, folder)

    @torch.inference_mode()
    def transcribe(self, path: Path) -> str:
        """Text of an audio file of any rate and any number of channels, which are averaged.

        Raises CorpusError for a file that cannot be decoded or is shorter than the model can take.
        """
        waveform_S = torch.from_numpy(load_audio(path)).float()
        shortest = self.model.config.min_samples
        if len(waveform_S) < shortest:
            raise CorpusError(
                f"{path}: is {len(waveform_S) / SAMPLE_RATE_HZ:.3f} s; the model needs {shortest} samples"
            )
        batch = Batch(
            waveform_BS=waveform_S[None],
            num_samples_B=torch.tensor([len(waveform_S)]),
            tokens_BU=torch.zeros(1, 0, dtype=torch.long),
            num_tokens_B=torch.tensor([0]),
            seeds=(0,),
            seed=0,
            counted=True,
        )
        return greedy_decode(*ctc_log_probabilities(self.model, batch), self.characters)[0]
