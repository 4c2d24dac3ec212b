"""`raydkm plan`: what a fit takes, from its size and the rates of its workers, with the arithmetic shown.

Every function but `plan` and `calibrated` is pure. Seconds, bytes, operations and rows are those of one worker; a
multiplication and an addition are two operations.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from raydkm.api.rates import CPU_THREAD, GPU_MEMORY, GPUS, Rates
from raydkm.config import FitConfig, PlanConfig, build
from raydkm.engine.calibrate import measured
from raydkm.engine.passes import copies_of_sums
from raydkm.engine.preflight import COPIES_OF_PROTOTYPES
from raydkm.engine.seed_all import OVERSAMPLING, ROUNDS
from raydkm.engine.start import RESTART_STEPS, seed_rows
from raydkm.engine.where import FREE_DEVICE_MEMORY
from raydkm.errors import ConfigError
from raydkm.objectives import OBJECTIVES
from raydkm.objectives.logistic import LogisticObjective
from raydkm.ops.approximate import EFFORTS
from raydkm.ops.batch import BATCH_ROWS
from raydkm.ops.sample import Smallest

#: Bytes a second that rows come from each tier but the fastest: over PCIe 4, and from a local NVMe disk.
PCIE, DISK = 20e9, 2e9

#: Seconds of a message between two workers.
LATENCY = 50e-6

#: What a seeding of the sample takes, in passes over it with K prototypes.
SEEDING_PASSES = {"k-means||": ROUNDS * OVERSAMPLING, "k-means++": 1, "afk-mc2": 0, "random": 0}

#: Part of the host's memory that rows may take (`raydkm.engine.where.tiers_of`).
MEMORY_FOR_ROWS = 0.5

#: Workers beyond which none are looked for.
MOST_WORKERS = 65_536


@dataclass(frozen=True)
class Term:
    """A part of the time: seconds, and how they come about."""

    name: str
    seconds: float
    how: str


@dataclass(frozen=True)
class Plan:
    """What a fit takes: see the module.

    Parameters
    ----------
    config : PlanConfig
    rates : Rates
        Of a worker.
    step, fit : tuple of Term
        Of a step, whose rows are read while the last ones are computed, and of the whole fit.
    step_seconds, seconds : float
    tiers : dict
        Bytes of rows of a worker on each tier.
    memory : dict
        Bytes of a worker beside its rows.
    binds : str
        The term of a step that takes longest.
    refused : str or None
        Why such a fit would be refused.
    """

    config: PlanConfig
    rates: Rates
    step: tuple[Term, ...]
    fit: tuple[Term, ...]
    step_seconds: float
    seconds: float
    tiers: dict[str, float]
    memory: dict[str, float]
    binds: str
    refused: str | None

    def asdict(self) -> dict[str, Any]:
        return asdict(self) | {"config": self.config.model_dump()}


def plan(*, calibrate: bool = False, **options: Any) -> dict[str, Any]:
    """Estimate a fit.

    Parameters
    ----------
    calibrate : bool
        Measure the rates of this machine's CPU with the real kernels, for the d and K asked, rather than to take the
        built-in ones.
    **options
        The fields of `raydkm.config.PlanConfig`.

    Returns
    -------
    dict
        The fields of `Plan`, and `workers_needed`: the fewest workers that keep the deadline, None without one or where
        no number does.

    Raises
    ------
    ConfigError
    """
    config = build(PlanConfig, options)
    if calibrate and config.device != "cpu":
        raise ConfigError(f"calibrate measures this machine's CPU, not {config.device}; drop one of them")
    thread = calibrated(config) if calibrate else CPU_THREAD
    return {**estimate(config, thread).asdict(), "workers_needed": workers_needed(config, thread)}


def rates_of(config: PlanConfig, thread: Rates) -> Rates:
    """Rates of a worker, given those of one CPU thread."""
    return GPUS[config.device] if config.device in GPUS else thread.of_threads(config.threads)


def calibrated(config: PlanConfig) -> Rates:
    """Rates of a CPU thread of this machine: the built-in ones, scaled so that steps of this d and K take what they do.

    Both the objective's own step is measured and, of soft objectives and approximate assignments, a hard exact one.
    """
    threads = min(config.threads, len(os.sched_getaffinity(0)))
    rates, own = CPU_THREAD, config.fit
    exact = FitConfig(clusters=config.clusters, objective="kmeans", assignment="exact")
    for name, of in {"hard": exact, kernel(config): own}.items():
        goal = config.model_copy(update={"objective": of.objective})
        speed = rates.of(name)
        operations, traffic = operations_a_row(goal, name), traffic_a_row(goal, name)
        found = measured(of, config.dim, config.dtype, threads)
        expected = operations / speed.operations + traffic / speed.traffic
        rates = rates.with_speed(name, speed.times(expected / (found.row * threads)))
    update = sums_bytes(config) / max(found.once, 1e-6)
    return replace(rates, update=update, source=f"measured here with {threads} threads, for this d and K")


def estimate(config: PlanConfig, thread: Rates = CPU_THREAD) -> Plan:
    """The plan of a fit on `config.workers` workers."""
    rates = rates_of(config, thread)
    tiers, memory = tiers_of(config), memory_of(config)
    rows = rows_of_a_worker(config)
    step = step_terms(config, rates)
    seconds = together(step)
    fit = (
        Term("ingest", rows * row_bytes(config) / (config.storage * 1e9), "bytes / storage"),
        Term("survey, moments", 2 * max(rows * row_bytes(config) / rates.rows, reading(config)), "2 passes over rows"),
        seeding(config, rates),
        Term("steps", config.steps * seconds, f"{config.steps} × {seconds:.3g} s"),
        _assignment(config, rates),
    )
    room = config.memory * 2**30
    refused = next(
        (f"{what}: {size / 2**30:.3g} GiB of {config.memory:g}" for what, size in memory.items() if size > room), None
    )
    return Plan(
        config,
        rates,
        step,
        fit,
        seconds,
        sum(term.seconds for term in fit),
        tiers,
        memory,
        max(step, key=lambda term: term.seconds).name,
        refused,
    )


def workers_needed(config: PlanConfig, thread: Rates = CPU_THREAD) -> int | None:
    """The fewest workers with which a fit keeps the deadline, none of it refused; None if no number does."""
    if config.deadline is None:
        return None
    for workers in sorted({math.ceil(1.02**i) for i in range(600)} | set(range(1, 65))):
        if workers > MOST_WORKERS:
            break
        tried = estimate(config.model_copy(update={"workers": workers}), thread)
        if tried.seconds <= 3600 * config.deadline and tried.refused is None:
            return workers
    return None


def row_bytes(config: PlanConfig) -> int:
    return config.dim * np.dtype(config.dtype).itemsize


def rows_of_a_worker(config: PlanConfig) -> int:
    """Rows of the worker that has most: ranges are cut between canonical batches."""
    batches = -(-config.rows // BATCH_ROWS)
    return min(config.rows, -(-batches // config.workers) * BATCH_ROWS)


def sums_bytes(config: PlanConfig) -> int:
    """Bytes that a step adds up over all workers: counts and sums of rows in int64, of p as well for logistic ones."""
    return 8 * config.clusters * (config.dim + 1) * (2 if _logistic(config) else 1)


def tiers_of(config: PlanConfig) -> dict[str, float]:
    """Bytes of a worker's rows on each tier, the fastest filled first; "stream" has those read again at each pass."""
    left = float(rows_of_a_worker(config) * row_bytes(config))
    room = {
        "device": FREE_DEVICE_MEMORY * GPU_MEMORY.get(config.device, 0) * 2**30,
        "host": MEMORY_FOR_ROWS * config.memory * 2**30,
        "disk": config.disk * 2**30,
        "stream": math.inf,
    }
    held: dict[str, float] = {}
    for tier, size in room.items():
        held[tier] = min(left, size)
        left -= held[tier]
    return held


def memory_of(config: PlanConfig) -> dict[str, float]:
    """Bytes of a worker beside its rows, by what they are for; see `raydkm.engine.preflight.check_room`."""
    sums = sums_bytes(config)
    threads = 1 if config.device in GPUS else config.threads
    sample = _sample(config)
    kept = Smallest.nbytes(min(sample, rows_of_a_worker(config)), row_bytes(config)) + 4 * config.dim * sample
    return {
        "sums and prototypes": float(sums * (copies_of_sums(sums, threads) + COPIES_OF_PROTOTYPES)),
        "seeding sample": float(kept),
    }


def step_terms(config: PlanConfig, rates: Rates) -> tuple[Term, ...]:
    """The parts of a step."""
    rows, size = rows_of_a_worker(config), sums_bytes(config)
    name = kernel(config)
    operations, traffic, speed = operations_a_row(config, name), traffic_a_row(config, name), rates.of(name)
    parts = 2 * (config.workers - 1)
    return (
        Term(
            "arithmetic",
            rows * operations / speed.operations,
            f"{rows:,} rows × {operations:.3g} op / {speed.operations:.3g} op/s",
        ),
        Term("memory", rows * traffic / speed.traffic, f"{rows:,} rows × {traffic:.3g} B / {speed.traffic:.3g} B/s"),
        Term("reading", reading(config), "bytes of slower tiers / their rates"),
        Term(
            "all-reduce",
            parts / config.workers * size / (config.network * 1e9 / 8) + parts * LATENCY,
            f"{parts}/{config.workers} × {size:.3g} B / {config.network:g} Gbit/s",
        ),
        Term("update", size / rates.update, f"{size:.3g} B of sums / {rates.update:.3g} B/s"),
    )


def together(step: tuple[Term, ...]) -> float:
    """Seconds of a step: rows are read while others are computed, the rest follows."""
    seconds = {term.name: term.seconds for term in step}
    return (
        max(seconds["arithmetic"] + seconds["memory"], seconds["reading"]) + seconds["all-reduce"] + seconds["update"]
    )


def kernel(config: PlanConfig) -> str:
    """Which rate the products of a step have: "hard", "approximate" or "soft"."""
    if not OBJECTIVES[config.objective].hard:
        return "soft"
    return "approximate" if config.fit.approximate and config.device == "cpu" else "hard"


def operations_a_row(config: PlanConfig, kernel: str) -> float:
    """Of the products of a step for one row: scores, for soft objectives the sums of q too, for logistic ones of p."""
    products = 1 if OBJECTIVES[config.objective].hard else 3 if _logistic(config) else 2
    compared: float = config.clusters
    if kernel == "approximate":  # the cells, then the prototypes of the most promising ones
        compared = EFFORTS[0] * config.clusters + 2 * math.sqrt(config.clusters)
    return 2.0 * products * compared * config.dim


def traffic_a_row(config: PlanConfig, kernel: str) -> float:
    """Bytes that a step moves for one row: the row, its sum in int64, and on a CPU its scores between the products."""
    passes = 0 if config.device in GPUS else {"hard": 8, "approximate": 0, "soft": 24}[kernel]
    return float(passes * config.clusters + config.dim * (np.dtype(config.dtype).itemsize + 20))


def reading(config: PlanConfig) -> float:
    """Seconds in which a pass reads the rows that are not on the fastest tier."""
    held = tiers_of(config)
    host = held["host"] / PCIE if config.device in GPUS else 0.0
    return host + held["disk"] / DISK + held["stream"] / (config.storage * 1e9)


def seeding(config: PlanConfig, rates: Rates) -> Term:
    """Restarts on the seeding sample, a thread each, shared out over workers: a seeding and some steps."""
    fit, sample = config.fit, _sample(config)
    threads = 1 if config.device in GPUS else config.threads
    turns = math.ceil(math.ceil(fit.n_init / config.workers) / threads)
    refined = fit.n_init > 1 or _logistic(config)
    passes = SEEDING_PASSES[fit.init] + RESTART_STEPS * refined if fit.init != "array" else 0
    name = kernel(config)
    speed = rates.of(name).times(1 / threads)
    of_a_row = operations_a_row(config, name) / speed.operations + traffic_a_row(config, name) / speed.traffic
    return Term(
        "seeding",
        turns * passes * sample * of_a_row,
        f"{turns} × {passes} passes × {sample:,} rows × {of_a_row:.3g} s",
    )


def _assignment(config: PlanConfig, rates: Rates) -> Term:
    """The last pass, whose labels are exact."""
    rows = rows_of_a_worker(config)
    of_a_row = 2.0 * config.clusters * config.dim / rates.hard.operations
    of_a_row += traffic_a_row(config, "hard") / rates.hard.traffic
    return Term("assignment", max(rows * of_a_row, reading(config)), f"{rows:,} rows × {of_a_row:.3g} s")


def _logistic(config: PlanConfig) -> bool:
    return issubclass(OBJECTIVES[config.objective], LogisticObjective)


def _sample(config: PlanConfig) -> int:
    return seed_rows(config.fit, config.rows)
