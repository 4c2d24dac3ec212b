"""The float64 cost of assigning a row to a prototype: the one definition of labels, distances and posteriors.

    distance family   cost_ik = ||u_i - c_k||^2 - T log s_k,      c_k = theta'_k + shift
    linear form       cost_ik = -2 ((u_i - shift) . theta_k + b_k)

with u_i the row as it is stored, or scaled to unit length (metric cosine). A row's label is the first of the prototypes
of the least cost, its posterior is softmax_k(-cost_ik / T). Differences are taken before they are squared, so that
nothing cancels. Sums are added in a fixed order and without fused operations: every caller, thread and processor
computes the same bits.
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
        if rows.device.type != "cpu":
            return self._by_tensors(rows, which)
        shape = (len(rows), len(self.prototypes)) if which is None else which.shape
        some, costs = np.empty((len(rows), 0), np.int64), torch.empty(shape, dtype=torch.float64)
        some = some if which is None else which.contiguous().numpy()
        all_costs(rows.contiguous().numpy(), *self.arrays, some, costs.numpy())
        return costs

    def labels(self, rows: Tensor) -> Tensor:
        """The first prototype (n,) int64 of the least cost of each row."""
        at_once = max(1, DIFFERENCES // self.prototypes.numel())
        return torch.cat([self(part).argmin(1) for part in rows.split(at_once)])

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
def write_costs(row, some, count, theta, offset, shift, linear, into):  # type: ignore[no-untyped-def]
    """Write the costs (m,) of a row, as `read_row` has written it, and the first `count` prototypes in some (m,).

    With `some` empty they are the prototypes from 0 on.
    """
    dim, at, origin = len(row), row.ctypes.data, shift.ctypes.data
    for t in range(count):
        k = some[t] if len(some) else t
        of = theta.ctypes.data + k * dim * 8
        if linear:
            into[t] = -2.0 * (_product(at, of, dim) + offset[k])
        else:
            into[t] = _square_of_difference(at, of, origin, dim) - offset[k]


@compiled_strictly
def first_of_least(row, some, count, theta, offset, shift, linear, value):  # type: ignore[no-untyped-def]
    """The lowest of the first `count` prototypes in some (m,) whose cost is the least; if none is finite, the last.

    With `some` empty they are the prototypes from 0 on. Costs are written to value (m,).
    """
    write_costs(row, some, count, theta, offset, shift, linear, value)
    least, first = np.inf, len(offset)
    for t in range(count):
        k = some[t] if len(some) else t
        if value[t] < least or (value[t] == least and k < first):
            least, first = value[t], k
    return min(first, len(offset) - 1)


@compiled_strictly
def all_costs(x, theta, offset, shift, unit, linear, which, into):  # type: ignore[no-untyped-def]
    """Write the costs (n, m) of rows x (n, d) and prototypes which (n, m); with (n, 0) of all (n, K)."""
    row = np.empty(x.shape[1])
    for i in range(x.shape[0]):
        read_row(x, i, shift, unit, linear, row)
        write_costs(row, which[i], into.shape[1], theta, offset, shift, linear, into[i])


@compiled_strictly
def distances(x, theta, shift, unit, labels, into):  # type: ignore[no-untyped-def]
    """Write the squared distance (n,) of each row of x (n, d) from its prototype (n,)."""
    row, dim = np.empty(x.shape[1]), x.shape[1]
    for i in range(x.shape[0]):
        read_row(x, i, shift, unit, False, row)
        of = theta.ctypes.data + labels[i] * dim * 8
        into[i] = _square_of_difference(row.ctypes.data, of, shift.ctypes.data, dim)
