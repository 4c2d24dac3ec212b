"""Shuffled rows without a list of them: which rows of all workers make up a step of training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raydkm.features.draws import Draws

#: Rounds of the Feistel network; four make it as good as random (Luby and Rackoff 1988).
ROUNDS = 4


def permuted(positions: Tensor, total: int, key: int) -> Tensor:
    """A permutation of range(total), of the positions (n,) of int64; for each key another one.

    A Feistel network on the least even number of bits that holds `total`, walked until it is below it (Black and
    Rogaway 2002): no worker has to hold the order of all rows.
    """
    half = max(1, ((total - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1

    def network(x: Tensor) -> Tensor:
        left, right = x >> half, x & low
        for number in range(ROUNDS):
            left, right = right, left ^ Draws(right, key * ROUNDS + number).integers(low + 1)
        return (left << half) | right

    found = network(positions)
    while bool((outside := found >= total).any()):
        found = torch.where(outside, network(found), found)
    return found


@dataclass(frozen=True)
class Share:
    """A worker's part of the rows of one step.

    Parameters
    ----------
    size : int
        Rows of the step, of all workers.
    slots : Tensor (n,) of int64
        Which of them are this worker's.
    rows : Tensor (n,) of int64
        Their numbers among all workers' rows.
    """

    size: int
    slots: Tensor
    rows: Tensor


class Shuffle:
    """Epochs over all rows, each in an order of its own, which does not depend on how many workers share them.

    Parameters
    ----------
    total : int
        Rows of all workers.
    start, stop : int
        The range of this worker's.
    batch : int
        Rows of a step, of all workers; in fact from that many to twice as many, as even as can be, so that every row is
        seen in every epoch.
    seed : int
    """

    def __init__(self, total: int, start: int, stop: int, batch: int, seed: int):
        self._total, self._start, self._stop, self._seed = total, start, stop, seed
        self.steps = max(1, total // batch)

    def share(self, epoch: int, step: int) -> Share:
        """This worker's part of step number `step` of an epoch."""
        first, last = self._range(step)
        rows = permuted(torch.arange(first, last), self._total, (self._seed << 20) + epoch)
        slots = torch.nonzero((rows >= self._start) & (rows < self._stop)).flatten()
        return Share(last - first, slots, rows[slots])

    def size(self, step: int) -> int:
        """Rows of step number `step`, of all workers."""
        first, last = self._range(step)
        return last - first

    def _range(self, step: int) -> tuple[int, int]:
        return self._total * step // self.steps, self._total * (step + 1) // self.steps
