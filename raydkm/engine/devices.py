"""Which device and how many threads a worker computes with."""

from __future__ import annotations

import os

import torch

from raydkm.config import RunConfig
from raydkm.errors import ConfigError


def device_of(run: RunConfig) -> torch.device:
    """The device that `run` names; "auto" is a GPU where there is one."""
    if run.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(run.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {run.device}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def threads_of(run: RunConfig, device: torch.device, cpus: int | None = None) -> int:
    """Threads of one worker that may use `cpus` processors (default: those of this process)."""
    if device.type == "cuda":
        return 1  # one stream of kernels
    return run.threads or cpus or len(os.sched_getaffinity(0))
