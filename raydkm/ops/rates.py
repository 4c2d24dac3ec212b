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

from raydkm.ops.scores import Scores
from raydkm.ops.screen import SCREENS, Columns, Int8Screen, Screen, Screened

logger = logging.getLogger("raydkm")

_ROWS, _DIM, _CLUSTERS = 1024, 256, 512
_REPEATS = 7

#: So many times the dimensions are measured too; what they take longer is at least this part of what a screen takes.
_MORE, _MOST_FIXED = 4, 8


@functools.cache
def fastest_screen(device: torch.device) -> str:
    """The precision of the fastest screen on `device`: "fp32", "bf16" or "int8"."""
    if device.type != "cpu":
        return "fp32"
    rates = screen_rates()
    best = max(rates, key=lambda name: rates[name].whole)
    measured = ", ".join(f"{name} {rate.whole:.0f} GF/s" for name, rate in rates.items())
    logger.info("hard assignments are screened in %s: %s", best, measured)
    return best


class Rate(NamedTuple):
    """Billions of operations a second of a screen on one CPU thread."""

    whole: float  # with all that it does to rows and to products, which may take longer than they do
    each: float  # of each dimension more


@functools.cache
def screen_rates() -> dict[str, Rate]:
    """Rates of screens, by precision."""
    draw = torch.Generator().manual_seed(0)
    z, theta = (torch.randn(rows, _MORE * _DIM, generator=draw) for rows in (_ROWS, _CLUSTERS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = {}
        for name, kind in SCREENS.items():
            seconds = []
            for some, prototypes in ((z[:, :_DIM].contiguous(), theta[:, :_DIM].contiguous()), (z, theta)):
                scores = Scores(prototypes, torch.zeros(_CLUSTERS), 0.0)
                if kind is Int8Screen and not Int8Screen.fits(scores):
                    break
                screen = kind(scores, some)
                columns = screen.columns(torch.arange(_CLUSTERS))
                seconds.append(_least_seconds(partial(_screened, screen, columns, some)))
            else:
                work, one, more = 2e-9 * _ROWS * _DIM * _CLUSTERS, *seconds
                rates[name] = Rate(work / one, (_MORE - 1) * work / max(more - one, one / _MOST_FIXED))
        return rates
    finally:
        torch.set_num_threads(threads)


def _screened(screen: Screen, columns: Columns, z: Tensor) -> Screened:
    return screen(screen.rows(z), columns)


def _least_seconds(work: Callable[[], object]) -> float:
    def once() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(_REPEATS))
