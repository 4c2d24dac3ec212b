"""Peers in the step benchmark: each fits a number of Lloyd (or EM) steps, all rows, no early stop."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from step_data import Rows
from threadpoolctl import threadpool_limits

#: Of the N × K arrays that GaussianMixture holds, several at a time: with more than this it has fewer rows.
MIXTURE_ENTRIES = 10**8
MIXTURE_STEPS = 3

Fit: TypeAlias = "Callable[[Rows, Rows, int], Rows]"
Make: TypeAlias = "Callable[[int, int, int], Fit]"


@dataclass(frozen=True)
class Peer:
    """A library's k-means.

    Parameters
    ----------
    name : str
    module : str
        That must be installed; `part` is what it must have.
    make : callable
        ``make(clusters, dim, threads)`` imports what is needed and returns ``fit(x, start, steps)``, which returns the
        prototypes (K, d).
    takes_start : bool
        Whether it begins at the given prototypes.
    soft : bool
    part : str
    most_steps : int, optional
        Steps that it is given at most.
    """

    name: str
    module: str
    make: Make
    takes_start: bool = True
    soft: bool = False
    part: str = ""
    most_steps: int | None = None

    @property
    def is_installed(self) -> bool:
        try:
            if importlib.util.find_spec(self.module) is None:
                return False
        except ModuleNotFoundError:
            return False
        return not self.part or hasattr(importlib.import_module(self.module), self.part)


def rows_of_mixture(rows: int, clusters: int) -> int:
    """Rows that GaussianMixture is given."""
    return min(rows, max(2 * clusters, MIXTURE_ENTRIES // clusters))


def _faiss(kind: str, *, takes_start: bool) -> Make:
    def make(clusters: int, dim: int, threads: int) -> Fit:
        faiss: Any = importlib.import_module("faiss")
        faiss.omp_set_num_threads(threads)

        def fit(x: Rows, start: Rows, steps: int) -> Rows:
            all_rows = {"max_points_per_centroid": len(x), "min_points_per_centroid": 1}
            peer = getattr(faiss, kind)(dim, clusters, niter=steps, **all_rows)
            peer.train(x, init_centroids=start if takes_start else None)
            return peer.centroids

        return fit

    return make


def _superkmeans(clusters: int, dim: int, threads: int) -> Fit:
    superkmeans: Any = importlib.import_module("superkmeans")

    def fit(x: Rows, start: Rows, steps: int) -> Rows:
        peer = superkmeans.SuperKMeans(
            clusters,
            dim,
            hierarchical=False,
            iters=steps,
            sampling_fraction=1.0,
            max_points_per_cluster=len(x),
            n_threads=threads,
            early_termination=False,
            tol=0.0,
        )
        return np.asarray(peer.train(x))

    return fit


def _lloyd(kind: type, clusters: int, threads: int) -> Fit:
    def fit(x: Rows, start: Rows, steps: int) -> Rows:
        with threadpool_limits(threads), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged
            return (
                kind(clusters, init=start, n_init=1, max_iter=steps, tol=0, algorithm="lloyd").fit(x).cluster_centers_
            )

    return fit


def _sklearn(clusters: int, dim: int, threads: int) -> Fit:
    from sklearn.cluster import KMeans

    return _lloyd(KMeans, clusters, threads)


def _sklearnex(clusters: int, dim: int, threads: int) -> Fit:
    importlib.import_module("daal4py").daalinit(threads)
    return _lloyd(importlib.import_module("sklearnex.cluster").KMeans, clusters, threads)


def _mixture(clusters: int, dim: int, threads: int) -> Fit:
    from sklearn.mixture import GaussianMixture

    def fit(x: Rows, start: Rows, steps: int) -> Rows:
        options: dict[str, Any] = {
            "covariance_type": "spherical",
            "init_params": "random_from_data",
            "means_init": start,
            "weights_init": np.full(clusters, 1 / clusters, start.dtype),
            "precisions_init": np.full(clusters, 10 / x[:4096].var(0).mean(), start.dtype),
        }
        with threadpool_limits(threads), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return GaussianMixture(clusters, max_iter=steps, tol=0, random_state=0, **options).fit(x).means_

    return fit


_ALL = (
    Peer("faiss.Kmeans", "faiss", _faiss("Kmeans", takes_start=True)),
    Peer("faiss.SuperKmeans", "faiss", _faiss("SuperKmeans", takes_start=False), takes_start=False, part="SuperKmeans"),
    Peer("superkmeans", "superkmeans", _superkmeans, takes_start=False),
    Peer("sklearn.KMeans", "sklearn", _sklearn),
    Peer("sklearnex.KMeans", "sklearnex", _sklearnex),
    Peer("sklearn.GaussianMixture", "sklearn", _mixture, soft=True, most_steps=MIXTURE_STEPS),
)

PEERS = {peer.name: peer for peer in _ALL}


def environment(threads: int) -> dict[str, str]:
    """Variables of a process whose libraries are to use so many threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads))}
