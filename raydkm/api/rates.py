"""Rates of workers, built in or measured, from which `raydkm.api.plan` reckons."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Speed:
    """Of a kernel: operations a second of its products, bytes a second between and around them."""

    operations: float
    traffic: float

    def times(self, factor: float) -> Speed:
        return Speed(self.operations * factor, self.traffic * factor)


@dataclass(frozen=True)
class Rates:
    """Of a worker, or of one thread of it.

    Parameters
    ----------
    source : str
        Where they come from.
    hard, soft, approximate : Speed
        Steps of objectives with hard assignments, with posteriors, and with many clusters on a CPU.
    rows : float
        Bytes of rows a second in passes without products.
    update : float
        Bytes of sums a second in what a step does once.
    """

    source: str
    hard: Speed
    soft: Speed
    approximate: Speed
    rows: float
    update: float

    def of(self, kernel: str) -> Speed:
        speed: Speed = getattr(self, kernel)
        return speed

    def with_speed(self, kernel: str, speed: Speed) -> Rates:
        changed: dict[str, Any] = {kernel: speed}
        return replace(self, **changed)

    def of_threads(self, threads: int) -> Rates:
        """Of a worker with so many threads; the update is made by one."""
        return replace(
            self,
            hard=self.hard.times(threads),
            soft=self.soft.times(threads),
            approximate=self.approximate.times(threads),
            rows=self.rows * threads,
        )


#: Of one CPU thread: what fits the steps of docs/performance.md, measured with two threads of a Xeon with AVX-512.
CPU_THREAD = Rates(
    source="built in: a thread of a Xeon with AVX-512 and VNNI (docs/performance.md)",
    hard=Speed(720e9, 10e9),
    soft=Speed(190e9, 10e9),
    approximate=Speed(40e9, 10e9),
    rows=2e9,
    update=1e9,
)


def _gpu(operations: float, memory: float, source: str) -> Rates:
    speed = Speed(operations, memory)
    return Rates(f"assumed, not measured: {source}", speed, speed, speed, rows=memory, update=memory / 10)


#: Of GPUs: three tenths of what the maker states for dense products in TF32, six tenths of the rate to memory.
GPUS = {
    "a100": _gpu(0.3 * 156e12, 0.6 * 2.0e12, "0.3 of 156 TF/s (TF32), 0.6 of 2 TB/s"),
    "h100": _gpu(0.3 * 495e12, 0.6 * 3.35e12, "0.3 of 495 TF/s (TF32), 0.6 of 3.35 TB/s"),
}

#: GiB of a GPU's memory.
GPU_MEMORY = {"a100": 80, "h100": 80}
