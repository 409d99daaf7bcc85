"""From the settings of a loss to the function that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from trainables.data.batches import Batch
from trainables.losses.bilevel import bilevel_terms
from trainables.losses.config import BilevelConfig, ContrastiveConfig, CtcConfig, LossConfig, Stream
from trainables.losses.contrastive import contrastive_terms
from trainables.losses.ctc import ctc_terms
from trainables.losses.terms import Terms, total
from trainables.models.acoustic import AcousticModel

Batches = Mapping[Stream, Batch]

LOSSES: dict[type, Callable[..., Terms]] = {
    CtcConfig: lambda model, batches, config, _: ctc_terms(model, batches["labelled"], config),
    ContrastiveConfig: lambda model, batches, config, progress: contrastive_terms(
        model, batches["unlabelled"], config, progress
    ),
    BilevelConfig: bilevel_terms,
}


class TrainingLoss(nn.Module):
    """A model and its loss as one module, so that DistributedDataParallel sees exactly the parts that the loss uses."""

    def __init__(self, model: AcousticModel, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.parts = nn.ModuleDict({name: model.get_submodule(name) for name in config.parts})
        self._model = [model]  # in a list: not a submodule, for the parts are registered above

    def forward(self, batches: Batches, progress: float) -> tuple[Tensor, Terms]:
        """The scalar to minimise, and its terms. `progress` in [0, 1] is the share of the stage that is done."""
        terms = LOSSES[type(self.config)](self._model[0], batches, self.config, progress)
        return total(terms), terms
