"""Where a run is computed: in this process or on Ray, on which device, with how many threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from raydkm.config import FitConfig, FitRunConfig, RunConfig
from raydkm.data.tiers import Allocate, allocator
from raydkm.errors import ConfigError


def device_of(config: FitConfig) -> torch.device:
    """The device that `config` names; "auto" is a GPU where there is one."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(config.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {config.device}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def threads_of(run: RunConfig, cpus: int | None = None) -> int:
    """Threads of one worker that may use `cpus` processors (default: those of this process)."""
    return run.threads or cpus or len(os.sched_getaffinity(0))


def on_ray(run: RunConfig) -> bool:
    """Whether files are processed on Ray: see the description of `RunConfig.engine`."""
    if run.engine == "auto":
        ray = sys.modules.get("ray")
        return run.workers is not None or "RAY_ADDRESS" in os.environ or (ray is not None and ray.is_initialized())
    if run.engine == "local" and run.workers is not None:
        raise ConfigError("workers: the local engine has threads, not workers; drop it or choose engine ray")
    return run.engine == "ray"


def row_allocator(run: FitRunConfig, workers: int = 1) -> Allocate:
    """Where a worker holds its rows, when `workers` share this machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    budget = memory / 2 / workers if run.memory_budget is None else run.memory_budget * 2**30
    return allocator(run.cache, int(budget))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Limit the threads inside each of torch's operations, and restore what was set."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
