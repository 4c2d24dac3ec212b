"""Hard assignment of rows by screens in 8 bits whose scores never leave the thread's cache."""

from __future__ import annotations

import numpy as np

from raydkm.ops.amx import BYTES, LINES, begin, block_of, end, multiply_int8
from raydkm.ops.kernels import compiled, decide, quantise

#: Rows whose scores are computed at once: few, whose scores stay in a small cache, or many, where prototypes do not.
FEW, MANY = 64, 128

#: Bytes of prototypes that do.
FIT = 2**20


@compiled
def decide_by_tiles(  # type: ignore[no-untyped-def]
    factor, columns, offset, which, lowest, unit, error, left, norm, rows, z, theta, size, bias, rounding, tie, labels
):
    """`raydkm.ops.kernels.decide`, of the products of factor (m, h) int8 and of `raydkm.ops.amx.packed` columns."""
    at_once = FEW if columns.size <= FIT else MANY
    block = np.zeros((1, at_once // LINES, columns.shape[2], LINES, BYTES), np.int8)
    scores = np.empty((at_once, len(offset)), np.int32)
    computed = 0
    begin()
    for first in range(0, len(rows), at_once):
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
            (0, 0),
            labels,
        )
    end()
    return computed


@compiled
def label_by_tiles(  # type: ignore[no-untyped-def]
    x, shift, step, columns, offset, which, lowest, unit, error, theta, size, bias, rounding, tie, labels
):
    """The same of all rows x (n, d) - shift (d,) in float32, in 8 bits at a step; labels (n,) are -1 before."""
    at_once = FEW if columns.size <= FIT else MANY
    block = np.zeros((1, at_once // LINES, columns.shape[2], LINES, BYTES), np.int8)
    scores = np.empty((at_once, len(offset)), np.int32)
    z, codes = np.empty((at_once, x.shape[1]), np.float32), np.empty((at_once, x.shape[1]), np.int8)
    norm, left, rows = np.empty(at_once, np.float32), np.empty(at_once, np.float32), np.arange(at_once)
    computed, line = 0, x.shape[1] * x.itemsize
    begin()
    for first in range(0, x.shape[0], at_once):
        count = min(at_once, x.shape[0] - first)
        for i in range(count):
            for j in range(x.shape[1]):
                z[i, j] = x[first + i, j] - shift[j]
        quantise(z[:count], step, codes[:count], norm, left)
        block_of(codes[:count], 0, block[0])
        multiply_int8(block, columns, scores, False)
        computed += decide(
            scores[:count],
            offset,
            which,
            lowest,
            unit,
            error,
            left[:count],
            norm[:count],
            rows[:count],
            z,
            theta,
            size,
            bias,
            rounding,
            tie,
            (x.ctypes.data + (first + count) * line, line if first + 2 * count <= x.shape[0] else 0),
            labels[first : first + count],
        )
    end()
    return computed
