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
    hard, soft, logistic, approximate : Speed
        Steps of objectives with hard assignments, with posteriors of distances, with logistic ones (and other products
        of float32), and with many clusters on a CPU.
    rows : float
        Values of rows a second in passes without products, on the CPU.
    update : float
        Bytes of sums a second in what a step does once, on the CPU.
    """

    source: str
    hard: Speed
    soft: Speed
    logistic: Speed
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
            logistic=self.logistic.times(threads),
            approximate=self.approximate.times(threads),
            rows=self.rows * threads,
        )


#: Of one CPU thread: what fits the steps of docs/performance.md, measured with two threads of a Xeon with AVX-512.
CPU_THREAD = Rates(
    source="built in: a thread of a Xeon with AVX-512 and VNNI (docs/performance.md)",
    hard=Speed(720e9, 10e9),
    soft=Speed(190e9, 10e9),
    logistic=Speed(190e9, 10e9),
    approximate=Speed(40e9, 10e9),
    rows=180e6,
    update=1e9,
)


def _gpu(name: str, bf16: float, float32: float, memory: float) -> Rates:
    """Of dense bf16 products, float32 ones without tensor cores, and memory, as the maker states them a second."""
    hard, moved = 0.3 * bf16, 0.6 * memory
    return Rates(
        f"assumed, not measured: {name}, 0.3 of {bf16 / 1e12:g} TF/s (bf16; soft: three products for one), "
        f"0.5 of {float32 / 1e12:g} (float32, logistic), 0.6 of {memory / 1e12:g} TB/s",
        hard=Speed(hard, moved),
        soft=Speed(hard / 3, moved),
        logistic=Speed(0.5 * float32, moved),
        approximate=Speed(hard, moved),
        rows=CPU_THREAD.rows,
        update=CPU_THREAD.update,
    )


#: Of GPUs, assumed; one thread of the CPU beside them hashes rows in the survey, and updates the model.
GPUS = {
    "a100": _gpu("A100", 312e12, 19.5e12, 2.0e12),
    "h100": _gpu("H100", 989e12, 67e12, 3.35e12),
}

#: GiB of a GPU's memory.
GPU_MEMORY = {"a100": 80, "h100": 80}
