"""Data of `benchmarks/deep.py`: series and tables, generated or of scikit-learn; images and texts are files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn.datasets import load_wine

LENGTH = 60


def control_charts(each: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Synthetic control charts (Alcock and Manolopoulos 1999): `each` series of 60 points of six kinds.

    Normal, cyclic, increasing, decreasing, shifted upward, shifted downward; every series is scaled to mean 0 and
    standard deviation 1, as is usual for comparisons of series.
    """
    rng = np.random.default_rng(seed)
    t = np.arange(LENGTH)

    def uniform(low: float, high: float) -> NDArray[np.float64]:
        return rng.uniform(low, high, size=(each, 1))

    shifted = t >= rng.uniform(LENGTH / 3, 2 * LENGTH / 3, size=(2, each, 1))
    courses = [
        np.zeros((each, LENGTH)),
        uniform(10, 15) * np.sin(2 * np.pi * t / uniform(10, 15)),
        uniform(0.2, 0.5) * t,
        -uniform(0.2, 0.5) * t,
        uniform(7.5, 20) * shifted[0],
        -uniform(7.5, 20) * shifted[1],
    ]
    series = np.concatenate([30 + 2 * rng.uniform(-3, 3, size=(each, LENGTH)) + course for course in courses])
    series = (series - series.mean(1, keepdims=True)) / series.std(1, keepdims=True)
    return series.astype(np.float32), np.repeat(np.arange(len(courses)), each)


def sales(rows: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A table of mixed scales: customers of five segments in columns of ages, incomes, shares, counts and ids.

    Segments differ in the ages, shares and counts; incomes, spread over five orders of magnitude, and ids do not.
    """
    rng = np.random.default_rng(seed)
    segment = rng.integers(5, size=rows)
    age = rng.normal(np.array([22, 35, 50, 64, 40])[segment], 4)
    share = rng.beta(np.array([2, 8, 5, 1, 9])[segment], np.array([8, 3, 5, 9, 1])[segment])
    visits = rng.poisson(np.array([30, 4, 12, 2, 20])[segment])
    income = rng.lognormal(10, 1, size=rows)
    number = rng.integers(10**6, size=rows)
    return np.stack([age, share, visits, income, number], axis=1).astype(np.float32), segment


def written(place: Path, rows: NDArray, labels: NDArray) -> Path:
    """A Parquet file of rows (n, d), column ``x``, with their labels."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    pq.write_table(pa.table({"x": column, "label": labels}), place)
    return place


def wine() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Thirteen measurements of 178 wines of three cultivars (scikit-learn)."""
    x, y = load_wine(return_X_y=True)
    return x.astype(np.float32), y
