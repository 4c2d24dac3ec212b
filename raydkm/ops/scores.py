"""Scores: the one linear form behind nearest prototypes, posteriors and the FAISS index.

    score_ik = z_i . theta_k + b_k,    b_k = -||theta_k||^2 / 2 + (T / 2) log s_k

argmax_k score is the nearest prototype (s = 1) or the balanced assignment; logits = (2 / T) score differ from
-||z_i - theta_k||^2 / T + log s_k by a constant of the row, which a softmax does not see.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

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
    """

    prototypes: Tensor
    bias: Tensor
    temperature: float

    @classmethod
    def of(
        cls, prototypes: Tensor, log_s: Tensor, temperature: float, dtype: torch.dtype, device: torch.device
    ) -> Scores:
        """From float64 prototypes (K, d) and log s (K,), rounded once to `dtype`."""
        prototypes = prototypes.to(device=device, dtype=dtype)
        bias = squared_lengths(prototypes).mul_(-0.5).add_(log_s.to(device), alpha=temperature / 2)
        return cls(prototypes, bias.to(dtype), temperature)

    @cached_property
    def lengths(self) -> Tensor:
        """Of the prototypes (K,), in float64."""
        return squared_lengths(self.prototypes).sqrt_()

    def digest(self) -> str:
        """SHA-256 of the values."""
        found = hashlib.sha256(repr(self.temperature).encode())
        for tensor in (self.prototypes, self.bias):
            found.update(tensor.contiguous().numpy().data)
        return found.hexdigest()

    def __len__(self) -> int:
        return len(self.prototypes)

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
