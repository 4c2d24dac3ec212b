"""The prototypes whose score may be the highest of a row, by bounds of all scores, and which of them it is.

A row begins at some prototype, whose score is computed in float32. Candidates are those whose bound reaches that score,
or that of a better candidate before them; those whose float32 scores do not tell them apart are decided by their costs
in float64 (`raydkm.ops.cost`). What is known of rows is kept, so that bounds may be looked at block by block of the
columns, as they are computed.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types

from raydkm.ops.cost import first_of_least, read_row
from raydkm.ops.kernels import compiled, intrinsic

#: Columns of scores are a multiple of this.
BLOCK = 64

#: Prototypes of a row that float32 does not tell apart; a row with more is decided among all of them.
MOST = 64

#: What is known of a row while its candidates are looked for: the highest score; scores that are nearer than this are
#: not told apart; by how much more bounds may be off; what a bound has to reach; and how many prototypes are near.
KNOWN = np.dtype([("best", "f4"), ("near", "f8"), ("off", "f8"), ("least", "f8"), ("count", "i8")], align=True)

#: Rows whose written scores are looked at together.
ROWS = 64


# A view of a row counts references, and threads share prototypes: the loops that read them index whole arrays.
@compiled
def _product(z, i, theta, k):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for j in range(z.shape[1]):
        total += z[i, j] * theta[k, j]
    return total


@intrinsic
def _lowest_bit(context, bits):  # type: ignore[no-untyped-def]
    """The place of the lowest bit that is set; 64 of none."""

    def emit(context, builder, signature, values):  # type: ignore[no-untyped-def]
        return builder.cttz(values[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), emit


@intrinsic
def _reached(context, numbers, offset, least):  # type: ignore[no-untyped-def]
    """As bits, where in a block numbers and offset, of which these are addresses, have a sum not below the least."""
    whole = isinstance(least, types.Integer)

    def emit(context, builder, signature, values):  # type: ignore[no-untyped-def]
        vector = ir.VectorType(ir.IntType(32) if whole else ir.FloatType(), BLOCK)
        one, other = (builder.load(builder.inttoptr(value, vector.as_pointer()), align=4) for value in values[:2])
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), [0] * BLOCK)
        undefined = ir.Constant(vector, ir.Undefined)
        filled = builder.insert_element(undefined, values[2], ir.Constant(ir.IntType(32), 0))
        filled = builder.shuffle_vector(filled, undefined, lanes)
        if whole:
            reached = builder.icmp_signed(">=", builder.add(one, other), filled)
        else:
            reached = builder.fcmp_ordered(">=", builder.fadd(one, other), filled)
        return builder.bitcast(reached, ir.IntType(BLOCK))

    return types.uint64(types.intp, types.intp, least), emit


@compiled
def _not_above(value, lowest, numbers):  # type: ignore[no-untyped-def]
    """A number of the dtype of `numbers`, not above `value` but for what comparing whole numbers with it does not see.

    Conversion to whole numbers cuts off towards zero, between two of them.
    """
    return numbers.dtype.type(max(value - abs(value) * 2.0**-22, lowest))


@compiled
def highest_of_block(part, offset, b, highest):  # type: ignore[no-untyped-def]
    """Write the highest bounds (m,) of rows in a block (m, 64) of the columns, but for unit and error."""
    number = part.dtype.type
    of = offset[b * BLOCK : b * BLOCK + BLOCK]
    for i in range(len(highest)):
        row = part[i]  # a view: with indices into whole arrays the loop is not vectorised
        most = number(row[0] + of[0])
        for t in range(BLOCK):
            most = max(most, number(row[t] + of[t]))
        highest[i] = most


@compiled
def begin_at_highest(address, along, apart, highest, offset, which, labels):  # type: ignore[no-untyped-def]
    """Write the labels of the highest bounds of rows that have none, by those of their blocks (m, blocks).

    Rows are so many bytes along from an address, and their blocks so many apart.
    """
    for i in range(len(labels)):
        if labels[i] < 0:
            top = 0
            for b in range(highest.shape[1]):
                if highest[i, b] > highest[i, top]:
                    top = b
            of = offset.ctypes.data + top * BLOCK * offset.itemsize
            bits = _reached(address + i * along + top * apart, of, highest[i, top])
            labels[i] = which[min(top * BLOCK + _lowest_bit(bits), len(which) - 1)]  # numbers may not be finite


@compiled
def begin(  # type: ignore[no-untyped-def]
    labels, left, norm, z, theta, bias, rounding, unit, error, lowest, offset, known, some, value
):
    """Score the prototypes that rows begin at, their labels."""
    for i in range(len(labels)):
        near = 2.0 * (rounding[0] * norm[i] + rounding[1]) + rounding[2] * np.float64(norm[i]) * norm[i]
        off = near + error[0] * left[i] + error[1] * norm[i] + error[2]
        score = _product(z, i, theta, labels[i]) + bias[labels[i]]
        row = known[i]
        row.best, row.near, row.off, row.count = score, near, off, 1
        row.least = _not_above((score - off) / unit, lowest, offset)
        some[i, 0], value[i, 0] = labels[i], score


@compiled
def look(  # type: ignore[no-untyped-def]
    address, along, b, labels, offset, which, lowest, unit, z, theta, bias, known, some, value
):
    """Score the candidates of rows in a block, whose numbers are so many bytes along; return how many there were."""
    number, found = offset.dtype.type, 0
    of = offset.ctypes.data + b * BLOCK * offset.itemsize
    there, everyone = ~np.uint64(0), len(which) == len(bias)
    if (b + 1) * BLOCK > len(which):
        there >>= np.uint64((b + 1) * BLOCK - len(which))
    for i in range(len(labels)):
        bits = _reached(address + i * along, of, number(known[i].least)) & there
        if everyone and labels[i] // BLOCK == b:  # it began there
            bits &= ~(np.uint64(1) << np.uint64(labels[i] % BLOCK))
        while bits:
            k, row = which[b * BLOCK + _lowest_bit(bits)], known[i]
            bits &= bits - np.uint64(1)
            found += 1
            score = _product(z, i, theta, k) + bias[k]
            if score > row.best:
                if score > row.best + row.near:
                    row.count = 0
                row.best = score
                row.least = _not_above((score - row.off) / unit, lowest, offset)
            if score >= row.best - row.near:
                if row.count < MOST:
                    some[i, row.count], value[i, row.count] = k, score
                row.count += 1
    return found


@compiled
def end(labels, costs, x, rows, row, scratch, known, some, value):  # type: ignore[no-untyped-def]
    """Write the labels of rows; return how many costs this took.

    Costs are of x[rows[i]], as they are stored; row (d,) and scratch (2, K) of float64 are written to.
    """
    theta, offset, shift, unit, linear = costs
    computed, everyone, own, rest = 0, np.empty(0, np.int64), scratch[0], scratch[1]
    for i in range(len(labels)):
        if known[i].count > MOST:
            read_row(x, rows[i], shift, unit, linear, row)
            labels[i] = first_of_least(row, everyone, len(offset), theta, offset, shift, linear, own, rest)
            computed += len(offset)
            continue
        nearest, least = 0, known[i].best - known[i].near
        for t in range(known[i].count):
            if value[i, t] >= least:
                some[i, nearest] = some[i, t]
                nearest += 1
        if nearest == 1:
            labels[i] = some[i, 0]
        else:
            read_row(x, rows[i], shift, unit, linear, row)
            labels[i] = first_of_least(row, some[i], nearest, theta, offset, shift, linear, own, rest)
    return computed


@compiled
def decide(approximate, of_columns, of_scores, costs, left, norm, z, x, rows, labels):  # type: ignore[no-untyped-def]
    """Write the labels of rows: see `raydkm.ops.hard`; return how many scores were computed again.

    Parameters
    ----------
    approximate : (m, columns) of int32 or float32
    of_columns : tuple
        Offsets (columns,) of the same dtype, its least number, a unit and an error (float, float, float), so that no
        score is above unit (approximate + offset) + error[0] left + error[1] norm + error[2]; and after the first the
        prototypes of the columns (at most columns,) of int64: other columns are below all.
    of_scores : tuple
        Prototypes (K, d) and biases (K,), both float32; and three numbers: the first times a row's length and the
        second are at most the error of a float32 score, the third times its squared length that of a cost's order.
    costs : tuple
        `raydkm.ops.cost.Costs.arrays`.
    left, norm : (m,)
        Of the rows: what the screen's precision leaves of them, and their length or a bit more.
    z : (m, d)
    x : (n, d)
        Rows as they are stored, of which z are those in `rows` (m,).
    labels : (m,) of int64
        Where rows begin, or -1 for the prototype of the highest bound. If columns are not of all prototypes, a label
        stands for the others: it comes before all of them.
    """
    offset, which, lowest, unit, error = of_columns
    theta, bias, rounding = of_scores
    blocks, along, apart = len(offset) // BLOCK, len(offset) * offset.itemsize, BLOCK * offset.itemsize
    highest, computed = np.empty((ROWS, blocks), offset.dtype), len(labels)
    known, some, value = np.empty(ROWS, KNOWN), np.empty((ROWS, MOST), np.int64), np.empty((ROWS, MOST), np.float32)
    row, scratch = np.empty(x.shape[1]), np.empty((2, len(bias)))
    for first in range(0, len(labels), ROWS):
        part = slice(first, first + ROWS)
        own, tile, length = labels[part], z[part], norm[part]
        address = approximate.ctypes.data + first * along
        if own.min() < 0:
            for b in range(blocks):
                of_block = approximate[part, b * BLOCK : b * BLOCK + BLOCK]
                highest_of_block(of_block, offset, b, highest[: len(own), b])
            begin_at_highest(address, along, apart, highest, offset, which, own)
        begin(own, left[part], length, tile, theta, bias, rounding, unit, error, lowest, offset, known, some, value)
        for b in range(blocks):
            at = address + b * apart
            computed += look(at, along, b, own, offset, which, lowest, unit, tile, theta, bias, known, some, value)
        computed += end(own, costs, x, rows[part], row, scratch, known, some, value)
    return computed
