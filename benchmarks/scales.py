"""Data of several scales beside scikit-learn in float64: inertia from the same start, and by default.

    python benchmarks/scales.py

Places 100 m apart in towns within a square of 1,000 km; a column of 10 and 30 degrees with sentinels; 40,000 values
quantised to 4,096. Ratios are raydkm's inertia over scikit-learn's, below 1 where raydkm's is less. The last column
says whether all labels, of fit and of `predict`, are those of the nearest prototype in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, kmeans_plusplus

from raydkm import DKMeans

Case = tuple[str, NDArray[np.float64], NDArray[np.float64]]


def places(count: int, rows: int, *, towns: bool) -> Case:
    rng = np.random.default_rng(count)
    side = 10 if towns else int(np.ceil(count**0.5))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 100.0
    corners = rng.uniform(0, 1e6, size=(-(-count // len(grid)), 2))
    centres = (corners[:, None] + grid).reshape(-1, 2)[:count]
    x = centres[rng.integers(count, size=rows)] + rng.normal(0, 5, size=(rows, 2))
    return f"{count} places, {'towns' if towns else 'one block'}", x, centres


def sentinels(share: float) -> Case:
    rng = np.random.default_rng(1)
    x = np.stack([rng.choice([10.0, 30.0], 20_000), rng.uniform(0, 1, 20_000)], 1) + rng.normal(0, 0.5, (20_000, 2))
    x[rng.random(len(x)) < share, 0] = -999999.0
    return f"sentinels, {share:.0%}", x, np.array([[10.0, 0.5], [30.0, 0.5], [-999999.0, 0.5]])


def quantised() -> Case:
    x = np.random.default_rng(2).normal(size=(40_000, 1))
    return "40,000 values to 4,096", x, kmeans_plusplus(x, 4096, random_state=0)[0]


def cases() -> Iterator[Case]:
    for count in (10, 100, 1000):
        yield places(count, 20_000, towns=True)
    yield places(1000, 20_000, towns=False)
    yield sentinels(0.05)
    yield sentinels(0.3)
    yield quantised()


def nearest(x: NDArray, centres: NDArray, labels: NDArray) -> bool:
    """Whether labels (n,) are the first nearest centres by float64 differences."""
    parts = np.array_split(np.arange(len(x)), max(1, len(x) * len(centres) // 2**24))
    return all((((x[p, None] - centres) ** 2).sum(-1).argmin(1) == labels[p]).all() for p in parts)


def main() -> None:
    print("| data | inertia of scikit-learn | same start, ratio | by default, ratio | labels exact |")
    print("|---|---|---|---|---|")
    for name, x, start in cases():
        clusters = len(start)
        theirs = KMeans(clusters, init=start, n_init=1).fit(x).inertia_
        mine = DKMeans(clusters, objective="kmeans", init=start).fit(x)
        best = KMeans(clusters, n_init=1 if clusters > 1000 else 4, random_state=0).fit(x).inertia_
        default = DKMeans(clusters, objective="kmeans", random_state=0).fit(x)
        exact = nearest(x, mine.cluster_centers_, mine.labels_) and nearest(x, mine.cluster_centers_, mine.predict(x))
        exact = exact and nearest(x, default.cluster_centers_, default.labels_)
        ratios = mine.inertia_ / theirs, default.inertia_ / best
        print(f"| {name} | {theirs:.6g} | {ratios[0]:.4f} | {ratios[1]:.4f} | {exact} |", flush=True)


if __name__ == "__main__":
    main()
