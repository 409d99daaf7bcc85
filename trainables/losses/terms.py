"""A loss is a weighted sum of means, each mean taken over the whole global batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trainables.distributed import sum_over_workers, world_size


@dataclass(frozen=True)
class Term:
    """One mean: this worker's sum, and the number of things (utterances, frames) it sums over, as a tensor."""

    sum: Tensor
    count: Tensor
    weight: float = 1.0

    def mean(self) -> Tensor:
        """This worker's contribution to the mean over the global batch.

        Scaled such that DistributedDataParallel, which averages gradients over workers, ends with the gradient of the
        global mean, however unevenly utterances or masked frames fall to the workers.
        """
        total = sum_over_workers(self.count.detach().clone()).clamp(min=1)
        return self.sum * (world_size() / total)


Terms = dict[str, Term]


def total(terms: Terms) -> Tensor:
    """The scalar to minimise."""
    learnt = [term for term in terms.values() if term.weight or term.sum.requires_grad]  # others are metrics
    weighted = [term.weight * term.mean() for term in learnt]
    return sum(weighted[1:], start=weighted[0])
