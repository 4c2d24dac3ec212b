"""Scores: the one linear form behind nearest prototypes, posteriors and the FAISS index.

    score_ik = z_i . theta_k + b_k,    b_k = -||theta_k||^2 / 2 + (T / 2) log s_k

argmax_k score is the nearest prototype (s = 1) or the balanced assignment; logits = (2 / T) score differ from
-||z_i - theta_k||^2 / T + log s_k by a constant of the row, which a softmax does not see.

Scores are of float32. Where their rounding leaves a choice, their costs decide (`raydkm.ops.cost`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raydkm.ops.cost import Costs
from raydkm.ops.frame import Frame, RowTile
from raydkm.ops.kernels import squares


@dataclass(frozen=True)
class Scores:
    """Prototypes with their biases, ready for products.

    Parameters
    ----------
    prototypes : Tensor (K, d)
    bias : Tensor (K,)
    temperature : float
        T, in units of squared distance; 0 for hard assignments.
    exact : Costs, optional
        What these are rounded from; by default the linear form of the rounded numbers.
    """

    prototypes: Tensor
    bias: Tensor
    temperature: float
    exact: Costs | None = None

    @classmethod
    def of(
        cls,
        prototypes: Tensor,
        log_s: Tensor,
        temperature: float,
        frame: Frame,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    ) -> Scores:
        """Scores of the distance family, from float64 prototypes (K, d) in the frame and log s (K,).

        They are rounded to the frame's dtype.
        """
        exact = Costs(prototypes, temperature * log_s, frame.shift, unit=frame.unit)
        single = prototypes.to(device=device, dtype=frame.dtype)
        bias = squared_lengths(single).mul_(-0.5).add_(exact.offset.to(device), alpha=0.5)
        return cls(single, bias.to(frame.dtype), temperature, exact)

    @classmethod
    def linear(
        cls,
        weights: Tensor,
        bias: Tensor,
        temperature: float,
        frame: Frame,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    ) -> Scores:
        """theta_k . z + b_k, from float64 weights theta (K, d) and biases (K,), rounded to the frame's dtype."""
        exact = Costs(weights, bias, frame.shift, unit=frame.unit, linear=True)
        theta, b = (x.to(device=device, dtype=frame.dtype) for x in (weights, bias))
        return cls(theta, b, temperature, exact)

    @cached_property
    def costs(self) -> Costs:
        """What decides where scores are rounded."""
        if self.exact is not None:
            return self.exact
        theta, bias = self.prototypes.double().cpu(), self.bias.double().cpu()
        return Costs(theta, bias, torch.zeros(theta.shape[1], dtype=torch.float64), linear=True)

    @cached_property
    def lengths(self) -> Tensor:
        """Of the prototypes (K,), in float64."""
        return squared_lengths(self.prototypes).sqrt_()

    def digest(self) -> str:
        """SHA-256 of the values."""
        found = hashlib.sha256(repr((self.temperature, self.costs.unit, self.costs.linear)).encode())
        for tensor in (self.costs.prototypes, self.costs.offset, self.costs.shift):
            found.update(tensor.contiguous().numpy().data)
        return found.hexdigest()

    def __len__(self) -> int:
        return len(self.prototypes)

    def tile(self, rows: RowTile | Tensor) -> RowTile:
        """Rows as a tile; a tensor z (n, d) will do where the frame's origin is that of the data.

        Raises
        ------
        TypeError
            If it is not: costs are of rows as they are stored.
        """
        if isinstance(rows, RowTile):
            return rows
        if self.costs.unit or bool(self.costs.shift.any()):
            raise TypeError("rows in a frame of their own: give a RowTile")
        return RowTile.at_origin(rows)

    def __call__(self, z: Tensor) -> Tensor:
        """Scores (n, K) of z (n, d)."""
        return torch.addmm(self.bias, z, self.prototypes.T)


def squared_lengths(x: Tensor) -> Tensor:
    """Of rows (n, d): (n,) of float64."""
    if x.device.type != "cpu":
        return x.double().square_().sum(1)
    lengths = torch.empty(len(x), dtype=torch.float64)
    squares(x.contiguous().numpy(), lengths.numpy())
    return lengths
