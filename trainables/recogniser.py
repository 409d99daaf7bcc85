"""A trained model with its symbols: from an audio file to text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

import torch

from trainables.data.audio import read_audio
from trainables.data.batches import Batch
from trainables.data.config import SAMPLE_RATE_HZ
from trainables.data.corpus import CorpusError
from trainables.data.phones import Phones
from trainables.data.symbols import Symbols
from trainables.data.text import Characters
from trainables.decoding.greedy import greedy_decode
from trainables.losses.ctc import ctc_log_probabilities
from trainables.models.acoustic import AcousticModel
from trainables.models.checkpoints import read_ctc_model
from trainables.models.transformer import Transformer


class Recogniser:
    def __init__(self, model: AcousticModel, symbols: Symbols) -> None:
        self.model = model.eval()
        self.symbols = symbols
        if isinstance(model.backbone, Transformer):
            model.backbone.prepare_for_inference()

    @classmethod
    def open(cls, path: Path) -> Self:
        """From a finished stage or a Hugging Face folder.

        Raises CheckpointError when it has no CTC head or symbols, PhonesError for phones of an unknown language.
        """
        model, symbols = read_ctc_model(path)
        stage = path / "stage.json"
        outputs = json.loads(stage.read_text("utf-8"))["outputs"] if stage.is_file() else {}
        if outputs.get("kind") == "phones":
            return cls(model, Phones.of_symbols(symbols, outputs["language"]))
        return cls(model, Characters.of_symbols(symbols))

    @torch.inference_mode()
    def transcribe(self, path: Path) -> str:
        """Text of an audio file of any rate and any number of channels, which are averaged.

        Raises CorpusError for a file that cannot be decoded or is shorter than the model can take.
        """
        waveform_S = torch.from_numpy(read_audio(path)).float()
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
        return greedy_decode(*ctc_log_probabilities(self.model, batch), self.symbols)[0]
