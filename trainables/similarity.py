"""How alike two networks represent the same speech, layer by layer: linear CKA and SVCCA.

Legend: N frames, P and Q widths of layers, K principal components.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from trainables.data.batches import make_batch
from trainables.data.corpus import Utterance
from trainables.models.acoustic import AcousticModel, Backbone
from trainables.models.checkpoints import read_checkpoint
from trainables.models.cnn_gru import CnnGru
from trainables.models.transformer import Transformer
from trainables.stage import Stage, chain
from trainables.start import build_model
from trainables.store import StageStore

KEPT_VARIANCE = 0.99  # by the principal components that SVCCA compares (Raghu et al. 2017)


def initial_backbone(stage: Stage, store: StageStore) -> Backbone:
    """Before the first stage of the chain learnt anything: random, or the weights that the trial starts from.

    Raises CheckpointError.
    """
    return build_model(chain(stage)[0], store, num_symbols=2).backbone


def trained_backbone(folder: Path) -> Backbone:
    """As the finished stage has left it in its folder. Raises CheckpointError."""
    checkpoint = read_checkpoint(folder)
    model = AcousticModel(checkpoint.model, num_symbols=2, seed=0)
    checkpoint.load_into(model, "backbone")
    return model.backbone


def layers_of(backbone: Backbone) -> Sequence[nn.Module]:
    """The modules whose outputs are the hidden states: transformer blocks, or recurrent layers with their norm."""
    if isinstance(backbone, Transformer):
        return list(backbone.layers)
    return list(backbone.gru if isinstance(backbone, CnnGru) else backbone.context_norm)


@torch.inference_mode()
def hidden_states(backbone: Backbone, utterances: Sequence[Utterance], device: torch.device) -> list[Tensor]:
    """(N, P) output of each layer for the frames of all utterances, in their order, on the CPU.

    Utterances go through the network one at a time, so that no frame is padding and none depends on any.
    """
    backbone = backbone.to(device).eval()
    layers = layers_of(backbone)
    outputs: list[list[Tensor]] = [[] for _ in layers]
    hooks = [layer.register_forward_hook(_keeper(kept)) for layer, kept in zip(layers, outputs, strict=True)]
    try:
        for utterance in utterances:
            batch = make_batch([utterance], None, [0]).to(device)
            features_BTD, num_frames_B = backbone.features(batch.waveform_BS, batch.num_samples_B)
            backbone.context(backbone.feature_norm(features_BTD), num_frames_B)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(kept) for kept in outputs]


def _keeper(kept: list[Tensor]) -> Callable[[nn.Module, tuple[object, ...], Tensor], None]:
    """A forward hook that keeps the frames of the one utterance of a batch."""

    def keep(module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
        kept.append(output[0].float().cpu())

    return keep


def linear_cka(x_NP: Tensor, y_NQ: Tensor) -> float:
    """Centred kernel alignment with a linear kernel, from 0 to 1 (Kornblith et al. 2019).

    Orthogonal transforms and isotropic scaling of either side change nothing. 0 where a side is constant.
    """
    x_NP, y_NQ = _centred(x_NP), _centred(y_NQ)
    scale = torch.linalg.matrix_norm(x_NP.T @ x_NP) * torch.linalg.matrix_norm(y_NQ.T @ y_NQ)
    return float(torch.linalg.matrix_norm(x_NP.T @ y_NQ) ** 2 / scale) if scale > 0 else 0.0


def svcca(x_NP: Tensor, y_NQ: Tensor, kept_variance: float = KEPT_VARIANCE) -> float:
    """Mean canonical correlation of the leading principal components, from 0 to 1 (Raghu et al. 2017).

    Each side is reduced to the fewest components that keep that share of its variance; the mean is over as many
    correlations as the smaller side has components. It is biased upwards unless N is far above P and Q. 0 where a side
    is constant.
    """
    x_NK, y_NK = (_whitened(_centred(side), kept_variance) for side in (x_NP, y_NQ))
    correlations = torch.linalg.svdvals(x_NK.T @ y_NK)
    return float(correlations.clamp(max=1.0).mean()) if len(correlations) else 0.0


def _centred(x_NP: Tensor) -> Tensor:
    x_NP = x_NP.double()
    return x_NP - x_NP.mean(0)


def _whitened(x_NP: Tensor, kept_variance: float) -> Tensor:
    """(N, K) orthonormal columns that span the fewest principal components with that share of the variance."""
    variances_P, directions_PP = torch.linalg.eigh(x_NP.T @ x_NP)
    variances_P, directions_PP = variances_P.flip(0).clamp(min=0.0), directions_PP.flip(1)
    total = variances_P.sum()
    if total == 0:
        return x_NP[:, :0]
    count = int((variances_P.cumsum(0) < kept_variance * total).sum()) + 1
    count = min(count, int((variances_P > 0).sum()))
    scaled_PK: Tensor = directions_PP[:, :count] * variances_P[:count].rsqrt()
    return x_NP @ scaled_PK
