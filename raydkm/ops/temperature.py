"""Temperatures: the collapse temperature T_c"""

from __future__ import annotations

import torch
from torch import Tensor

#: What temperature "auto" means, as a fraction of T_c.
AUTO_FRACTION = 0.1


def collapse_temperature(covariance: Tensor) -> float:
    """T_c = 2 lambda_max(Cov z): with all prototypes at the global mean, soft k-means stays there iff T > T_c.

    Parameters
    ----------
    covariance : Tensor (d, d) of float64
    """
    return 2.0 * float(torch.linalg.eigvalsh(covariance.cpu())[-1])
