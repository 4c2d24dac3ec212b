"""Temperatures: the collapse temperature T_c, and what "auto" means."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Of the distance family, as a fraction of T_c.
AUTO_FRACTION = 0.1

#: Of the logistic family, as a fraction of 2 lambda_max of the covariance within the clusters that it begins at: one of
#: T_c would tell nothing of clusters that lie far apart. Never less than some part of what the distance family has.
AUTO_FRACTION_WITHIN = 0.5
LEAST_FRACTION = 1e-3


def collapse_temperature(covariance: Tensor) -> float:
    """T_c = 2 lambda_max(Cov z): with all prototypes at the global mean, soft k-means stays there iff T > T_c.

    Parameters
    ----------
    covariance : Tensor (d, d) of float64
    """
    return 2.0 * float(torch.linalg.eigvalsh(covariance.cpu())[-1])


def spherical_temperature(critical: float, clusters: int) -> float:
    """T of spherical soft k-means, given T_c of its rows: of d equal variances 2 / T = 0.77 sqrt(d K).

    A row's inner products with prototypes of other directions differ by about 1 / sqrt(d). The factor was found on
    sentence embeddings.
    """
    return 1.3 * math.sqrt(2 * critical / clusters)
