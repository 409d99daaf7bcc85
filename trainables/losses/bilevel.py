"""The joint step of BL-JUST (Saif et al. 2024, arXiv:2401.06980; P-BLJ equation 7).

    min over (phi, theta) of CTC(phi, theta)   subject to   theta minimises S(theta)

is solved in penalty form: one step descends CTC + gamma x S in the backbone theta, S in the self-supervised head eta
and CTC in the CTC head phi, all three gradients taken at the same parameters, with gamma rising over the stage.
"""

from __future__ import annotations

from collections.abc import Mapping

from trainables.data.batches import Batch
from trainables.losses.config import BilevelConfig, Stream
from trainables.losses.contrastive import contrastive_terms
from trainables.losses.ctc import ctc_terms
from trainables.losses.terms import Terms
from trainables.models.acoustic import AcousticModel


def gamma(config: BilevelConfig, progress: float) -> float:
    """The penalty, rising linearly with the share of the stage that is done."""
    return config.gamma_start + (config.gamma_end - config.gamma_start) * progress


def bilevel_terms(
    model: AcousticModel, batches: Mapping[Stream, Batch], config: BilevelConfig, progress: float
) -> Terms:
    """The terms of both levels. One backward pass yields the three gradients: gamma scales only what reaches theta."""
    return ctc_terms(model, batches["labelled"], config.ctc) | contrastive_terms(
        model, batches["unlabelled"], config.contrastive, progress, gamma(config, progress)
    )
