"""Hard assignment of rows by screens in 8 bits whose scores never leave the thread's cache."""

from __future__ import annotations

import numpy as np

from raydkm.ops.amx import BYTES, LINES, aligned, begin, end, multiply_int8
from raydkm.ops.kernels import compiled, decide, quantise

#: Rows whose scores are computed at once: few, whose scores stay in a small cache, or many, where prototypes do not.
FEW, MANY = 64, 128

#: Bytes of prototypes that do.
FIT = 2**20


@compiled
def label_by_tiles(x, shift, rows, steps, seen, columns, of_columns, of_scores, labels):  # type: ignore[no-untyped-def]
    """`raydkm.ops.kernels.decide` of rows x (n, d) - shift (d,) in float32; return how many scores were computed again.

    Parameters
    ----------
    rows : (m,) of int64
        Those whose labels are written.
    steps : (float32, float)
        Of 8 bits, and what they usually leave of rows.
    seen : (int8 (n, h), float32 (n,), float32 (n,))
        What is multiplied of rows, what is left of them and their norms; or (0, 0), (0,), (0,), for the rows themselves
        in 8 bits.
    columns : (1, columns / 16, chunks, 16, 64) of int8
        As `raydkm.ops.amx.packed`.
    of_columns, of_scores : tuple
    labels : (n,) of int64
    """
    factor, left_of, norm_of = seen
    at_once = FEW if columns.size <= FIT else MANY
    codes = aligned(at_once * columns.shape[2] * BYTES).reshape((1, at_once, columns.shape[2] * BYTES))
    codes[:] = 0
    scores = aligned(at_once * columns.shape[1] * BYTES).view(np.int32).reshape((at_once, LINES * columns.shape[1]))
    z, own = np.empty((at_once, x.shape[1]), np.float32), np.empty(at_once, np.int64)
    norm, left, computed = np.empty(at_once, np.float32), np.empty(at_once, np.float32), 0
    begin()
    for first in range(0, len(rows), at_once):
        some = rows[first : first + at_once]
        count = len(some)
        for i in range(count):
            row = some[i]  # within the next loops it would be read for each number
            own[i] = labels[row]
            for j in range(x.shape[1]):
                z[i, j] = x[row, j] - shift[j]
            if len(factor):
                norm[i], left[i] = norm_of[row], left_of[row]
                for j in range(factor.shape[1]):
                    codes[0, i, j] = factor[row, j]
        if not len(factor):
            quantise(z[:count], *steps, codes[0], norm, left)
        multiply_int8(codes, columns, scores, False)
        ahead = rows[first + at_once : first + 2 * at_once]
        computed += decide(scores[:count], of_columns, of_scores, left, norm, z, x, ahead, own)
        for i in range(count):
            labels[some[i]] = own[i]
    end()
    return computed
