"""Hard assignment of rows by screens in 8 bits whose scores never leave the thread's cache."""

from __future__ import annotations

import numpy as np

from raydkm.ops.amx import BYTES, LINES, ROWS, begin, block_of, end, multiply_int8
from raydkm.ops.kernels import compiled, decide


@compiled
def decide_by_tiles(  # type: ignore[no-untyped-def]
    factor, columns, offset, which, lowest, unit, error, left, norm, rows, z, theta, size, bias, rounding, tie, labels
):
    """`raydkm.ops.kernels.decide`, of the products of factor (m, h) int8 and of `raydkm.ops.amx.packed` columns."""
    block = np.zeros((1, 2, columns.shape[2], LINES, BYTES), np.int8)
    scores = np.empty((ROWS, len(offset)), np.int32)
    computed = 0
    begin()
    for first in range(0, len(rows), ROWS):
        count = block_of(factor, first, block[0])
        multiply_int8(block, columns, scores, False)
        some = slice(first, first + count)
        computed += decide(
            scores[:count],
            offset,
            which,
            lowest,
            unit,
            error,
            left[some],
            norm[some],
            rows[some],
            z,
            theta,
            size,
            bias,
            rounding,
            tie,
            labels,
        )
    end()
    return computed
