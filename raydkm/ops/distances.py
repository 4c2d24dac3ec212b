"""Squared distances of rows to candidates for seeding: by one matrix product, and by differences where that cancels.

||z - c||^2 = ||z||^2 + ||c||^2 - 2 z.c takes a float32 product. Its rounding error is at most u (||z||^2 + ||c||^2),
u = (d + 16) 2^-24. Where that bound exceeds `ACCURACY` of a squared distance that may be the smallest of its row, the
squared distance is a sum of squared differences in float64 instead. So it is exactly zero between equal rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raydkm.ops.frame import Frame
from raydkm.ops.kernels import compiled, squares

#: Relative error that the expanded form of a squared distance may have.
ACCURACY = 2.0**-10

#: Squared distance of a row that has no candidate yet. Compiled loops assume finite numbers.
FARTHEST = 1e300

#: Columns of the product, or of two rows, that are compared before the loop may stop.
BLOCK = 64

#: Rows of a tile of the product.
TILE_ROWS = 1024


@dataclass(frozen=True)
class Points:
    """Rows with what their squared distances are computed from.

    Parameters
    ----------
    exact : Tensor (n, d) of float32 or float64
        Coordinates that are subtracted.
    z : Tensor (n, d) of float32
        Coordinates that are multiplied: `exact` less an origin, rounded.
    square : Tensor (n,) of float64
        ||z||^2.
    """

    exact: Tensor
    z: Tensor
    square: Tensor

    @classmethod
    def of(cls, exact: Tensor, z: Tensor | None = None) -> Points:
        z = (exact if z is None else z).float().contiguous()
        square = torch.empty(len(z), dtype=torch.float64)
        squares(z.numpy(), square.numpy())
        return cls(exact.contiguous(), z, square)

    @classmethod
    def in_frame(cls, rows: Tensor, frame: Frame) -> Points:
        """Stored rows (n, d) of any numeric dtype. Euclidean differences are of the rows as they are stored."""
        z = frame(rows)
        return cls.of(z if frame.metric == "cosine" and rows.dtype != torch.float64 else frame.normalise(rows), z)

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, which: slice | Tensor) -> Points:
        z = self.z[which]
        return Points(z if self.exact is self.z else self.exact[which], z, self.square[which])

    def put(self, at: int, other: Points) -> None:
        """Overwrite the row at a position with the only row of other points."""
        self.exact[at], self.z[at], self.square[at] = other.exact[0], other.z[0], other.square[0]


def no_candidate(count: int) -> tuple[Tensor, Tensor]:
    """What `keep_nearest` updates, before the first candidate."""
    return torch.full((count,), FARTHEST, dtype=torch.float64), torch.zeros(count, dtype=torch.int32)


def keep_nearest(points: Points, candidates: Points, first: int, nearest: Tensor, owner: Tensor) -> None:
    """Update, in place, the squared distance of each row to its nearest candidate and the number of that candidate.

    Parameters
    ----------
    points : Points of n rows
    candidates : Points of m rows
        Those from number `first` on; a round may draw none.
    nearest : Tensor (n,) of float64
    owner : Tensor (n,) of int32
    """
    for start in range(0, len(points) if len(candidates) else 0, TILE_ROWS):
        tile = slice(start, start + TILE_ROWS)
        _keep_nearest(*_pairs(points[tile], candidates), first, nearest[tile].numpy(), owner[tile].numpy())


def improved(points: Points, candidates: Points, nearest: Tensor) -> Tensor:
    """The squared distances (n, m) of float64 that `nearest` (n,) would become with each candidate alone."""
    into = torch.empty(len(points), len(candidates), dtype=torch.float64)
    _improved(*_pairs(points, candidates), nearest.numpy(), into.numpy())
    return into


def products(z: Tensor, c: Tensor) -> Tensor:
    """Inner products (n, m) of rows."""
    return z @ c.T


def _pairs(points: Points, candidates: Points) -> tuple:
    """What the compiled loops take of rows and candidates."""
    dim = points.z.shape[1]
    units = (dim + 16) * 2.0**-24
    # products may underflow, by 2^-126 each
    error = np.array([units / (1 - units) if units < 0.5 else 1.0, dim * 2.0**-124])
    one, other = (of.exact.numpy() for of in (points, candidates))
    product = products(points.z, candidates.z).numpy()
    return product, points.square.numpy(), candidates.square.numpy(), error, one, other


@compiled
def _difference(x, i, y, j, limit):  # type: ignore[no-untyped-def]
    """Squared distance of x[i] and y[j] in float64; a part of it, once that is not below the limit."""
    total = 0.0
    for start in range(0, x.shape[1], BLOCK):
        for t in range(start, min(start + BLOCK, x.shape[1])):
            apart = np.float64(x[i, t]) - np.float64(y[j, t])
            total += apart * apart
        if total >= limit:
            break
    return total


@compiled
def _may_improve(row, low, error, square, nearest):  # type: ignore[no-untyped-def]
    """Whether the lower bound of a squared distance, square + low - 2 row, is below the nearest one of the row."""
    limit = np.float32(min(nearest - (1.0 - error[0]) * square + error[1], 3e38))
    count, two = 0, np.float32(2.0)
    for j in range(len(row)):  # a count is vectorised, a minimum is not
        count += low[j] - two * row[j] < limit
    return count > 0


@compiled
def _keep_nearest(product, square, of_candidates, error, x, y, first, nearest, owner):  # type: ignore[no-untyped-def]
    low = ((1.0 - error[0]) * of_candidates).astype(np.float32)
    for i in range(product.shape[0]):
        for start in range(0, len(low), BLOCK):
            row = product[i, start : start + BLOCK]
            if not _may_improve(row, low[start : start + BLOCK], error, square[i], nearest[i]):
                continue
            for j in range(len(row)):
                whole = square[i] + of_candidates[start + j]
                value, off = whole - 2.0 * row[j], error[0] * whole + error[1]
                if value - off < nearest[i]:
                    if off > ACCURACY * value:
                        value = _difference(x, i, y, start + j, nearest[i])
                    if value < nearest[i]:
                        nearest[i], owner[i] = value, first + start + j


@compiled
def _improved(product, square, of_candidates, error, x, y, nearest, into):  # type: ignore[no-untyped-def]
    low = ((1.0 - error[0]) * of_candidates).astype(np.float32)
    for i in range(product.shape[0]):
        known, row = nearest[i], product[i]
        into[i] = known
        if not _may_improve(row, low, error, square[i], known):
            continue
        for j in range(len(row)):
            whole = square[i] + of_candidates[j]
            value, off = whole - 2.0 * row[j], error[0] * whole + error[1]
            if value - off < known:
                if off > ACCURACY * value:
                    value = _difference(x, i, y, j, known)
                into[i, j] = min(known, value)
