"""Features: what stored rows are made into, alike in fit, assign and serve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from raydkm.errors import ModelError
from raydkm.features.encoders import Encoder, rebuild
from raydkm.features.maps import Map, map_of

#: Numbers of the inputs that an encoder takes at a time, so that its layers need no more memory for larger rows.
INPUTS_AT_ONCE = 2**20

#: Numbers of a stored row, at most.
LARGEST_ROW = 2**27


@dataclass(frozen=True)
class Features:
    """Maps, then an encoder.

    Parameters
    ----------
    input_dim : int
        Of stored rows.
    shape : tuple of int, optional
        Of a stored row, where it is not a vector.
    pixels : bool
        Whether rows are 8-bit pixels, which an encoder is given as numbers from 0 to 1.
    stages : tuple of str
        What each map was written as.
    maps : tuple of Map
    encoder : Encoder, optional
        In evaluation mode, of inputs (n, *input_shape).
    """

    input_dim: int
    shape: tuple[int, ...] | None = None
    pixels: bool = False
    stages: tuple[str, ...] = ()
    maps: tuple[Map, ...] = ()
    encoder: Encoder | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        """Features (n, dim) of float32 of rows (n, input_dim) of any numeric dtype."""
        if self.encoder is None:
            return self.mapped(rows)
        at_once = max(1, INPUTS_AT_ONCE // self.input_dim)
        with torch.no_grad():
            return torch.cat([self.encoder(self.inputs(part)) for part in rows.split(at_once)])

    def mapped(self, rows: Tensor) -> Tensor:
        """Rows (n, input_dim) after the maps, of float32."""
        for each in self.maps:
            rows = each(rows)
        return rows.float()

    def inputs(self, rows: Tensor) -> Tensor:
        """What the encoder takes, (n, *input_shape) of float32."""
        x = self.mapped(rows)
        if self.pixels:
            x = x / 255
        x = x.reshape(len(x), *self.input_shape)
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x  # as convolutions are fastest

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of what the encoder takes: that of a row, if the maps leave as many numbers."""
        dim = self.maps[-1].dim if self.maps else self.input_dim
        return self.shape if self.shape is not None and prod(self.shape) == dim else (dim,)

    def to(self, device: torch.device) -> Features:
        if self.encoder is not None:
            self.encoder.to(device)
        return self

    def described(self) -> dict[str, Any]:
        """All but the tensors, as JSON has it."""
        return {
            "input_dim": self.input_dim,
            "shape": self.shape,
            "pixels": self.pixels,
            "maps": list(self.stages),
            "encoder": None if self.encoder is None else self.encoder.description,
        }

    def map_tensors(self) -> dict[str, Tensor]:
        return {f"{i}.{name}": t for i, each in enumerate(self.maps) for name, t in each.tensors().items()}

    def encoder_tensors(self) -> dict[str, Tensor]:
        return {} if self.encoder is None else self.encoder.weights()


def features_of(
    described: dict[str, Any],
    maps: dict[str, Tensor],
    encoder: dict[str, Tensor],
    own: Callable[..., nn.Module] | None = None,
) -> Features:
    """Features as they were described; `own` is the user's function, where the encoder was made by one.

    Raises
    ------
    ModelError
        If a tensor is missing, of another shape or not finite; or if the user's own function is needed and not given.
    """
    stages = described["maps"]
    parts: list[dict[str, Tensor]] = [{} for _ in stages]
    for name, tensor in maps.items():
        number, _, rest = name.partition(".")
        if not number.isdigit() or int(number) >= len(parts):
            raise ModelError(f"a tensor {name} of no map")
        parts[int(number)][rest] = tensor
    made = tuple(map_of(stage, tensors) for stage, tensors in zip(stages, parts, strict=True))
    net, shape, dim = described["encoder"], described["shape"], int(described["input_dim"])
    if not 0 < dim <= LARGEST_ROW:
        raise ModelError(f"rows of {dim} numbers")
    for stage, each in zip(stages, made, strict=True):
        if each.input_dim != dim:
            raise ModelError(f"map {stage} takes {each.input_dim} dimensions, there are {dim}")
        dim = each.dim
    if net is not None and prod(net["shape"]) != dim:
        raise ModelError(f"the encoder takes {prod(net['shape'])} numbers, there are {dim}")
    return Features(
        int(described["input_dim"]),
        None if shape is None else tuple(int(length) for length in shape),
        bool(described["pixels"]),
        tuple(stages),
        made,
        None if net is None else rebuild(net, encoder, own),
    )
