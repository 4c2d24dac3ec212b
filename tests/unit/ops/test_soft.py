from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from raydkm.ops.frame import Frame
from raydkm.ops.scores import Scores
from raydkm.ops.soft import Posterior, SoftAssignment

CPU = torch.device("cpu")


def posterior_of(z: NDArray, prototypes: NDArray, log_s: NDArray, temperature: float, dtype: torch.dtype) -> Posterior:
    scores = Scores.of(
        torch.from_numpy(prototypes),
        torch.from_numpy(log_s),
        temperature,
        Frame.identity("euclidean", prototypes.shape[1], dtype),
    )
    return SoftAssignment(scores)(torch.from_numpy(z).to(dtype))


def reference(z: NDArray, prototypes: NDArray, log_s: NDArray, temperature: float) -> NDArray[np.float64]:
    """softmax_k(-||z - theta||^2 / T + log s_k)."""
    logits = -np.square(z[:, None] - prototypes).sum(2) / temperature + log_s
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def entropies(q: NDArray) -> NDArray[np.float64]:
    return -(q * np.log(np.where(q > 0, q, 1))).sum(1)


@given(
    seed=st.integers(0, 2**31),
    temperature=st.floats(0.5, 100),
    clusters=st.integers(1, 40),
    dim=st.integers(1, 30),
    balance=st.floats(0, 3),
)
def test_posteriors_and_entropies_are_those_of_float64(
    seed: int, temperature: float, clusters: int, dim: int, balance: float
) -> None:
    rng = np.random.default_rng(seed)
    z, prototypes = rng.standard_normal((50, dim)), rng.standard_normal((clusters, dim))
    z, prototypes = z.astype(np.float32).astype(np.float64), prototypes.astype(np.float32).astype(np.float64)
    log_s = balance * rng.standard_normal(clusters)
    expected = reference(z, prototypes, log_s, temperature)
    found = posterior_of(z, prototypes, log_s, temperature, torch.float32)
    np.testing.assert_allclose(found.dense().numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(found.entropy.numpy(), entropies(expected), atol=1e-4)
    found = posterior_of(z, prototypes, log_s, temperature, torch.float64)
    np.testing.assert_allclose(found.dense().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(found.entropy.numpy(), entropies(expected), atol=1e-11)


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-3, 1.0, 1e3, 1e6]), temperature=st.floats(1e-6, 1e6))
def test_rows_with_extreme_logits_stay_finite_and_sum_to_one(seed: int, scale: float, temperature: float) -> None:
    rng = np.random.default_rng(seed)
    z, prototypes = scale * rng.standard_normal((20, 6)), scale * rng.standard_normal((9, 6))
    found = posterior_of(z, prototypes, np.zeros(9), temperature, torch.float32)
    q = found.dense()
    assert bool(q.isfinite().all())
    assert bool(found.entropy.isfinite().all())
    torch.testing.assert_close(q.sum(1), torch.ones(20), rtol=0, atol=1e-5)
    assert float(found.entropy.min()) >= -1e-4
    assert float(found.entropy.max()) <= np.log(9) + 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_prototypes_share_rows_equally(dtype: torch.dtype) -> None:
    z = np.random.default_rng(0).standard_normal((10, 3))
    found = posterior_of(z, np.zeros((4, 3)), np.zeros(4), 1.0, dtype)
    np.testing.assert_allclose(found.dense().numpy(), 0.25, atol=1e-7)
    np.testing.assert_allclose(found.entropy.numpy(), np.log(4), atol=1e-6)


def test_a_vanishing_temperature_gives_the_nearest_prototype() -> None:
    rng = np.random.default_rng(0)
    z, prototypes = rng.standard_normal((100, 6)), rng.standard_normal((9, 6))
    q = posterior_of(z, prototypes, np.zeros(9), 1e-9, torch.float64).dense().numpy()
    nearest = np.square(z[:, None] - prototypes).sum(2).argmin(1)
    np.testing.assert_array_equal(q, np.eye(9)[nearest])
