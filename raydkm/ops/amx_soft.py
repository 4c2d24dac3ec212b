"""The soft step on a matrix unit: logits, softmax and the sums of q z in one compiled loop over the rows of a batch.

The unit multiplies bf16 and adds up in float32. An error in z . theta is multiplied by 2 / T, so that one bf16 for a
number is not enough: numbers are in parts, the second of what rounding leaves of them, and so on. Two leave at most
2^-17 of a number, to either side, and where that is too much of z . theta / T for posteriors, three leave nothing.
Products are of those pairs of parts that count: three of two parts, six of three.

Targets are rounded to as many bits as their parts have before they are counted, so that prototypes are means of rows.
"""

from __future__ import annotations

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
    begin,
    end,
    high_half,
    multiply_bf16,
    packed,
    split,
    split_rows,
)
from raydkm.ops.frame import Shifted
from raydkm.ops.kernels import compiled, compiled_in_order, rounded, soften
from raydkm.ops.scores import Scores
from raydkm.ops.soft import SoftAssignment
from raydkm.ops.workspace import Workspace

#: Parts of numbers, and what they leave.
FEW_PARTS, MANY_PARTS, LEFT = 2, 3, 2.0**-17

#: The part of ||theta||^2 / T, an estimate of the errors of logits, from which on numbers have many parts. Errors of
#: posteriors are some tenth of it.
MOST_LEFT = 2.0**-8

#: Bits of a float32 that numbers of so many parts have not.
BITS_LEFT = {1: 16, 2: 8, 3: 0}

#: Rows whose logits are computed at once: prototypes go through the cache once for them.
AT_ONCE = 128

#: Rows whose targets are summed at once: sums go through the cache once for them.
SUMMED = 512

#: Numbers of the rows of a call of the loop.
TILE = 2**19

#: Numbers of a line of a tile register.
NUMBERS = BYTES // 2


class SoftByTiles:
    """`raydkm.ops.soft.SoftByProducts` on a matrix unit."""

    def __init__(self, assign: SoftAssignment, *, low_precision_sums: bool):
        logits = assign.logits
        self._shape = logits.prototypes.shape
        beyond = -len(logits) % (2 * LINES)
        theta = torch.nn.functional.pad(logits.prototypes, (0, 0, 0, beyond))
        self._parts = MANY_PARTS if _left_of(logits) > MOST_LEFT else FEW_PARTS
        self._columns = packed(split(theta, self._parts)).view(torch.int16)
        self._bias = torch.nn.functional.pad(logits.bias, (0, beyond), value=-1e30)
        self._summed = 1 if low_precision_sums else self._parts
        #: Numbers of a tile.
        self.tile = max(SUMMED, TILE // self._shape[1] // SUMMED * SUMMED) * max(self._shape)
        self._buffer = Workspace()

    @staticmethod
    def serves(logits: Scores) -> bool:
        return logits.bias.dtype == torch.float32 and logits.bias.device.type == "cpu" and available()

    def __call__(self, tiles: Iterable[tuple[Shifted, Tensor]]) -> tuple[Tensor, Tensor, float]:
        """As those of `raydkm.ops.soft.SoftByProducts`."""
        (clusters, dim), bias = self._shape, self._bias
        chunks, lines, columns = self._columns.shape[2], -(-dim // ROWS) * 2, len(bias) // LINES
        low = self._buffer("low", (self._parts, AT_ONCE // LINES, chunks, LINES, NUMBERS), bias, torch.int16)
        across = self._buffer("across", (self._summed, lines, SUMMED // NUMBERS, LINES, NUMBERS), bias, torch.int16)
        targets = self._buffer("targets", (self._summed, columns, SUMMED // NUMBERS, LINES, LINES), bias, torch.int32)
        scores = self._buffer("scores", (AT_ONCE, len(bias)), bias)
        counts = self._buffer("counts", bias.shape, bias, torch.float64).zero_()
        sums = self._buffer("sums", (lines * LINES, len(bias)), bias).zero_()
        written = [x.numpy() for x in (counts, sums, low, across, scores, targets)]
        entropy = 0.0
        for rows, weight in tiles:
            x, shift = rows.less()
            read = [each.numpy() for each in (x, shift, weight, self._columns, bias)]
            entropy += sum_by_tiles(*read, *written, BITS_LEFT[self._summed])
        return counts[:clusters], sums[:dim, :clusters].T, entropy


def _left_of(logits: Scores) -> float:
    """An estimate of what two parts leave of logits."""
    lengths = float(logits.lengths.max())  # 2 / T ||theta||, and 1 / log(2) of it
    return LEFT * lengths**2 * logits.temperature / 2


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
    entropy = 0.0
    begin()
    for first in range(0, x.shape[0], SUMMED):
        rows = min(SUMMED, x.shape[0] - first)
        for start in range(0, rows, AT_ONCE):
            count = split_rows(x, shift, first + start, low)
            multiply_bf16(low, columns, scores, False)
            some = slice(first + start, first + start + count)
            entropy += soften(scores[:count], bias, weight[some], counts, bits)
            scores[count:] = np.float32(0.0)
            turn(low, across, start // NUMBERS)
            interleave(scores, targets, start // NUMBERS)
        if rows < SUMMED:
            beyond = -(-rows // AT_ONCE) * (AT_ONCE // NUMBERS)
            targets[:, :, beyond:] = 0
            across[:, :, beyond:] = 0
        multiply_bf16(across, targets, sums, True)
    end()
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
