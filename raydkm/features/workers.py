"""Sums over the workers of a training, through which gradients find their way back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor


def several_workers() -> bool:
    """Whether other workers train too; then all must come to each sum together."""
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def sum_over_workers(value: Tensor) -> Tensor:
    """The sum of all workers' values, in each of them; the gradient of a value is that of the sum of all losses."""
    return _Sum.apply(value)


class _Sum(torch.autograd.Function):
    """All-reduce; backward it is its own adjoint, as every worker's loss depends on every worker's value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total
