"""Data moved by one unit in the last place of float32: `RAYDKM_PERTURB=SEED python -m pytest`.

Last bits differ between processors. A test that depends on them fails for some seeds of this perturbation. It concerns
normal draws of `np.random.default_rng` and data of `sklearn.datasets`. Values only grow in magnitude, so that whole
numbers stay the same when a test truncates them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn.datasets
from numpy.typing import NDArray

LOADERS = ("load_digits", "load_wine", "load_breast_cancer", "load_iris", "make_blobs", "make_circles")

_default_rng = np.random.default_rng


def moved(x: Any, seed: int) -> Any:
    """Move about half of the values of x away from zero; the same values for the same seed and size."""
    rows: NDArray = np.asarray(x)
    units = np.where(rows == 0, 0, np.spacing(rows.astype(np.float32)))
    chosen = _default_rng([seed, rows.size]).integers(2, size=rows.shape)
    return (rows + chosen * units).astype(rows.dtype)[()]


class PerturbedGenerator(np.random.Generator):
    """A generator whose normal draws are moved."""

    seed: int

    def normal(self, *args: Any, **options: Any) -> Any:
        return moved(super().normal(*args, **options), self.seed)

    def standard_normal(self, *args: Any, **options: Any) -> Any:
        return moved(super().standard_normal(*args, **options), self.seed)


def _perturbed_loader(load: Callable, seed: int) -> Callable:
    def perturbed(*args: Any, **options: Any) -> Any:
        found = load(*args, **options)
        if isinstance(found, tuple):
            return (moved(found[0], seed), *found[1:])
        found.data = moved(found.data, seed)
        return found

    return perturbed


def install() -> None:
    """Perturb data if RAYDKM_PERTURB is set; call this before the modules that import the loaders."""
    if "RAYDKM_PERTURB" not in os.environ:
        return
    seed = int(os.environ["RAYDKM_PERTURB"])

    def perturbed_rng(given: Any = None) -> np.random.Generator:
        rng = PerturbedGenerator(_default_rng(given).bit_generator)
        rng.seed = seed
        return rng

    np.random.default_rng = perturbed_rng  # type: ignore[assignment]
    for name in LOADERS:
        setattr(sklearn.datasets, name, _perturbed_loader(getattr(sklearn.datasets, name), seed))
