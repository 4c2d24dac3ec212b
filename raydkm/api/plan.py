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

from raydkm.api.rates import CPU_THREAD, GPU_MEMORY, GPUS, Rates, Speed
from raydkm.config import FitConfig, PlanConfig, build
from raydkm.engine.calibrate import measured
from raydkm.engine.room import lacking, needs, sums_bytes
from raydkm.engine.seed_all import OVERSAMPLING, ROUNDS, SEEDINGS_OF_ALL
from raydkm.engine.start import RESTART_STEPS, seed_rows
from raydkm.engine.where import FREE_DEVICE_MEMORY
from raydkm.errors import ConfigError
from raydkm.objectives import OBJECTIVES
from raydkm.objectives.logistic import LogisticObjective
from raydkm.ops.approximate import EFFORTS
from raydkm.ops.batch import BATCH_ROWS

#: Bytes a second that rows come from each tier but the fastest, or go to it: over PCIe 4, and a local NVMe disk.
PCIE, DISK = 20e9, 2e9

#: Seconds of a message between two workers.
LATENCY = 50e-6

#: Bytes that a step moves between the products for each score: on a CPU, and on a GPU, whose kernel of hard steps holds
#: no scores, and whose soft one holds them once.
SCORE_BYTES = {"hard": 8, "approximate": 0, "soft": 24, "logistic": 60}
SCORE_BYTES_GPU = {"hard": 0, "soft": 8, "logistic": 80}

#: Draws of a Markov chain of AFK-MC^2 for each prototype (`raydkm.ops.seeding.afk_mc2`).
CHAIN = 200

#: Part of the host's memory that rows may take (`raydkm.engine.where.tiers_of`).
MEMORY_FOR_ROWS = 0.5

#: Workers beyond which none are looked for, and by which factor numbers of them are tried.
MOST_WORKERS = 65_536
TRIED = 1.02


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
        The term of a step that takes longest, of those that it waits for.
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
    memory: dict[str, int]
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
        found = measured(of, config.dim, config.dtype, threads, config.rows)
        expected = operations / speed.operations + traffic / speed.traffic
        rates = rates.with_speed(name, speed.times(expected / (found.row * threads)))
    once = max(found.once - cells(config, rates), 0.1 * found.once, 1e-6)
    update = sums_bytes(config.clusters, config.dim) / once
    return replace(rates, update=update, source=f"measured here with {threads} threads, for this d and K")


def estimate(config: PlanConfig, thread: Rates = CPU_THREAD) -> Plan:
    """The plan of a fit on `config.workers` workers, of whose CPUs one thread has the rates `thread`."""
    rates = rates_of(config, thread)
    tiers, memory = tiers_of(config), memory_of(config)
    step = step_terms(config, rates, thread)
    seconds = together(step)
    fit = (
        Term(
            "ingest",
            bytes_of_a_worker(config) / from_storage(config) + tiers["disk"] / DISK,
            "bytes / storage, those for the disk written to it",
        ),
        survey(config, rates, thread),
        seeding(config, rates, thread),
        Term("steps", config.steps * seconds, f"{config.steps} × {seconds:.3g} s"),
        hard_pass("assignment", config, rates),
    )
    return Plan(
        config=config,
        rates=rates,
        step=step,
        fit=fit,
        step_seconds=seconds,
        seconds=sum(term.seconds for term in fit),
        tiers=tiers,
        memory=memory,
        binds=binding(step),
        refused=lacking(memory, tiers["host"], config.memory * 2**30),
    )


def workers_needed(config: PlanConfig, thread: Rates = CPU_THREAD) -> int | None:
    """The fewest workers with which a fit keeps the deadline, none of it refused; None if no number does.

    Numbers are tried in steps of 2 %, then those since the last one that did not keep it: fewer could do only if more
    again did not, within 2 %.
    """
    if config.deadline is None:
        return None
    most = 3600 * config.deadline

    def keeps(workers: int) -> bool:
        tried = estimate(config.model_copy(update={"workers": workers}), thread)
        return tried.seconds <= most and tried.refused is None

    before, workers = 0, 1
    while workers <= MOST_WORKERS:
        if keeps(workers):
            return next(number for number in range(before + 1, workers + 1) if number == workers or keeps(number))
        before, workers = workers, math.ceil(TRIED * workers)
    return None


def row_bytes(config: PlanConfig) -> int:
    return config.dim * np.dtype(config.dtype).itemsize


def rows_of_a_worker(config: PlanConfig) -> int:
    """Rows of the worker that has most: ranges are cut between canonical batches."""
    batches = -(-config.rows // BATCH_ROWS)
    return min(config.rows, -(-batches // config.workers) * BATCH_ROWS)


def bytes_of_a_worker(config: PlanConfig) -> int:
    return rows_of_a_worker(config) * row_bytes(config)


def from_storage(config: PlanConfig) -> float:
    """Bytes a second that a worker reads from the storage, while all do."""
    of_all = math.inf if config.storage_of_all is None else config.storage_of_all / config.workers
    return 1e9 * min(config.storage, of_all)


def tiers_of(config: PlanConfig) -> dict[str, float]:
    """Bytes of a worker's rows on each tier, the fastest filled first; "stream" has those read again at each pass."""
    left = float(bytes_of_a_worker(config))
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


def memory_of(config: PlanConfig) -> dict[str, int]:
    """Bytes of a worker beside its rows, by what takes them."""
    return needs(
        config.fit,
        total=config.rows,
        rows=rows_of_a_worker(config),
        dim=config.dim,
        itemsize=np.dtype(config.dtype).itemsize,
        threads=threads_of(config),
        gpu=config.device in GPUS,
    )


def threads_of(config: PlanConfig) -> int:
    """Threads of a worker that compute; on a GPU one, which feeds it."""
    return 1 if config.device in GPUS else config.threads


def step_terms(config: PlanConfig, rates: Rates, thread: Rates) -> tuple[Term, ...]:
    """The parts of a step."""
    rows, size = rows_of_a_worker(config), sums_bytes(config.clusters, config.dim)
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
        Term("cells", cells(config, thread), "of prototypes, for an approximate assignment; one thread"),
        Term(
            "all-reduce",
            parts / config.workers * size / (config.network * 1e9 / 8) + parts * LATENCY,
            f"{parts}/{config.workers} × {size:.3g} B / {config.network:g} Gbit/s",
        ),
        Term("update", size / rates.update, f"{size:.3g} B of sums / {rates.update:.3g} B/s"),
    )


def together(step: tuple[Term, ...]) -> float:
    """Seconds of a step: rows are read while others are computed, the rest goes before and after."""
    seconds = {term.name: term.seconds for term in step}
    computed = seconds.pop("arithmetic") + seconds.pop("memory")
    return max(computed, seconds.pop("reading")) + sum(seconds.values())


def binding(step: tuple[Term, ...]) -> str:
    """The term that takes longest, of those that a step waits for."""
    seconds = {term.name: term.seconds for term in step}
    computed = seconds["arithmetic"] + seconds["memory"] >= seconds["reading"]
    hidden = ("reading",) if computed else ("arithmetic", "memory")
    return max((name for name in seconds if name not in hidden), key=lambda name: seconds[name])


def kernel(config: PlanConfig) -> str:
    """Which rate the products of a step have: "hard", "approximate", "soft" or "logistic"."""
    if not OBJECTIVES[config.objective].hard:
        return "logistic" if _logistic(config) else "soft"
    return "approximate" if config.fit.approximate and config.device == "cpu" else "hard"


def operations_a_row(config: PlanConfig, kernel: str) -> float:
    """Of the products of a step for one row: scores, and where they are posteriors the sums of these times rows."""
    products = 2 if kernel in ("soft", "logistic") else 1
    compared: float = config.clusters
    if kernel == "approximate":  # the cells, then the prototypes of the most promising ones
        compared = EFFORTS[0] * config.clusters + 2 * math.sqrt(config.clusters)
    return 2.0 * products * compared * config.dim


def traffic_a_row(config: PlanConfig, kernel: str) -> float:
    """Bytes that a step moves for one row: the row, its sum in int64, and its scores between the products."""
    of_a_score = (SCORE_BYTES_GPU if config.device in GPUS else SCORE_BYTES)[kernel]
    return float(of_a_score * config.clusters + config.dim * (np.dtype(config.dtype).itemsize + 20))


def seconds_a_row(config: PlanConfig, kernel: str, speed: Speed) -> float:
    return operations_a_row(config, kernel) / speed.operations + traffic_a_row(config, kernel) / speed.traffic


def reading(config: PlanConfig) -> float:
    """Seconds in which a pass reads the rows that are not on the fastest tier."""
    held = tiers_of(config)
    host = held["host"] / PCIE if config.device in GPUS else 0.0
    return host + held["disk"] / DISK + held["stream"] / from_storage(config)


def survey(config: PlanConfig, rates: Rates, thread: Rates) -> Term:
    """A pass that hashes rows on the CPU, one that sums moments on the device, and what one thread does to the sample.

    The second finds a covariance for objectives with a temperature.
    """
    rows = rows_of_a_worker(config)
    first = rows * config.dim / rates.rows
    second = bytes_of_a_worker(config) / rates.logistic.traffic if config.device in GPUS else first
    products = 2.0 * config.dim**2 * config.fit.has_temperature
    sample = 2.0 * _sample(config) * config.dim / thread.rows
    return Term(
        "survey, moments",
        max(first, reading(config))
        + max(second + rows * products / rates.logistic.operations, reading(config))
        + sample,
        f"2 passes over {rows:,} rows, {products:.3g} op a row / {rates.logistic.operations:.3g} op/s, "
        f"{_sample(config):,} rows of the sample",
    )


def hard_pass(name: str, config: PlanConfig, rates: Rates) -> Term:
    """A pass that finds exact labels, such as the last one."""
    rows, of_a_row = rows_of_a_worker(config), seconds_a_row(config, "hard", rates.hard)
    return Term(name, max(rows * of_a_row, reading(config)), f"{rows:,} rows × {of_a_row:.3g} s")


def compared(thread: Rates, rows: float, others: float, dim: int) -> float:
    """Seconds in which one thread finds the squared distances, in float32, of rows to other vectors."""
    operations, traffic = 2.0 * others * dim, SCORE_BYTES["soft"] * others + 4 * dim
    return rows * (operations / thread.soft.operations + traffic / thread.soft.traffic)


def cells(config: PlanConfig, thread: Rates) -> float:
    """Seconds in which one thread makes the cells of an approximate step (`raydkm.ops.approximate.cells`)."""
    if kernel(config) != "approximate":
        return 0.0
    count = min(config.clusters, 2 * math.isqrt(config.clusters))
    assigned = config.clusters + 3 * min(config.clusters, 64 * count)
    return compared(thread, assigned, count, config.dim)


def greedy(thread: Rates, rows: float, config: PlanConfig) -> float:
    """Seconds of k-means++ on so many rows: 2 + log K distances of each row for every prototype."""
    return config.clusters * compared(thread, rows, 2 + int(math.log(config.clusters)), config.dim)


def drawn(config: PlanConfig, thread: Rates) -> float:
    """Seconds of one seeding of the sample, in one thread of the CPU (`raydkm.ops.seeding`)."""
    sample, clusters, dim = _sample(config), config.clusters, config.dim
    if config.init == "k-means||":
        candidates = min(sample, ROUNDS * OVERSAMPLING * clusters)
        return compared(thread, sample, candidates, dim) + greedy(thread, candidates, config)
    if config.init == "k-means++":
        return greedy(thread, sample, config)
    if config.init == "afk-mc2":  # a chain for each prototype, compared with those before it
        return clusters * compared(thread, CHAIN, clusters / 2, dim)
    return 0.0


def seeding(config: PlanConfig, rates: Rates, thread: Rates) -> Term:
    """Restarts, each a seeding on the CPU and some steps on the sample; then what a logistic fit takes of clusters.

    Restarts on the sample are shared out over workers, a thread each; those on all rows follow each other.
    """
    clusters = hard_pass("", config, rates).seconds if _logistic(config) else 0.0
    if config.init == "array":
        return Term("seeding", clusters, "prototypes are given")
    if config.seed_rows == "all" and config.init in SEEDINGS_OF_ALL and _sample(config) < config.rows:
        once = _of_all_rows(config, rates, thread)
        return Term("seeding", config.n_init * once + clusters, f"{config.n_init} × {once:.3g} s on all rows")
    threads, sample = threads_of(config), _sample(config)
    turns = math.ceil(math.ceil(config.n_init / config.workers) / threads)
    steps = RESTART_STEPS if config.n_init > 1 or _logistic(config) else 0
    name = "hard" if _logistic(config) else kernel(config)  # a logistic fit begins at clusters of k-means
    of_a_row = seconds_a_row(config, name, rates.of(name).times(1 / threads))
    once = cells(config, thread) + sums_bytes(config.clusters, config.dim) / rates.update
    first = drawn(config, thread)
    return Term(
        "seeding",
        turns * (first + steps * (sample * of_a_row + once)) + clusters,
        f"{turns} × ({first:.3g} s + {steps} steps of {sample:,} rows × {of_a_row:.3g} s)",
    )


def _of_all_rows(config: PlanConfig, rates: Rates, thread: Rates) -> float:
    """Seconds of one seeding on all rows (`raydkm.engine.seed_all`), and of the pass that measures it."""
    rows, clusters, parallel = rows_of_a_worker(config), config.clusters, config.init == "k-means||"
    candidates = ROUNDS * OVERSAMPLING * clusters if parallel else clusters
    passes = ROUNDS + 2 if parallel else clusters + 1
    a_pass = max(rows * config.dim / rates.rows, reading(config))
    distances = compared(thread, rows, candidates + clusters, config.dim) / threads_of(config)
    return passes * a_pass + distances + (greedy(thread, candidates, config) if parallel else 0.0)


def _logistic(config: PlanConfig) -> bool:
    return issubclass(OBJECTIVES[config.objective], LogisticObjective)


def _sample(config: PlanConfig) -> int:
    return seed_rows(config.fit, config.rows)
