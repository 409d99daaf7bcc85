"""What is known of a trial's recogniser before it is trained, and whether the search admits it."""

from __future__ import annotations

from collections.abc import Sequence

from study.disk import num_outputs
from study.spec import ConstraintsSpec
from trainables.models.cost import flops_per_second
from trainables.models.sizes import num_parameters
from trainables.stage import Stage


def recogniser_parameters(stages: Sequence[Stage]) -> int:
    """Of the backbone and the CTC head of the trial with these stages."""
    last = stages[-1]
    outputs = num_outputs(last)
    return num_parameters(last.model, "backbone", outputs) + num_parameters(last.model, "ctc_head", outputs)


def violated(constraints: ConstraintsSpec, stages: Sequence[Stage]) -> str | None:
    """The constraint that the trial with these stages breaks."""
    if constraints.parameters is not None:
        parameters = recogniser_parameters(stages)
        if parameters > constraints.parameters:
            return f"{parameters:,} parameters, and search.constraints allows {constraints.parameters:,.0f}"
    if constraints.flops_per_second is not None:
        flops = flops_per_second(stages[-1].model, num_outputs(stages[-1]))
        if flops > constraints.flops_per_second:
            return f"{flops:.3g} operations a second of audio, and {constraints.flops_per_second:.3g} are allowed"
    return None
