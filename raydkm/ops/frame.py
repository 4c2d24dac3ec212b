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
class RowTile:
    """A tile of rows: as they are stored, and in the coordinates of a frame.

    Parameters
    ----------
    x : Tensor (n, d)
        Stored rows, contiguous, of float32 or float64.
    frame : Frame
    into : Tensor (n, d), optional
        Memory for `z`.
    """

    x: Tensor
    frame: Frame
    into: Tensor | None = None

    @classmethod
    def at_origin(cls, z: Tensor) -> RowTile:
        """Rows (n, d) that are in their frame's coordinates already."""
        return cls(z.contiguous(), Frame.identity("euclidean", z.shape[1], z.dtype))

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def z(self) -> Tensor:
        """Rows (n, d) in the frame, of the frame's dtype."""
        return self.frame(self.x, self.into)

    @property
    def read_as_stored(self) -> bool:
        """Whether z is the difference x - shift in float32, which compiled loops take as they read."""
        frame = self.frame
        cpu = self.x.device.type == "cpu"
        return cpu and frame.metric == "euclidean" and frame.dtype == self.x.dtype == torch.float32 and frame.is_single

    def difference(self) -> tuple[Tensor, Tensor]:
        """Float32 numbers (n, d) and (d,) whose difference is z: the stored rows and the shift, or z and zeros."""
        if self.read_as_stored:
            return self.x, self.frame.single
        return self.z, self.z.new_zeros(self.z.shape[1])

    @cached_property
    def addends(self) -> tuple[Tensor, Tensor | None]:
        """What sums of rows add up: numbers (n, d) and, if it is to be subtracted in float64, the shift (d,).

        Of cosine rows they are as precise as the stored rows are.
        """
        if self.frame.metric == "euclidean":
            return self.x, self.frame.shift.to(self.x.device)
        if self.x.dtype == torch.float64:
            return replace(self.frame, dtype=torch.float64)(self.x), None
        return self.z, None

    def double(self) -> Tensor:
        """The addends (n, d) in float64."""
        numbers, shift = self.addends
        return numbers.double() if shift is None else numbers.double() - shift

    def split(self, rows: int) -> Iterator[RowTile]:
        """Tiles of up to `rows` rows, which share the memory for `z`."""
        for x in self.x.split(rows):
            yield replace(self, x=x, into=None if self.into is None else self.into[: len(x)])

    def without(self, which: Tensor) -> RowTile:
        """The same with those rows that a mask (n,) names at the frame's origin."""
        x = self.x.clone()
        x[which] = self.frame.shift.to(x)
        return RowTile(x, self.frame, self.into)

    def some(self, index: Tensor) -> RowTile:
        """Those of the rows whose positions (m,) are given."""
        return RowTile(self.x[index], self.frame)


@dataclass(frozen=True)
class Frame:
    """z = normalise(x) - shift.

    Distances do not depend on the shift, rounding errors do: with an origin amid the data, coordinates are as
    small as they can be, and data far from zero lose nothing in float32.

    Parameters
    ----------
    metric : {"euclidean", "cosine"}
        With cosine, rows are scaled to unit length.
    shift : Tensor (d,) of float64
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

    @property
    def unit(self) -> bool:
        """Whether rows are scaled to unit length."""
        return self.metric == "cosine"

    def normalise(self, x: Tensor) -> Tensor:
        """Rows as float32 (float64 where `x` is), of unit length if the metric is cosine."""
        x = x.to(torch.float64 if x.dtype == torch.float64 or self.dtype == torch.float64 else torch.float32)
        if self.unit and x.dtype == torch.float32 and x.device.type == "cpu":
            return _normalised(x, torch.zeros(x.shape[1], dtype=torch.float64), torch.empty(x.shape))
        if self.unit:
            norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
            x = x / norm.clamp(min=torch.finfo(x.dtype).tiny)  # features may be zero, which rows may not
        return x

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(n, d) of any numeric dtype → z (n, d) of `self.dtype`, in `out` if that is given."""
        native = self.dtype == torch.float32 and x.dtype != torch.float64 and x.device.type == "cpu"
        if native and (out is not None or self.unit) and (self.unit or self.is_single):  # and nothing is held between
            out = torch.empty(x.shape) if out is None else out
            x = x if x.dtype == torch.float32 else out.copy_(x)
            return _normalised(x, self.shift, out) if self.unit else torch.sub(x, self.single, out=out)
        normal = self.normalise(x.double() if self.unit and x.device.type != "cpu" else x)
        if normal.dtype == torch.float32 and self.is_single:
            z = torch.sub(normal, self.single.to(x.device))
        else:
            z = (normal.double() - self.shift.to(x.device)).to(self.dtype)
        return z.to(self.dtype) if out is None else out.copy_(z)

    def tile(self, x: Tensor, out: Tensor | None = None) -> RowTile:
        """Rows (n, d) of any numeric dtype as a tile, whose z is computed when it is asked for, in `out`."""
        _check_columns(x, self.shift)
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        return RowTile(x.contiguous(), self, out)

    @cached_property
    def is_single(self) -> bool:
        """Whether float32 holds the shift."""
        return torch.equal(self.single.double(), self.shift)

    @cached_property
    def single(self) -> Tensor:
        """The shift in float32."""
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

    def centred_at(self, origin: Tensor, rows: torch.dtype = torch.float32) -> Frame:
        """The same at another origin (d,), rounded to float32 unless rows of this dtype are finer than that."""
        exact = origin.to(torch.float64)
        return replace(self, shift=exact if rows == torch.float64 else exact.float().double())


def _normalised(x: Tensor, shift: Tensor, out: Tensor) -> Tensor:
    _check_columns(x, shift)
    normalise(x.contiguous().numpy(), shift.numpy(), out.numpy())
    return out


def _check_columns(x: Tensor, shift: Tensor) -> None:
    """For compiled loops, which do not look."""
    if x.shape[1] != len(shift):
        raise ValueError(f"rows of {x.shape[1]} columns in a frame of {len(shift)}")
