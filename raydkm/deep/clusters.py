"""Clusters of the features so far: targets of training, and at the end the model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from raydkm.config import AS_THEY_ARE, FeatureConfig, FitConfig
from raydkm.data.source import RowSource
from raydkm.data.tiers import Tiers
from raydkm.engine.comm import Comm, gathered
from raydkm.engine.fit import Fitted, fit_rows
from raydkm.engine.maps import fit_maps
from raydkm.engine.neighbours import Graph, neighbours, smoothed
from raydkm.engine.passes import Passes, thread_pool
from raydkm.engine.progress import Reporter
from raydkm.engine.result import model_of
from raydkm.engine.where import computing, torch_threads
from raydkm.errors import EngineError
from raydkm.features.features import Features
from raydkm.model import Model
from raydkm.objectives import OBJECTIVES
from raydkm.objectives.logistic import OF_LOGITS, LogisticObjective
from raydkm.ops.frame import Frame
from raydkm.ops.hard import HardAssignment
from raydkm.ops.labeller import Labeller
from raydkm.ops.scores import Scores
from raydkm.ops.soft import SoftAssignment

#: Tolerances by which a fit settles at once.
AT_ONCE = {"tol": 1e30, "objective_tol": 1e30, "anneal": 0}


@dataclass(frozen=True)
class Clustering:
    """Clusters of features.

    Parameters
    ----------
    model : Model
        Of features, without what makes them.
    fitted : Fitted
    labels : Tensor (n,) of int64
        Of this worker's rows.
    """

    model: Model
    fitted: Fitted
    labels: Tensor

    def targets(self, features: Tensor, positions: Tensor) -> Tensor:
        """Labels (n,) or, of a soft model, posteriors q (n, K) of rows at `positions`, whose features are given."""
        if self.model.hard:
            return self.labels[positions]
        return self._soft(self.model.frame().tile(features.cpu())).dense()

    @cached_property
    def _soft(self) -> SoftAssignment:
        return SoftAssignment(self.model.read_as("q").scores())

    def summary(self) -> dict[str, Any]:
        """What a person wants to know, with the signs of a collapse."""
        last, counts = self.fitted.history[-1], self.fitted.counts
        names = ("objective", "posterior_entropy", "marginal_entropy", "duplicates")
        return {
            "steps": self.fitted.state.step,
            "inertia": self.fitted.inertia,
            **{name: last[name] for name in names},
            "smallest": float(counts.min()),
            "largest": float(counts.max()),
            "dead": int((counts == 0).sum()),
        }


@dataclass(frozen=True)
class Clusterer:
    """What features are clustered with.

    Parameters
    ----------
    rows : RowSource
        This worker's rows, as they are stored.
    comm : Comm
    config : FitConfig
    made : FeatureConfig
    threads : int
    device : torch.device
    tiers : callable
        Gives the room there is for features.
    """

    rows: RowSource
    comm: Comm
    config: FitConfig
    made: FeatureConfig
    threads: int
    device: torch.device
    tiers: Callable[[], Tiers]

    def encoded(self, features: Features) -> RowSource:
        """The features of this worker's rows, each canonical batch computed by one thread.

        Raises
        ------
        EngineError
            If some are not finite, or without a direction where they need one.
        """

        def encode(rows: Tensor) -> Tensor:
            z = features(rows.to(self.device))
            norms = torch.linalg.vector_norm(z, dim=1)
            if not bool(norms.isfinite().all()):
                raise EngineError("features are not finite: the training diverged; lower learning_rate")
            if self.config.metric == "cosine" and bool((norms == 0).any()):
                raise EngineError("a row's features are all zero, which has no direction (metric cosine)")
            return z

        made: list[RowSource] = []
        with self._pool() as pool:
            gathered(self.comm, lambda: made.append(self.rows.mapped(encode, self.tiers(), pool.map)))
        return made[0]

    def prepared(self, encoded: RowSource) -> tuple[RowSource, Graph | None]:
        """Features as they are clustered in a fit: mapped and averaged over neighbours; and the graph of these."""
        mapped = self.mapped(encoded)
        if not self.made.hops and not self.made.agreement:
            return mapped, None
        z = self._normal(mapped)
        graph = neighbours(z, self.comm, self.made.neighbours, threads=self.threads)
        with torch_threads(self.threads):
            return mapped.with_rows(smoothed(z, graph, self.made.hops, self.comm)), graph

    def mapped(self, encoded: RowSource) -> RowSource:
        """Features after the maps that follow an encoder, which are fitted to them."""
        if not self.made.feature_stages:
            return encoded
        with self._pool() as pool:
            threads = computing(self.threads, self.device)
            passes = Passes(encoded, self.comm, self.device, threads, pool.map)
            _, mapped = fit_maps(self.made.feature_stages, passes, self.config, self.tiers())
        return cast(RowSource, mapped.source)

    def _pool(self) -> Any:
        return thread_pool(computing(self.threads, self.device))

    def graph(self, encoded: RowSource, count: int) -> Graph:
        """The `count` nearest neighbours of each row by its features."""
        return neighbours(self._normal(encoded), self.comm, count, threads=self.threads)

    def _normal(self, encoded: RowSource) -> Tensor:
        gathered(self.comm, encoded.check_held)
        return Frame.identity(self.config.metric, 0).normalise(encoded.everything().cpu().float())

    def clustered(self, rows: RowSource, config: FitConfig, start: Tensor | None) -> Clustering:
        """The clusters of features, from prototypes `start` (K, d) on if they are given."""
        labels = torch.empty(rows.held, dtype=torch.int64)
        config = config if start is None else config.model_copy(update={"anneal": 0})
        fitted = self._fit(rows, config, start, labels)
        return Clustering(model_of(fitted, config, AS_THEY_ARE), fitted, labels)

    def finished(
        self,
        encoded: RowSource,
        config: FitConfig,
        start: Tensor | None,
        labels: Tensor | None,
        report: Reporter,
    ) -> Fitted:
        """The model's clusters: of features as a row alone gives them, for no other rows are there when it is used.

        Where clusters are of features that were mapped or averaged, prototypes are the means of their rows' own ones.
        """
        if not self.made.hops and not self.made.feature_stages:
            return self._fit(encoded, config, start, labels, report)
        found = self.clustered(self.prepared(encoded)[0], config, start)
        fitted = self.settled(encoded, config, means_of(encoded, found.labels, config, self.comm), labels, report)
        return replace(fitted, facts=fitted.facts | {"clustered": found.summary()})

    def settled(
        self, encoded: RowSource, config: FitConfig, means: Tensor, labels: Tensor | None, report: Reporter
    ) -> Fitted:
        """The fit that a step comes to from the means of clusters (K, d)."""
        return self._fit(encoded, config.model_copy(update=AT_ONCE), means, labels, report)

    def by_head(
        self, encoded: RowSource, config: FitConfig, head: nn.Linear, labels: Tensor | None, report: Reporter
    ) -> Fitted:
        """The model's clusters where a linear head assigns rows: prototypes are the means of their features."""
        frame = Frame.identity(self.config.metric, head.in_features)
        theta, b = head.weight.detach().cpu(), head.bias.detach().cpu()
        best = torch.empty(encoded.held, dtype=torch.int64)
        first = HardAssignment(Scores.linear(theta.double(), b.double(), OF_LOGITS, frame))
        for batch in encoded.batches():
            best[batch.first : batch.first + len(batch)] = first(frame.tile(batch.rows.cpu()))
        alone = config.model_copy(update={"balance": 0.0, "min_share": 0.0, "max_share": 1.0, "marginal": None})
        means = means_of(encoded, best, config, self.comm)
        fitted = self.settled(encoded, alone, means, None, report)
        frame, means = replace(frame, shift=fitted.shift), means - fitted.shift
        theta = theta.double()
        b = b.double() + theta @ fitted.shift  # in the coordinates of the frame
        labeller = Labeller(Scores.linear(theta, b, OF_LOGITS, frame), means, frame, hard=False)
        counts, inertia = torch.zeros(len(b), dtype=torch.float64), 0.0
        for batch in encoded.batches():
            own = labeller.labels(batch.rows.cpu())
            counts += torch.bincount(own, minlength=len(b))
            inertia += float(labeller.squared_distances(batch.rows.cpu(), own).sum())
            if labels is not None:
                labels[batch.first : batch.first + len(batch)] = own
        parts = self.comm.all_gather((counts, inertia))
        return replace(
            fitted,
            state=fitted.state if self._logistic else replace(fitted.state, prototypes=means),
            means=means,
            counts=torch.stack([count for count, _ in parts]).sum(0),
            inertia=sum(part for _, part in parts),
            head=(theta, b),
        )

    @property
    def _logistic(self) -> bool:
        return issubclass(OBJECTIVES[self.config.objective], LogisticObjective)

    def _fit(
        self,
        rows: RowSource,
        config: FitConfig,
        start: Tensor | None,
        labels: Tensor | None,
        report: Reporter | None = None,
    ) -> Fitted:
        return fit_rows(
            rows,
            self.comm,
            config,
            threads=self.threads,
            device=self.device,
            start=None if start is None else start.numpy(),
            labels=labels,
            report=report,
        )


def means_of(rows: RowSource, labels: Tensor, config: FitConfig, comm: Comm) -> Tensor:
    """The means (K, d) of float64 of the features of each cluster's rows, of all workers; of no rows that of all."""
    counts, sums = torch.zeros(config.clusters, dtype=torch.float64), None
    for batch in rows.batches():
        z = Frame.identity(config.metric, batch.rows.shape[1]).normalise(batch.rows).double().cpu()
        weight, of = batch.weights().cpu(), labels[batch.first : batch.first + len(batch)]
        sums = torch.zeros(config.clusters, z.shape[1], dtype=torch.float64) if sums is None else sums
        counts.index_add_(0, of, weight)
        sums.index_add_(0, of, z * weight[:, None])
    parts = [(count, part) for count, part in comm.all_gather((counts, sums)) if part is not None]
    count, total = (torch.stack(column).sum(0) for column in zip(*parts, strict=True))
    mean = total.sum(0) / count.sum()
    return torch.where(count[:, None] > 0, total / count.clamp(min=1e-300)[:, None], mean)


def heads_of(config: FitConfig, made: FeatureConfig) -> list[FitConfig]:
    """What each head clusters: all alike but for the seed, then those of more clusters."""
    alike = [config.model_copy(update={"seed": config.seed + number}) for number in range(made.heads)]
    if made.overclustering == 1:
        return alike
    many = {"clusters": made.overclustering * config.clusters, "marginal": None, "min_share": 0.0, "max_share": 1.0}
    return [*alike, *(head.model_copy(update=many) for head in alike)]
