"""A whole fit, from rows to prototypes: the same code in this process and in every Ray Train worker."""

from __future__ import annotations

import logging
import math
import resource
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydkm.config import FitConfig
from raydkm.data.columns import LARGEST
from raydkm.engine.checkpoint import Checkpoint, CheckpointFile
from raydkm.engine.comm import Comm, gathered
from raydkm.engine.farthest import placed_at_farthest
from raydkm.engine.loop import adm, hold_shares
from raydkm.engine.passes import Passes, Source, thread_pool
from raydkm.engine.progress import Reporter, seconds_left
from raydkm.engine.start import given, seed_rows, seeded, within_temperature
from raydkm.engine.survey import Survey, condensed, measure, measure_spread, survey
from raydkm.engine.where import computing
from raydkm.errors import InputError
from raydkm.features.features import Features
from raydkm.objectives import OBJECTIVES, Objective, Setting, State, Terms
from raydkm.objectives.base import BALANCE_TOLERANCE
from raydkm.objectives.distance import DistanceObjective
from raydkm.objectives.kmeans import KMeans
from raydkm.objectives.logistic import LogisticObjective
from raydkm.ops.approximate import EFFORTS
from raydkm.ops.balance import Balance
from raydkm.ops.batch import BATCH_ROWS
from raydkm.ops.cost import Costs
from raydkm.ops.exact import Statistics
from raydkm.ops.frame import Frame
from raydkm.ops.leading import SAMPLE_ROWS, Directions, worthwhile
from raydkm.ops.moments import Extent, Moments
from raydkm.ops.statistics import cluster_fields, hard_statistics
from raydkm.ops.temperature import (
    AUTO_FRACTION,
    AUTO_FRACTION_WITHIN,
    LEAST_FRACTION,
    spherical_temperature,
)

logger = logging.getLogger("raydkm")

#: Where annealing begins, as a part of T_c: above it all prototypes coincide.
HOT = 0.9

#: The same of spherical prototypes, which never coincide, as a multiple of the temperature.
SPHERICAL_HOT = 4.0

#: Sum of the weights, as a multiple of the least, from which on two grids do not hold it.
TOO_LIGHT = 2.0**100

#: The part of a column's variance in the sample that a single row may have.
SINGLE_ROW = 0.25

#: Passes at most, after the steps, in which scalings alone are swept where shares are to be held.
FINAL_SWEEPS = 100

#: The part of a bound by which a share of the labels may be outside it without a warning.
LABELS_BEYOND = 0.01

#: Passes at most, after the steps, in which hard clusters without rows are moved to some. One or two
#: nearly always suffice: a prototype at another row may leave another one without any.
FINAL_RELOCATIONS = 100


@dataclass(frozen=True)
class Fitted:
    """What a fit found. Tensors are on the CPU; `prototypes` and `shift` are as in `State` and `Frame`."""

    state: State
    means: Tensor  # (K, d) of each cluster's rows, assigned to their best score
    shift: Tensor
    temperature: float
    collapse_temperature: float | None
    counts: Tensor  # (K,) weight of each cluster's rows, assigned to their best score
    inertia: float  # weighted sum of squared distances to the assigned prototype
    stopped: str  # by which rule: shift, objective, max_steps or max_time
    history: list[dict[str, Any]]
    facts: dict[str, Any]  # rows, weight, fingerprint, seeding: what a person wants to know of the run
    seconds: dict[str, float] = field(default_factory=dict)
    features: Features | None = None  # what was clustered in place of the rows
    head: tuple[Tensor, Tensor] | None = None  # theta (K, d) and b (K,) by which rows are assigned, in the frame


def fit_rows(
    source: Source,
    comm: Comm,
    config: FitConfig,
    *,
    threads: int,
    device: torch.device,
    start: np.ndarray | None = None,
    labels: Tensor | None = None,
    report: Reporter | None = None,
    checkpoints: CheckpointFile | None = None,
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
    report : Reporter, optional
        Told of each phase and step; without one the fit is a part of another, and warns of nothing.
    checkpoints : CheckpointFile, optional
        Where to go on from, if there is a checkpoint, and to save others.

    Raises
    ------
    ConfigError
        If the checkpoint is of a fit with other parameters or data.
    InputError
        If there are fewer rows than clusters, or vectors of several dimensions.
    EngineError
        If a pass did not see every row.
    WorkerLostError
        If another worker did not answer in time.
    """
    warns, report = report is not None and comm.rank == 0, report or Reporter([])
    clock = _Clock(report)
    threads = computing(threads, device)
    with thread_pool(threads) as pool:
        passes = Passes(source, comm, device, threads, pool.map)
        look, frame = look_at(passes, config)
        stored, (passes, extent) = passes, condensed(passes, look, config.metric)
        kind = OBJECTIVES[config.objective]
        logistic = issubclass(kind, LogisticObjective)
        critical = None
        if config.has_temperature:
            facts, critical = measure_spread(passes, look, extent, frame, covariance=kind.needs_covariance)
            critical = 0.0 if _alike(extent, frame) else critical
        else:
            facts = measure(passes, extent, frame, covariance=False, fine=extent.needs_fine(frame, look.sample_rows))
        if warns and extent.rows * extent.max_weight > TOO_LIGHT * extent.min_weight:
            logger.warning(
                "weights from %.3g to %.3g: the lightest rows are lost beside the sum of all; leave them out, or weigh "
                "rows more alike",
                extent.min_weight,
                extent.max_weight,
            )
        temperature = temperature_of(config, critical)
        leading = directions_of(look, frame, config, device)
        clock.lap("survey")

        def seeding_objective(of: Moments) -> Objective:  # a logistic fit begins at clusters of k-means
            return (KMeans if logistic else kind)(setting_of(config, of, frame, temperature, critical, device, leading))

        saved = _saved(checkpoints, comm)
        if saved is not None:
            saved.check_config(config)
            saved.check_data(look.fingerprint)
            state, seeding, history = saved.state, saved.seeding, list(saved.history)
        elif start is not None:
            prototypes, seeding = given(start, config, frame)
            state, history = seeding_objective(facts).begin(prototypes), []
        else:
            state, seeding = seeded(passes, look, config, frame, facts, seeding_objective, refined=logistic)
            history = []
        of_goal = temperature
        if logistic and config.temperature == "auto":
            if saved is None:
                within = within_temperature(passes, state.prototypes, frame, facts, config.precision)
                seeding["temperature"] = max(AUTO_FRACTION_WITHIN * within, LEAST_FRACTION * temperature)
            of_goal = seeding["temperature"]
        goal = kind(setting_of(config, facts, frame, of_goal, critical, device, leading))
        if logistic and saved is None:
            state = goal.begin(state.prototypes)
        report(
            "run",
            config=config.model_dump(),
            rows=look.extent.rows,
            dim=len(frame.shift),
            workers=comm.world_size,
            threads=threads,
            device=str(device),
            resumed_step=state.step if saved else 0,
        )
        clock.lap("seeding")

        before = sum(entry["seconds"] for entry in history)  # a start again under the same budget

        def save(state: State, *, now: bool) -> None:
            if checkpoints is not None and comm.rank == 0 and (now or checkpoints.due()):
                checkpoints.save(Checkpoint(state, history, seeding, config.model_dump(mode="json"), look.fingerprint))

        def record(state: State, terms: Terms, seconds: dict[str, float]) -> bool:
            history.append({"step": state.step, **terms.asdict(), **seconds})
            left = seconds_left(history, goal.settled_shift, config.max_steps)
            if terms.miss_rate is not None and comm.rank == 0 and state.effort > len(EFFORTS) - 1:
                logger.warning("approximate assignment missed %.2g of the rows: exact from now on", terms.miss_rate)
            rate = look.extent.rows / seconds["seconds"]
            report("step", **history[-1], rows_per_second=rate, seconds_left=left)
            save(state, now=False)
            return clock.is_over(config.max_time, before, comm)

        if saved is None:
            save(state, now=True)
        if not (history and history[-1]["settled"]):
            state = adm(goal, state, passes, config.max_steps, record)
        stopped = history[-1]["settled"] or ("max_steps" if state.step >= config.max_steps else "max_time")
        if warns and stopped in ("max_steps", "max_time"):
            logger.warning("stopped by %s = %g, before the fit had settled", stopped, getattr(config, stopped))
        if warns and (same := history[-1]["duplicates"]):
            soft = "" if goal.hard else f" at T = {goal.setting.temperature:.3g}, T_c = {critical:.3g}; lower it"
            logger.warning("%d of %d prototypes coincide with another one%s", same, config.clusters, soft)
        save(state, now=True)  # before the sweeps, so that a fit goes on as if there had been none
        residual = float(history[-1]["balance_residual"])
        if goal.balance.held and not goal.hard and residual > BALANCE_TOLERANCE and stopped != "max_time":
            state, residual = hold_shares(goal, state, passes, FINAL_SWEEPS)
        if goal.balance.held and warns and residual > BALANCE_TOLERANCE:
            logger.warning(
                "the clusters' shares are not held yet: a scaling would change by %.2g", math.expm1(residual)
            )
        clock.lap("steps")

        inertia, counts, means = _assignment(stored, passes, goal, state, frame, facts, labels)
        for _ in range(FINAL_RELOCATIONS if goal.hard else 0):  # no step follows that would find rows for them
            state, moved = placed_at_farthest(goal, state, goal.lost(counts, counts), passes)
            if not moved:
                break
            inertia, counts, means = _assignment(stored, passes, goal, state, frame, facts, labels)
        if warns and config.bounded and not goal.hard:
            _warn_of_labels(counts / counts.sum(), config)
        clock.lap("assignment")
        peaks = comm.all_gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    report("end", steps=state.step, stopped=stopped, inertia=inertia)
    return Fitted(
        state=state,
        means=means,
        shift=frame.shift,
        temperature=goal.temperature_at(state.step),
        collapse_temperature=critical,
        counts=counts,
        inertia=inertia,
        stopped=stopped,
        history=history,
        facts={
            "rows": look.extent.rows,
            "weight": facts.weight,
            "fingerprint": look.fingerprint,
            "seeding": seeding,
            "balance_residual": residual,
            "peak_memory": peaks,
        },
        seconds=clock.laps,
    )


def _warn_of_labels(shares: Tensor, config: FitConfig) -> None:
    """Bounds bind soft shares; tell if those of the labels (K,) break them."""
    few, many = shares < config.min_share * (1 - LABELS_BEYOND), shares > config.max_share * (1 + LABELS_BEYOND)
    if outside := int((few | many).sum()):
        logger.warning(
            "min_share and max_share bind the posteriors; by labels, shares of %d clusters are outside them "
            "(%.3g to %.3g); objective kmeans binds labels",
            outside,
            float(shares.min()),
            float(shares.max()),
        )


def _saved(checkpoints: CheckpointFile | None, comm: Comm) -> Checkpoint | None:
    """The checkpoint to go on from, read by the first worker for all."""
    return gathered(comm, lambda: checkpoints.load() if checkpoints is not None and comm.rank == 0 else None)[0]


def look_at(passes: Passes, config: FitConfig) -> tuple[Survey, Frame]:
    """The survey of the rows, and the frame whose origin lies amid its sample; raise `InputError` if unusable."""
    look = survey(passes, config.metric, seed_rows(config, passes.source.total), config.seed)
    if config.clusters > look.counted:
        counted = "rows" if look.counted == look.extent.rows else "rows of positive weight"
        raise InputError(f"{config.clusters} clusters but only {look.counted} {counted}; ask for fewer clusters")
    frame = _frame_amid_sample(look, config.metric)
    _check_scale(look.extent, frame)
    return look, frame


def _frame_amid_sample(look: Survey, metric: str) -> Frame:
    """The frame at the sample's mean; at its median, where single rows draw the mean away from all others."""
    frame = Frame.identity(metric, look.sample_rows.shape[1])
    weights = look.sample_weight / look.sample_weight.sum()
    parts = [slice(first, first + BATCH_ROWS) for first in range(0, len(weights), BATCH_ROWS)]

    def sample(part: slice) -> Tensor:
        return frame.normalise(look.sample_rows[part]).double()

    mean = torch.stack([sample(part).T.mv(weights[part]) for part in parts]).sum(0)
    largest, total = torch.zeros_like(mean), torch.zeros_like(mean)
    for part in parts:
        squares = (sample(part) - mean).square_()
        largest, total = torch.maximum(largest, squares.amax(0)), total + squares.sum(0)
    if bool((largest > SINGLE_ROW * total).any()):
        mean = frame.normalise(look.sample_rows).median(0).values
    return frame.centred_at(mean, look.sample_rows.dtype)


def _check_scale(extent: Extent, frame: Frame) -> None:
    largest = float(extent.bound(frame).max())
    if largest < 1 / LARGEST and not _alike(extent, frame):
        raise InputError(f"no value differs by more than {largest:.3g} from the mean; scale the data up")
    if extent.max_weight < 1 / LARGEST:
        raise InputError(f"no weight is above {extent.max_weight:.3g}; scale the weights up")


def _alike(extent: Extent, frame: Frame) -> bool:
    """Whether all rows are equal but for rounding."""
    return float(extent.bound(frame).max()) <= 1e-6 * float(frame.shift.abs().max())


def temperature_of(config: FitConfig, critical: float | None) -> float:
    """The absolute temperature that `config` means, given T_c (None where the objective needs none)."""
    if critical is None:
        return 0.0
    kind = OBJECTIVES[config.objective]
    if config.lam is not None and issubclass(kind, DistanceObjective):
        return config.lam * config.clusters
    if isinstance(config.temperature, float):
        return config.temperature
    if config.spherical and config.temperature == "auto" and critical > 0:
        return spherical_temperature(critical, config.clusters)
    fraction = config.fraction_of_tc() or AUTO_FRACTION
    # all rows equal: any temperature gives the same (single) prototype
    return fraction * critical if critical > 0 else 1.0


def setting_of(
    config: FitConfig,
    moments: Moments,
    frame: Frame,
    temperature: float,
    critical: float | None,
    device: torch.device,
    directions: Directions | None = None,
) -> Setting:
    """What `config` asks of an objective on rows of these moments."""
    target = None if config.marginal is None else torch.tensor(config.marginal, dtype=torch.float64)
    return Setting(
        clusters=config.clusters,
        temperature=temperature,
        moments=moments,
        frame=frame,
        balance=Balance(config.balance, target, config.min_share, config.max_share),
        weights=(config.l1, config.l2, config.l3),
        lam=config.lam,
        tol=config.tol,
        objective_tol=config.objective_tol,
        hot=SPHERICAL_HOT * temperature if config.spherical else max(temperature, HOT * (critical or 0.0)),
        spherical=config.spherical,
        anneal=config.anneal,
        empty=config.empty,
        precision=config.precision,
        approximate=config.approximate and (config.assignment == "approximate" or device.type == "cpu"),
        max_miss=config.max_miss,
        device=device,
        directions=directions,
    )


def directions_of(look: Survey, frame: Frame, config: FitConfig, device: torch.device) -> Directions | None:
    """Directions of the sample, where hard steps on the CPU may be faster with them."""
    sample, rows = look.sample_rows, look.extent.rows
    if not OBJECTIVES[config.objective].hard or device.type != "cpu":
        return None
    if not worthwhile(rows, config.clusters, sample.shape[1]):
        return None
    return Directions.of(frame(sample[:: -(-len(sample) // SAMPLE_ROWS)]))


def _assignment(
    stored: Passes,
    passes: Passes,
    goal: Objective,
    state: State,
    frame: Frame,
    facts: Moments,
    labels: Tensor | None,
) -> tuple[float, Tensor, Tensor]:
    """Inertia, weights and means of the clusters under the hard assignment of all rows by the final state.

    Distances are to the prototypes; in the logistic family, which has none, to the means. These are summed over the
    rows that the moments are of, `passes`, so that weights are the same as repetitions.
    """

    def keep(first: int, tile: Tensor) -> None:
        if labels is not None:
            labels[first : first + len(tile)] = tile.cpu()

    scores, precision, directions = goal.scores(state), goal.setting.precision, goal.setting.directions
    about = scores.costs
    if isinstance(goal, LogisticObjective):
        local = hard_statistics(scores, frame, precision=precision, directions=directions)
        means = _means(passes.sum(cluster_fields(len(scores), facts.bounds), local))
        about = Costs(means, torch.zeros(len(means), dtype=torch.float64), frame.shift, unit=frame.unit)
    bounds = replace(facts.bounds, addends=stored.source.total)
    farthest = float(torch.linalg.vector_norm(about.prototypes, dim=1).max())
    fields = (*cluster_fields(len(scores), bounds), bounds.within_clusters(farthest)[0])
    local = hard_statistics(scores, frame, precision=precision, directions=directions, about=about, on_labels=keep)
    statistics = stored.sum(fields, local)
    own = about.prototypes if isinstance(goal, LogisticObjective) else _means(statistics)
    return float(statistics["within"]), statistics["counts"].cpu(), own


def _means(statistics: Statistics) -> Tensor:
    """Of the rows of each cluster (K, d); zeros of none."""
    return statistics["sums"].cpu() / statistics["counts"].cpu().clamp(min=1e-300)[:, None]


class _Clock:
    """Seconds of each phase, which are reported when it ends."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self.laps: dict[str, float] = {}
        self._last = self._began = time.perf_counter()

    def is_over(self, seconds: float | None, before: float, comm: Comm) -> bool:
        """Whether so much time has passed since the beginning and `before`, by the first worker's clock."""
        if seconds is None:
            return False
        return bool(comm.all_gather(before + time.perf_counter() - self._began >= seconds)[0])

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._report("phase", phase=name, seconds=self.laps[name])
        self._last = now
