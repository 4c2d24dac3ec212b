"""A whole fit, from rows to prototypes: the same code in this process and in every Ray Train worker."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydkm.config import FitConfig
from raydkm.data.columns import LARGEST
from raydkm.data.source import MemorySource
from raydkm.engine.comm import Comm, Solo
from raydkm.engine.loop import adm
from raydkm.engine.passes import Passes, Source, thread_pool
from raydkm.engine.survey import Survey, survey
from raydkm.errors import ConfigError, InputError
from raydkm.objectives import OBJECTIVES, State, Terms
from raydkm.objectives.distance import DistanceObjective
from raydkm.ops.frame import Frame
from raydkm.ops.moments import Extent, Moments, moment_fields, moment_statistics, moments
from raydkm.ops.seeding import SEEDINGS
from raydkm.ops.statistics import hard_statistics
from raydkm.ops.temperature import AUTO_FRACTION, collapse_temperature

logger = logging.getLogger("raydkm")

#: Steps of each restart on the seeding sample, before the best is chosen.
RESTART_STEPS = 20
MIN_SEED_ROWS = 8_192
SEED_ROWS_PER_CLUSTER = 32


@dataclass(frozen=True)
class Fitted:
    """What a fit found. Tensors are on the CPU; `prototypes` and `shift` are as in `State` and `Frame`."""

    state: State
    shift: Tensor
    temperature: float
    collapse_temperature: float | None
    counts: Tensor  # (K,) weight of each cluster's rows, assigned to their best score
    inertia: float  # weighted sum of squared distances to the assigned prototype
    settled: bool
    history: list[dict[str, Any]]
    facts: dict[str, Any]  # rows, weight, fingerprint, seeding: what a person wants to know of the run
    seconds: dict[str, float] = field(default_factory=dict)


def fit_rows(
    source: Source,
    comm: Comm,
    config: FitConfig,
    *,
    threads: int,
    device: torch.device,
    start: np.ndarray | None = None,
    labels: Tensor | None = None,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> Fitted:
    """Fit `config` to the rows of all workers.

    Parameters
    ----------
    source : Source
        This worker's rows.
    comm : Comm
    threads : int
    device : torch.device
    start : ndarray (K, d), optional
        Initial prototypes, in the coordinates of the data, for ``init="array"``.
    labels : Tensor (n,) of int64, optional
        Filled with the labels of this worker's rows.
    watch : callable, optional
        Called with each history entry.

    Raises
    ------
    InputError
        If there are fewer rows than clusters, or vectors of several dimensions.
    EngineError
        If a pass did not see every row.
    """
    clock = _Clock()
    threads = threads if device.type == "cpu" else 1  # a GPU has one stream of kernels
    with thread_pool(threads) as pool:
        passes = Passes(source, comm, device, threads, pool.map)
        look = survey(passes, config.metric, _seed_rows(config, source.total), config.seed)
        if config.clusters > look.extent.rows:
            raise InputError(f"{config.clusters} clusters but only {look.extent.rows} rows; ask for fewer clusters")
        frame = _frame_at_sample_mean(look, config.metric)
        _check_scale(look.extent, frame)
        facts = _moments(passes, look.extent, frame, covariance=config.has_temperature)
        critical = collapse_temperature(facts.covariance) if facts.covariance is not None else None
        temperature = _temperature(config, critical)
        clock.lap("survey")

        def objective(of: Moments) -> DistanceObjective:
            return OBJECTIVES[config.objective](
                clusters=config.clusters,
                temperature=temperature,
                beta=config.balance,
                moments=of,
                frame=frame,
                tol=config.tol,
                precision=config.precision,
                device=device,
            )

        goal = objective(facts)
        if start is not None:
            state = _given(start, config, frame)
            seeding: dict[str, Any] = {"init": "array"}
        else:
            state, seeding = _seed(passes, look, config, frame, objective)
        clock.lap("seeding")

        history: list[dict[str, Any]] = []

        def record(step: int, terms: Terms, seconds: float) -> None:
            history.append({"step": step + 1, **terms.asdict(), "seconds": seconds})
            if watch is not None:
                watch(history[-1])

        state = adm(goal, state, passes, config.max_steps, record)
        if not history[-1]["settled"]:
            logger.warning("stopped after max_steps = %d steps, before the fit had settled", config.max_steps)
        clock.lap("steps")

        inertia, counts = _assignment(passes, goal, state, frame, facts, labels)
        clock.lap("assignment")
    return Fitted(
        state=state,
        shift=frame.shift,
        temperature=temperature,
        collapse_temperature=critical,
        counts=counts,
        inertia=inertia,
        settled=bool(history[-1]["settled"]),
        history=history,
        facts={
            "rows": facts.rows,
            "weight": facts.weight,
            "fingerprint": look.fingerprint,
            "seeding": seeding,
        },
        seconds=clock.laps,
    )


def _seed_rows(config: FitConfig, total: int) -> int:
    wanted = config.seed_rows or max(MIN_SEED_ROWS, SEED_ROWS_PER_CLUSTER * config.clusters)
    return min(total, max(wanted, config.clusters))


def _frame_at_sample_mean(look: Survey, metric: str) -> Frame:
    frame = Frame.identity(metric, look.sample_rows.shape[1])
    sample = frame.normalise(look.sample_rows).double()
    return frame.centred_at(sample.T.mv(look.sample_weight) / look.sample_weight.sum())


def _check_scale(extent: Extent, frame: Frame) -> None:
    largest = float(extent.bound(frame).max())
    if 0 < largest < 1 / LARGEST:
        raise InputError(f"no value differs by more than {largest:.3g} from the mean; scale the data up")
    if extent.max_weight < 1 / LARGEST:
        raise InputError(f"no weight is above {extent.max_weight:.3g}; scale the weights up")


def _moments(passes: Passes, extent: Extent, frame: Frame, *, covariance: bool) -> Moments:
    fields = moment_fields(extent, frame, covariance=covariance)
    statistics = passes.sum(fields, moment_statistics(frame, covariance=covariance))
    return moments(statistics, extent, frame, covariance=covariance)


def _temperature(config: FitConfig, critical: float | None) -> float:
    """The absolute temperature that `config` means, given T_c (None where the objective needs none)."""
    if critical is None:
        return 0.0
    if config.lam is not None:
        return config.lam * config.clusters
    if isinstance(config.temperature, float):
        return config.temperature
    fraction = config.fraction_of_tc() or AUTO_FRACTION
    # all rows equal: any temperature gives the same (single) prototype
    return fraction * critical if critical > 0 else 1.0


def _given(start: np.ndarray, config: FitConfig, frame: Frame) -> State:
    start = np.asarray(start, dtype=np.float64)
    expected = (config.clusters, len(frame.shift))
    if start.shape != expected:
        raise ConfigError(f"initial prototypes have shape {start.shape}, expected {expected}")
    if not np.isfinite(start).all():
        raise ConfigError("initial prototypes hold NaN or infinite values")
    prototypes = frame.normalise(torch.from_numpy(start)) - frame.shift
    if not bool(prototypes.isfinite().all()):
        raise ConfigError("initial prototypes: a zero vector has no direction (metric cosine)")
    return State(0, prototypes, torch.zeros(config.clusters, dtype=torch.float64))


def _seed(
    passes: Passes,
    look: Survey,
    config: FitConfig,
    frame: Frame,
    objective: Callable[[Moments], DistanceObjective],
) -> tuple[State, dict[str, Any]]:
    """Seed on the sample; of several restarts, each a short fit of the sample, return the best.

    The fit goes on from where the best restart has come to, or, where the sample is all there is, repeats it from
    its beginning, so that the history tells the whole course.
    """
    z, weight = frame(look.sample_rows), look.sample_weight
    clusters, seeds = config.clusters, SEEDINGS[config.init]
    if len(z) < clusters:
        raise InputError(f"{clusters} clusters but only {len(z)} rows of positive weight")

    def drawn(restart: int) -> State:
        rng = np.random.Generator(np.random.Philox(key=[config.seed, restart]))
        prototypes = seeds(z, weight, clusters, rng).double()
        return State(0, prototypes, torch.zeros(clusters, dtype=torch.float64))

    if config.n_init == 1:
        return drawn(0), {"init": config.init, "sample_rows": len(z)}

    weighted = None if bool((weight == weight[0]).all()) else weight
    alone = Passes(MemorySource(look.sample_rows, weighted).to(passes.device), Solo(), passes.device)
    heaviest = 1.0 if weighted is None else float(weight.max())
    extent = replace(look.extent, rows=len(z), max_weight=heaviest)
    goal = objective(_moments(alone, extent, frame, covariance=False))

    def restart(number: int) -> tuple[int, float, State]:
        reached: list[float] = []
        state = adm(goal, drawn(number), alone, RESTART_STEPS, lambda _step, terms, _: reached.append(terms.objective))
        return number, reached[-1], replace(state, step=0)

    comm = passes.comm
    mine = list(passes.map(restart, range(comm.rank, config.n_init, comm.world_size)))
    objectives = dict(pair for part in comm.all_gather([(number, value) for number, value, _ in mine]) for pair in part)
    best = min(objectives, key=lambda number: (objectives[number], number))
    [state] = [s for s in comm.all_gather(next((s for number, _, s in mine if number == best), None)) if s is not None]
    reached = [objectives[number] for number in range(config.n_init)]
    state = drawn(best) if len(z) == look.extent.rows else state
    return state, {"init": config.init, "sample_rows": len(z), "restart_objectives": reached}


def _assignment(
    passes: Passes, goal: DistanceObjective, state: State, frame: Frame, facts: Moments, labels: Tensor | None
) -> tuple[float, Tensor]:
    """Inertia and cluster weights of the hard assignment to the final prototypes."""

    def keep(first: int, tile: Tensor) -> None:
        if labels is not None:
            labels[first : first + len(tile)] = tile.cpu()

    scores = goal.scores(state)
    local = hard_statistics(scores, frame, screen=goal.screen, on_labels=keep)
    statistics = passes.sum(goal.fields, local)
    counts, sums = statistics["counts"].cpu(), statistics["sums"].cpu()
    theta = scores.prototypes.double().cpu()
    inertia = facts.square - 2 * float((sums * theta).sum()) + float(counts @ theta.square().sum(1))
    return max(0.0, inertia), counts


class _Clock:
    """Seconds of each phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
