"""Temperatures: the collapse temperature T_c, and what "auto" means."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: Of the distance family, as a fraction of T_c.
AUTO_FRACTION = 0.1

#: Of the logistic family, as a fraction of 2 lambda_max of the covariance within the clusters that it begins at: one of
#: T_c would tell nothing of clusters that lie far apart. Never less than some part of what the distance family has.
AUTO_FRACTION_WITHIN = 0.5
LEAST_FRACTION = 1e-3


#: Dimensions above which the largest eigenvalue is found by Lanczos' method: all of them take d^3 operations.
LANCZOS_DIMENSIONS = 1024

#: Lanczos steps at most, and the residual at which they end, relative to the eigenvalue. Its error is far below that.
LANCZOS_STEPS = 300
LANCZOS_TOLERANCE = 1e-8

#: Rows that are multiplied at a time, in float64.
TILE_ROWS = 1024


def collapse_temperature(covariance: Tensor) -> float:
    """T_c = 2 lambda_max(Cov z): with all prototypes at the global mean, soft k-means stays there iff T > T_c.

    Parameters
    ----------
    covariance : Tensor (d, d) of float64
    """
    covariance = covariance.cpu()
    if len(covariance) <= LANCZOS_DIMENSIONS:
        return 2.0 * float(torch.linalg.eigvalsh(covariance)[-1])
    return 2.0 * largest_eigenvalue(covariance.mv, len(covariance))


def collapse_temperature_of_rows(z: Tensor, weight: Tensor, mean: Tensor) -> float:
    """T_c of rows z (n, d) of weights (n,) and this mean (d,), without a d x d matrix."""

    def covariance_times(vector: Tensor) -> Tensor:
        product = torch.zeros_like(vector)
        for rows, part in zip(z.split(TILE_ROWS), weight.split(TILE_ROWS), strict=True):
            centred = rows.double() - mean
            product += centred.T.mv(part * centred.mv(vector))
        return product / weight.sum()

    return 2.0 * largest_eigenvalue(covariance_times, z.shape[1])


def largest_eigenvalue(times: Callable[[Tensor], Tensor], dim: int) -> float:
    """lambda_max of a symmetric positive semi-definite d x d matrix A, given v -> A v (Lanczos 1950).

    The start is fixed, and each vector is made orthogonal to all before it, twice.
    """
    vector = torch.cos(torch.arange(dim, dtype=torch.float64) ** 2 + 1)
    basis = (vector / torch.linalg.vector_norm(vector))[None]
    tridiagonal = torch.zeros(LANCZOS_STEPS, LANCZOS_STEPS, dtype=torch.float64)
    found = 0.0
    for step in range(min(dim, LANCZOS_STEPS)):
        vector = times(basis[step])
        tridiagonal[step, step] = basis[step].dot(vector)
        for _ in range(2):
            vector = vector - basis.T.mv(basis.mv(vector))
        length = float(torch.linalg.vector_norm(vector))
        values, vectors = torch.linalg.eigh(tridiagonal[: step + 1, : step + 1])
        found = max(0.0, float(values[-1]))
        if (
            length * abs(float(vectors[-1, -1])) <= LANCZOS_TOLERANCE * found
            or length == 0
            or step + 1 == LANCZOS_STEPS
        ):
            break
        tridiagonal[step, step + 1] = tridiagonal[step + 1, step] = length
        basis = torch.cat((basis, vector[None] / length))
    return found


def spherical_temperature(critical: float, clusters: int) -> float:
    """T of spherical soft k-means, given T_c of its rows: of d equal variances 2 / T = 0.77 sqrt(d K).

    A row's inner products with prototypes of other directions differ by about 1 / sqrt(d). The factor was found on
    sentence embeddings.
    """
    return 1.3 * math.sqrt(2 * critical / clusters)
