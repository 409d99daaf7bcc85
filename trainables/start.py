"""What a stage starts with: its corpus, its model, and its precision."""

from __future__ import annotations

import json

import safetensors.torch
import torch

from trainables.data.corpus import Corpus, CorpusError, read_corpus
from trainables.models.acoustic import AcousticModel
from trainables.models.checkpoint_files import CheckpointError, fingerprint, locate
from trainables.models.checkpoints import read_checkpoint, take_over
from trainables.stage import Stage
from trainables.store import StageStore


def corpus_of_stage(stage: Stage) -> Corpus:
    """Raises CorpusError when the data is no longer that which identifies the stage."""
    corpus = read_corpus(stage.corpus)
    found = corpus.fingerprint(stage.streams)
    if found != stage.data_fingerprint:
        raise CorpusError(
            f"the corpus of {stage.name()} is not the one that it was planned with (fingerprint {found}, planned "
            f"{stage.data_fingerprint}); plan it again, or restore the corpus"
        )
    return corpus


def build_model(stage: Stage, store: StageStore, num_symbols: int) -> AcousticModel:
    """The model at the start of the stage: fresh parts drawn from the stage's seed, then those it takes over.

    Raises CheckpointError when the weights that it starts from are not those that identify the stage, or do not fit.
    """
    model = AcousticModel(stage.model, num_symbols, stage.seed, stage.self_supervision)
    if stage.start:
        path = locate(stage.start.source)
        if fingerprint(path) != stage.start.sha256:
            raise CheckpointError(f"{stage.start.source}: its weights are not those that the study was planned with")
        take_over(read_checkpoint(path), model, stage.parts)
    if stage.initial:
        folder = store.fetch(stage.initial.stage)
        for part in stage.initial.parts:
            model.get_submodule(part).load_state_dict(safetensors.torch.load_file(folder / f"{part}.safetensors"))
    return model


def check_symbols(stage: Stage, store: StageStore, symbols: tuple[str, ...]) -> None:
    """Raise CorpusError when the CTC head that the stage takes over writes other symbols."""
    if stage.initial is None or "ctc_head" not in stage.initial.parts:
        return
    path = store.fetch(stage.initial.stage) / "symbols.json"
    if json.loads(path.read_text("utf-8"))["symbols"] != list(symbols):
        raise CorpusError(
            f"{path}: not the symbols that {stage.name()} finds; its libraries may be others, train again"
        )


def autocast(stage: Stage, device: torch.device) -> torch.autocast:
    """The stage's mixed precision."""
    narrow = torch.float16 if stage.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, narrow, enabled=stage.precision != "fp32")
