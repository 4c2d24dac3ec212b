"""Communicators: how the workers of one fit add up. The loop knows no more of other workers than this."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Comm(Protocol):
    rank: int
    world_size: int

    def all_reduce(self, buffer: Tensor) -> None:
        """Sum an int64 buffer over all workers, in place."""

    def all_gather(self, value: Any) -> list[Any]:
        """Every worker's value, by rank; for small things, once or twice a fit."""


class Solo:
    """One process."""

    rank = 0
    world_size = 1

    def all_reduce(self, buffer: Tensor) -> None:
        pass

    def all_gather(self, value: Any) -> list[Any]:
        return [value]


class ProcessGroup:
    """The default group of `torch.distributed`: gloo between CPUs, NCCL between GPUs."""

    def __init__(self) -> None:
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()

    def all_reduce(self, buffer: Tensor) -> None:
        torch.distributed.all_reduce(buffer)

    def all_gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values
