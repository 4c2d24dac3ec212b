"""Sums that are exact, and so the same in any order, for any number of workers and threads.

Every addend is rounded once to a fixed-point grid of step 2^-e and added as int64. Integer addition is associative,
hence the total does not depend on who added what when. The exponent follows from a bound of the total, so that int64
cannot overflow.

A sum of addends of very different sizes has two grids: what rounding to the first leaves is added on a second, finer
one, so that rows of 1e-6 count beside one of 1e14.
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
    fine : Grid, optional
        A second grid, for what the first one leaves.
    """

    name: str
    shape: tuple[int, ...]
    grid: Grid
    fine: Grid | None = None

    @property
    def size(self) -> int:
        """Integers that the sum takes."""
        return prod(self.shape) * (1 if self.fine is None else 2)


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
        self._parts: dict[str, tuple[Tensor, Grid]] = {}
        self._fine: dict[str, tuple[Tensor, Grid]] = {}
        self._lock = Lock()
        start = 0
        for field in fields:
            stop = start + prod(field.shape)
            self._parts[field.name] = (self.buffer[start:stop].view(field.shape), field.grid)
            if field.fine is not None:
                start, stop = stop, start + field.size
                self._fine[field.name] = (self.buffer[start:stop].view(field.shape), field.fine)
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
        if name in self._fine:
            self._add_in_two(name, torch.as_tensor(x, dtype=torch.float64).to(part.device))
            return
        if isinstance(x, Tensor) and part.dim() and part.device.type == "cpu":
            columns = part.shape[-1]
            into, rows = part.view(-1, columns).numpy(), x.reshape(-1, columns).numpy()
            with self._lock:
                add_rounded(into, rows, grid.scale.expand(columns).numpy())
            return
        units = grid.units(x.to(part.device)) if isinstance(x, Tensor) else int(np.rint(x * float(grid.scale)))
        with self._lock:
            part += units

    def _add_in_two(self, name: str, x: Tensor) -> None:
        (part, grid), (rest, fine) = self._parts[name], self._fine[name]
        units = grid.units(x)
        left = fine.units(x - grid.value(units))
        with self._lock:
            part += units
            rest += left

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
        part, grid = self._parts[name]
        if part.device.type == "cpu":
            whose, old = index.numpy(), np.full(len(x), -1, np.int32) if before is None else before.numpy()
            columns = 1 if x.dim() == 1 else x.shape[1]
            less = np.zeros(columns) if shift is None else shift.numpy()
            weights = np.empty(0) if weight is None else weight.numpy()
            add, grids = add_rows, [(part, grid)]
            if name in self._fine:
                add, grids = add_rows_in_two, [*grids, self._fine[name]]
            into = (each.view(-1, columns).numpy() for each, _ in grids)
            scales = (each.scale.expand(columns).numpy() for _, each in grids)
            rows = x.contiguous().view(-1, columns).numpy()
            with self._lock:
                if x.dim() == 1 and name not in self._fine:
                    add_numbers(part.numpy(), whose, old, rows[:, 0], float(grid.scale))
                else:
                    add(*into, whose, old, rows, less, weights, *scales)
            return
        assert before is None
        x = (x if shift is None else x.double() - shift).to(part.device)
        x = x if weight is None else x * weight.to(x.device)[:, None]
        index, units = index.to(part.device), grid.units(x)
        with self._lock:
            part.index_add_(0, index, units)
            if name in self._fine:
                rest, fine = self._fine[name]
                rest.index_add_(0, index, fine.units(x - grid.value(units)))

    def add_each(self, name: str, x: Tensor) -> None:
        """Round every number of `x` (n,), and add it to the field (), so that it does not matter how rows are cut."""
        part, grid = self._parts[name]
        units = grid.units(x.to(part.device))
        total = units.sum()
        left = None
        if name in self._fine:
            left = self._fine[name][1].units(x.to(part.device) - grid.value(units)).sum()
        with self._lock:
            part += total
            if left is not None:
                self._fine[name][0].add_(left)

    def parts(self, name: str) -> list[Tensor]:
        """The int64 multiples of the steps of a field's grids."""
        return [self._parts[name][0], *([self._fine[name][0]] if name in self._fine else [])]

    def __getitem__(self, name: str) -> Tensor:
        """The value of a sum, float64."""
        part, grid = self._parts[name]
        if name not in self._fine:
            return grid.value(part)
        rest, fine = self._fine[name]
        return grid.value(part) + fine.value(rest)
