"""Communicators: how the workers of one fit add up. The loop knows no more of other workers than this."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from raydkm.errors import RaydkmError, WorkerLostError

T = TypeVar("T")

#: How a worker's sentence ends that knows of another one's end, but not why.
OWN_END = "whose error tells more"


class Comm(Protocol):
    rank: int
    world_size: int
    names: list[str]  # of the workers, by rank, for people

    def wait(self) -> None:
        """Return when all workers have come here."""

    def all_reduce(self, buffer: Tensor) -> None:
        """Sum an int64 buffer over all workers, in place."""

    def all_gather(self, value: Any) -> list[Any]:
        """Every worker's value, by rank; for small things, a few times a fit."""

    def sum_up(self, tensor: Tensor) -> None:
        """Sum a tensor of the host over all workers, in place; not exactly, if it is of floats."""

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Fill a tensor of the host, of the same shape in all workers, with that of worker `source`."""


def gathered(comm: Comm, make: Callable[[], T]) -> list[T]:
    """Every worker's ``make()``, by rank; where any worker refuses, all raise the error of the first that does."""
    value: T | RaydkmError
    try:
        value = make()
    except WorkerLostError:
        raise
    except RaydkmError as error:
        value = error
    values = comm.all_gather(value)
    for found in values:
        if isinstance(found, RaydkmError):
            raise found
    return values


class Solo:
    """One process."""

    rank = 0
    world_size = 1

    def __init__(self) -> None:
        self.names = ["this process"]

    def wait(self) -> None:
        pass

    def all_reduce(self, buffer: Tensor) -> None:
        pass

    def all_gather(self, value: Any) -> list[Any]:
        return [value]

    def sum_up(self, tensor: Tensor) -> None:
        pass

    def broadcast(self, tensor: Tensor, source: int) -> None:
        pass


class ProcessGroup:
    """The default group of `torch.distributed` for sums (NCCL between GPUs), and gloo beside it for all else.

    Parameters
    ----------
    timeout : float
        Seconds that a worker waits for the others.

    Raises
    ------
    WorkerLostError
        From every method, naming the workers that did not come in time.
    """

    def __init__(self, timeout: float):
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        self.names = [f"worker {rank}" for rank in range(self.world_size)]
        self._timeout = timeout
        # the first worker tells who is missing, so the others wait for it a little longer
        patience = timedelta(seconds=timeout if self.rank == 0 else 1.5 * timeout + 5)
        self._patience = patience
        self._control = torch.distributed.new_group(backend="gloo", timeout=patience)

    def wait(self) -> None:
        try:
            torch.distributed.monitored_barrier(self._control, self._patience, wait_all_ranks=True)
        except RuntimeError as error:
            told = self._missing(str(error))
            raise WorkerLostError(told, names_the_lost=not told.endswith(OWN_END)) from error

    def all_reduce(self, buffer: Tensor) -> None:
        try:
            torch.distributed.all_reduce(buffer)
        except RuntimeError as error:
            raise self._broken_off("adding up", error) from error

    def all_gather(self, value: Any) -> list[Any]:
        self.wait()
        values: list[Any] = [None] * self.world_size
        try:
            torch.distributed.all_gather_object(values, value, group=self._control)
        except RuntimeError as error:
            raise self._broken_off("an exchange", error) from error
        return values

    def sum_up(self, tensor: Tensor) -> None:
        try:
            torch.distributed.all_reduce(tensor, group=self._control)
        except RuntimeError as error:
            raise self._broken_off("adding up", error) from error

    def broadcast(self, tensor: Tensor, source: int) -> None:
        self.wait()  # names a worker that does not come
        try:
            torch.distributed.broadcast(tensor, source, group=self._control)
        except RuntimeError as error:
            raise self._broken_off("handing out rows", error) from error

    def signal(self, name: str, *, count: int = 1) -> int:
        """Count this worker in among those that gave a signal, without waiting for others; return how many did."""
        return torch.distributed.distributed_c10d._get_default_store().add(f"raydkm {name}", count)

    def _broken_off(self, doing: str, error: RuntimeError) -> WorkerLostError:
        """What a worker knows whose connection to another ended: that one died, not which.

        If one hangs, all others have waited for it and come to the barrier, which names it.
        """
        if "Timed out" in str(error):
            self.wait()
        reason = re.sub(r"^\[\S*\] ", "", str(error)).split(". ")[0]
        return WorkerLostError(f"{self.names[self.rank]} lost another worker during {doing} ({reason}), {OWN_END}")

    def _missing(self, error: str) -> str:
        """A sentence from what the barrier said: the first worker learns who is missing, others only of its end."""
        if found := re.search(r"Ranks? ([\d, ]+) failed to pass", error):
            missing = ", ".join(self.names[int(rank)] for rank in found[1].split(","))
            return f"{missing} died, or did not answer for {self._timeout:g} s (if it was only slow, raise timeout)"
        if "Timed out" in error:
            return f"{self.names[0]} did not answer for {self._patience.total_seconds():g} s"
        return f"{self.names[self.rank]} lost the first worker, {OWN_END}"
