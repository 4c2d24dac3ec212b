"""How fast this processor screens, measured once, to choose what labels do not depend on."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from raydkm.ops.scores import Scores
from raydkm.ops.screen import SCREENS, Columns, Int8Screen, Screen, Screened

logger = logging.getLogger("raydkm")

_ROWS, _DIM, _CLUSTERS = 1024, 256, 512
_REPEATS = 7


@functools.cache
def fastest_screen(device: torch.device) -> str:
    """The precision of the fastest screen on `device`: "fp32", "bf16" or "int8"."""
    if device.type != "cpu":
        return "fp32"
    rates = screen_rates()
    best = max(rates, key=rates.__getitem__)
    measured = ", ".join(f"{name} {rate:.0f} GF/s" for name, rate in rates.items())
    logger.info("hard assignments are screened in %s: %s", best, measured)
    return best


@functools.cache
def screen_rates() -> dict[str, float]:
    """Billions of operations a second of a screen on one CPU thread, by precision.

    With all that it does to rows and to products: where a matrix unit multiplies bf16, that takes longer than they do.
    """
    draw = torch.Generator().manual_seed(0)
    z, theta = (torch.randn(rows, _DIM, generator=draw) for rows in (_ROWS, _CLUSTERS))
    scores = Scores(theta, torch.zeros(_CLUSTERS), 0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = {}
        for name, kind in SCREENS.items():
            if kind is Int8Screen and not Int8Screen.fits(scores):
                continue
            screen = kind(scores, z)
            columns = screen.columns(torch.arange(_CLUSTERS))
            rates[name] = 2e-9 * _ROWS * _DIM * _CLUSTERS / _least_seconds(partial(_screened, screen, columns, z))
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
