"""Methods of the quality benchmark: raydkm's objectives and its peers, each fitted once a seed and scored alike."""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from quality_data import DataSet
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from raydkm.api.fit import fit_model
from raydkm.config import configure
from raydkm.errors import RaydkmError
from raydkm.objectives import OBJECTIVES
from raydkm.ops.health import SAME, duplicates
from raydkm.ops.metrics import agreement

CONSTRAINED = "k-means-constrained"
PEERS = ("sklearn.KMeans", "sklearn.MiniBatchKMeans", "sklearn.GaussianMixture", CONSTRAINED)

#: Peers that may take very long: in a process of their own, which is ended when its time is over.
LIMITED = ("sklearn.GaussianMixture", CONSTRAINED)

DEFAULT = (
    "kmeans",
    "sr-kmeans",
    "sr-kmeans:anneal=40",
    "sr-kmeans:balance=0.9",
    "mi",
    "kl",
    "tim:l1=3",
    "sinkhorn",
    "sklearn.KMeans:n_init=1",
    "sklearn.KMeans:n_init=10",
    "sklearn.MiniBatchKMeans",
    "sklearn.GaussianMixture",
    CONSTRAINED,
)

Option: TypeAlias = "int | float | str"


@dataclass(frozen=True)
class Method:
    """A method with its options; `name` is how it was written."""

    name: str
    kind: str
    options: dict[str, Option]

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read NAME or NAME:key=value,…; raise `ValueError`, which says what is wrong with `text`."""
        kind, colon, rest = text.partition(":")
        if kind not in OBJECTIVES and kind not in PEERS:
            raise ValueError(f"no method {kind!r}; there are {', '.join([*OBJECTIVES, *PEERS])}")
        options: dict[str, Option] = {}
        for item in rest.split(",") if colon else []:
            key, _, value = item.partition("=")
            if not (key and value):
                raise ValueError(f"{text!r} is not NAME:key=value,…")
            options[key] = number(value)
        return cls(text, kind, options)

    @property
    def is_peer(self) -> bool:
        return self.kind in PEERS


def number(text: str) -> Option:
    """`text` as a whole number, else as a number, else as it is."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclass(frozen=True)
class Budget:
    """What every method has alike: seeds 0, 1, …, threads, most steps; and seconds of a fit of the `LIMITED` ones."""

    seeds: int
    threads: int
    max_steps: int
    limit: float


@dataclass(frozen=True)
class Fit:
    """What one fit found; `objective` has its value after each step, where the method tells it, as its temperature."""

    labels: NDArray[np.integer]
    prototypes: NDArray[np.floating]
    steps: int
    seconds: float
    objective: tuple[float, ...] = ()
    temperature: float = math.nan


@dataclass(frozen=True)
class Result:
    """A fit's figures: the first five and the sizes follow from its labels, in the same way for every method.

    `inertia` is the sum of squared distances of the rows to the mean of their cluster; `marginal_entropy`, in nats, is
    that of the clusters' sizes.
    """

    acc: float
    nmi: float
    ari: float
    inertia: float
    marginal_entropy: float
    duplicates: int
    smallest: int
    largest: int
    steps: int
    seconds: float
    objective: tuple[float, ...] = ()
    temperature: float = math.nan


#: The results of all seeds, or in words why there are none.
Outcome: TypeAlias = "list[Result] | str"


def outcome(method: Method, data: DataSet, budget: Budget) -> Outcome:
    """Fit `method` with every seed."""
    if not is_installed(method):
        return f"skipped: not installed (pip install {CONSTRAINED})"
    if method.kind in LIMITED:
        fits = _fit_in_time(method, data, budget)
        return fits if isinstance(fits, str) else [score(found, data) for found in fits]
    return [result(method, data, seed, budget) for seed in range(budget.seeds)]


def result(method: Method, data: DataSet, seed: int, budget: Budget) -> Result:
    """Fit `method` once and score it."""
    return score(fit(method, data.x, data.clusters, data.metric, seed, budget), data)


def check(method: Method, clusters: int, metric: str, budget: Budget) -> None:
    """Raise `ValueError` if the method has no such option, or raydkm's an impossible one."""
    try:
        if not method.is_peer:
            configure(_settings(method, clusters, metric, 0, budget))
        elif is_installed(method):
            _peer(method, clusters, clusters, 0, budget.max_steps)
    except (TypeError, RaydkmError) as error:
        raise ValueError(f"{method.name}: {error}") from None


def is_installed(method: Method) -> bool:
    """Whether what the method is from is installed."""
    return method.kind != CONSTRAINED or importlib.util.find_spec("k_means_constrained") is not None


def _settings(method: Method, clusters: int, metric: str, seed: int, budget: Budget) -> dict[str, Any]:
    """The keys of `raydkm.fit` for one of its objectives."""
    return {
        "clusters": clusters,
        "objective": method.kind,
        "metric": metric,
        "seed": seed,
        "engine": "local",
        "threads": budget.threads,
        "max_steps": budget.max_steps,
        **method.options,
    }


def fit(method: Method, x: NDArray[np.float32], clusters: int, metric: str, seed: int, budget: Budget) -> Fit:
    """Fit `method` once to the rows x (n, d)."""
    if method.is_peer:
        peer = _peer(method, len(x), clusters, seed, budget.max_steps)
        with threadpool_limits(budget.threads):
            began = time.perf_counter()
            labels = peer.fit_predict(x)
            seconds = time.perf_counter() - began
        prototypes = peer.means_ if isinstance(peer, GaussianMixture) else peer.cluster_centers_
        return Fit(labels, prototypes, int(peer.n_iter_), seconds)
    began = time.perf_counter()
    model, found = fit_model(x, *configure(_settings(method, clusters, metric, seed, budget)))
    seconds = time.perf_counter() - began
    assert found is not None  # of an array in this process
    course = tuple(entry["objective"] for entry in model.history)
    return Fit(found, model.cluster_centers, model.record["steps"], seconds, course, model.temperature)


def _peer(method: Method, rows: int, clusters: int, seed: int, max_steps: int) -> Any:
    common = {"random_state": seed, "max_iter": max_steps}
    if method.kind == "sklearn.KMeans":
        return KMeans(clusters, **common | method.options)
    if method.kind == "sklearn.MiniBatchKMeans":
        return MiniBatchKMeans(clusters, **common | method.options)
    if method.kind == "sklearn.GaussianMixture":
        return GaussianMixture(clusters, **common | {"covariance_type": "diag"} | method.options)
    from k_means_constrained import KMeansConstrained

    equal = {"size_min": rows // clusters, "size_max": math.ceil(rows / clusters), "n_init": 1}
    return KMeansConstrained(clusters, **common | equal | method.options)


def _fit_in_time(method: Method, data: DataSet, budget: Budget) -> list[Fit] | str:
    """The fits of all seeds, made in one other process; or what became of them.

    The limit is of each fit: to start the process and read the rows does not count.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_fits, args=(sender, method, str(data.stored), data.clusters, data.metric, budget))
    process.start()
    sender.close()
    fits: list[Fit] = []
    try:
        receiver.recv()
        for seed in range(budget.seeds):
            if not receiver.poll(budget.limit):
                return f"did not end in {budget.limit:g} s (seed {seed})"
            found = receiver.recv()
            if isinstance(found, str):
                return f"failed: {found}"
            fits.append(found)
    except EOFError:
        process.join()
        return f"failed: its process ended with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return fits


def _fits(sender: Connection, method: Method, stored: str, clusters: int, metric: str, budget: Budget) -> None:
    """Send None when ready, then the fit of each seed, or the message of its error."""
    x = np.load(stored)
    sender.send(None)
    for seed in range(budget.seeds):
        try:
            sender.send(fit(method, x, clusters, metric, seed, budget))
        except (ValueError, MemoryError) as error:
            sender.send(f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__)
            return


def score(found: Fit, data: DataSet) -> Result:
    """Compare the clusters of a fit with the labels, and measure them."""
    sizes = np.bincount(found.labels, minlength=data.clusters)
    return Result(
        **agreement(data.labels, found.labels),
        inertia=inertia(data.x, found.labels),
        marginal_entropy=entropy(sizes),
        duplicates=duplicates(torch.as_tensor(found.prototypes), SAME * float(np.sqrt(data.x.var(0).sum()))),
        smallest=int(sizes.min()),
        largest=int(sizes.max()),
        steps=found.steps,
        seconds=found.seconds,
        objective=found.objective,
        temperature=found.temperature,
    )


def inertia(x: NDArray[np.floating], clusters: NDArray[np.integer]) -> float:
    """Sum of squared distances of the rows x (n, d) to the mean of their cluster."""
    parts = (x[clusters == cluster].astype(np.float64) for cluster in np.unique(clusters))
    return sum(float(len(rows) * rows.var(axis=0).sum()) for rows in parts)


def entropy(sizes: NDArray[np.integer]) -> float:
    """Entropy, in nats, of the shares that clusters of these sizes (K,) have."""
    shares = sizes[sizes > 0] / sizes.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0
