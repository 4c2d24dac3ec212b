"""The soft step on a matrix unit: logits, softmax and the sums of q z in one compiled loop over the rows of a batch.

The unit multiplies bf16 and adds up in float32. An error in z . theta is multiplied by 2 / T, so that one bf16 for a
number is not enough: numbers are in parts, the second of what rounding leaves of them, and so on. Of the products of
parts those that count are added, three of two parts or six of three: see docs/mathematics.md.

Targets are rounded to as many bits as their parts have before they are counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from raydkm.ops.amx import (
    BF16,
    BYTES,
    LINES,
    ROWS,
    available,
    begin_tiles,
    end_tiles,
    high_half,
    multiply_bf16,
    packed,
    split,
    split_rows,
)
from raydkm.ops.frame import RowTile
from raydkm.ops.kernels import compiled, compiled_in_order, rounded, soften
from raydkm.ops.scores import Scores
from raydkm.ops.soft import SoftAssignment
from raydkm.ops.workspace import Workspace

#: Parts of numbers: so few where posteriors are typically within `OFF` of exact ones with them. Few of them are four
#: times as far off.
FEW_PARTS, MANY_PARTS, OFF = 2, 3, 2.5e-4

#: What few parts leave out of a product of two numbers: the root of its mean square, as a part of it.
LEFT = 2.0**-17

#: Bits of a float32 that numbers of so many parts have not.
BITS_LEFT = {1: 16, 2: 8, 3: 0}

#: Rows whose logits are computed at once, at the most and at the least: prototypes go through the cache once for them.
AT_ONCE = (128, 32)

#: Rows whose targets are summed at once: sums go through the cache once for them.
SUMMED = (512, 128)

#: Numbers of the logits and of the targets of these.
LOGITS, TARGETS = 2**20, 2**22

#: Numbers of the rows of a call of the loop.
TILE = 2**19

#: Numbers of a line of a tile register.
NUMBERS = BYTES // 2


class SoftByTiles:
    """`raydkm.ops.soft.SoftByProducts` on a matrix unit.

    Parameters
    ----------
    assign : SoftAssignment
    bound : Tensor (d,) of float64
        Of every |z_ij|.
    low_precision_sums : bool
    """

    def __init__(self, assign: SoftAssignment, bound: Tensor, *, low_precision_sums: bool):
        logits = assign.logits
        self._shape = logits.prototypes.shape
        beyond = -len(logits) % (2 * LINES)
        theta = torch.nn.functional.pad(logits.prototypes, (0, 0, 0, beyond))
        self._parts = MANY_PARTS if _off(logits, bound) > OFF else FEW_PARTS
        self._columns = packed(split(theta, self._parts)).view(torch.int16)
        self._bias = torch.nn.functional.pad(logits.bias, (0, beyond), value=-1e30)
        self._summed = 1 if low_precision_sums else self._parts
        self._at_once, self._rows = (
            max(least, min(most, numbers // len(self._bias) // least * least))
            for (most, least), numbers in ((AT_ONCE, LOGITS), (SUMMED, TARGETS))
        )
        #: Numbers of a tile.
        self.tile = max(self._rows, TILE // self._shape[1] // self._rows * self._rows) * max(self._shape)
        self._buffer = Workspace()

    @staticmethod
    def serves(logits: Scores) -> bool:
        return logits.bias.dtype == torch.float32 and logits.bias.device.type == "cpu" and available()

    def __call__(self, tiles: Iterable[tuple[RowTile, Tensor]]) -> tuple[Tensor, Tensor, float]:
        """As those of `raydkm.ops.soft.SoftByProducts`; counts too are overwritten by the thread's next call."""
        (clusters, dim), bias = self._shape, self._bias
        chunks, lines, columns = self._columns.shape[2], -(-dim // ROWS) * 2, len(bias) // LINES
        low = self._buffer("low", (self._parts, self._at_once // LINES, chunks, LINES, NUMBERS), bias, torch.int16)
        across = self._buffer("across", (self._summed, lines, self._rows // NUMBERS, LINES, NUMBERS), bias, torch.int16)
        targets = self._buffer(
            "targets", (self._summed, columns, self._rows // NUMBERS, LINES, LINES), bias, torch.int32
        )
        scores = self._buffer("scores", (self._at_once, len(bias)), bias)
        counts = self._buffer("counts", bias.shape, bias, torch.float64).zero_()
        sums = self._buffer("sums", (lines * LINES, len(bias)), bias).zero_()
        written = [x.numpy() for x in (counts, sums, low, across, scores, targets)]
        entropy = 0.0
        for rows, weight in tiles:
            x, shift = rows.difference()
            read = [each.numpy() for each in (x, shift, weight, self._columns, bias)]
            entropy += sum_by_tiles(*read, *written, BITS_LEFT[self._summed])
        return counts[:clusters], sums[:dim, :clusters].T, entropy


def _off(logits: Scores, bound: Tensor) -> float:
    """An estimate of how far posteriors are from exact ones with few parts: of half of what logits are.

    What is left out of the products of the coordinates of z and theta is to either side.
    """
    largest = torch.mv(logits.prototypes.double().square(), bound.to(torch.float64).square()).max().sqrt()
    return LEFT * math.log(2.0) / 2 * float(largest)


@compiled
def sum_by_tiles(  # type: ignore[no-untyped-def]
    x, shift, weight, columns, bias, counts, sums, low, across, scores, targets, bits
):
    """Add to counts (K,) and sums (d, K), both padded, those of rows z = x - shift; return their entropy.

    Parameters
    ----------
    x, shift, weight : (n, d) and (d,) of float32, (n,) of float64
    columns, bias : packed parts of prototypes, (K,) of float32
    counts, sums : (K,) of float64, (d, K) of float32
    low, across, scores, targets
        To be written to: parts of the rows at once, and of those summed, with coordinates first; logits; and parts of
        targets, packed.
    bits : int
        Those that the parts of targets have not.
    """
    entropy, summed, at_once = 0.0, across.shape[2] * NUMBERS, len(scores)
    begin_tiles()
    for first in range(0, x.shape[0], summed):
        rows = min(summed, x.shape[0] - first)
        for start in range(0, rows, at_once):
            count = split_rows(x, shift, first + start, low)
            multiply_bf16(low, columns, 0, scores, False)
            some = slice(first + start, first + start + count)
            entropy += soften(scores[:count], bias, weight[some], counts, bits)
            scores[count:] = np.float32(0.0)
            turn(low, across, start // NUMBERS)
            interleave(scores, targets, start // NUMBERS)
        if rows < summed:
            beyond = -(-rows // at_once) * (at_once // NUMBERS)
            targets[:, :, beyond:] = 0
            across[:, :, beyond:] = 0
        multiply_bf16(across, targets, 0, sums, True)
    end_tiles()
    return entropy


@compiled
def turn(low, across, chunk):  # type: ignore[no-untyped-def]
    """Write parts of rows (p, rows / 16, chunks, 16, 32) to `across` (p, d / 16, chunks, 16, 32), from a chunk on.

    There coordinates are rows, and rows columns.
    """
    for part in range(across.shape[0]):
        for block in range(low.shape[1]):
            at, first = chunk + block * LINES // NUMBERS, block * LINES % NUMBERS
            for lines in range(across.shape[1]):
                for j in range(LINES):
                    of = lines * LINES % NUMBERS + j
                    for i in range(LINES):
                        number = low[part, block, lines * LINES // NUMBERS, i, of]
                        across[part, lines, at, j, first + i] = number


@compiled_in_order
def interleave(targets, into, chunk):  # type: ignore[no-untyped-def]
    """Pack targets (rows, K), as parts of columns (p, K / 16, chunks, 16, 16), from a chunk on.

    A line of a tile has the numbers of two rows in turn.
    """
    for pair in range(targets.shape[0] // 2):
        line, at = pair % LINES, chunk + pair // LINES
        for k in range(targets.shape[1] // LINES):
            for t in range(LINES):
                one, other = targets[2 * pair, k * LINES + t], targets[2 * pair + 1, k * LINES + t]
                near, far = rounded(one, BF16), rounded(other, BF16)
                into[0, k, at, line, t] = high_half(near, far)
                if into.shape[0] > 1:
                    one, other = one - near, other - far
                    near, far = rounded(one, BF16), rounded(other, BF16)
                    into[1, k, at, line, t] = high_half(near, far)
                if into.shape[0] > 2:
                    into[2, k, at, line, t] = high_half(one - near, other - far)
