"""Loops over the rows of a tile on one CPU thread, compiled by Numba: each replaces many passes of tensor operations.

They release Python's lock, allocate nothing per row, and are kept compiled on disk. Arrays are contiguous.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, extending, njit, types
from numba.core import cgutils

from raydkm.ops.compiled_place import own_place

#: Instructions of their own for compiled loops; Numba's types take the first parameter for one of the call.
intrinsic: Any = extending.intrinsic

#: Rows and columns that some loops look at together.
BLOCK = 64

#: Rows of which is found at once which of them change.
MANY = 256

#: Rows that are read here and there are asked for so many before.
SOON = 4

#: Below all scores. The kernels are compiled for finite numbers.
LEAST_SCORE = -3e38

#: What is left of a number is itself rounded, by at most so much of it.
ROUNDED = 2.0**-23

#: Logits are raised to this: exponentials that underflow, and products of such, take many times as long.
LEAST_LOGIT = np.float32(-80.0)

#: The same of logits to the base of 2.
LEAST_POWER = np.float32(-115.0)

#: Lengths are at least this: the least normal float32.
TINY = 2.0**-126

#: What squares that underflow may hide of a norm, for each sqrt(d).
LOST = 1.2e-19


def compiled(function: Callable, fastmath: bool | set[str] = True) -> Callable:
    """Compiled at the first call, and kept on disk where there is a place for it (see NUMBA_CACHE_DIR)."""
    options: dict[str, Any] = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
    try:
        loop: Any = njit(function, cache=True, **options)
    except RuntimeError:  # neither the packages nor the home directory can be written
        place = own_place()
        if place is None:
            return njit(function, **options)
        config.CACHE_DIR = place  # type: ignore[attr-defined]
        loop = njit(function, cache=True, **options)
    kept = loop._cache._cache_file
    kept._source_stamp = (kept._source_stamp, sources())  # Numba's is of the function's own file alone
    return loop


@functools.cache
def sources() -> str:
    """SHA-256 of the files whose loops call each other."""
    names = ("amx*.py", "candidates.py", "cost.py", "distances.py", "kernels.py")
    files = [file for name in names for file in Path(__file__).parent.glob(name)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


def compiled_in_order(function: Callable) -> Callable:
    """`compiled`, with sums as they are written."""
    return compiled(function, {"nnan", "ninf", "nsz", "arcp", "contract"})


def compiled_of_any(function: Callable) -> Callable:
    """`compiled`, of numbers that need not be finite."""
    return compiled(function, {"nsz", "reassoc"})


def compiled_strictly(function: Callable) -> Callable:
    """`compiled`, with every operation rounded as IEEE 754 has it: the same bits on every processor."""
    return compiled(function, False)


@compiled_of_any
def normalise(x, shift, into):  # type: ignore[no-untyped-def]
    """Write x (n, d), in rows of unit length or of zeros, less shift (d,) of float64; it may be in place."""
    for i in range(x.shape[0]):
        own = 0.0
        for j in range(x.shape[1]):
            own += np.float64(x[i, j]) * np.float64(x[i, j])
        factor = 1.0 / max(math.sqrt(own), TINY)
        for j in range(x.shape[1]):
            into[i, j] = np.float32(np.float64(x[i, j]) * factor - shift[j])


@compiled
def quantise(z, step, usual, codes, norm, residual):  # type: ignore[no-untyped-def]
    """Write codes (n, d) int8 of z (n, d) at a step, and bounds of its rows' norms (n,) and of what is left of them.

    The norms of what is left (n,) are written as what they are above a usual one, or 0.
    """
    one, lost = np.float32(1.0) / step, LOST * math.sqrt(z.shape[1])
    for i in range(z.shape[0]):
        own, left = np.float32(0.0), np.float32(0.0)
        for j in range(z.shape[1]):
            value = z[i, j]
            code = min(max(np.rint(value * one), np.float32(-127.0)), np.float32(127.0))
            codes[i, j] = np.int8(np.int32(code))
            rest = value - code * step
            left += rest * rest
            own += value * value
        norm[i] = math.sqrt(own) + lost
        residual[i] = max(0.0, math.sqrt(left) + lost + ROUNDED * norm[i] - usual)


@compiled
def leave_over(z, head, hidden, leading):  # type: ignore[no-untyped-def]
    """Write head (n, h) and beside it what it leaves over of z (n, d): the root of the difference of their squares.

    To the difference comes `hidden` of ||z||^2, for rounding, and to the root what squares that underflow may hide.
    """
    last, lost = head.shape[1], LOST * math.sqrt(z.shape[1])
    for i in range(z.shape[0]):
        whole, seen = np.float32(0.0), np.float32(0.0)
        for j in range(z.shape[1]):
            whole += z[i, j] * z[i, j]
        for j in range(last):
            value = head[i, j]
            leading[i, j] = value
            seen += value * value
        leading[i, last] = math.sqrt(max(0.0, np.float64(whole) - np.float64(seen)) + hidden * whole) + lost


@intrinsic
def _prefetch(context, address):  # type: ignore[no-untyped-def]
    """Ask for the cache line at an address, to be read later."""

    def emit(context, builder, signature, values):  # type: ignore[no-untyped-def]
        pointer, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer] + [word] * 3)
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read_from_second_cache = [ir.Constant(word, number) for number in (0, 2, 1)]
        builder.call(ask, [builder.inttoptr(values[0], pointer), *to_read_from_second_cache])
        return context.get_dummy_value()

    return types.void(types.intp), emit


@compiled
def ask_for_row(x, i):  # type: ignore[no-untyped-def]
    """Ask for row i of x (n, d), to be read later."""
    line = x.shape[1] * x.itemsize
    for at in range(0, line, 64):
        _prefetch(x.ctypes.data + i * line + at)


@compiled
def _changed(index, before, first, some):  # type: ignore[no-untyped-def]
    """Write to `some` which rows from `first` on, as many as it holds, change their place; return how many do."""
    count = 0
    for i in range(first, min(first + len(some), len(index))):
        some[count] = i
        count += index[i] != before[i]
    return count


@compiled
def add_rows(into, index, before, x, shift, weight, scale):  # type: ignore[no-untyped-def]
    """Add each row of x (n, d) - shift (d,), rounded to multiples of 1 / scale (d,), to row index[i] of `into` (K, d).

    And take it from row before[i], where it was added before; -1 for none. Rows may have weights (n,), or (0,) for
    none. The difference is that of float64; scales are powers of two.
    """
    some = np.empty(MANY, np.int64)
    for first in range(0, x.shape[0], MANY):
        count = _changed(index, before, first, some)
        for c in range(count):
            ask_for_row(x, some[min(c + SOON, count - 1)])
            i = some[c]
            k, old, factor = index[i], before[i], weight[i] if len(weight) else 1.0
            if old < 0:
                for j in range(x.shape[1]):
                    into[k, j] += np.int64(np.rint((np.float64(x[i, j]) - shift[j]) * factor * scale[j]))
            else:
                for j in range(x.shape[1]):
                    units = np.int64(np.rint((np.float64(x[i, j]) - shift[j]) * factor * scale[j]))
                    into[k, j] += units
                    into[old, j] -= units


@compiled_in_order
def add_rows_in_two(into, rest, index, before, x, shift, weight, scale, fine):  # type: ignore[no-untyped-def]
    """`add_rows`, and to `rest` (K, d) what rounding leaves, rounded to multiples of 1 / fine (d,)."""
    for i in range(x.shape[0]):
        k, old, factor = index[i], before[i], weight[i] if len(weight) else 1.0
        if k == old:
            continue
        for j in range(x.shape[1]):
            value = (np.float64(x[i, j]) - shift[j]) * factor * scale[j]
            whole = np.rint(value)
            units, left = np.int64(whole), np.int64(np.rint((value - whole) * (fine[j] / scale[j])))
            into[k, j] += units
            rest[k, j] += left
            if old >= 0:
                into[old, j] -= units
                rest[old, j] -= left


@compiled
def add_numbers(into, index, before, x, scale):  # type: ignore[no-untyped-def]
    """`add_rows` of numbers x (n,) to `into` (K,)."""
    some = np.empty(MANY, np.int64)
    for first in range(0, x.shape[0], MANY):
        for c in range(_changed(index, before, first, some)):
            i = some[c]
            units = np.int64(np.rint(np.float64(x[i]) * scale))
            into[index[i]] += units
            if before[i] >= 0:
                into[before[i]] -= units


@compiled
def add_rounded(into, x, scale):  # type: ignore[no-untyped-def]
    """Add x (n, d), rounded to multiples of 1 / scale (d,), to `into` (n, d) int64; x may have its columns together."""
    for first in range(0, x.shape[0], BLOCK):
        for start in range(0, x.shape[1], BLOCK):
            for i in range(first, min(first + BLOCK, x.shape[0])):
                for j in range(start, min(start + BLOCK, x.shape[1])):
                    into[i, j] += np.int64(np.rint(np.float64(x[i, j]) * scale[j]))


@compiled
def squares(x, into):  # type: ignore[no-untyped-def]
    """Write the squared length (n,) in float64 of each row of x (n, d)."""
    for i in range(x.shape[0]):
        total = 0.0
        for j in range(x.shape[1]):
            total += np.float64(x[i, j]) * np.float64(x[i, j])
        into[i] = total


@compiled
def differing(x, y, into):  # type: ignore[no-untyped-def]
    """Write whether a row of x (n, d) has another number than that of y."""
    for i in range(x.shape[0]):
        into[i] = False
        for j in range(x.shape[1]):
            if x[i, j] != y[i, j]:
                into[i] = True
                break


@compiled
def count_close(x, order, limit):  # type: ignore[no-untyped-def]
    """How many rows of x (n, d), in some order (n,), are within sqrt(limit) of the one before."""
    count = 0
    for i in range(1, len(order)):
        one, other, total = order[i], order[i - 1], 0.0
        for start in range(0, x.shape[1], BLOCK):
            for j in range(start, min(start + BLOCK, x.shape[1])):
                total += (x[one, j] - x[other, j]) ** 2
            if total > limit:
                break
        count += total <= limit
    return count


@compiled
def _ordinal(x):  # type: ignore[no-untyped-def]
    """An integer that is larger for a larger float32: maxima of integers are vectorised."""
    bits = np.float32(x).view(np.int32)
    return np.int32(bits ^ ((bits >> 31) & 0x7FFFFFFF))


@compiled
def _number(ordinal):  # type: ignore[no-untyped-def]
    """The float32 of an ordinal."""
    return np.int32(ordinal ^ ((ordinal >> 31) & 0x7FFFFFFF)).view(np.float32)


@compiled
def shift_rows(x, least):  # type: ignore[no-untyped-def]
    """Subtract from each row of x (n, d) float32 its largest number, and raise what is below `least` to it."""
    for i in range(x.shape[0]):
        row, most = x[i], np.int32(-(2**31))
        for k in range(x.shape[1]):
            most = max(most, _ordinal(row[k]))
        largest = _number(most)
        for k in range(x.shape[1]):
            row[k] = max(row[k] - largest, least)


@compiled_in_order
def _power_of_two(x):  # type: ignore[no-untyped-def]
    """2^x of float32 between -126 and 0, to within 2e-7 of it: a polynomial of what rounding leaves of x.

    Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits, to be added to the polynomial's exponent.
    """
    shifted = np.float32(x + np.float32(1.5 * 2.0**23))
    r = x - (shifted - np.float32(1.5 * 2.0**23))
    p = np.float32(1.326472731e-3)
    p = p * r + np.float32(9.671512991e-3)
    p = p * r + np.float32(5.550733581e-2)
    p = p * r + np.float32(2.402224243e-1)
    p = p * r + np.float32(6.931470037e-1)
    p = np.float32(p * r + np.float32(1.0))
    return np.int32(p.view(np.int32) + np.int32(shifted.view(np.int32) << np.int32(23))).view(np.float32)


@compiled_in_order
def rounded(x, bits):  # type: ignore[no-untyped-def]
    """A float32 to the nearest without so many of its lowest bits; half way lies the one farther from zero."""
    unit = np.int32(np.int32(1) << np.int32(bits))
    pattern = np.int32(np.float32(x).view(np.int32) + (unit >> np.int32(1)))
    return np.int32(pattern & -unit).view(np.float32)


@compiled
def soften(logits, bias, weight, counts, bits):  # type: ignore[no-untyped-def]
    """Make logits (n, K) to the base of 2, without biases (K,), the targets w_i q_ik, which are added to counts (K,).

    Of targets so many of the lowest bits are rounded away. Each row goes through the cache once. Returns
    -sum_i w_i sum_k q_ik log q_ik.
    """
    entropy, clusters = 0.0, logits.shape[1]
    sums = np.empty(clusters, np.float32)
    for start in range(0, logits.shape[0], BLOCK):
        sums[:] = 0.0
        for i in range(start, min(start + BLOCK, logits.shape[0])):
            row, most = logits[i], np.int32(-(2**31))
            for k in range(clusters):
                row[k] += bias[k]
                most = max(most, _ordinal(row[k]))
            largest = _number(most)
            total, mean = np.float32(0.0), np.float32(0.0)
            for k in range(clusters):
                power = max(row[k] - largest, LEAST_POWER)
                value = _power_of_two(power)
                total += value
                mean += value * power
                row[k] = value
            factor = np.float32(weight[i]) / total
            entropy += weight[i] * (math.log(total) - math.log(2.0) * mean / total)
            for k in range(clusters):
                target = rounded(row[k] * factor, bits)
                row[k] = target
                sums[k] += target
        for k in range(clusters):
            counts[k] += sums[k]
    return entropy


@compiled
def tilt(logits, factor, log_s, tilted):  # type: ignore[no-untyped-def]
    """Write factor l_ik + log s_k (n, K)."""
    for i in range(logits.shape[0]):
        for k in range(logits.shape[1]):
            tilted[i, k] = factor * logits[i, k] + log_s[k]


@compiled
def contrast(exp_p, exp_q, log_p, log_q, weight, counts, posterior_counts):  # type: ignore[no-untyped-def]
    """Make exp(log p) (n, K) the differences w_i (p_ik - q_ik), both normalised here, and add up their counts (K,).

    Returns
    -------
    float, float
        -sum_i w_i sum_k q_ik log q_ik and -sum_i w_i sum_k q_ik log p_ik.
    """
    entropy, cross = 0.0, 0.0
    for i in range(exp_p.shape[0]):
        p, q, lp, lq = exp_p[i], exp_q[i], log_p[i], log_q[i]
        total_p, total_q = np.float32(0.0), np.float32(0.0)
        own, other = np.float32(0.0), np.float32(0.0)
        for k in range(exp_p.shape[1]):
            total_p += p[k]
            total_q += q[k]
            own += q[k] * lq[k]
            other += q[k] * lp[k]
        entropy += weight[i] * (math.log(total_q) - own / total_q)
        cross += weight[i] * (math.log(total_p) - other / total_q)
        factor_p, factor_q = np.float32(weight[i]) / total_p, np.float32(weight[i]) / total_q
        for k in range(exp_p.shape[1]):
            target = q[k] * factor_q
            counts[k] += target
            p[k] *= factor_p
            posterior_counts[k] += p[k]
            p[k] -= target
    return entropy, cross
