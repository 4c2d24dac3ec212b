"""Sums that are exact, and so the same in any order, for any number of workers and threads.

Every addend is rounded once to a fixed-point grid of step 2^-e and added as int64. Integer addition is
associative, hence the total does not depend on who added what when. The exponent follows from a bound of the
total (so that int64 cannot overflow) and of one addend (so that rounding by a floating-point addition is
exact, see `Grid.units`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from raydkm.ops.kernels import add_numbers, add_rounded, add_rows

# Adding 1.5 * 2^52 to a float64 |x| < 2^51 rounds x to the nearest integer and leaves that integer in the
# low bits of the sum: a rounding conversion to int64 in one vectorised addition.
_MAGIC = 1.5 * 2.0**52
_MAGIC_BITS = int.from_bytes(torch.tensor(_MAGIC, dtype=torch.float64).numpy().tobytes(), "little")


class Grid:
    """Multiples of 2**-exponent; for sums of rows, each column may have an exponent of its own.

    Parameters
    ----------
    exponent : int, or Tensor (d,) of int32
    """

    def __init__(self, exponent: int | Tensor):
        self.exponent = exponent = torch.as_tensor(exponent, dtype=torch.int32)
        self.scale = torch.as_tensor(np.ldexp(1.0, exponent.numpy()))  # torch.ldexp need not be exact
        self._step = torch.as_tensor(np.ldexp(1.0, -exponent.numpy()))

    @classmethod
    def holding(cls, total: Tensor | float, addend: Tensor | float) -> Grid:
        """The finest grid for sums bounded by `total` of addends bounded by `addend` (in value; () or (d,))."""

        def bits(bound: Tensor | float) -> Tensor:  # bound < 2**bits
            return torch.frexp(torch.as_tensor(bound, dtype=torch.float64)).exponent

        return cls(torch.minimum(61 - bits(total), 50 - bits(addend)).clamp_(-1000, 1000))

    def units(self, x: Tensor) -> Tensor:
        """Round `x` (any float dtype) to the grid, as int64 multiples of the step, in a new tensor."""
        scaled = x.to(torch.float64, copy=True).mul_(self.scale.to(x.device)).add_(_MAGIC)
        return scaled.view(torch.int64).sub_(_MAGIC_BITS)

    def value(self, units: Tensor) -> Tensor:
        """The float64 value of int64 `units`."""
        return units.to(torch.float64).mul_(self._step.to(units.device))


COUNT = Grid(0)  # whole numbers


@dataclass(frozen=True)
class Field:
    """One named statistic: its shape and the grid its sum lives on."""

    name: str
    shape: tuple[int, ...]
    grid: Grid


class Statistics:
    """A monoid of named exact sums over one flat int64 buffer, which is all that workers exchange.

    Several threads may add to one.

    Parameters
    ----------
    fields : tuple of Field
        What is summed.
    buffer : Tensor of int64, optional
        The sums; zero if not given.
    """

    def __init__(self, fields: tuple[Field, ...], buffer: Tensor | None = None, device: torch.device | None = None):
        self.fields = fields
        size = sum(prod(field.shape) for field in fields)
        self.buffer = torch.zeros(size, dtype=torch.int64, device=device) if buffer is None else buffer
        self._parts: dict[str, tuple[Tensor, Grid]] = {}
        self._lock = Lock()
        start = 0
        for field in fields:
            stop = start + prod(field.shape)
            self._parts[field.name] = (self.buffer[start:stop].view(field.shape), field.grid)
            start = stop

    def copy(self) -> Statistics:
        return Statistics(self.fields, self.buffer.clone())

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.fields, self.buffer + other.buffer)

    def __iadd__(self, other: Statistics) -> Statistics:
        self.buffer += other.buffer
        return self

    def add(self, name: str, x: Tensor | float) -> None:
        """Round `x` to the field's grid and add it in place."""
        part, grid = self._parts[name]
        if isinstance(x, Tensor) and part.dim() and part.device.type == "cpu":
            columns = part.shape[-1]
            into, rows = part.view(-1, columns).numpy(), x.reshape(-1, columns).numpy()
            with self._lock:
                add_rounded(into, rows, grid.scale.expand(columns).numpy())
            return
        units = grid.units(x.to(part.device)) if isinstance(x, Tensor) else int(np.rint(x * float(grid.scale)))
        with self._lock:
            part += units

    def add_rows(
        self,
        name: str,
        index: Tensor,
        x: Tensor,
        before: Tensor | None = None,
        weight: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> None:
        """Round every row of `x` (n, d) or (n,), and add it to row ``index[i]`` of the field (K, d) or (K,).

        From rows (n, d) a shift (d,) may be subtracted before, and they may be multiplied by weights (n,) of float64.
        On the CPU they may be taken from row ``before[i]`` at the same time, where they were added before; -1 for none.
        """
        assert (weight is None and shift is None) or x.dim() == 2
        part, grid = self._parts[name]
        if part.device.type == "cpu":
            whose, rows = index.numpy(), x.contiguous().numpy()
            old = np.full(len(rows), -1, np.int32) if before is None else before.numpy()
            with self._lock:
                if x.dim() == 1:
                    add_numbers(part.numpy(), whose, old, rows, float(grid.scale))
                    return
                scale = grid.scale.expand(x.shape[1]).numpy()
                less = (x.new_zeros(x.shape[1]) if shift is None else shift).numpy()
                weights = np.empty(0) if weight is None else weight.numpy()
                add_rows(part.numpy(), whose, old, rows, less, weights, scale)
            return
        assert before is None
        x = x if shift is None else x - shift
        x = x if weight is None else x * weight.to(x.device)[:, None]
        index, units = index.to(part.device), grid.units(x.to(part.device))
        with self._lock:
            part.index_add_(0, index, units)

    def part(self, name: str) -> Tensor:
        """The int64 multiples of a field's step."""
        return self._parts[name][0]

    def __getitem__(self, name: str) -> Tensor:
        """The value of a sum, float64."""
        part, grid = self._parts[name]
        return grid.value(part)
