"""Rows of the step benchmark: a decaying spectrum around many centres, or real embeddings tiled with noise."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from raydkm.data.parquet import ParquetTable

Rows = NDArray[np.float32]

#: Part of the covariance of `decaying` that lies between its centres; the rest lies around them.
BETWEEN = 0.5

#: Rows that are generated at a time.
BLOCK = 16_384


@dataclass(frozen=True)
class Shape:
    """Rows, dimensions and clusters."""

    rows: int
    dim: int
    clusters: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read ROWSxDIMxCLUSTERS; raise `ValueError` for anything else."""
        parts = text.split("x")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise ValueError(f"{text!r} is not ROWSxDIMxCLUSTERS")
        rows, dim, clusters = map(int, parts)
        if clusters > rows:
            raise ValueError(f"{text!r}: more clusters than rows")
        return cls(rows, dim, clusters)

    def __str__(self) -> str:
        return f"{self.rows:,} × {self.dim}, K = {self.clusters:,}"

    def work(self, *, soft: bool) -> float:
        """Floating-point operations that count for a step: 2NKd of the scores, as many again of a soft step's sums."""
        return (4.0 if soft else 2.0) * self.rows * self.clusters * self.dim


def decaying(rows: int, dim: int, seed: int = 0) -> Rows:
    """Rows around 2 √rows centres; the eigenvalues of their covariance fall as 1/j, in a random orthogonal basis."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    scaled = ((1 / np.sqrt(np.arange(1, dim + 1)))[:, None] * basis.T).astype(np.float32)
    centres = rng.standard_normal((2 * isqrt(rows), dim), dtype=np.float32) @ scaled * np.float32(BETWEEN**0.5)
    x = np.empty((rows, dim), np.float32)
    for start in range(0, rows, BLOCK):
        part = x[start : start + BLOCK]
        np.matmul(rng.standard_normal(part.shape, dtype=np.float32), scaled, out=part)
        part *= np.float32((1 - BETWEEN) ** 0.5)
        part += centres[rng.integers(len(centres), size=len(part))]
    return x


def embeddings(path: str, column: str, rows: int, dim: int, noise: float, seed: int = 0) -> Rows:
    """Vectors of a Parquet file, repeated up to `rows`, of unit length.

    Parameters
    ----------
    path, column : str
    rows, dim : int
        Where `dim` is not that of the file, its vectors go through a random projection.
    noise : float
        Length of the Gaussian noise that is added to each row, beside that of the row; 0 would repeat rows exactly.
    seed : int

    Raises
    ------
    InputError
        If the file or the column is not as it should be.
    """
    found = np.concatenate([block.rows for block in ParquetTable.open([path], column).read()]).astype(np.float32)
    rng = np.random.default_rng(seed)
    if found.shape[1] != dim:
        found = found @ rng.standard_normal((found.shape[1], dim), dtype=np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    x = np.empty((rows, dim), np.float32)
    for start in range(0, rows, BLOCK):
        part = x[start : start + BLOCK]
        part[:] = found[np.arange(start, start + len(part)) % len(found)]
        part += np.float32(noise / dim**0.5) * rng.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return x


def initial(x: Rows, clusters: int, seed: int = 0) -> Rows:
    """Initial prototypes (K, d): rows at random."""
    return x[np.random.default_rng(seed).choice(len(x), clusters, replace=False)]
