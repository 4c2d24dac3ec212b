"""How fast this processor multiplies matrices, measured once, to choose what labels do not depend on."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable

import torch

logger = logging.getLogger("raydkm")

_SHAPE = (256, 256, 512)
_REPEATS = 7


@functools.cache
def fastest_screen(device: torch.device) -> str:
    """The precision of the fastest matrix product on `device`: "fp32", "bf16" or "int8"."""
    if device.type != "cpu":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    rates = matrix_rates()
    best = max(rates, key=rates.__getitem__)
    measured = ", ".join(f"{name} {rate:.0f} GF/s" for name, rate in rates.items())
    logger.info("hard assignments are screened in %s: %s", best, measured)
    return best


@functools.cache
def matrix_rates() -> dict[str, float]:
    """Billions of operations a second of a matrix product on one CPU thread, by precision."""
    n, d, k = _SHAPE
    a, b = torch.ones(n, d), torch.ones(k, d)
    products: dict[str, Callable[[], object]] = {"fp32": lambda: torch.mm(a, b.T)}
    a16, b16 = a.to(torch.bfloat16), b.T.to(torch.bfloat16).contiguous()
    products["bf16"] = lambda: torch.mm(a16, b16)
    if hasattr(torch, "_int_mm"):
        a8, b8 = a.to(torch.int8), b.to(torch.int8)
        products["int8"] = lambda: torch._int_mm(a8, b8.T)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: 2e-9 * n * d * k / _least_seconds(product) for name, product in products.items()}
    finally:
        torch.set_num_threads(threads)


def _least_seconds(work: Callable[[], object]) -> float:
    def once() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(_REPEATS))
