"""Whether raydkm's fast step is right: labels and posteriors beside float64, on a sample of the rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from step_data import Rows
from step_raydkm import Found, found

SAMPLE = 20_000
BLOCK = 1024


@dataclass(frozen=True)
class Labels:
    """Rows looked at, those whose label is not the float64 one, and how many of these are ties in float32."""

    rows: int
    differ: int
    ties: int


@dataclass(frozen=True)
class Posteriors:
    """Rows looked at, and the largest |q - float64 q| of any."""

    rows: int
    error: float


def _sample(x: Rows) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(1).choice(len(x), min(SAMPLE, len(x)), replace=False))


def check_labels(x: Rows, start: Rows) -> Labels:
    return compare_labels(found(x, start, "kmeans", _sample(x)))


def check_posteriors(x: Rows, start: Rows) -> Posteriors:
    sample = _sample(x)
    few = sample[:: max(1, len(sample) * len(start) // 2**24)]  # posteriors are dense here
    return compare_posteriors(found(x, start, "sr-kmeans", few))


def compare_labels(got: Found) -> Labels:
    """A tie: the two scores lie no farther apart than float32 products and sums of their size may be wrong."""
    half = 0.5 * np.square(got.prototypes).sum(1)
    largest = np.sqrt(2 * half.max())
    differ = ties = 0
    for start in range(0, len(got.z), BLOCK):
        z, labels = got.z[start : start + BLOCK], got.labels[start : start + BLOCK]
        scores = z @ got.prototypes.T - half
        gap = scores.max(1) - scores[np.arange(len(z)), labels]
        wrong = scores.argmax(1) != labels
        rounding = 2.0**-22 * z.shape[1] ** 0.5 * (np.linalg.norm(z, axis=1) * largest + half.max())
        differ += int(wrong.sum())
        ties += int((wrong & (gap <= rounding)).sum())
    return Labels(len(got.z), differ, ties)


def compare_posteriors(got: Found) -> Posteriors:
    assert got.posteriors is not None
    half = 0.5 * np.square(got.prototypes).sum(1)
    error = 0.0
    for start in range(0, len(got.z), BLOCK):
        logits = (got.z[start : start + BLOCK] @ got.prototypes.T - half) * (2 / got.temperature)
        q = np.exp(logits - logits.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
        error = max(error, float(np.abs(q - got.posteriors[start : start + BLOCK]).max()))
    return Posteriors(len(got.z), error)
