"""Sums and lists over the workers of a group; with one worker everything is the identity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def sum_over_workers(values: Tensor) -> Tensor:
    """The sum of a tensor over all workers; gradients flow back to every worker."""
    if world_size() == 1:
        return values
    total: Tensor = differentiable.all_reduce(values)  # type: ignore[no-untyped-call]
    return total


def min_over_workers(value: int, device: torch.device) -> int:
    """The smallest of the workers' values; `device` is the one that they train on."""
    if world_size() == 1:
        return value
    smallest = torch.tensor(value, device=device)
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return int(smallest)


def gather(items: list[Any]) -> list[Any]:
    """The concatenation, on every worker, of each worker's list."""
    if world_size() == 1:
        return items
    shares: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(shares, items)
    return [item for share in shares for item in share]


def share_first(tensors: Iterable[Tensor]) -> None:
    """Give the tensors, in place, the values that they have on the first worker."""
    for tensor in tensors if world_size() > 1 else ():
        dist.broadcast(tensor, src=0)


def agree(value: Any) -> Any:
    """The value of the first worker, on every worker."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
