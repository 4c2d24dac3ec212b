"""Temperatures: the collapse temperature T_c, and what "auto" means."""

from __future__ import annotations

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
