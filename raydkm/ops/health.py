"""The health of prototypes."""

from __future__ import annotations

import torch
from torch import Tensor

#: Prototypes nearer to each other than this part of the scale are the same; a relocated one is laid farther off.
SAME = 2.0**-12


def duplicates(prototypes: Tensor, scale: float) -> int:
    """How many of the prototypes (K, d) lie within `SAME` times `scale` of another one before them.

    They are compared with their neighbours along one direction only, along which those of a kind lie together; so in a
    crowd some may go uncounted.
    """
    direction = torch.cos(torch.arange(prototypes.shape[1], dtype=prototypes.dtype))
    ordered = prototypes[torch.argsort(prototypes @ direction, stable=True)]
    gaps = torch.linalg.vector_norm(ordered[1:] - ordered[:-1], dim=1)
    return int((gaps <= SAME * scale).sum())
