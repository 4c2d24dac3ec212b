"""Clusters of the features so far: targets of training, and at the end the model's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

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
from raydkm.engine.where import torch_threads
from raydkm.errors import EngineError
from raydkm.features.features import Features
from raydkm.model import Model
from raydkm.ops.frame import Frame
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
        return SoftAssignment(self.model.scores())(self.model.frame()(features)).dense()

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
    tiers : Tiers
        Where features are held.
    """

    rows: RowSource
    comm: Comm
    config: FitConfig
    made: FeatureConfig
    threads: int
    device: torch.device
    tiers: Tiers

    def encoded(self, features: Features) -> tuple[Features, RowSource]:
        """The features of this worker's rows, and with the maps after the encoder, which are fitted to what it gives.

        Each canonical batch is computed by one thread.

        Raises
        ------
        EngineError
            If some are not finite, or without a direction where they need one.
        """

        def encode(rows: Tensor) -> Tensor:
            z = features(rows)
            norms = torch.linalg.vector_norm(z, dim=1)
            if not bool(norms.isfinite().all()):
                raise EngineError("features are not finite: the training diverged; lower learning_rate")
            if self.config.metric == "cosine" and bool((norms == 0).any()):
                raise EngineError("a row's features are all zero, which has no direction (metric cosine)")
            return z

        made: list[RowSource] = []
        threads = self.threads if self.device.type == "cpu" else 1
        with thread_pool(threads) as pool:
            gathered(self.comm, lambda: made.append(self.rows.mapped(encode, self.tiers, pool.map)))
            [source] = made
            if not self.made.feature_stages:
                return features, source
            passes = Passes(source, self.comm, self.device, threads, pool.map)
            maps, mapped = fit_maps(self.made.feature_stages, passes, self.config, self.tiers)
        stages = tuple(map(str, self.made.feature_stages))
        return replace(features, after_stages=stages, after=maps), cast(RowSource, mapped.source)

    def smoothed(self, encoded: RowSource) -> tuple[RowSource, Graph | None]:
        """Features averaged over their nearest neighbours, if that is asked for, and the graph of these."""
        if not self.made.hops and not self.made.agreement:
            return encoded, None
        graph, z = self.graph(encoded, self.made.neighbours), self._normal(encoded)
        with torch_threads(self.threads):
            return encoded.with_rows(smoothed(z, graph, self.made.hops, self.comm)), graph

    def graph(self, encoded: RowSource, count: int) -> Graph:
        """The `count` nearest neighbours of each row by its features."""
        return neighbours(self._normal(encoded), self.comm, count, threads=self.threads)

    def _normal(self, encoded: RowSource) -> Tensor:
        return Frame.identity(self.config.metric, 0).normalise(encoded.everything().cpu())

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

        Where clusters are of features averaged over neighbours, prototypes are the means of their rows' own features.
        """
        if not self.made.hops:
            return self._fit(encoded, config, start, labels, report)
        found = self.clustered(self.smoothed(encoded)[0], config, start)
        means = means_of(encoded, found.labels, config, self.comm)
        fitted = self._fit(encoded, config.model_copy(update=AT_ONCE), means, labels, report)
        return replace(fitted, facts=fitted.facts | {"smoothed": found.summary()})

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
