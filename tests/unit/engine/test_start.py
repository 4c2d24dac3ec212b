"""Where a fit begins: seeds are rows of the sample, in the float64 coordinates of the frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raydkm.config import configure
from raydkm.data.source import RowSource
from raydkm.engine.comm import Solo
from raydkm.engine.fit import look_at
from raydkm.engine.minibatch import _seeded
from raydkm.engine.passes import Passes
from raydkm.engine.start import seedings


def seeds(x: np.ndarray, clusters: int, **options) -> list[np.ndarray]:
    """The seeds of two restarts and the best of them, in the data's coordinates."""
    config, *_ = configure({"objective": "kmeans", "clusters": clusters, "n_init": 2, **options})
    look, frame = look_at(Passes(RowSource.from_array(x), Solo(), torch.device("cpu")), config)
    draw = seedings(look, config, frame)
    return [(drawn + frame.shift).numpy() for drawn in (draw(0), draw(1), _seeded(look, config, frame))]


@pytest.mark.parametrize("init", ["k-means||", "k-means++", "random"])
@given(
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    power=st.floats(0, 8),
    units=st.sampled_from([4, 1000]),
    seed=st.integers(0, 2**31),
)
def test_seeds_are_the_different_rows_whatever_the_scales(
    init: str, dtype: str, power: float, units: int, seed: int
) -> None:
    """Two groups of rows some units in the last place apart."""
    offset = min(10.0**power, 3e4) if dtype == "float16" else 10.0**power
    spacing = min(units, 100) * np.spacing(np.dtype(dtype).type(offset))
    different = np.concatenate([at + spacing * np.arange(3) for at in (-offset, offset)]).astype(dtype)
    x = np.random.default_rng(seed).permutation(np.repeat(different, 5))[:, None]
    for drawn in seeds(x, len(different), init=init):
        np.testing.assert_array_equal(np.sort(drawn[:, 0]), different.astype(np.float64))


def test_the_best_of_several_seedings_is_told_where_float32_does_not(rng: np.random.Generator) -> None:
    x = np.repeat([[-1e7], [1e7]], 200, axis=0) + rng.integers(12, size=(400, 1)) / 8
    one, other, best = seeds(x, 8, init="random", seed_rows=100)

    def potential(centers: np.ndarray) -> float:
        return float(np.square(x - centers.T).min(1).sum())

    assert abs(potential(one) - potential(other)) > 0.01 * potential(best)
    assert potential(best) == min(potential(one), potential(other))
