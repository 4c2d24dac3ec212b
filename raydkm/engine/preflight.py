"""What can be known to fail is found before minutes of reading: one sentence each, raised by all workers."""

from __future__ import annotations

import logging
import os
import platform
import socket
import tempfile
from importlib.metadata import version

import torch
from llvmlite.binding import get_host_cpu_name

from raydkm.config import FitConfig
from raydkm.data.parquet import ParquetTable
from raydkm.data.storage import locate, retried
from raydkm.data.tiers import Tiers, disk_left, gib, size_of
from raydkm.engine.comm import Comm, ProcessGroup, gathered
from raydkm.engine.room import lacking, needs
from raydkm.engine.where import available_memory
from raydkm.errors import EngineError, InputError

logger = logging.getLogger("raydkm")

#: What must be alike on all nodes for the same bits, and for workers to understand each other.
PACKAGES = ("raydkm", "torch", "numpy", "numba", "llvmlite", "pyarrow")


def check_workers(comm: ProcessGroup) -> None:
    """All workers answer, run the same versions, and can add up; afterwards `comm` knows their names.

    Raises
    ------
    EngineError
        In all workers.
    """
    comm.names = comm.all_gather(f"worker {comm.rank} ({socket.gethostname()}, process {os.getpid()})")
    mine = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    for name, theirs in zip(comm.names, everyone := comm.all_gather(mine), strict=True):
        for package, number in theirs.items():
            if number != everyone[0][package]:
                raise EngineError(
                    f"{name} runs {package} {number} and {comm.names[0]} {everyone[0][package]}; install one version "
                    "on all nodes"
                )
    processors = sorted(set(comm.all_gather(f"{torch.backends.cpu.get_cpu_capability()}, {get_host_cpu_name()}")))
    if comm.rank == 0 and len(processors) > 1:
        logger.warning(
            "unlike processors (%s): the result is the same to rounding, not to the bit", ", ".join(processors)
        )
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    sent = torch.tensor([2**40 + comm.rank, -comm.rank], device=device)
    comm.all_reduce(sent)
    ranks = sum(range(comm.world_size))
    if sent.tolist() != [comm.world_size * 2**40 + ranks, -ranks]:
        raise EngineError(f"the workers add up wrongly: {sent.tolist()} on {comm.names[comm.rank]}; check the network")


def check_room(
    comm: Comm,
    config: FitConfig,
    table: ParquetTable,
    tiers: Tiers,
    *,
    rows: int,
    threads: int,
    neighbours: int = 1,
) -> None:
    """This worker reaches its files, and the tier asked for holds its `rows`; `neighbours` workers are on its node.

    Raises
    ------
    InputError, EngineError
        In all workers.
    """

    def check() -> None:
        name = comm.names[comm.rank]
        files, path = locate(table.files[0])
        if not retried(table.files[0], lambda: files.get_file_info(path)).is_file:
            raise InputError(f"{name} does not reach {table.files[0]}: do all nodes share the storage?")
        memory = available_memory() // neighbours
        size = size_of(rows, table.dim, table.dtype, weighted=table.columns.weight is not None)
        held = min(max(0, size - tiers.device_memory), tiers.memory) if tiers.cache == "auto" else 0
        beside = needs(
            config,
            total=table.rows,
            rows=rows,
            dim=table.dim,
            itemsize=table.dtype.itemsize,
            threads=threads,
            gpu=tiers.device.type != "cpu",
        )
        if (lack := lacking(beside, held, memory)) is not None:
            raise EngineError(
                f"{name}: {lack}; use fewer workers a node, fewer threads, clusters or seed_rows, a smaller "
                "memory_budget, or more memory"
            )
        room = {
            "host": (memory - max(beside.values()), "memory"),
            "disk": (disk_left() // neighbours, f"disk in {tempfile.gettempdir()}"),
            "device": (tiers.device_memory, "device memory"),
        }
        if tiers.cache in room and size > room[tiers.cache][0]:
            left, what = room[tiers.cache]
            raise EngineError(
                f"{name}: {gib(size)} of rows, but {gib(left)} of {what} left; use cache auto, or more workers"
            )

    gathered(comm, check)
