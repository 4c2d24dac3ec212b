"""The soft step on a matrix unit: logits, softmax and the sums of q z in one compiled loop over the rows of a batch.

The unit multiplies bf16 and adds up in float32. An error in z . theta is multiplied by 2 / T, so that one bf16 for a
number is not enough: all numbers are in two parts, which leave at most 2^-17 of them, to either side, and a product is
of three of the four pairs of parts.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from raydkm.ops.amx import (
    BYTES,
    LINES,
    ROWS,
    available,
    begin,
    end,
    high_half,
    multiply_bf16,
    nearest_bf16,
    packed,
    split,
    split_rows,
)
from raydkm.ops.kernels import compiled, compiled_in_order, soften
from raydkm.ops.scores import Scores
from raydkm.ops.soft import SoftAssignment
from raydkm.ops.workspace import Workspace

#: Parts of numbers.
PARTS = 2

#: Rows whose logits are computed at once: prototypes go through the cache once for them.
AT_ONCE = 128

#: Rows whose targets are summed at once: sums go through the cache once for them.
SUMMED = 512

#: Rows of a call of the loop.
TILE_ROWS = 2 * SUMMED

#: Numbers of a line of a tile register.
NUMBERS = BYTES // 2


class SoftByTiles:
    """`raydkm.ops.soft.SoftByProducts` on a matrix unit."""

    def __init__(self, assign: SoftAssignment, *, low_precision_sums: bool):
        logits = assign.logits
        self._shape = logits.prototypes.shape
        beyond = -len(logits) % (2 * LINES)
        theta = torch.nn.functional.pad(logits.prototypes, (0, 0, 0, beyond))
        self._columns = packed(split(theta, PARTS)).view(torch.int16)
        self._bias = torch.nn.functional.pad(logits.bias, (0, beyond), value=-1e30)
        self._parts = 1 if low_precision_sums else PARTS
        #: Numbers of a tile.
        self.tile = TILE_ROWS * max(self._shape)
        self._buffer = Workspace()

    @staticmethod
    def serves(logits: Scores) -> bool:
        return logits.bias.dtype == torch.float32 and logits.bias.device.type == "cpu" and available()

    def __call__(self, tiles: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, float]:
        """As those of `raydkm.ops.soft.SoftByProducts`."""
        (clusters, dim), bias = self._shape, self._bias
        chunks, lines, columns = self._columns.shape[2], -(-dim // ROWS) * 2, len(bias) // LINES
        low = self._buffer("low", (PARTS, AT_ONCE // LINES, chunks, LINES, NUMBERS), bias, torch.int16)
        across = self._buffer("across", (self._parts, lines, SUMMED // NUMBERS, LINES, NUMBERS), bias, torch.int16)
        targets = self._buffer("targets", (self._parts, columns, SUMMED // NUMBERS, LINES, LINES), bias, torch.int32)
        scores = self._buffer("scores", (AT_ONCE, len(bias)), bias)
        counts = self._buffer("counts", bias.shape, bias, torch.float64).zero_()
        sums = self._buffer("sums", (lines * LINES, len(bias)), bias).zero_()
        written = [x.numpy() for x in (counts, sums, low, across, scores, targets)]
        entropy = 0.0
        for z, weight in tiles:
            entropy += sum_by_tiles(z.numpy(), weight.numpy(), self._columns.numpy(), bias.numpy(), *written)
        return counts[:clusters], sums[:dim, :clusters].T, entropy


@compiled
def sum_by_tiles(z, weight, columns, bias, counts, sums, low, across, scores, targets):  # type: ignore[no-untyped-def]
    """Add to counts (K,) and sums (d, K), both padded, those of rows z (n, d); return their entropy.

    Parameters
    ----------
    z, weight : (n, d) of float32, (n,) of float64
    columns, bias : packed parts of prototypes, (K,) of float32
    counts, sums : (K,) of float64, (d, K) of float32
    low, across, scores, targets
        To be written to: parts of the rows at once, and of those summed, with coordinates first; logits; and parts of
        targets, packed.
    """
    entropy = 0.0
    begin()
    for first in range(0, z.shape[0], SUMMED):
        rows = min(SUMMED, z.shape[0] - first)
        for start in range(0, rows, AT_ONCE):
            count = split_rows(z, first + start, low)
            multiply_bf16(low, columns, scores, False)
            some = slice(first + start, first + start + count)
            entropy += soften(scores[:count], bias, weight[some], counts)
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
    both = into.shape[0] == PARTS
    for pair in range(targets.shape[0] // 2):
        line, at = pair % LINES, chunk + pair // LINES
        for k in range(targets.shape[1] // LINES):
            for t in range(LINES):
                one, other = targets[2 * pair, k * LINES + t], targets[2 * pair + 1, k * LINES + t]
                near, far = nearest_bf16(one), nearest_bf16(other)
                into[0, k, at, line, t] = high_half(near, far)
                if both:
                    into[1, k, at, line, t] = high_half(nearest_bf16(one - near), nearest_bf16(other - far))
