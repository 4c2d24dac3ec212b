"""Where a run is computed: in this process or on Ray, on which device, with how many threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from raydkm.config import FitConfig, FitRunConfig, RunConfig
from raydkm.data.tiers import Tiers
from raydkm.errors import ConfigError

#: Part of a device's free memory that rows may take; the rest is for the tiles of a step.
FREE_DEVICE_MEMORY = 0.7


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


def computing(threads: int, device: torch.device) -> int:
    """How many of a worker's threads compute: one beside a GPU, which has one stream of kernels."""
    return threads if device.type == "cpu" else 1


def on_ray(run: RunConfig) -> bool:
    """Whether files are processed on Ray: see the description of `RunConfig.engine`."""
    if run.engine == "auto":
        ray = sys.modules.get("ray")
        return run.workers is not None or "RAY_ADDRESS" in os.environ or (ray is not None and ray.is_initialized())
    if run.engine == "local" and run.workers is not None:
        raise ConfigError("workers: the local engine has threads, not workers; drop it or choose engine ray")
    return run.engine == "ray"


def tiers_of(run: FitRunConfig, device: torch.device, workers: int = 1) -> Tiers:
    """The room for the rows of one of `workers` that share this machine's memory."""
    budget = available_memory() / 2 / workers if run.memory_budget is None else run.memory_budget * 2**30
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return Tiers(run.cache, int(budget), device, int(FREE_DEVICE_MEMORY * free))


def available_memory() -> int:
    """Bytes of memory that this machine, or the container that limits it, has left."""
    try:
        left = int(_fields("/proc/meminfo")["MemAvailable:"]) * 1024
    except (OSError, KeyError):  # not Linux
        left = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for directory, limit, used, cache in _CGROUPS:
        try:
            taken = int(Path(directory, used).read_text()) - int(_fields(f"{directory}/memory.stat")[cache])
            left = min(left, int(Path(directory, limit).read_text()) - taken)
        except (OSError, KeyError, ValueError):  # no limit: no such file, or the word "max" in it
            continue
    return max(0, left)


_CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def _fields(path: str) -> dict[str, str]:
    return {words[0]: words[1] for line in Path(path).read_text().splitlines() if len(words := line.split()) > 1}


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Limit the threads inside each of torch's operations, and restore what was set."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
