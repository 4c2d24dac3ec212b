"""Fits maps to the rows of all workers, stage after stage, from exact sums and from the keyed sample.

Stages are fitted to rows as the stages before map them, anew in each pass; only the rows that come out of the last are
held. What follows from the sums is computed by the first worker for all, for eigenvectors may depend on the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from raydkm.config import FitConfig
from raydkm.data.source import RowSource
from raydkm.data.tiers import Tiers
from raydkm.engine.comm import gathered
from raydkm.engine.fit import fit_rows, look_at
from raydkm.engine.passes import Passes
from raydkm.engine.survey import Survey, condensed, measure
from raydkm.errors import InputError
from raydkm.features.maps import FourierFeatures, KernelToLandmarks, Map, Projected, Scaled, Unit, chain
from raydkm.features.spectra import (
    discriminants,
    inverse_root,
    nystrom,
    principal,
    principal_of_rows,
    shrunk,
    whitening,
)
from raydkm.features.stages import Stage, dims_of
from raydkm.ops.batch import HARD_TILE, Batch
from raydkm.ops.distances import Points
from raydkm.ops.exact import Statistics
from raydkm.ops.frame import Frame
from raydkm.ops.hard import HardAssignment
from raydkm.ops.moments import TILE, Extent, Moments
from raydkm.ops.scores import Scores
from raydkm.ops.seeding import kmeans_plus_plus
from raydkm.ops.statistics import ROWS, add_assigned, cluster_fields
from raydkm.ops.workspace import Workspace

T = TypeVar("T")
Function = Callable[[Tensor], Tensor]

#: The width of the Gaussian kernel is the distance that this part of the pairs of rows do not exceed: the lower end of
#: the range that Caputo et al. (2002) found to serve, where clusters of any shape can still be told apart.
WIDTH_QUANTILE = 0.1

#: Pairs of rows that it is found from.
PAIRS = 4096

#: Rounds of clustering and discriminant projection from each of the two starts, at most.
LDA_ROUNDS = 5

#: Second key of the draws of the first stage, apart from those of seedings, whose second key is a restart's number.
_DRAWS = 2**32


def fit_maps(
    stages: Sequence[Stage], passes: Passes, config: FitConfig, tiers: Tiers
) -> tuple[tuple[Map, ...], Passes]:
    """Fit stages to the rows of all workers; return the maps and passes over the mapped rows.

    The same bits for any number of workers and of threads, if torch's operations use one thread each, as in a
    `thread_pool`. A stage takes two passes, or for each of at most ten rounds of ``lda`` a fit of k-means and a
    pass.

    Parameters
    ----------
    stages : sequence of Stage
        Without ``neighbours``, which maps no single row.
    passes : Passes
    config : FitConfig
        Of which maps depend on `clusters`, `seed` and what else a seeding depends on.
    tiers : Tiers
        Where mapped rows are held.

    Raises
    ------
    ConfigError
        If a stage is to give more dimensions than there are.
    InputError
        If there are too few rows.
    EngineError
        If a pass did not see every row.
    """
    config = config.model_copy(update={"metric": "euclidean"})  # the metric is that of the mapped rows
    maps: tuple[Map, ...] = ()
    on_device: list[Map] = []
    dims: tuple[int, ...] = ()
    if not stages:
        return maps, passes
    for number, stage in enumerate(stages):
        rows = _Rows.of(MappedPasses(passes, chain(on_device)), config)
        dims = dims or dims_of(stages, len(rows.frame.shift), config.clusters)
        maps = (*maps, _fitted(stage, dims[number], rows, config, tiers, _DRAWS + number))
        on_device.append(maps[-1].to(passes.device))
    mapped = _mapped(passes, chain(on_device), tiers)
    return maps, Passes(mapped, passes.comm, passes.device, passes.threads, passes.map)


class MappedPasses(Passes):
    """Passes over function(rows) in place of rows, computed anew in each pass, by the threads that use them."""

    def __init__(self, passes: Passes, function: Function):
        super().__init__(passes.source, passes.comm, passes.device, passes.threads, passes.map)
        self.function = function

    def each(self, task: Callable[[Iterator[Batch]], T], at_once: int = 1) -> list[T]:
        del at_once  # what a function makes of a row may depend on the others of its batch
        return super().each(lambda batches: task(replace(batch, rows=self.function(batch.rows)) for batch in batches))


@dataclass(frozen=True)
class _Rows:
    """The rows that a stage is fitted to, and what is known of them.

    Parameters
    ----------
    all : MappedPasses
    passes, extent
        Over the different rows, where the sample holds them all, see `condensed`.
    look : Survey
    frame : Frame
        Of float64: what is small beside the largest eigenvalue is not to be rounding.
    """

    all: MappedPasses
    passes: Passes
    extent: Extent
    look: Survey
    frame: Frame

    @classmethod
    def of(cls, passes: MappedPasses, config: FitConfig) -> _Rows:
        look, frame = look_at(passes, config)
        some, extent = condensed(passes, look, config.metric)
        return cls(passes, some, extent, look, replace(frame, dtype=torch.float64))

    def moments(self, *, covariance: bool) -> Moments:
        return measure(self.passes, self.extent, self.frame, covariance=covariance)

    def by_first(self, make: Callable[[], T]) -> T:
        """What the first worker makes, for all."""
        comm = self.all.comm
        made = gathered(comm, lambda: make() if comm.rank == 0 else None)[0]
        assert made is not None
        return made


def _fitted(stage: Stage, dim: int, rows: _Rows, config: FitConfig, tiers: Tiers, draws: int) -> Map:
    """The map of a stage with `dim` dimensions, whose draws are keyed by the seed and this number."""
    if stage.name == "unit":
        return Unit(torch.tensor(float(dim), dtype=torch.float64))
    if stage.name == "standardize":
        return _standardize(rows)
    if stage.name in ("rff", "nystrom"):
        rng = np.random.Generator(np.random.Philox(key=[config.seed, draws]))
        draw = _fourier if stage.name == "rff" else _landmarks
        return rows.by_first(partial(draw, rows, dim, rng))
    few = rows.look.sample_is_all and len(rows.look.sample_rows) < rows.look.sample_rows.shape[1]
    facts = rows.moments(covariance=stage.name != "center" and not (stage.name == "pca" and few))
    mean, covariance = rows.frame.shift + facts.mean.cpu(), facts.covariance
    if stage.name == "center":
        return Scaled(mean, torch.ones_like(mean))
    if stage.name == "pca":
        _check_rows(stage.name, dim, rows.look.counted, "rows")
    if covariance is None:
        weight = rows.look.sample_weight[:, None]
        centred = (rows.frame(rows.look.sample_rows) - facts.mean.cpu()) * weight.sqrt()
        return rows.by_first(partial(principal_of_rows, mean, centred, dim))
    covariance = covariance.cpu()
    if stage.name == "whiten":
        return rows.by_first(partial(whitening, mean, covariance))
    if stage.name == "lda":
        return _discriminants(dim, rows, mean, covariance, config, tiers)
    assert stage.name == "pca"
    return rows.by_first(partial(principal, mean, covariance, dim))


def _check_rows(name: str, dim: int, there_are: int, what: str) -> None:
    if there_are < dim:
        raise InputError(f"map stage {name}:{dim}: needs as many {what}, there are {there_are}; ask for fewer")


def _standardize(rows: _Rows) -> Scaled:
    """Columns of zero mean and unit variance; those that vary by no more than rounding become zero."""
    frame, extent = rows.frame, rows.extent
    bound = extent.bound(frame)

    def local(batch: Batch, into: Statistics) -> None:
        first, squares = torch.zeros(2, len(bound), dtype=torch.float64, device=batch.rows.device)
        for where, z in batch.tiles(frame, len(bound), TILE):
            weight = batch.weights()[where]
            first += weight @ z
            squares += weight @ z.square_()
        into.add("weight", batch.weights().sum())
        into.add("first", first)
        into.add("squares", squares)
        into.add("rows", len(batch))

    fields = [
        extent.bounds(frame).field(name, shape, of)
        for name, shape, of in (
            ("weight", (), 1.0),
            ("first", bound.shape, bound),
            ("squares", bound.shape, bound.square()),
        )
    ]
    sums = rows.passes.sum((*fields, ROWS), local)
    mean, square = (sums[name].cpu() / float(sums["weight"]) for name in ("first", "squares"))
    deviation = (square - mean.square()).clamp_(min=0).sqrt_()
    stored = rows.look.sample_rows.dtype
    rounding = torch.finfo(stored if stored == torch.float64 else torch.float32).eps
    varies = deviation > rounding * torch.maximum(extent.low.abs(), extent.high.abs())
    return Scaled(frame.shift + mean, torch.where(varies, 1 / deviation, 0.0))


def _fourier(rows: _Rows, dim: int, rng: np.random.Generator) -> FourierFeatures:
    """Frequencies of the Gaussian kernel: normal, of standard deviation 1 / width."""
    width = _width(rows, rng)
    frequencies = rng.standard_normal((len(rows.frame.shift), dim)) / width
    return FourierFeatures(torch.from_numpy(frequencies), torch.from_numpy(2 * np.pi * rng.random(dim)))


def _landmarks(rows: _Rows, dim: int, rng: np.random.Generator) -> KernelToLandmarks:
    """Landmarks that k-means++ draws from the sample."""
    look = rows.look
    _check_rows("nystrom", dim, len(look.sample_rows), "different rows in the seeding sample")
    width = _width(rows, rng)
    points = Points.in_frame(look.sample_rows, replace(rows.frame, dtype=torch.float32))
    drawn = kmeans_plus_plus(points, look.sample_weight, dim, rng)
    return nystrom(rows.frame(look.sample_rows[drawn]) + rows.frame.shift, width)


def _width(rows: _Rows, rng: np.random.Generator) -> float:
    """The quantile of the distances in random pairs of the sample's rows; 1 if all rows are equal."""
    sample, share = rows.look.sample_rows, rows.look.sample_weight.numpy()
    one, other = (rows.frame(sample[rng.choice(len(sample), PAIRS, p=share / share.sum())]) for _ in range(2))
    distances = torch.linalg.vector_norm(one - other, dim=1)
    distances = distances[distances > 0]
    return float(distances.quantile(WIDTH_QUANTILE)) if len(distances) else 1.0


def _discriminants(
    dim: int, rows: _Rows, mean: Tensor, covariance: Tensor, config: FitConfig, tiers: Tiers
) -> Projected:
    """Discriminant directions of the clusters that k-means finds in them (Ding and Li 2007).

    Rounds of k-means and projection start from clusters of whitened rows, which favour no direction of large variance,
    and from clusters of the rows as they are. The projection of the largest separation is returned.
    """
    whiten = rows.by_first(lambda: Projected(mean, inverse_root(shrunk(covariance))))
    found: list[tuple[float, Projected]] = []
    for projection in (whiten, Scaled(mean, torch.ones_like(mean))):
        found += _discriminant_rounds(dim, rows, projection, mean, covariance, config, tiers)
    return max(found, key=itemgetter(0))[1]


def _discriminant_rounds(
    dim: int, rows: _Rows, projection: Map, mean: Tensor, covariance: Tensor, config: FitConfig, tiers: Tiers
) -> Iterator[tuple[float, Projected]]:
    """Separation and projection of each round from clusters of projected rows, until no row changes its cluster."""
    seeded = "k-means||" if config.init == "array" else config.init
    kmeans = FitConfig(
        clusters=config.clusters, objective="kmeans", init=seeded, n_init=config.n_init, seed=config.seed
    )
    start, before = None, None
    for _ in range(LDA_ROUNDS):
        clusters = _clusters(rows, projection, kmeans, start, tiers)
        counts, sums = (clusters[name].cpu() for name in ("counts", "sums"))
        if before is not None and torch.equal(before, sums):
            break
        before = sums
        means = sums / counts.clamp(min=1e-300)[:, None] + rows.frame.shift - mean
        between = (means.T * (counts / counts.sum())) @ means
        separation, projection = rows.by_first(partial(_separated, mean, covariance - between, between, dim))
        yield separation, projection
        start = projection(means + mean).numpy()
        kmeans = kmeans.model_copy(update={"init": "array", "n_init": 1})


def _separated(mean: Tensor, within: Tensor, between: Tensor, dim: int) -> tuple[float, Projected]:
    """The scatter of cluster means along the discriminants, in units of the spread within; and the discriminants."""
    found = discriminants(mean, within, between, dim)
    return float((found.matrix.T @ between @ found.matrix).trace()), found


def _clusters(rows: _Rows, projection: Map, kmeans: FitConfig, start: np.ndarray | None, tiers: Tiers) -> Statistics:
    """Weights (K,) of k-means clusters of the projected rows, and their sums (K, d) of rows in the frame."""
    everyone, frame = rows.all, rows.frame
    project = projection.to(everyone.device)
    source = _mapped(everyone, chain([everyone.function, project]), _left(tiers))
    clusters = fit_rows(source, everyone.comm, kmeans, threads=everyone.threads, device=everyone.device, start=start)
    state, projected = clusters.state, Frame("euclidean", clusters.shift)
    scores = Scores.of(state.prototypes, state.log_s, 0.0, projected, everyone.device)
    assign = HardAssignment(scores)

    def local(batch: Batch, into: Statistics) -> None:
        weight = batch.weights()
        projections = replace(batch, rows=project(batch.rows))
        for where, y in projections.row_tiles(projected, len(scores), HARD_TILE, Workspace()):
            rows = frame.tile(batch.rows[where])
            add_assigned(into, assign(y), rows, weight[where], weighted=batch.weight is not None)
        into.add("rows", len(batch))

    return rows.passes.sum(cluster_fields(len(scores), rows.extent.bounds(frame)), local)


def _mapped(passes: Passes, function: Function, tiers: Tiers) -> RowSource:
    """The source of mapped rows; if a worker has no room for its own, all raise the error."""
    source = passes.source
    assert isinstance(source, RowSource)
    made: list[RowSource] = []
    gathered(passes.comm, lambda: made.append(source.mapped(function, tiers, passes.map)))
    return made[0]


def _left(tiers: Tiers) -> Tiers:
    """The room that is left, for rows that are soon dropped."""
    return Tiers(
        tiers.cache,
        tiers.memory - tiers.held["host"],
        tiers.device,
        tiers.device_memory - tiers.held["device"],
    )
