"""What the machine's matrix products give: rates by precision, and the two products of a soft step alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from step_data import Shape
from torch import Tensor

from raydkm.engine.passes import thread_pool
from raydkm.engine.where import torch_threads

SECONDS = 0.15  # of each trial
TILES = (256, 512, 1024, 2048)  # rows of a product on one thread
LARGE_TILES = (4096, 16_384)  # rows of a product that all threads share

Product = Callable[[Tensor], object]


def matrix_rates(shape: Shape, threads: int) -> dict[str, float]:
    """Operations a second of tiles (n, d) times (d, K), the best of several tiles, by precision."""
    rates: dict[str, float] = {}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16), ("int8", torch.int8)):
        for transposed in (False, True):
            made = partial(_product, shape, dtype, transposed)
            try:
                rate = 2.0 * shape.clusters * shape.dim * _rows_a_second(made, threads)
            except RuntimeError:  # no such product on this processor
                continue
            rates[name] = max(rate, rates.get(name, 0.0))
    return rates


def products_alone(shape: Shape, threads: int) -> float:
    """Seconds of the two float32 products of a soft step: (N, d) (d, K), and (K, N) (N, d)."""
    return shape.rows / _rows_a_second(partial(_two_products, shape), threads)


def _values(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    if dtype == torch.int8:
        return torch.randint(-127, 128, (rows, columns), dtype=dtype)
    return torch.randn(rows, columns).to(dtype)


def _product(shape: Shape, dtype: torch.dtype, transposed: bool, rows: int) -> tuple[Tensor, Product]:
    """A tile, and its product with prototypes that lie in memory as (K, d), or `transposed`."""
    right = _values(shape.clusters, shape.dim, dtype).T
    right = right.contiguous() if transposed else right
    integer = dtype == torch.int8
    multiply = torch._int_mm if integer else torch.mm
    out = torch.empty(rows, shape.clusters, dtype=torch.int32 if integer else dtype)
    return _values(rows, shape.dim, dtype), lambda z: multiply(z, right, out=out)


def _two_products(shape: Shape, rows: int) -> tuple[Tensor, Product]:
    theta = torch.randn(shape.clusters, shape.dim)
    logits, sums = torch.empty(rows, shape.clusters), torch.empty(shape.clusters, shape.dim)

    def run(z: Tensor) -> None:
        torch.mm(z, theta.T, out=logits)
        torch.mm(logits.T, z, out=sums)

    return torch.randn(rows, shape.dim), run


def _rows_a_second(made: Callable[[int], tuple[Tensor, Product]], threads: int) -> float:
    """The best of tiles that each have a thread, and of larger ones that all threads share."""
    best = 0.0
    with thread_pool(threads) as pool:
        for rows in TILES:
            best = max(best, _shared_out(made, rows, pool, threads))
    with torch_threads(threads):
        for rows in LARGE_TILES:
            z, product = made(rows)
            best = max(best, rows * _calls_a_second(z, product))
    return best


def _shared_out(
    made: Callable[[int], tuple[Tensor, Product]], rows: int, pool: ThreadPoolExecutor, threads: int
) -> float:
    tasks = [made(rows) for _ in range(threads)]
    return rows * sum(pool.map(lambda task: _calls_a_second(*task), tasks))


def _calls_a_second(z: Tensor, product: Product) -> float:
    product(z)
    calls, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < SECONDS:
        product(z)
        calls += 1
    return calls / passed
