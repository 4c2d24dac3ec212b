"""The health of prototypes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raydkm.ops.kernels import count_close

#: Prototypes nearer to each other than this part of the data's spread are the same, where nothing else says so.
SAME = 2.0**-12

#: Soft prototypes whose logits differ by less than this, for a row one standard deviation away, are the same.
SAME_LOGITS = 2.0**-4

#: Prototypes that are compared at a time.
AT_ONCE = 1024


def duplicates(prototypes: Tensor, within: float) -> int:
    """How many of the prototypes (K, d) lie within this distance of another one before them.

    They are compared with their neighbours along one direction only, along which those of a kind lie together; so in a
    crowd some may go uncounted.
    """
    direction = torch.cos(torch.arange(prototypes.shape[1], dtype=prototypes.dtype))
    order = torch.argsort(prototypes @ direction, stable=True)
    return int(count_close(prototypes.contiguous().numpy(), order.numpy(), within**2))


def same_at(temperature: float, variance: float) -> float:
    """The distance within which the posteriors of two prototypes are the same; 0 of hard ones, T = 0.

    For a row one standard deviation away in their direction, logits of prototypes at a distance D differ by about
    2 D sqrt(variance) / T. Above T_c prototypes approach each other geometrically, and a fit ends before they coincide.
    """
    return SAME_LOGITS * temperature / (2 * math.sqrt(variance)) if variance > 0 else 0.0


def change(before: Tensor, after: Tensor) -> float:
    """The Euclidean norm of the change of all prototypes (K, d)."""
    parts = zip(after.split(AT_ONCE), before.split(AT_ONCE), strict=True)
    return math.hypot(*(float(torch.linalg.vector_norm(new - old)) for new, old in parts))
