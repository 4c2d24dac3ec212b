"""Upper bounds of scores from few coordinates: those in which the rows vary most, and the length of what is left.

For any V (d, h) with V V' <= I, the matrix M = I - V V' is positive semi-definite, and by Cauchy and Schwarz

    z . theta = (V'z) . (V'theta) + z'M theta <= (V'z) . (V'theta) + sqrt(z'Mz) sqrt(theta'M theta),

which is a product of vectors of h + 1 coordinates. With V the leading eigenvectors of the rows' covariance little is
left over, so that a quarter of a product or less tells nearly all prototypes from the best one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from raydkm.ops.kernels import leave_over
from raydkm.ops.workspace import Workspace

#: So much is V shortened, that its rounding to float32 leaves V V' <= I; d is far below 10^4 squared.
SHORTER = 1 - 1e-5

#: Rows that directions are found from.
SAMPLE_ROWS = 4096

#: Of these, at most, that are kept to choose a screen by.
TRIED_ROWS = 128

#: Directions of a smaller part of the largest mean square are left out where rounding might make them less orthogonal
#: than `SHORTER` has room for: their products are off by 1e-16 divided by this.
LEAST_SQUARE = 1e-8

#: With fewer dimensions than this there is little to gain.
LEAST_DIMENSIONS = 128

#: Scores of a step for each dimension squared, from which a step takes about as long as finding the directions once.
LEAST_SCORES = 350


def worthwhile(rows: int, clusters: int, dim: int) -> bool:
    """Whether steps may gain as much by leading directions as finding them takes."""
    return dim >= LEAST_DIMENSIONS and rows * clusters >= LEAST_SCORES * dim**2


class Leading:
    """The first h of given directions, and what is left of vectors beside them.

    Parameters
    ----------
    basis : Tensor (d, h) of float64
        Orthonormal columns.
    """

    def __init__(self, basis: Tensor):
        dim, width = basis.shape
        self._basis = (basis @ cosines(width) * SHORTER).to(torch.float32)
        #: ||computed V'z - V'z|| is at most so much of ||z||, by the bound of sums of d products.
        self.error = (dim + 2) * 2.0**-24 * width**0.5 * 1.01
        self._hidden = 2 * self.error + 2 * (dim + width) * 2.0**-24  # of ||z||^2, in its difference to ||V'z||^2
        self._buffer = Workspace()

    def __call__(self, z: Tensor) -> Tensor:
        """V'z and a bound of sqrt(z'Mz) (n, h + 1) of z (n, d) float32."""
        width = self._basis.shape[1]
        return self._write(z, z.new_empty(len(z), width), z.new_empty(len(z), width + 1))

    def of_tile(self, z: Tensor) -> Tensor:
        """The same, overwritten by the thread's next call."""
        width = self._basis.shape[1]
        return self._write(z, self._buffer("head", (len(z), width), z), self._buffer("leading", (len(z), width + 1), z))

    def _write(self, z: Tensor, head: Tensor, found: Tensor) -> Tensor:
        torch.mm(z, self._basis, out=head)
        leave_over(z.numpy(), head.numpy(), self._hidden, found.numpy())
        return found


def cosines(size: int) -> Tensor:
    """The orthogonal matrix of a discrete cosine transform: it makes coordinates alike, which 8 bits hold best."""
    angles = torch.arange(size, dtype=torch.float64)[:, None] * (torch.arange(size, dtype=torch.float64) + 0.5)
    matrix = torch.cos(angles * (math.pi / size)).mul_((2 / size) ** 0.5)
    matrix[0] /= 2**0.5
    return matrix


class Directions:
    """Orthonormal directions of rows, those of the largest mean square first, and how many of them a step looks at.

    From how many candidates they leave of some rows follows what `choose` takes. Prototypes change little from step to
    step: it is asked in the first, second, fourth ... only.

    Parameters
    ----------
    basis : Tensor (d, m) of float64
        Up to d of them.
    rows : Tensor (m, d) of float32
        Some of the rows.
    """

    def __init__(self, basis: Tensor, rows: Tensor):
        self.rows = rows
        self._basis = basis
        self._first: dict[int, Leading] = {}
        self._asked = 0
        #: What was taken last.
        self.current: Leading | None = None

    @classmethod
    def of(cls, z: Tensor) -> Directions:
        """Those of rows z (n, d), by the smaller one of their two products."""
        exact = z.double()
        rows = z[:: -(-len(z) // TRIED_ROWS)].float().clone()
        if len(z) >= z.shape[1]:
            return cls(torch.linalg.eigh(exact.T @ exact).eigenvectors.flip(1), rows)
        squares, vectors = torch.linalg.eigh(exact @ exact.T)
        apart = squares > LEAST_SQUARE * squares[-1]
        return cls((exact.T @ vectors[:, apart] / squares[apart].sqrt()).flip(1), rows)

    def first(self, width: int) -> Leading:
        """So many of them, with zeros in place of those there are not; always the same object."""
        if width not in self._first:
            basis = self._basis[:, :width]
            self._first[width] = Leading(torch.nn.functional.pad(basis, (0, width - basis.shape[1])))
        return self._first[width]

    def chosen(self, choose: Callable[[Directions], Leading | None]) -> Leading | None:
        """What `choose` takes, or took before."""
        self._asked += 1
        if self._asked & (self._asked - 1) == 0:
            self.current = choose(self)
        return self.current

    @property
    def steps(self) -> int:
        """For which what is chosen now is taken."""
        return max(1, self._asked)


def widths(dim: int, line: int) -> list[int]:
    """How many directions are worth a try, from few to many: with what is left over they fill lines."""
    return sorted({width for part in (16, 12, 8, 6, 4, 3, 2) if (width := dim // part // line * line - 1) > 0})
