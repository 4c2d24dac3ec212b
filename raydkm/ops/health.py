"""The health of prototypes."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from raydkm.ops.keys import content_hashes


def duplicates(prototypes: Tensor) -> int:
    """How many of the prototypes (K, d) equal another one before them, as float32."""
    rounded = prototypes.float().numpy() + np.float32(0)  # of two zeros one
    return len(rounded) - len(np.unique(content_hashes(rounded, None)))
