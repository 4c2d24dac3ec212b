"""The float64 cost of assigning a row to a prototype: the one definition of labels, distances and posteriors.

    distance family   cost_ik = ||u_i - c_k||^2 - T log s_k,      c_k = theta'_k + shift
    linear form       cost_ik = -2 ((u_i - shift) . theta_k + b_k)

with u_i the row as it is stored, or scaled to unit length (metric cosine). A row's label is the first of the prototypes
of the least cost, its posterior is softmax_k(-cost_ik / T). Differences are taken before they are squared, so that
nothing cancels. Sums are added in a fixed order and without fused operations: every caller and thread, on every
processor, computes the same bits (a GPU those of its own, but for labels).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from torch import Tensor

from raydkm.ops.kernels import TINY, compiled_strictly, intrinsic

#: Sums that are added up side by side: a vector register of float64.
LANES = 8

#: Elements of a (rows, prototypes, columns) block of differences that tensor operations hold at once, 128 MiB.
DIFFERENCES = 2**24


@dataclass(frozen=True)
class Costs:
    """What the cost of assigning rows to K prototypes follows from.

    Parameters
    ----------
    prototypes : Tensor (K, d) of float64
        theta'_k in the coordinates of the frame; theta_k of a linear form.
    offset : Tensor (K,) of float64
        T log s_k; b_k of a linear form.
    shift : Tensor (d,) of float64
        Origin of the frame.
    unit : bool
        Whether rows are scaled to unit length.
    linear : bool
    """

    prototypes: Tensor
    offset: Tensor
    shift: Tensor
    unit: bool = False
    linear: bool = False

    @cached_property
    def arrays(self) -> tuple[Any, ...]:
        """What the compiled loops take."""
        tensors = (self.prototypes, self.offset, self.shift)
        return *(tensor.cpu().contiguous().numpy() for tensor in tensors), self.unit, self.linear

    def __len__(self) -> int:
        return len(self.prototypes)

    def __call__(self, rows: Tensor, which: Tensor | None = None) -> Tensor:
        """Costs of rows.

        Parameters
        ----------
        rows : Tensor (n, d)
            As they are stored, float32 or float64.
        which : Tensor (n, m) of int64, optional
            Prototypes of each row; all of them if not given.

        Returns
        -------
        Tensor (n, m) or (n, K) of float64
        """
        return self.in_two(rows, which)[0]

    def in_two(self, rows: Tensor, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Costs, and what their rounding leaves of them where offsets are far larger than distances."""
        if rows.device.type != "cpu":
            costs = self._by_tensors(rows, which)
            return costs, torch.zeros_like(costs)
        shape = (len(rows), len(self.prototypes)) if which is None else which.shape
        some, (costs, rest) = np.empty((len(rows), 0), np.int64), torch.empty(2, *shape, dtype=torch.float64)
        some = some if which is None else which.contiguous().numpy()
        all_costs(rows.contiguous().numpy(), *self.arrays, some, costs.numpy(), rest.numpy())
        return costs, rest

    def order(self, rows: Tensor, which: Tensor | None = None) -> Tensor:
        """Positions (n, m) of prototypes as of `__call__`, of the least cost first; equal ones as they come."""
        costs, rest = self.in_two(rows.cpu(), which)
        by_rest = rest.argsort(dim=1, stable=True)
        return by_rest.gather(1, costs.gather(1, by_rest).argsort(dim=1, stable=True)).to(rows.device)

    def labels(self, rows: Tensor) -> Tensor:
        """The first prototype (n,) int64 of the least cost of each row; on the CPU, for the same bits everywhere."""
        labels = torch.empty(len(rows), dtype=torch.int64)
        first_costs(rows.cpu().contiguous().numpy(), *self.arrays, labels.numpy())
        return labels.to(rows.device)

    def squared_distances(self, rows: Tensor, labels: Tensor) -> Tensor:
        """||u_i - c_k||^2 (n,) float64 of rows (n, d) and the prototype (n,) of each, of the distance family."""
        if rows.device.type != "cpu":
            return (self._stored(rows) - self._centres(rows.device)[labels]).square().sum(1)
        squares = torch.empty(len(rows), dtype=torch.float64)
        theta, _, shift, unit, _ = self.arrays
        distances(rows.contiguous().numpy(), theta, shift, unit, labels.numpy(), squares.numpy())
        return squares

    def _stored(self, rows: Tensor) -> Tensor:
        exact = rows.double()
        return exact / torch.linalg.vector_norm(exact, dim=1, keepdim=True).clamp_(min=TINY) if self.unit else exact

    def _centres(self, device: torch.device) -> Tensor:
        return (self.prototypes + self.shift).to(device)

    def _by_tensors(self, rows: Tensor, which: Tensor | None) -> Tensor:
        exact, offset = self._stored(rows), self.offset.to(rows.device)
        if self.linear:
            z, theta = exact - self.shift.to(rows.device), self.prototypes.to(rows.device)
            score = (
                torch.addmm(offset, z, theta.T) if which is None else (z[:, None] * theta[which]).sum(2) + offset[which]
            )
            return score.mul_(-2)
        centres = self._centres(rows.device)
        if which is not None:
            return (exact[:, None] - centres[which]).square_().sum(2) - offset[which]
        at_once = max(1, DIFFERENCES // centres.numel())
        return torch.cat([(part[:, None] - centres).square_().sum(2).sub_(offset) for part in exact.split(at_once)])


def _added_up(builder, addresses, count, term):  # type: ignore[no-untyped-def]
    """LLVM code that adds up `term` of `count` float64 numbers at each of some addresses.

    Eight sums side by side, then the sum of these, then the rest of the numbers one by one.
    """
    number, index = ir.DoubleType(), count.type
    lanes, step = ir.VectorType(number, LANES), ir.Constant(index, LANES)
    starts = [builder.inttoptr(address, number.as_pointer()) for address in addresses]

    def loaded(place, kind):  # type: ignore[no-untyped-def]
        at = (builder.bitcast(builder.gep(start, [place]), kind.as_pointer()) for start in starts)
        return [builder.load(pointer, align=8) for pointer in at]

    sums = cgutils.alloca_once_value(builder, ir.Constant(lanes, [0.0] * LANES))
    whole = builder.and_(count, ir.Constant(index, -LANES))
    with cgutils.for_range_slice(builder, ir.Constant(index, 0), whole, step) as (place, _):
        builder.store(builder.fadd(builder.load(sums), term(*loaded(place, lanes))), sums)
    vector = builder.load(sums)
    parts = [builder.extract_element(vector, ir.Constant(ir.IntType(32), lane)) for lane in range(LANES)]
    while len(parts) > 1:
        parts = [builder.fadd(one, other) for one, other in zip(parts[::2], parts[1::2], strict=True)]
    total = cgutils.alloca_once_value(builder, parts[0])
    with cgutils.for_range_slice(builder, whole, count, ir.Constant(index, 1)) as (place, _):
        builder.store(builder.fadd(builder.load(total), term(*loaded(place, number))), total)
    return builder.load(total)


# Both take addresses: functions of arrays count references to them, which threads share.
@intrinsic
def _square_of_difference(context, row, theta, shift, count):  # type: ignore[no-untyped-def]
    """||row - (theta + shift)||^2 of `count` numbers at three addresses."""

    def emit(context, builder, signature, values):  # type: ignore[no-untyped-def]
        def term(x, t, s):  # type: ignore[no-untyped-def]
            apart = builder.fsub(x, builder.fadd(t, s))
            return builder.fmul(apart, apart)

        return _added_up(builder, values[:3], values[3], term)

    return types.float64(types.intp, types.intp, types.intp, types.intp), emit


@intrinsic
def _product(context, row, theta, count):  # type: ignore[no-untyped-def]
    """row . theta of `count` numbers at two addresses."""

    def emit(context, builder, signature, values):  # type: ignore[no-untyped-def]
        return _added_up(builder, values[:2], values[2], builder.fmul)

    return types.float64(types.intp, types.intp, types.intp), emit


@compiled_strictly
def read_row(x, i, shift, unit, linear, row):  # type: ignore[no-untyped-def]
    """Write to row (d,) of float64 what the costs of row i of x (n, d) are computed from."""
    for j in range(len(row)):
        row[j] = np.float64(x[i, j])
    if unit:
        square = 0.0
        for j in range(len(row)):
            square += row[j] * row[j]
        norm = max(math.sqrt(square), TINY)
        for j in range(len(row)):
            row[j] /= norm
    if linear:
        for j in range(len(row)):
            row[j] -= shift[j]


@compiled_strictly
def write_costs(row, some, count, theta, offset, shift, linear, into, rest):  # type: ignore[no-untyped-def]
    """Write the costs (m,) of a row, as `read_row` has written it, and the first `count` prototypes in some (m,).

    With `some` empty they are the prototypes from 0 on. What rounding leaves of the sum of a distance and an offset is
    written to rest (m,): offsets may be far larger than distances (Knuth's sum of two numbers).
    """
    dim, at, origin = len(row), row.ctypes.data, shift.ctypes.data
    for t in range(count):
        k = some[t] if len(some) else t
        of, less = theta.ctypes.data + k * dim * 8, -offset[k]
        if linear:
            into[t], rest[t] = -2.0 * (_product(at, of, dim) + offset[k]), 0.0
        else:
            square = _square_of_difference(at, of, origin, dim)
            total = square + less
            part = total - square
            into[t], rest[t] = total, (square - (total - part)) + (less - part)


@compiled_strictly
def first_of_least(row, some, count, theta, offset, shift, linear, value, rest):  # type: ignore[no-untyped-def]
    """The lowest of the first `count` prototypes in some (m,) whose cost is the least; if none is finite, the last.

    With `some` empty they are the prototypes from 0 on. Costs are written to value and rest (m,).
    """
    write_costs(row, some, count, theta, offset, shift, linear, value, rest)
    least, left, first = np.inf, np.inf, len(offset)
    for t in range(count):
        k = some[t] if len(some) else t
        if value[t] < least or (value[t] == least and (rest[t] < left or (rest[t] == left and k < first))):
            least, left, first = value[t], rest[t], k
    return min(first, len(offset) - 1)


@compiled_strictly
def all_costs(x, theta, offset, shift, unit, linear, which, into, rest):  # type: ignore[no-untyped-def]
    """Write the costs (n, m) of rows x (n, d) and prototypes which (n, m); with (n, 0) of all (n, K)."""
    row = np.empty(x.shape[1])
    for i in range(x.shape[0]):
        read_row(x, i, shift, unit, linear, row)
        write_costs(row, which[i], into.shape[1], theta, offset, shift, linear, into[i], rest[i])


@compiled_strictly
def distances(x, theta, shift, unit, labels, into):  # type: ignore[no-untyped-def]
    """Write the squared distance (n,) of each row of x (n, d) from its prototype (n,)."""
    row, dim = np.empty(x.shape[1]), x.shape[1]
    for i in range(x.shape[0]):
        read_row(x, i, shift, unit, False, row)
        of = theta.ctypes.data + labels[i] * dim * 8
        into[i] = _square_of_difference(row.ctypes.data, of, shift.ctypes.data, dim)


@compiled_strictly
def first_costs(x, theta, offset, shift, unit, linear, labels):  # type: ignore[no-untyped-def]
    """Write the first prototype (n,) of the least cost of each row of x (n, d)."""
    row, everyone = np.empty(x.shape[1]), np.empty(0, np.int64)
    value, rest = np.empty(len(offset)), np.empty(len(offset))
    for i in range(x.shape[0]):
        read_row(x, i, shift, unit, linear, row)
        labels[i] = first_of_least(row, everyone, len(offset), theta, offset, shift, linear, value, rest)
