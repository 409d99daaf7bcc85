"""The joint step of BL-JUST (Saif et al. 2024, arXiv:2401.06980; P-BLJ equation 7).

    min over (phi, theta) of CTC(phi, theta)   subject to   theta minimises S(theta)

is solved in penalty form: one step descends CTC + gamma x S in the backbone theta, S in the self-supervised head eta
and CTC in the CTC head phi, all three gradients taken at the same parameters, with gamma rising over the stage.
"""

from __future__ import annotations

from collections.abc import Mapping

from trainables.config import Progress
from trainables.data.batches import Batch
from trainables.losses.config import BilevelConfig, ContrastiveConfig, CpcConfig, Stream
from trainables.losses.contrastive import contrastive_terms
from trainables.losses.cpc import cpc_terms
from trainables.losses.ctc import ctc_terms
from trainables.losses.terms import Terms
from trainables.models.acoustic import AcousticModel


def gamma(config: BilevelConfig, progress: Progress) -> float:
    """The penalty, rising linearly over the stage."""
    return config.gamma_start + (config.gamma_end - config.gamma_start) * progress.share


def self_supervised_terms(
    model: AcousticModel,
    batch: Batch,
    config: ContrastiveConfig | CpcConfig,
    progress: Progress,
    backbone_gradient: float = 1.0,
) -> Terms:
    """The terms of the lower level. `backbone_gradient` scales the gradient that reaches the backbone."""
    if isinstance(config, CpcConfig):
        return cpc_terms(model, batch, config, backbone_gradient)
    return contrastive_terms(model, batch, config, progress, backbone_gradient)


def bilevel_terms(
    model: AcousticModel, batches: Mapping[Stream, Batch], config: BilevelConfig, progress: Progress
) -> Terms:
    """The terms of both levels. One backward pass yields the three gradients: gamma scales only what reaches theta."""
    return ctc_terms(model, batches["labelled"], config.ctc) | self_supervised_terms(
        model, batches["unlabelled"], config.self_supervised, progress, gamma(config, progress)
    )
