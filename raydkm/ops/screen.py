"""Screens: scores of a tile in low precision, and how far from the true ones they may be.

By Cauchy and Schwarz, with z and theta rounded to z' and theta',

    |z . theta - z' . theta'| <= ||z - z'|| max ||theta|| + ||z'|| max ||theta - theta'||,

to which the rounding of products, sums and biases is added.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raydkm.ops import amx
from raydkm.ops.candidates import BLOCK
from raydkm.ops.kernels import LEAST_SCORE, LOST, quantise
from raydkm.ops.leading import Leading
from raydkm.ops.scores import Scores
from raydkm.ops.workspace import Workspace

#: Rounding in the bounds themselves.
SLACK = 1.001

#: Rows that a step of 8 bits is found by, and to which parts of their largest number it may reach.
LIKE, PARTS = 256, (1.0, 0.7, 0.5, 0.35)

#: Biases in whole units are cut off here, so that no score overflows 32 bits.
FARTHEST = 2**29


class Rows(NamedTuple):
    """Rows of a tile as a screen multiplies them; overwritten by the thread's next call, unless they are `joined`."""

    factor: Tensor  # (n, h)
    left: Tensor  # (n,) lengths of what rounding leaves of the rows, or by how much they are above the usual one
    norm: Tensor  # (n,) of the rows, or a bit more

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self)

    def some(self, index: Tensor) -> Rows:
        return Rows(*(part.index_select(0, index) for part in self))

    @classmethod
    def joined(cls, parts: Iterable[Rows]) -> Rows:
        """A copy of what may be overwritten by the next part."""
        copies = [[part.clone() for part in rows] for rows in parts]
        return cls(*(torch.cat(some) if len(some) > 1 else some[0] for some in zip(*copies, strict=True)))


class Columns(NamedTuple):
    """Prototypes as a screen multiplies them, padded to a multiple of `BLOCK`."""

    factor: Tensor  # (h, columns), or as `raydkm.ops.amx.packed`
    bias: Tensor  # (columns,) of the dtype of the products; of columns beyond them lower than any score
    which: Tensor  # (at most columns,) of int64: the prototypes


class Screened(NamedTuple):
    """What a screen says of a tile; all of it is overwritten by the thread's next call.

    No score_ik is above ``unit (approximate[i, k] + bias[k]) + error[0] left[i] + error[1] norm[i] + error[2]``.
    """

    approximate: Tensor  # (n, columns) of int32 or float
    bias: Tensor  # (columns,) of the same dtype
    unit: float
    error: tuple[float, float, float]
    left: Tensor  # (n,)
    norm: Tensor  # (n,)


class Screen(ABC):
    """Approximate scores.

    Any number of threads may call one: what a call writes to belongs to its thread.

    Parameters
    ----------
    scores : Scores
    like : Tensor (n, d)
        Some of the rows that will be screened.
    """

    #: Of a product.
    unit = 1.0
    #: Of rows in 8 bits: their step, and the length of what it leaves of them where it is no more than usual.
    step, usual = 1.0, 0.0
    #: Whether columns are packed for `raydkm.ops.amx`.
    tiled = False
    #: By which alone rows are what they are, whatever the scores.
    leading: Leading | None = None
    error: tuple[float, float, float]

    def __init__(self, scores: Scores, like: Tensor):
        self.scores = scores
        self.norm = longest(scores)
        self.bias = float(scores.bias.abs().max())
        self._buffer = Workspace()

    @abstractmethod
    def rows(self, z: Tensor) -> Rows:
        """What is multiplied of the rows z (n, d)."""

    @abstractmethod
    def columns(self, which: Tensor) -> Columns:
        """What is multiplied of some prototypes (m,)."""

    def __call__(self, rows: Rows, columns: Columns) -> Screened:
        """Approximate scores of rows by prototypes."""
        product = self._product(rows.factor, columns)
        return Screened(product, columns.bias, self.unit, self.error, rows.left, rows.norm)

    def _product(self, rows: Tensor, columns: Columns) -> Tensor:
        return torch.mm(rows, columns.factor, out=self._room("product", rows, columns))

    def _room(self, name: str, rows: Tensor, columns: Columns, dtype: torch.dtype | None = None) -> Tensor:
        shape = (len(rows), len(columns.bias))
        return self._buffer(name, (shape[0] * shape[1],), rows, dtype).view(shape)

    def _norms(self, z: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(z, dim=1, out=self._buffer("norm", z.shape[:1], z))
        return norm.add_(LOST * z.shape[1] ** 0.5)


class FullScreen(Screen):
    """In the precision of the scores: errors are those of a sum of d products."""

    def __init__(self, scores: Scores, like: Tensor):
        super().__init__(scores, like)
        self.error = (0.0, *rounding(scores)[:2])

    def rows(self, z: Tensor) -> Rows:
        norm = self._norms(z)
        return Rows(z, norm, norm)

    def columns(self, which: Tensor) -> Columns:
        theta, bias = padded(self.scores.prototypes[which]), padded(self.scores.bias[which], LEAST_SCORE)
        return Columns(theta.T, bias, which)


class BFloat16Screen(Screen):
    """Operands and product in bf16, accumulated in float32."""

    def __init__(self, scores: Scores, like: Tensor):
        super().__init__(scores, like)
        self._low = scores.prototypes.to(torch.bfloat16)
        residual = float(torch.linalg.vector_norm(scores.prototypes.double() - self._low.double(), dim=1).max())
        product = 2.0**-8 * 1.01 + 2.0**-22 * scores.prototypes.shape[1]  # of a bf16 result, of d additions in float32
        of_left = (self.norm + residual) * SLACK * (1 + product)
        of_norm = residual * SLACK + product * (self.norm + residual)
        self.error = (of_left, of_norm, 2.0**-22 * self.bias + 1e-37)

    def rows(self, z: Tensor) -> Rows:
        low = self._buffer("low", z.shape, z, torch.bfloat16).copy_(z)
        left = torch.linalg.vector_norm(z - low, dim=1).add_(LOST * z.shape[1] ** 0.5)
        return Rows(low, left, self._norms(z))

    def columns(self, which: Tensor) -> Columns:
        bias = padded(self.scores.bias[which], LEAST_SCORE)
        return Columns(padded(self._low[which]).T.contiguous(), bias, which)

    def _product(self, rows: Tensor, columns: Columns) -> Tensor:
        low = super()._product(rows, columns)
        return self._room("wide", rows, columns, torch.float32).copy_(low)


class Int8Screen(Screen):
    """Operands in 8 bits, products and biases in exact 32-bit integers; on the CPU.

    Prototypes share one step, and so do rows: what lies beyond 127 steps has a large error.
    """

    def __init__(self, scores: Scores, like: Tensor):
        super().__init__(scores, like)
        theta = scores.prototypes
        self.step, self.usual = _step_of(like[:LIKE])
        step = float(np.float32(max(float(theta.abs().max()), 1e-30) / 127))
        self._codes, (norm, left) = torch.empty(theta.shape, dtype=torch.int8), torch.empty(2, len(theta))
        quantise(theta.contiguous().numpy(), np.float32(step), 0.0, self._codes.numpy(), norm.numpy(), left.numpy())
        residual = float(left.max()) * SLACK
        of_left = norm.double().add_(residual).mul_(SLACK)  # ||z'|| <= ||z|| + ||z - z'||
        self._offset = of_left.mul(self.usual).add_(scores.bias)
        self.unit = unit = self.step * step
        most = float(self._offset.abs().max())
        of_bias = unit + (most if most >= FARTHEST * unit else 0.0)  # it is rounded, or cut off
        self.error = (float(of_left.max()), residual * SLACK, of_bias)
        self.tiled = amx.available()

    @staticmethod
    def fits(scores: Scores) -> bool:
        """Whether products are exact, and sums of d of them far below 2^31; of one column torch's are wrong."""
        dim = scores.prototypes.shape[1]
        return dim < 2**14 and (amx.available() or (multiplies_int8() and dim > 1))

    def rows(self, z: Tensor) -> Rows:
        codes = self._buffer("codes", z.shape, z, torch.int8)
        norm, left = self._buffer("norm", z.shape[:1], z), self._buffer("left", z.shape[:1], z)
        quantise(z.numpy(), np.float32(self.step), self.usual, codes.numpy(), norm.numpy(), left.numpy())
        return Rows(codes, left, norm)

    def columns(self, which: Tensor) -> Columns:
        bias = torch.round(self._offset[which] / self.unit).clamp_(-FARTHEST, FARTHEST)
        codes = padded(self._codes[which])
        factor = amx.packed(codes[None]) if self.tiled else codes.T
        return Columns(factor, padded(bias, -2.0 * FARTHEST).to(torch.int32), which)

    def _product(self, rows: Tensor, columns: Columns) -> Tensor:
        product = self._room("product", rows, columns, torch.int32)
        if not self.tiled:
            return torch._int_mm(rows, columns.factor, out=product)
        amx.product_int8(rows.numpy(), columns.factor.numpy(), product.numpy())
        return product


class LeadingScreen(Screen):
    """Another screen, of bounds by leading directions; the rows that are like others are always the same ones.

    Parameters
    ----------
    scores : Scores
    like : Tensor (n, d)
    leading : Leading
    kind : type of Screen
    """

    def __init__(self, scores: Scores, like: Tensor, leading: Leading, kind: type[Screen]):
        super().__init__(scores, like)
        self.leading = leading
        theta = Scores(leading(scores.prototypes), scores.bias, scores.temperature)
        self._inner = kind(theta, leading(like))
        of_left, of_norm, absolute = self._inner.error
        self.unit, self.tiled = self._inner.unit, self._inner.tiled
        self.error = (of_left, of_norm + (2 * leading.error + leading.error**2) * self.norm * SLACK, absolute)

    def rows(self, z: Tensor) -> Rows:
        assert self.leading is not None
        return self._inner.rows(self.leading.of_tile(z))

    def columns(self, which: Tensor) -> Columns:
        return self._inner.columns(which)

    def _product(self, rows: Tensor, columns: Columns) -> Tensor:
        return self._inner._product(rows, columns)


SCREENS: dict[str, type[Screen]] = {"fp32": FullScreen, "bf16": BFloat16Screen, "int8": Int8Screen}


@functools.cache
def multiplies_int8() -> bool:
    """Whether 8-bit products are exact here: without the instructions for them, some add up pairs in 16 bits."""
    if not hasattr(torch, "_int_mm"):
        return False
    n, d, k = 256, 256, 512
    high = torch.full((n, d), 127, dtype=torch.int8)
    signs = torch.where(torch.arange(k) % 2 == 0, 127, -127).to(torch.int8)
    product = torch._int_mm(high, signs[:, None].expand(k, d).contiguous().T)
    return torch.equal(product, (127 * d * signs.to(torch.int32)).expand(n, k))


def padded(x: Tensor, value: float = 0.0) -> Tensor:
    """`x` (m, ...) with as many more rows as make a multiple of `BLOCK`."""
    return torch.nn.functional.pad(x, (0, 0) * (x.dim() - 1) + (0, -len(x) % BLOCK), value=value)


def _step_of(z: Tensor) -> tuple[float, float]:
    """The step of 8-bit rows that leaves the least of z, and the median length of that."""
    largest, found = max(float(z.abs().max()), 1e-30), []
    codes, norm, left = torch.empty(z.shape, dtype=torch.int8), *torch.empty(2, len(z))
    for part in PARTS:
        step = np.float32(largest * part / 127)
        quantise(z.contiguous().numpy(), step, 0.0, codes.numpy(), norm.numpy(), left.numpy())
        found.append((float(left.square().sum()), float(step), float(left.median())))
    return min(found)[1:]


def longest(scores: Scores) -> float:
    """A bound of the prototypes' lengths."""
    return float(scores.lengths.max()) * SLACK + LOST * scores.prototypes.shape[1] ** 0.5


def rounding(scores: Scores) -> tuple[float, float, float]:
    """How far scores may be from minus half the costs, but for a number of the row.

    At most the first times the row's norm, and the second. The third times the norm's square is twice what costs may
    lose themselves: beyond that they are in the order of the true ones.
    """
    theta, costs = scores.prototypes, scores.costs
    unit, dim, length = torch.finfo(theta.dtype).eps, theta.shape[1], longest(scores)
    # centres are rounded at their distance from the data's zero, and a bias is a difference of larger numbers
    centre = 2.0**-52 * SLACK * float(torch.linalg.vector_norm(costs.shift)) if costs.shift.numel() else 0.0
    bias = 2 * unit * float(scores.bias.abs().max()) + (unit * length**2 if scores.exact is not None else 0.0)
    of_norm = unit * (dim + 3) * length * SLACK + centre
    own = 2.0**-52 * (dim + 4)
    return of_norm, bias + centre * length + own * length**2 + 1e-37, own
