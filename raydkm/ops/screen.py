"""Screens: scores of a tile in low precision, and how far from the true ones they may be.

By Cauchy and Schwarz, with z and theta rounded to z' and theta',

    |z . theta - z' . theta'| <= ||z - z'|| max ||theta|| + ||z'|| max ||theta - theta'||,

to which the rounding of products, sums and biases is added.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raydkm.ops.kernels import BLOCK, LEAST_SCORE, LOST, quantise
from raydkm.ops.rates import multiplies_int8
from raydkm.ops.scores import Scores
from raydkm.ops.workspace import Workspace

#: Rounding in the bounds themselves.
SLACK = 1.001

#: Biases in whole units are cut off here, so that no score overflows 32 bits.
FARTHEST = 2**29


class Screened(NamedTuple):
    """What a screen says of a tile; all of it is overwritten by the thread's next call.

    Scores are ``approximate[i, k] + bias[k]``, in any unit and with any offset of a row.
    """

    approximate: Tensor  # (n, columns)
    bias: Tensor  # (columns,), of the same dtype; of columns beyond K lower than any score
    margin: Tensor  # (n,), of the same dtype: what two scores of a row may differ by in error
    norm: Tensor  # (n,) of the rows


class Screen(ABC):
    """Approximate scores by prototypes, whose number is padded to a multiple of `BLOCK`.

    Any number of threads may call one: what a call writes to belongs to its thread.
    """

    def __init__(self, scores: Scores):
        self.scores = scores
        self.columns = -(-len(scores) // BLOCK) * BLOCK
        self.size = torch.linalg.vector_norm(scores.prototypes, dim=1, dtype=torch.float64)
        self.norm = float(self.size.max()) * SLACK + LOST * scores.prototypes.shape[1] ** 0.5
        self.bias = float(scores.bias.abs().max())
        self._buffer = Workspace()

    @abstractmethod
    def __call__(self, z: Tensor) -> Screened:
        """Screen the rows z (n, d)."""

    def _padded(self, x: Tensor, value: float = 0.0) -> Tensor:
        padding = (0, 0) * (x.dim() - 1) + (0, self.columns - len(x))
        return torch.nn.functional.pad(x, padding, value=value)

    def _norms(self, z: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(z, dim=1, out=self._buffer("norm", z.shape[:1], z))
        return norm.add_(LOST * z.shape[1] ** 0.5)


class FullScreen(Screen):
    """In the precision of the scores: errors are those of a sum of d products."""

    def __init__(self, scores: Scores):
        super().__init__(scores)
        self._theta_t = self._padded(scores.prototypes).T
        self._bias = self._padded(scores.bias, LEAST_SCORE)

    def __call__(self, z: Tensor) -> Screened:
        product = torch.mm(z, self._theta_t, out=self._buffer("product", (len(z), self.columns), z))
        norm, (relative, absolute) = self._norms(z), rounding(self)
        return Screened(product, self._bias, norm.mul(2 * relative).add_(2 * absolute), norm)


class BFloat16Screen(Screen):
    """Operands and product in bf16, accumulated in float32."""

    def __init__(self, scores: Scores):
        super().__init__(scores)
        low = scores.prototypes.to(torch.bfloat16)
        self._low_t = self._padded(low).T.contiguous()
        self._bias = self._padded(scores.bias, LEAST_SCORE)
        self._residual = float(torch.linalg.vector_norm(scores.prototypes.double() - low.double(), dim=1).max())

    def __call__(self, z: Tensor) -> Screened:
        low = self._buffer("low", z.shape, z, torch.bfloat16).copy_(z)
        product = self._buffer("low_product", (len(z), self.columns), z, torch.bfloat16)
        torch.mm(low, self._low_t, out=product)
        norm, left = self._norms(z), torch.linalg.vector_norm(z - low, dim=1).add_(LOST * z.shape[1] ** 0.5)
        product_error = 2.0**-8 * 1.01 + 2.0**-22 * z.shape[1]  # of a bf16 result, of d additions in float32
        error = left.mul_((self.norm + self._residual) * SLACK * (1 + product_error)).add_(
            norm, alpha=self._residual * SLACK + product_error * (self.norm + self._residual)
        )
        margin = error.add_(2.0**-22 * self.bias + 1e-37).mul_(2)
        return Screened(self._buffer("product", product.shape, z).copy_(product), self._bias, margin, norm)


class Int8Screen(Screen):
    """Operands in 8 bits, products and biases in exact 32-bit integers; on the CPU.

    Prototypes share one step, and so do rows, from the first tile on: what lies beyond 127 steps has a large error.
    """

    def __init__(self, scores: Scores):
        super().__init__(scores)
        theta = scores.prototypes
        self._step = float(np.float32(max(float(theta.abs().max()), 1e-30) / 127))
        codes = torch.zeros(self.columns, theta.shape[1], dtype=torch.int8)
        left = torch.empty(2, len(theta))
        quantise(theta.contiguous().numpy(), np.float32(self._step), codes.numpy(), *left.numpy())
        self._residual = float(left[1].max()) * SLACK
        self._codes_t = codes.T
        self._of_rows: tuple[float, Tensor] | None = None

    @staticmethod
    def fits(scores: Scores) -> bool:
        """Whether products are exact, and sums of d of them far below 2^31; of one column torch's are wrong."""
        return multiplies_int8() and 1 < scores.prototypes.shape[1] < 2**14

    def __call__(self, z: Tensor) -> Screened:
        if self._of_rows is None:
            self._of_rows = self._for_rows_like(z)
        step, bias = self._of_rows
        unit = step * self._step
        codes = self._buffer("codes", z.shape, z, torch.int8)
        norm, left = self._buffer("norm", z.shape[:1], z), self._buffer("left", z.shape[:1], z)
        quantise(z.numpy(), np.float32(step), codes.numpy(), norm.numpy(), left.numpy())
        product = self._buffer("product", (len(z), self.columns), z, torch.int32)
        torch._int_mm(codes, self._codes_t, out=product)
        # ||z'|| <= ||z|| + ||z - z'||; a bias is rounded to a whole unit
        error = left.double().mul_((self.norm + self._residual) * SLACK).add_(norm, alpha=self._residual * SLACK)
        whole = 2.0**31 if self.bias >= FARTHEST * unit else 2.0
        margin = error.mul_(2 / unit).add_(whole).ceil_().clamp_(max=2.0**31 - 1).to(torch.int32)
        return Screened(product, bias, margin, norm)

    def _for_rows_like(self, z: Tensor) -> tuple[float, Tensor]:
        """The step of rows, and the biases in units of both steps: the step that leaves the least of z."""
        largest = max(float(z.abs().max()), 1e-30)

        def left(step: float) -> float:
            return float((z - (z / step).round_().clamp_(-127, 127).mul_(step)).square().sum())

        step = float(np.float32(min((largest * part / 127 for part in (1.0, 0.7, 0.5, 0.35)), key=left)))
        bias = torch.round(self.scores.bias.double() / (step * self._step)).clamp_(-FARTHEST, FARTHEST)
        return step, self._padded(bias, -2.0 * FARTHEST).to(torch.int32)


SCREENS: dict[str, type[Screen]] = {"fp32": FullScreen, "bf16": BFloat16Screen, "int8": Int8Screen}


def rounding(screen: Screen) -> tuple[float, float]:
    """The error of a score in the precision of the prototypes: at most so many times the row's norm, and so much."""
    theta = screen.scores.prototypes
    unit = torch.finfo(theta.dtype).eps
    return unit * (theta.shape[1] + 2) * screen.norm * SLACK, 2 * unit * screen.bias + 1e-37
