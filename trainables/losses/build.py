"""From the settings of a loss to the function that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from trainables.config import Progress
from trainables.data.batches import Batch
from trainables.losses.bilevel import bilevel_terms, self_supervised_terms
from trainables.losses.config import (
    BilevelConfig,
    ContrastiveConfig,
    CpcConfig,
    CtcConfig,
    LossConfig,
    PseudoLabelConfig,
    Stream,
)
from trainables.losses.ctc import ctc_terms
from trainables.losses.pseudo_label import Teacher, pseudo_label_terms
from trainables.losses.terms import Terms, total
from trainables.models.acoustic import AcousticModel

Batches = Mapping[Stream, Batch]


def _self_supervised(model: AcousticModel, batches: Batches, config: LossConfig, progress: Progress) -> Terms:
    assert isinstance(config, ContrastiveConfig | CpcConfig)
    return self_supervised_terms(model, batches["unlabelled"], config, progress)


LOSSES: dict[type, Callable[..., Terms]] = {
    CtcConfig: lambda model, batches, config, _: ctc_terms(model, batches["labelled"], config),
    ContrastiveConfig: _self_supervised,
    CpcConfig: _self_supervised,
    BilevelConfig: bilevel_terms,
    PseudoLabelConfig: pseudo_label_terms,
}


class TrainingLoss(nn.Module):
    """A model and its loss as one module, so that DistributedDataParallel sees exactly the parts that the loss uses."""

    def __init__(self, model: AcousticModel, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.parts = nn.ModuleDict({name: model.get_submodule(name) for name in config.parts})
        self.teacher = Teacher(model, config.teacher_decay) if isinstance(config, PseudoLabelConfig) else None
        self._model = [model]  # in a list: not a submodule, for the parts are registered above

    def forward(self, batches: Batches, progress: Progress) -> tuple[Tensor, Terms]:
        """The scalar to minimise, and its terms."""
        extra = [self.teacher] if self.teacher is not None else []
        terms = LOSSES[type(self.config)](self._model[0], batches, self.config, progress, *extra)
        return total(terms), terms

    def after_update(self) -> None:
        """To be called when the model's weights have changed."""
        if self.teacher is not None:
            self.teacher.update(self._model[0])
