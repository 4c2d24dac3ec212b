"""What must be known of the data before the first step: extent, first and second moments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raydkm.ops.batch import BATCH_ROWS, Batch
from raydkm.ops.exact import Field, Statistics
from raydkm.ops.frame import Frame
from raydkm.ops.statistics import ROWS, Local, weighted_field
from raydkm.ops.workspace import Workspace

#: Numbers of a tile on the CPU: of its copies in float64, that each thread makes.
TILE = 2**18


@dataclass(frozen=True)
class Extent:
    """Order-free facts of the rows: how many, how heavy, and the range of each normalised coordinate.

    Parameters
    ----------
    rows : int
    max_weight : float
    low, high : Tensor (d,) of float64
    """

    rows: int
    max_weight: float
    low: Tensor
    high: Tensor

    @classmethod
    def empty(cls, dim: int) -> Extent:
        inf = torch.full((dim,), torch.inf, dtype=torch.float64)
        return cls(0, 0.0, inf, -inf)

    @classmethod
    def of(cls, batch: Batch, frame: Frame) -> Extent:
        x = frame.normalise(batch.rows)
        heaviest = 1.0 if batch.weight is None else float(batch.weight.max())
        return cls(len(batch), heaviest, x.amin(0).double().cpu(), x.amax(0).double().cpu())

    def __or__(self, other: Extent) -> Extent:
        return Extent(
            self.rows + other.rows,
            max(self.max_weight, other.max_weight),
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
        )

    def bound(self, frame: Frame) -> Tensor:
        """Bound (d,) of |z_j| over all rows; rounding z to the frame's dtype may exceed it by an ulp."""
        return torch.maximum((self.low - frame.shift).abs(), (self.high - frame.shift).abs()) * 1.000001


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
    """

    rows: int
    max_weight: float
    bound: Tensor
    weight: float
    mean: Tensor
    square: float
    covariance: Tensor | None

    @property
    def column_variance(self) -> float:
        """Mean over columns of the weighted variance."""
        return max(0.0, self.square / self.weight - float(self.mean.square().sum())) / len(self.mean)


def moment_fields(extent: Extent, frame: Frame, *, covariance: bool) -> tuple[Field, ...]:
    bound = extent.bound(frame)

    def field(name: str, shape: tuple[int, ...], bound: Tensor | float) -> Field:
        return weighted_field(name, shape, extent.rows, extent.max_weight, bound, at_once=BATCH_ROWS)

    fields = (field("weight", (), 1.0), field("first", bound.shape, bound), field("square", (), bound.square().sum()))
    second = (field("second", (len(bound), len(bound)), bound * bound.max()),) if covariance else ()
    return (*fields, *second, ROWS)


def moment_statistics(frame: Frame, *, covariance: bool) -> Local:
    dim, buffer = len(frame.shift), Workspace()

    def local(batch: Batch, into: Statistics) -> None:
        weights, device = batch.weights(), batch.rows.device
        first, square = torch.zeros(2, dim, dtype=torch.float64, device=device)
        second = torch.zeros((dim, dim) if covariance else (0, 0), dtype=frame.dtype, device=device)
        for where, z in batch.tiles(frame, dim, TILE if device.type == "cpu" else BATCH_ROWS * dim, buffer):
            weight = weights[where]
            weighted = z if batch.weight is None else z * weight[:, None].to(z.dtype)
            first += weighted.sum(0, dtype=torch.float64)
            square += torch.mv(z.double().square().T, weight)
            if covariance:
                second.addmm_(weighted.T, z)
        into.add("weight", weights.sum())
        into.add("first", first)
        into.add("square", square.sum())
        if covariance:
            into.add("second", second)
        into.add("rows", len(batch))

    return local


def moments(statistics: Statistics, extent: Extent, frame: Frame, *, covariance: bool) -> Moments:
    weight = float(statistics["weight"])
    mean = statistics["first"] / weight
    return Moments(
        rows=extent.rows,
        max_weight=extent.max_weight,
        bound=extent.bound(frame),
        weight=weight,
        mean=mean,
        square=float(statistics["square"]),
        covariance=statistics["second"] / weight - torch.outer(mean, mean) if covariance else None,
    )
