"""Hard assignment of rows by screens in 8 bits whose scores never leave the thread's cache."""

from __future__ import annotations

import numpy as np

from raydkm.ops.amx import BYTES, aligned, begin_tiles, end_tiles, multiply_int8
from raydkm.ops.candidates import BLOCK, KNOWN, MOST, begin, begin_at_highest, end, highest_of_block, look
from raydkm.ops.kernels import ask_for_row, compiled, quantise

#: Rows whose scores are computed at once: few, whose scores stay in a small cache, or many, where prototypes do not.
FEW, MANY = 64, 128

#: Bytes of prototypes that do.
FIT = 2**20


@compiled
def label_by_tiles(  # type: ignore[no-untyped-def]
    x, shift, stored, rows, steps, seen, columns, of_columns, of_scores, costs, labels
):
    """`raydkm.ops.candidates.decide` of some of the rows x (n, d) - shift (d,) in float32.

    Parameters
    ----------
    stored : (n, d)
        The same rows as they are stored, of float32 or float64.
    rows : (m,) of int64
        Those whose labels are written.
    steps : (float32, float)
        Of 8 bits, and what they usually leave of rows.
    seen : (int8 (n, h), float32 (n,), float32 (n,))
        What is multiplied of rows, what is left of them and their norms; or (0, 0), (0,), (0,), for the rows themselves
        in 8 bits.
    columns : (1, columns / 16, chunks, 16, 64) of int8
        As `raydkm.ops.amx.packed`.
    of_columns, of_scores, costs : tuple
    labels : (n,) of int64
        Of all rows, those of the others as they are.
    """
    factor, left_of, norm_of = seen
    offset, which, lowest, unit, error = of_columns
    theta, bias, rounding = of_scores
    row, scratch = np.empty(x.shape[1]), np.empty((2, len(bias)))
    at_once = FEW if columns.size <= FIT else MANY
    codes = aligned(at_once * columns.shape[2] * BYTES).reshape((1, at_once, columns.shape[2] * BYTES))
    codes[:] = 0
    blocks, along, apart = len(offset) // BLOCK, BLOCK * 4, at_once * BLOCK * 4
    scores = aligned(blocks * apart).view(np.int32).reshape((blocks, at_once, BLOCK))
    highest, known = np.empty((at_once, blocks), np.int32), np.empty(at_once, KNOWN)
    some, value = np.empty((at_once, MOST), np.int64), np.empty((at_once, MOST), np.float32)
    z, labels_of = np.empty((at_once, x.shape[1]), np.float32), np.empty(at_once, np.int64)
    norm, left, computed = np.empty(at_once, np.float32), np.empty(at_once, np.float32), len(rows)
    begin_tiles()
    for first in range(0, len(rows), at_once):
        count = min(at_once, len(rows) - first)
        own, unknown = labels_of[:count], False
        for i in range(count):
            place = rows[first + i]  # within the next loops it would be read for each number
            own[i] = labels[place]
            unknown |= own[i] < 0
            for j in range(x.shape[1]):
                z[i, j] = x[place, j] - shift[j]
            if len(factor):
                norm[i], left[i] = norm_of[place], left_of[place]
                for j in range(factor.shape[1]):
                    codes[0, i, j] = factor[place, j]
        if not len(factor):
            quantise(z[:count], *steps, codes[0], norm, left)
        if unknown:
            for b in range(blocks):
                multiply_int8(codes, columns, b * BLOCK, scores[b], False)
                highest_of_block(scores[b], offset, b, highest[:count, b])
            begin_at_highest(scores.ctypes.data, along, apart, highest, offset, which, own)
        begin(own, left, norm, z, theta, bias, rounding, unit, error, lowest, offset, known, some, value)
        for b in range(blocks):
            at = b if unknown else 0  # scores of a block are looked at as long as they are in the smallest cache
            if not unknown:
                multiply_int8(codes, columns, b * BLOCK, scores[0], False)
            address = scores.ctypes.data + at * apart
            computed += look(address, along, b, own, offset, which, lowest, unit, z, theta, bias, known, some, value)
        part = rows[first : first + count]
        computed += end(own, costs, stored, part, row, scratch, known, some, value)
        for i in range(count):
            labels[rows[first + i]] = own[i]
            if first + at_once + i < len(rows):
                ask_for_row(x, rows[first + at_once + i])
    end_tiles()
    return computed
