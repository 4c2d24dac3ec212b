"""Forks of a process that has computed.

GNU's OpenMP, which torch and FAISS compute with, keeps a pool of threads for each thread that has used it. A child has
the record of the pool, but not its threads, and would wait for them for ever. So the pool of the thread that forks is
given up before the fork, and made again when it is needed, in the parent and in the child.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_HARD = 1  # omp_pause_hard: threads end


def _give_up_pools() -> None:
    """End the pools of this thread, in each copy of the library that wheels have brought."""
    try:
        mapped = Path("/proc/self/maps").read_text()
    except OSError:  # not Linux, whose other OpenMP runtimes look after forks themselves
        return
    for path in {line.split(maxsplit=5)[5] for line in mapped.splitlines() if "/libgomp" in line}:
        library = ctypes.CDLL(path)
        if hasattr(library, "omp_pause_resource_all"):  # since OpenMP 5.0
            library.omp_pause_resource_all(_HARD)


def survive_forks() -> None:
    """Let children of this process compute; called once."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_give_up_pools)
