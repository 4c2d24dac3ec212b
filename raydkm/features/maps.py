"""Maps from rows to features, without training by gradients: what each computes, and how it is kept.

A map is a few tensors. It computes in float64 and rounds its result to float32 once, so that a row's features depend
neither on the rows beside it (matrix products add up in an order that depends on their number) nor, but for rare last
bits, on the device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from raydkm.errors import ConfigError, InputError, ModelError
from raydkm.features.stages import parse

_Map = TypeVar("_Map", bound="Map")

#: Rows that are mapped at a time.
TILE = 1024


@dataclass(frozen=True)
class Map(ABC):
    """A function of single rows, x (n, input_dim) of any numeric dtype → (n, dim) of float32.

    Fields of subclasses are tensors of float64.
    """

    #: Of each field, a letter for each of its axes: d is `input_dim`, D is `dim`.
    AXES: ClassVar[dict[str, str]]

    @property
    def input_dim(self) -> int:
        return self._size("d")

    @property
    def dim(self) -> int:
        return self._size("D")

    def __call__(self, x: Tensor) -> Tensor:
        """Map rows, on the device that they are on.

        Raises
        ------
        InputError
            If they are of another dimension.
        """
        if x.shape[1] != self.input_dim:
            raise InputError(f"vectors of {x.shape[1]} dimensions, where {self.input_dim} are mapped to {self.dim}")
        here = self.to(x.device)
        mapped = torch.empty((len(x), self.dim), dtype=torch.float32, device=x.device)
        for into, rows in zip(mapped.split(TILE), x.split(TILE), strict=True):
            into.copy_(here._of(rows.to(torch.float64, copy=True)))
        return mapped

    @abstractmethod
    def _of(self, x: Tensor) -> Tensor:
        """(n, input_dim), which may be overwritten, → (n, dim), both of float64."""

    def tensors(self) -> dict[str, Tensor]:
        """What `map_of` makes the same map of."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self: _Map, device: torch.device) -> _Map:
        if all(tensor.device == device for tensor in self.tensors().values()):
            return self
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def fault(self) -> str | None:
        """What makes the values impossible, if anything does."""
        return None

    def _size(self, axis: str) -> int:
        """The size of an axis; by default what goes in comes out."""
        places = ((name, axes.index(axis)) for name, axes in self.AXES.items() if axis in axes)
        name, place = next(places, (None, 0))
        return self._size("d") if name is None else getattr(self, name).shape[place]


@dataclass(frozen=True)
class Scaled(Map):
    """(x − shift) · scale, column by column."""

    AXES: ClassVar = {"shift": "d", "scale": "d"}
    shift: Tensor
    scale: Tensor

    def _of(self, x: Tensor) -> Tensor:
        return x.sub_(self.shift).mul_(self.scale)


@dataclass(frozen=True)
class Projected(Map):
    """(x − shift) · matrix."""

    AXES: ClassVar = {"shift": "d", "matrix": "dD"}
    shift: Tensor
    matrix: Tensor

    def _of(self, x: Tensor) -> Tensor:
        return x.sub_(self.shift) @ self.matrix


@dataclass(frozen=True)
class FourierFeatures(Map):
    """√(2/D) cos(x · frequencies + phases), whose inner products are near a kernel (Rahimi and Recht 2007)."""

    AXES: ClassVar = {"frequencies": "dD", "phases": "D"}
    frequencies: Tensor
    phases: Tensor

    def _of(self, x: Tensor) -> Tensor:
        return torch.addmm(self.phases, x, self.frequencies).cos_().mul_(math.sqrt(2 / len(self.phases)))


@dataclass(frozen=True)
class KernelToLandmarks(Map):
    """k(x, landmarks) · root, whose inner products are near the Gaussian kernel k (Williams and Seeger 2001).

    Parameters
    ----------
    landmarks : Tensor (D, d)
    root : Tensor (D, D)
        The inverse square root of k(landmarks, landmarks).
    width : Tensor ()
        σ of `gaussian`.
    """

    AXES: ClassVar = {"landmarks": "Dd", "root": "DD", "width": ""}
    landmarks: Tensor
    root: Tensor
    width: Tensor

    def _of(self, x: Tensor) -> Tensor:
        return gaussian(x, self.landmarks, float(self.width)) @ self.root

    def fault(self) -> str | None:
        return None if self.width > 0 else f"width {float(self.width):g}"


@dataclass(frozen=True)
class Unit(Map):
    """x / ‖x‖; zero vectors, which have no direction, stay as they are.

    Parameters
    ----------
    columns : Tensor ()
        Their number.
    """

    AXES: ClassVar = {"columns": ""}
    columns: Tensor

    @property
    def input_dim(self) -> int:
        return int(self.columns)

    @property
    def dim(self) -> int:
        return self.input_dim

    def _of(self, x: Tensor) -> Tensor:
        return x.div_(torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny))

    def fault(self) -> str | None:
        return None if self.columns >= 1 and self.columns == self.input_dim else f"{float(self.columns):g} columns"


KINDS: dict[str, type[Map]] = {
    "center": Scaled,
    "standardize": Scaled,
    "unit": Unit,
    "whiten": Projected,
    "pca": Projected,
    "rff": FourierFeatures,
    "nystrom": KernelToLandmarks,
    "lda": Projected,
}


def map_of(stage: str, tensors: Mapping[str, Tensor]) -> Map:
    """The map of a stage, as ``pca:64``, whose `Map.tensors` are these.

    Raises
    ------
    ModelError
        If the stage is not one that is kept, or a tensor is missing, unknown, of another shape or dtype, or not finite.
    """
    try:
        [read] = parse(stage)
        kind = KINDS[read.name]
    except (ConfigError, KeyError, ValueError):
        raise ModelError(f"map: {stage!r} is none of its stages") from None
    if set(tensors) != set(kind.AXES):
        raise ModelError(f"map {stage}: has {', '.join(sorted(tensors))}; expected {', '.join(kind.AXES)}")
    sizes: dict[str, int] = {} if read.number is None else {"D": read.number}
    if read.name == "whiten":
        sizes["D"] = len(tensors["matrix"])
    for name, axes in kind.AXES.items():
        tensor = tensors[name]
        fits = tensor.dim() == len(axes) and tensor.dtype == torch.float64 and 0 not in tensor.shape
        if not fits or any(sizes.setdefault(axis, n) != n for axis, n in zip(axes, tensor.shape, strict=True)):
            raise ModelError(
                f"map {stage}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, which does not fit"
            )
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"map {stage}: {name} holds NaN or infinite values")
    made = kind(**tensors)
    if fault := made.fault():
        raise ModelError(f"map {stage}: {fault}")
    return made


def chain(maps: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """One map after the other; rows as they are if there is none."""
    return lambda x: reduce(lambda rows, map_: map_(rows), maps, x)


def gaussian(x: Tensor, y: Tensor, width: float) -> Tensor:
    """k(x_i, y_j) = exp(−‖x_i − y_j‖² / (2 width²)) of x (n, d) and y (m, d) → (n, m)."""
    origin = y.mean(0)  # far from zero, the difference of squares would lose digits
    x, y = x - origin, y - origin
    squares = torch.addmm(y.square().sum(1), x, y.T, alpha=-2).add_(x.square().sum(1, keepdim=True)).clamp_(min=0)
    return squares.mul_(-0.5 / width**2).exp_()
