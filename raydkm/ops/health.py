"""The health of prototypes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raydkm.ops.kernels import count_close

#: Prototypes nearer to each other than this part of the scale are the same; a relocated one is laid farther off.
SAME = 2.0**-12

#: Prototypes that are compared at a time.
AT_ONCE = 1024


def duplicates(prototypes: Tensor, scale: float) -> int:
    """How many of the prototypes (K, d) lie within `SAME` times `scale` of another one before them.

    They are compared with their neighbours along one direction only, along which those of a kind lie together; so in a
    crowd some may go uncounted.
    """
    direction = torch.cos(torch.arange(prototypes.shape[1], dtype=prototypes.dtype))
    order = torch.argsort(prototypes @ direction, stable=True)
    return int(count_close(prototypes.contiguous().numpy(), order.numpy(), (SAME * scale) ** 2))


def change(before: Tensor, after: Tensor) -> float:
    """The Euclidean norm of the change of all prototypes (K, d)."""
    parts = zip(after.split(AT_ONCE), before.split(AT_ONCE), strict=True)
    return math.hypot(*(float(torch.linalg.vector_norm(new - old)) for new, old in parts))
