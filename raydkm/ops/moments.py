"""What must be known of the data before the first step: extent, first and second moments."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raydkm.ops.batch import BATCH_ROWS, Batch
from raydkm.ops.exact import Field, Statistics
from raydkm.ops.frame import Frame
from raydkm.ops.statistics import ROWS, Bounds, Local
from raydkm.ops.workspace import Workspace

#: Numbers of a tile on the CPU: of its copies in float64, that each thread makes.
TILE = 2**18

#: Rows of the sample whose gaps are looked at, or so many as have these values, if they are more.
GAP_ROWS, GAP_VALUES = 1024, 2**17

#: Ratio of weights up to which one grid serves all.
WEIGHTS_ALIKE = 2.0**10


@dataclass(frozen=True)
class Extent:
    """Order-free facts of the rows: how many, how heavy, and the range of each normalised coordinate.

    Parameters
    ----------
    rows : int
    max_weight : float
    low, high : Tensor (d,) of float64
        Of rows of positive weight: the others add nothing to any sum.
    min_weight : float
        The least positive weight.
    """

    rows: int
    max_weight: float
    low: Tensor
    high: Tensor
    min_weight: float = math.inf

    @classmethod
    def empty(cls, dim: int) -> Extent:
        inf = torch.full((dim,), torch.inf, dtype=torch.float64)
        return cls(0, 0.0, inf, -inf)

    @classmethod
    def of(cls, batch: Batch, frame: Frame) -> Extent:
        x, weight = frame.normalise(batch.rows), batch.weight
        if weight is None:
            return cls(len(batch), 1.0, x.amin(0).double().cpu(), x.amax(0).double().cpu(), 1.0)
        x, weight = x[weight > 0], weight[weight > 0]
        if not len(weight):
            return replace(cls.empty(x.shape[1]), rows=len(batch))
        low, high = x.amin(0).double().cpu(), x.amax(0).double().cpu()
        return cls(len(batch), float(weight.max()), low, high, float(weight.min()))

    def __or__(self, other: Extent) -> Extent:
        return Extent(
            self.rows + other.rows,
            max(self.max_weight, other.max_weight),
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
            min(self.min_weight, other.min_weight),
        )

    def bound(self, frame: Frame) -> Tensor:
        """Bound (d,) of |z_j| over all rows that count; rounding z to the frame's dtype may exceed it by an ulp."""
        return torch.maximum((self.low - frame.shift).abs(), (self.high - frame.shift).abs()) * 1.000001

    def bounds(self, frame: Frame, *, fine: bool = False) -> Bounds:
        """What sums over the rows in a frame are bounded by."""
        rounding = 2.0**-23 if frame.unit else 0.0  # of rows of unit length, which may lie closer to the origin
        return Bounds(self.rows, self.max_weight, self.bound(frame) + rounding, fine)

    def needs_fine(self, frame: Frame, sample: Tensor) -> bool:
        """Whether one grid is too coarse for sums of the rows, of which `sample` (m, d) are some.

        Its step, by the least weight, is compared with the least gap between different values of a column.
        """
        rows = max(GAP_ROWS, GAP_VALUES // sample.shape[1])
        gaps = sample[:rows].double().sort(0).values.diff(dim=0)
        if not len(gaps):
            return False
        small = gaps.masked_fill_(gaps == 0, torch.inf).amin(0)
        coarse = self.rows * self.max_weight / self.min_weight * self.bound(frame) * 2.0**-61
        return bool((coarse > 2.0**-10 * small).any()) or self.max_weight > WEIGHTS_ALIKE * self.min_weight


@dataclass(frozen=True)
class Moments:
    """Weighted moments of z in the frame.

    Parameters
    ----------
    rows : int
    max_weight : float
    bound : Tensor (d,) of float64
        Largest possible |z_ij| of each column.
    weight : float
        sum w.
    mean : Tensor (d,) of float64
    square : float
        sum w ||z||^2.
    covariance : Tensor (d, d) of float64, or None if not asked for
    fine : bool
        Whether sums by cluster need a second grid, see `raydkm.ops.statistics.Bounds`.
    """

    rows: int
    max_weight: float
    bound: Tensor
    weight: float
    mean: Tensor
    square: float
    covariance: Tensor | None
    fine: bool = False

    @property
    def bounds(self) -> Bounds:
        """What sums over the rows are bounded by."""
        return Bounds(self.rows, self.max_weight, self.bound, self.fine)

    @property
    def column_variance(self) -> float:
        """Mean over columns of the weighted variance."""
        return max(0.0, self.square / self.weight - float(self.mean.square().sum())) / len(self.mean)


def moment_fields(extent: Extent, frame: Frame, *, covariance: bool) -> tuple[Field, ...]:
    bounds = extent.bounds(frame)
    columns = bounds.columns
    fields = (
        bounds.field("weight", (), grids=2),
        bounds.field("first", columns.shape, columns, grids=2),
        bounds.field("square", (), columns.square().sum(), grids=2),
    )
    second = (bounds.field("second", (len(columns), len(columns)), columns * columns.max()),) if covariance else ()
    return (*fields, *second, ROWS)


def moment_statistics(frame: Frame, max_weight: float, *, covariance: bool) -> Local:
    """Sums of w, w z and w ||z||^2 in float64, and of w z z' by products of the frame's dtype."""
    dim, buffer = len(frame.shift), Workspace()

    def local(batch: Batch, into: Statistics) -> None:
        weights, device = batch.weights(), batch.rows.device
        first, square = torch.zeros(2, dim, dtype=torch.float64, device=device)
        second = torch.zeros((dim, dim) if covariance else (0, 0), dtype=frame.dtype, device=device)
        for where, rows in batch.row_tiles(frame, dim, TILE if device.type == "cpu" else BATCH_ROWS * dim, buffer):
            weight, exact = weights[where], rows.double()
            first += torch.mv(exact.T, weight)
            square += torch.mv(exact.square().T, weight)
            if covariance:  # weights relative to the largest, so that no product overflows
                share = None if batch.weight is None else (weight / max_weight).to(frame.dtype)[:, None]
                second.addmm_((rows.z if share is None else rows.z * share).T, rows.z)
        into.add("weight", weights.sum())
        into.add("first", first)
        into.add("square", square.sum())
        if covariance:
            into.add("second", second.double().mul_(max_weight))
        into.add("rows", len(batch))

    return local


def moments(statistics: Statistics, extent: Extent, frame: Frame, *, covariance: bool, fine: bool = False) -> Moments:
    weight = float(statistics["weight"])
    mean = statistics["first"] / weight
    return Moments(
        rows=extent.rows,
        max_weight=extent.max_weight,
        bound=extent.bounds(frame).columns,
        weight=weight,
        mean=mean,
        square=float(statistics["square"]),
        covariance=statistics["second"] / weight - torch.outer(mean, mean) if covariance else None,
        fine=fine,
    )
