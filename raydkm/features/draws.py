"""Random numbers for the rows of a batch that do not depend on the batch.

Training draws a new view of every row in every epoch. Each row has its own SplitMix64 stream (Steele, Lea and Flood
2014), started from its key and a salt, so that a row draws the same numbers wherever it is in a batch, on whichever
worker and device, whether or not the other rows are there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _mix_(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64, in place on int64, whose products wrap; a mask makes its shifts logical."""
    x.bitwise_xor_((x >> 30).bitwise_and_(2**34 - 1)).mul_(_FIRST)
    x.bitwise_xor_((x >> 27).bitwise_and_(2**37 - 1)).mul_(_SECOND)
    return x.bitwise_xor_((x >> 31).bitwise_and_(2**33 - 1))


class Draws:
    """Random numbers of n rows, on the device of their keys.

    The numbers of a row follow from its key, the salt and how many numbers the row drew before. Rows of one key draw
    the same numbers.

    Parameters
    ----------
    keys : Tensor (n,) int64
        What a row is known by: its number, or a hash.
    salt : int
        Of the seed, the epoch, the view: another salt gives unrelated numbers. It counts modulo 2**64.
    """

    def __init__(self, keys: Tensor, salt: int) -> None:
        signed = (salt + 2**63) % 2**64 - 2**63
        salted = _mix_(torch.full((), signed, dtype=torch.int64, device=keys.device).add_(_GOLDEN))
        self._starts = _mix_(keys ^ salted)
        self._drawn = 0

    def uniform(self, *shape: int) -> Tensor:
        """Numbers (n, *shape) float32, uniform in [0, 1): the multiples of 2**-24."""
        return self._bits(24, shape).to(torch.float32).mul_(2.0**-24)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers (n, *shape) float32, by the inverse distribution function; all within ±5.5."""
        odd = self._bits(24, shape).mul_(2).add_(1 - 2**24)  # symmetric about zero, and exact in float32
        return odd.to(torch.float32).mul_(2.0**-24).erfinv_().mul_(math.sqrt(2))

    def integers(self, high: int, *shape: int) -> Tensor:
        """Integers (n, *shape) int64, uniform in [0, high); `high` is at most 2**31."""
        return self._bits(31, shape).mul_(high).bitwise_right_shift_(31)

    def _bits(self, count: int, shape: tuple[int, ...]) -> Tensor:
        """The `count` (at most 63) highest bits of the next numbers of each row's stream, (n, *shape) int64."""
        size = math.prod(shape)
        numbers = torch.arange(self._drawn + 1, self._drawn + 1 + size, device=self._starts.device)
        self._drawn += size
        mixed = _mix_(self._starts[:, None] + numbers.mul_(_GOLDEN))
        return mixed.bitwise_right_shift_(64 - count).bitwise_and_(2**count - 1).view(-1, *shape)
