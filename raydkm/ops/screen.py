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
from raydkm.ops.leading import Leading
from raydkm.ops.rates import multiplies_int8
from raydkm.ops.scores import Scores
from raydkm.ops.workspace import Workspace

#: Rounding in the bounds themselves.
SLACK = 1.001

#: Biases in whole units are cut off here, so that no score overflows 32 bits.
FARTHEST = 2**29


class Screened(NamedTuple):
    """What a screen says of a tile; all of it is overwritten by the thread's next call.

    No score_ik is above ``unit (approximate[i, k] + bias[k]) + error[0] left[i] + error[1] norm[i] + error[2]``.
    """

    approximate: Tensor  # (n, columns) of int32 or float
    bias: Tensor  # (columns,) of the same dtype; of columns beyond K lower than any score
    unit: float
    error: tuple[float, float, float]
    left: Tensor  # (n,) lengths of what rounding leaves of the rows
    norm: Tensor  # (n,) of the rows, or a bit more


class Screen(ABC):
    """Approximate scores by prototypes, whose number is padded to a multiple of `BLOCK`.

    Any number of threads may call one: what a call writes to belongs to its thread.
    """

    def __init__(self, scores: Scores):
        self.scores = scores
        self.columns = -(-len(scores) // BLOCK) * BLOCK
        self.norm = longest(scores)
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
        self._error = (0.0, *rounding(scores))

    def __call__(self, z: Tensor) -> Screened:
        product = torch.mm(z, self._theta_t, out=self._buffer("product", (len(z), self.columns), z))
        norm = self._norms(z)
        return Screened(product, self._bias, 1.0, self._error, norm, norm)


class BFloat16Screen(Screen):
    """Operands and product in bf16, accumulated in float32."""

    def __init__(self, scores: Scores):
        super().__init__(scores)
        low = scores.prototypes.to(torch.bfloat16)
        self._low_t = self._padded(low).T.contiguous()
        self._bias = self._padded(scores.bias, LEAST_SCORE)
        residual = float(torch.linalg.vector_norm(scores.prototypes.double() - low.double(), dim=1).max())
        product = 2.0**-8 * 1.01 + 2.0**-22 * scores.prototypes.shape[1]  # of a bf16 result, of d additions in float32
        of_left = (self.norm + residual) * SLACK * (1 + product)
        of_norm = residual * SLACK + product * (self.norm + residual)
        self._error = (of_left, of_norm, 2.0**-22 * self.bias + 1e-37)

    def __call__(self, z: Tensor) -> Screened:
        low = self._buffer("low", z.shape, z, torch.bfloat16).copy_(z)
        product = self._buffer("low_product", (len(z), self.columns), z, torch.bfloat16)
        torch.mm(low, self._low_t, out=product)
        left = torch.linalg.vector_norm(z - low, dim=1).add_(LOST * z.shape[1] ** 0.5)
        approximate = self._buffer("product", product.shape, z).copy_(product)
        return Screened(approximate, self._bias, 1.0, self._error, left, self._norms(z))


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
        self._of_rows: tuple[float, Tensor, float, tuple[float, float, float]] | None = None

    @staticmethod
    def fits(scores: Scores) -> bool:
        """Whether products are exact, and sums of d of them far below 2^31; of one column torch's are wrong."""
        return multiplies_int8() and 1 < scores.prototypes.shape[1] < 2**14

    def __call__(self, z: Tensor) -> Screened:
        if self._of_rows is None:
            self._of_rows = self._for_rows_like(z)
        step, bias, unit, error = self._of_rows
        codes = self._buffer("codes", z.shape, z, torch.int8)
        norm, left = self._buffer("norm", z.shape[:1], z), self._buffer("left", z.shape[:1], z)
        quantise(z.numpy(), np.float32(step), codes.numpy(), norm.numpy(), left.numpy())
        product = self._buffer("product", (len(z), self.columns), z, torch.int32)
        torch._int_mm(codes, self._codes_t, out=product)
        return Screened(product, bias, unit, error, left, norm)

    def _for_rows_like(self, z: Tensor) -> tuple[float, Tensor, float, tuple[float, float, float]]:
        """The step of rows, that leaves the least of z; the biases in units of both steps, the unit, and the error."""
        some = z[:256]
        largest = max(float(some.abs().max()), 1e-30)

        def left(step: float) -> float:
            return float((some - (some / step).round_().clamp_(-127, 127).mul_(step)).square().sum())

        step = float(np.float32(min((largest * part / 127 for part in (1.0, 0.7, 0.5, 0.35)), key=left)))
        unit = step * self._step
        bias = torch.round(self.scores.bias.double() / unit).clamp_(-FARTHEST, FARTHEST)
        of_bias = unit + (self.bias if self.bias >= FARTHEST * unit else 0.0)  # it is rounded, or cut off
        # ||z'|| <= ||z|| + ||z - z'||
        error = ((self.norm + self._residual) * SLACK, self._residual * SLACK, of_bias)
        return step, self._padded(bias, -2.0 * FARTHEST).to(torch.int32), unit, error


class LeadingScreen(Screen):
    """Another screen, of bounds by leading directions.

    Parameters
    ----------
    scores : Scores
    leading : Leading
    kind : type of Screen
    """

    def __init__(self, scores: Scores, leading: Leading, kind: type[Screen]):
        super().__init__(scores)
        self._leading = leading
        self._inner = kind(Scores(leading(scores.prototypes).clone(), scores.bias, scores.temperature))
        self._more = (2 * leading.error + leading.error**2) * self.norm * SLACK

    def __call__(self, z: Tensor) -> Screened:
        found = self._inner(self._leading(z))
        of_left, of_norm, absolute = found.error
        return found._replace(error=(of_left, of_norm + self._more, absolute))


SCREENS: dict[str, type[Screen]] = {"fp32": FullScreen, "bf16": BFloat16Screen, "int8": Int8Screen}


def longest(scores: Scores) -> float:
    """A bound of the prototypes' lengths."""
    return float(scores.lengths.max()) * SLACK + LOST * scores.prototypes.shape[1] ** 0.5


def rounding(scores: Scores) -> tuple[float, float]:
    """The error of a score in the precision of the prototypes: at most so many times the row's norm, and so much."""
    theta = scores.prototypes
    unit = torch.finfo(theta.dtype).eps
    bias = float(scores.bias.abs().max())
    return unit * (theta.shape[1] + 2) * longest(scores) * SLACK, 2 * unit * bias + 1e-37
