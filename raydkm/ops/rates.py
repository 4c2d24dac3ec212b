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
        return "fp32"
    rates = matrix_rates()
    best = max(rates, key=rates.__getitem__)
    measured = ", ".join(f"{name} {rate:.0f} GF/s" for name, rate in rates.items())
    logger.info("hard assignments are screened in %s: %s", best, measured)
    return best


@functools.cache
def multiplies_int8() -> bool:
    """Whether 8-bit products are exact here: without the instructions for them, some add up pairs in 16 bits."""
    if not hasattr(torch, "_int_mm"):
        return False
    n, d, k = _SHAPE
    high = torch.full((n, d), 127, dtype=torch.int8)
    signs = torch.where(torch.arange(k) % 2 == 0, 127, -127).to(torch.int8)
    product = torch._int_mm(high, signs[:, None].expand(k, d).contiguous().T)
    return torch.equal(product, (127 * d * signs.to(torch.int32)).expand(n, k))


@functools.cache
def matrix_rates() -> dict[str, float]:
    """Billions of operations a second of a matrix product on one CPU thread, by precision."""
    n, d, k = _SHAPE
    a, b = torch.ones(n, d), torch.ones(k, d)
    products: dict[str, Callable[[], object]] = {"fp32": lambda: torch.mm(a, b.T)}
    a16, b16 = a.to(torch.bfloat16), b.T.to(torch.bfloat16).contiguous()
    products["bf16"] = lambda: torch.mm(a16, b16)
    if multiplies_int8():
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
