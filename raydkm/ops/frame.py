"""The frame: the map from stored rows to the coordinates that all algorithms compute in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from raydkm.ops.kernels import normalise

#: A mean of unit vectors shorter than this is zero but for rounding.
NO_LENGTH = 2.0**-40


@dataclass(frozen=True)
class Shifted:
    """Rows z = x - shift, for loops that subtract as they read.

    Parameters
    ----------
    x : Tensor (n, d)
    shift : Tensor (d,), optional
        Of the dtype of `x`, where x is not z already.
    into : Tensor (n, d), optional
        What z is written to, should it be asked for.
    """

    x: Tensor
    shift: Tensor | None = None
    into: Tensor | None = None

    def less(self) -> tuple[Tensor, Tensor]:
        """x and the shift, zeros where there is none."""
        return self.x, self.x.new_zeros(self.x.shape[1]) if self.shift is None else self.shift

    def split(self, rows: int) -> Iterator[Shifted]:
        """So many at a time, in the same memory where z is asked for."""
        for x in self.x.split(rows):
            yield Shifted(x, self.shift, None if self.into is None else self.into[: len(x)])

    @cached_property
    def z(self) -> Tensor:
        return self.x if self.shift is None else torch.sub(self.x, self.shift, out=self.into)


@dataclass(frozen=True)
class Frame:
    """z = normalise(x) - shift.

    Distances do not depend on the shift, rounding errors do: with an origin amid the data, coordinates are as
    small as they can be, and data far from zero lose nothing in float32.

    Parameters
    ----------
    metric : {"euclidean", "cosine"}
        With cosine, rows are scaled to unit length.
    shift : Tensor (d,) of float64, holding float32 values
        The origin, in normalised coordinates.
    dtype : torch.dtype
        Of z: float32, or float64 for reference computations.
    """

    metric: str
    shift: Tensor
    dtype: torch.dtype = torch.float32

    @classmethod
    def identity(cls, metric: str, dim: int, dtype: torch.dtype = torch.float32) -> Frame:
        return cls(metric, torch.zeros(dim, dtype=torch.float64), dtype)

    def normalise(self, x: Tensor) -> Tensor:
        """Rows as float32 (float64 where `x` is), of unit length if the metric is cosine."""
        x = x.to(torch.float64 if x.dtype == torch.float64 or self.dtype == torch.float64 else torch.float32)
        if self.metric == "cosine" and x.dtype == torch.float32 and x.device.type == "cpu":
            return self._on_sphere_less(x, torch.zeros(x.shape[1]), torch.empty(x.shape))
        if self.metric == "cosine":
            norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
            x = x / norm.clamp(min=torch.finfo(x.dtype).tiny)  # features may be zero, which rows may not
        return x

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(n, d) of any numeric dtype → z (n, d) of `self.dtype`, in `out` if that is given."""
        native = self.dtype == torch.float32 and x.dtype != torch.float64 and x.device.type == "cpu"
        if native and (out is not None or self.metric == "cosine"):  # and nothing is held between
            out = torch.empty(x.shape) if out is None else out
            x = x if x.dtype == torch.float32 else out.copy_(x)
            if self.metric == "cosine":
                return self._on_sphere_less(x, self._single, out)
            return torch.sub(x, self._single, out=out)
        normal = self.normalise(x)
        if out is None or normal.dtype != self.dtype:
            shift = self._shift_of(normal)
            z = (normal.sub(shift) if normal is x else normal.sub_(shift)).to(self.dtype)
            return z if out is None else out.copy_(z)
        return torch.sub(normal, self._shift_of(normal), out=out)

    def shifted(self, x: Tensor, out: Tensor) -> Shifted:
        """(n, d) of any numeric dtype → z, computed as late as may be, and in `out`."""
        if self.metric == "euclidean" and self.dtype == x.dtype == torch.float32 and x.device.type == "cpu":
            _check_columns(x, self._single)
            return Shifted(x.contiguous(), self._single, out)
        return Shifted(self(x, out))

    @staticmethod
    def _on_sphere_less(x: Tensor, shift: Tensor, out: Tensor) -> Tensor:
        _check_columns(x, shift)
        normalise(x.contiguous().numpy(), shift.numpy(), out.numpy())
        return out

    def _shift_of(self, x: Tensor) -> Tensor:
        return self._single if x.dtype == torch.float32 and x.device.type == "cpu" else self.shift.to(x)

    @cached_property
    def _single(self) -> Tensor:
        return self.shift.float()

    def on_sphere(self, z: Tensor, otherwise: Tensor) -> Tensor:
        """Points (K, d) moved along their rays from the data's origin to unit length; all in the frame.

        A point at the data's origin has no direction, and the one of `otherwise` (K, d) is taken in its place.
        """
        shift = self.shift.to(z)
        x = z + shift
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        x = torch.where(length > NO_LENGTH, x, otherwise + shift)
        return x / torch.linalg.vector_norm(x, dim=1, keepdim=True) - shift

    def centred_at(self, origin: Tensor) -> Frame:
        return replace(self, shift=origin.to(torch.float32).to(torch.float64))


def _check_columns(x: Tensor, shift: Tensor) -> None:
    """For compiled loops, which do not look."""
    if x.shape[1] != len(shift):
        raise ValueError(f"rows of {x.shape[1]} columns in a frame of {len(shift)}")
