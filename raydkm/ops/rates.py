"""How fast this processor screens, measured once, to choose what labels do not depend on."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from raydkm.ops import amx
from raydkm.ops.scores import Scores
from raydkm.ops.screen import SCREENS, Columns, Int8Screen, Screen, Screened, multiplies_int8

logger = logging.getLogger("raydkm")

_ROWS, _DIM, _CLUSTERS = 1024, 256, 512
_REPEATS = 7

#: So many times the dimensions are measured too; what they take longer is at least this part of what a screen takes.
_MORE, _MOST_FIXED = 4, 8


class Rate(NamedTuple):
    """Billions of operations a second of a screen on one CPU thread."""

    whole: float  # with all that it does to rows and to products, which may take longer than they do
    each: float  # of each dimension more


@functools.cache
def fastest_screen(device: torch.device) -> str:
    """The precision of the fastest screen on `device`: "fp32", "bf16" or "int8"."""
    if device.type != "cpu":
        return "fp32"
    if amx.available():
        logger.info("hard assignments are screened in int8: this processor has a matrix unit")
        return "int8"
    rates = {name: screen_rate(name) for name, kind in SCREENS.items() if kind is not Int8Screen or multiplies_int8()}
    best = max(rates, key=lambda name: rates[name].whole)
    measured = ", ".join(f"{name} {rate.whole:.0f} GF/s" for name, rate in rates.items())
    logger.info("hard assignments are screened in %s: %s", best, measured)
    return best


@functools.cache
def screen_rate(precision: str) -> Rate:
    """Of the screen of a precision."""
    draw = torch.Generator().manual_seed(0)
    z, theta = (torch.randn(rows, _MORE * _DIM, generator=draw) for rows in (_ROWS, _CLUSTERS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one, more = (_seconds_of(SCREENS[precision], z, theta, dim) for dim in (_DIM, _MORE * _DIM))
    finally:
        torch.set_num_threads(threads)
    work = 2e-9 * _ROWS * _DIM * _CLUSTERS
    return Rate(work / one, (_MORE - 1) * work / max(more - one, one / _MOST_FIXED))


def _seconds_of(kind: type[Screen], z: Tensor, theta: Tensor, dim: int) -> float:
    z, theta = z[:, :dim].contiguous(), theta[:, :dim].contiguous()
    screen = kind(Scores(theta, torch.zeros(len(theta)), 0.0), z)
    return _least_seconds(partial(_screened, screen, screen.columns(torch.arange(len(theta))), z))


def _screened(screen: Screen, columns: Columns, z: Tensor) -> Screened:
    return screen(screen.rows(z), columns)


def _least_seconds(work: Callable[[], object]) -> float:
    def once() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(_REPEATS))
