"""Sums that are exact, and so the same in any order, for any number of workers and threads.

Every addend is rounded once to a fixed-point grid of step 2^-e and added as int64. Integer addition is associative,
hence the total does not depend on who added what when. The exponent follows from a bound of the total, so that int64
cannot overflow.

A sum of addends of very different sizes has more than one grid: what rounding to the first leaves is added on a second,
finer one, and so on, so that rows of 1e-6 count beside one of 1e14.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from raydkm.ops.kernels import add_numbers, add_rounded, add_rows, add_rows_in_two


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
    def holding(cls, total: Tensor | float) -> Grid:
        """The finest grid for sums bounded by `total` (in value; () or (d,)), and so for each of their addends."""
        bits = torch.frexp(torch.as_tensor(total, dtype=torch.float64)).exponent  # total < 2**bits
        return cls((61 - bits).clamp_(-1000, 1000))

    def finer(self, rows: int) -> Grid:
        """The grid for what rounding to this one leaves of `rows` addends."""
        return Grid((self.exponent + 61 - rows.bit_length()).clamp_(max=1000))

    def units(self, x: Tensor) -> Tensor:
        """Round `x` (any float dtype) to the grid, as int64 multiples of the step, in a new tensor."""
        return x.to(torch.float64, copy=True).mul_(self.scale.to(x.device)).round_().to(torch.int64)

    def value(self, units: Tensor) -> Tensor:
        """The float64 value of int64 `units`."""
        return units.to(torch.float64).mul_(self._step.to(units.device))


COUNT = Grid(0)  # whole numbers


@dataclass(frozen=True)
class Field:
    """One named statistic: its shape and the grid its sum lives on.

    Parameters
    ----------
    name : str
    shape : tuple of int
    grid : Grid
    finer : tuple of Grid
        Further grids, each for what the ones before it leave.
    """

    name: str
    shape: tuple[int, ...]
    grid: Grid
    finer: tuple[Grid, ...] = ()

    @property
    def size(self) -> int:
        """Integers that the sum takes."""
        return prod(self.shape) * (1 + len(self.finer))


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
        size = sum(field.size for field in fields)
        self.buffer = torch.zeros(size, dtype=torch.int64, device=device) if buffer is None else buffer
        self._parts: dict[str, list[tuple[Tensor, Grid]]] = {field.name: [] for field in fields}
        self._lock = Lock()
        start = 0
        for field in fields:
            for grid in (field.grid, *field.finer):
                stop = start + prod(field.shape)
                self._parts[field.name].append((self.buffer[start:stop].view(field.shape), grid))
                start = stop

    def copy(self) -> Statistics:
        return Statistics(self.fields, self.buffer.clone())

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.fields, self.buffer + other.buffer)

    def __iadd__(self, other: Statistics) -> Statistics:
        self.buffer += other.buffer
        return self

    def add(self, name: str, x: Tensor | float) -> None:
        """Round `x` to the field's grids and add it in place."""
        [(part, grid), *finer] = self._parts[name]
        if isinstance(x, Tensor) and part.dim() and part.device.type == "cpu" and not finer:
            columns = part.shape[-1]
            into, rows = part.view(-1, columns).numpy(), x.reshape(-1, columns).numpy()
            with self._lock:
                add_rounded(into, rows, grid.scale.expand(columns).numpy())
            return
        units = self._units(name, torch.as_tensor(x, dtype=torch.float64))
        with self._lock:
            for (part, _), own in zip(self._parts[name], units, strict=True):
                part += own

    def add_each(self, name: str, x: Tensor) -> None:
        """Round every number of `x` (n,), and add it to the field (), so that it does not matter how rows are cut."""
        totals = [units.sum() for units in self._units(name, x)]
        with self._lock:
            for (part, _), total in zip(self._parts[name], totals, strict=True):
                part += total

    def _units(self, name: str, x: Tensor) -> list[Tensor]:
        """`x` in multiples of the steps of a field's grids, each of what the ones before it leave."""
        units = []
        for part, grid in self._parts[name]:
            x = x.to(part.device, torch.float64)
            units.append(grid.units(x))
            x = x - grid.value(units[-1])
        return units

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

        From rows (n, d) a shift (d,) of float64 may be subtracted before, and they may be multiplied by weights (n,) of
        float64. On the CPU they may be taken from row ``before[i]`` at the same time, where they were added before; -1
        for none.
        """
        assert (weight is None and shift is None) or x.dim() == 2
        parts = self._parts[name]
        if parts[0][0].device.type == "cpu":
            whose, old = index.numpy(), np.full(len(x), -1, np.int32) if before is None else before.numpy()
            columns = 1 if x.dim() == 1 else x.shape[1]
            less = np.zeros(columns) if shift is None else shift.numpy()
            weights = np.empty(0) if weight is None else weight.numpy()
            into = [part.view(-1, columns).numpy() for part, _ in parts]
            scales = [grid.scale.expand(columns).numpy() for _, grid in parts]
            rows = x.contiguous().view(-1, columns).numpy()
            with self._lock:
                if len(parts) > 1:
                    add_rows_in_two(*into, whose, old, rows, less, weights, *scales)
                elif x.dim() == 1:
                    add_numbers(into[0][:, 0], whose, old, rows[:, 0], scales[0][0])
                else:
                    add_rows(into[0], whose, old, rows, less, weights, scales[0])
            return
        assert before is None
        x = x if shift is None else x.double() - shift
        units = self._units(name, x if weight is None else x * weight.to(x.device)[:, None])
        with self._lock:
            for (part, _), own in zip(parts, units, strict=True):
                part.index_add_(0, index.to(part.device), own)

    def parts(self, name: str) -> list[Tensor]:
        """The int64 multiples of the steps of a field's grids."""
        return [part for part, _ in self._parts[name]]

    def __getitem__(self, name: str) -> Tensor:
        """The value of a sum, float64."""
        first, *others = (grid.value(part) for part, grid in self._parts[name])
        return sum(others, first)
