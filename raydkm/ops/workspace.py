"""Memory that a thread keeps from tile to tile."""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class Workspace:
    """Uninitialised tensors by name, of each thread its own."""

    def __init__(self) -> None:
        self._own = threading.local()

    def __call__(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of that shape on the device of `like`, and of its dtype unless another is given."""
        kept: Tensor | None = getattr(self._own, name, None)
        if kept is None or len(kept) < shape[0] or kept.shape[1:] != shape[1:]:
            kept = torch.empty(shape, dtype=dtype or like.dtype, device=like.device)
            setattr(self._own, name, kept)
        return kept[: shape[0]]
