from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raydkm.ops import balance
from raydkm.ops.frame import Frame
from raydkm.ops.scores import Scores
from raydkm.ops.soft import SoftAssignment

BETAS = [0.1, 0.5, 0.9]


def targets(z: NDArray, prototypes: NDArray, temperature: float, log_s: torch.Tensor) -> NDArray[np.float64]:
    """q (n, K) of the package, in float64."""
    scores = Scores.of(
        torch.from_numpy(prototypes),
        log_s,
        temperature,
        Frame.identity("euclidean", prototypes.shape[1], torch.float64),
    )
    return SoftAssignment(scores)(torch.from_numpy(z)).dense().numpy()


def softmax(logits: NDArray) -> NDArray[np.float64]:
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def case(seed: int, rows: int = 200, clusters: int = 5) -> tuple[NDArray, NDArray, NDArray]:
    """Unevenly spread rows, prototypes, and p = softmax(-||z - theta||^2 / T) at T = 2."""
    rng = np.random.default_rng(seed)
    z, prototypes = rng.standard_normal((rows, 3)) ** 3, rng.standard_normal((clusters, 3))
    return z, prototypes, softmax(-np.square(z[:, None] - prototypes).sum(2) / 2.0)


def converged(z: NDArray, prototypes: NDArray, beta: float, target: torch.Tensor | None = None, sweeps: int = 250):
    log_s = torch.zeros(len(prototypes), dtype=torch.float64)
    for _ in range(sweeps):
        counts = torch.from_numpy(targets(z, prototypes, 2.0, log_s).sum(0))
        log_s = balance.sweep(log_s, counts, beta, target)
    return log_s, targets(z, prototypes, 2.0, log_s)


@given(seed=st.integers(0, 2**31), beta=st.floats(0.05, 1))
def test_the_first_sweep_gives_the_published_closed_form(seed: int, beta: float) -> None:
    z, prototypes, p = case(seed)
    log_s = balance.sweep(torch.zeros(5, dtype=torch.float64), torch.from_numpy(p.sum(0)), beta)
    expected = p / p.sum(0) ** beta  # beta = 1/2 is the `kl` row of the table, DEPICT's
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(targets(z, prototypes, 2.0, log_s), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), beta=st.floats(0.05, 0.9), skewed=st.booleans())
def test_the_fixed_point_meets_the_optimality_condition(seed: int, beta: float, skewed: bool) -> None:
    z, prototypes, _ = case(seed, rows=60)
    u = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1], dtype=torch.float64) if skewed else torch.full((5,), 0.2).double()
    log_s, q = converged(z, prototypes, beta, u)
    price = log_s.numpy() + balance.strength(beta) * np.log(q.mean(0) / u.numpy())
    np.testing.assert_allclose(price, price.mean(), atol=1e-9)


@pytest.mark.parametrize("beta", BETAS)
def test_the_fixed_point_minimises_the_balanced_objective(beta: float, rng: np.random.Generator) -> None:
    z, prototypes, p = case(3)
    _, q = converged(z, prototypes, beta)

    def objective(q: NDArray) -> float:
        share = q.mean(0)
        divergence = (share * np.log(share * len(share))).sum()
        return float((q * np.log(q / p)).sum(1).mean() + beta / (1 - beta) * divergence)

    least = objective(q)
    assert least < objective(p)
    for size in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(20):
            other = softmax(np.log(q) + size * rng.standard_normal(q.shape))
            assert objective(other) >= least - 1e-12
            tilted = softmax(np.log(q) + size * rng.standard_normal(q.shape[1]))
            assert objective(tilted) >= least - 1e-12


def test_full_strength_gives_equal_marginals() -> None:
    z, prototypes, p = case(1)
    _, q = converged(z, prototypes, 1.0)
    np.testing.assert_allclose(q.mean(0), 0.2, atol=1e-9)
    assert p.mean(0).std() > 0.01


def test_more_balance_gives_evener_marginals() -> None:
    z, prototypes, _ = case(1)
    spread = [converged(z, prototypes, beta)[1].mean(0).std() for beta in (0.0, 0.3, 0.6, 0.9)]
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] < 0.5 * spread[0]


def test_a_target_marginal_is_met() -> None:
    z, prototypes, _ = case(1)
    u = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1], dtype=torch.float64)
    _, q = converged(z, prototypes, 1.0, u)
    np.testing.assert_allclose(q.mean(0), u.numpy(), atol=1e-9)


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=20).filter(any), st.floats(0, 1))
def test_a_sweep_is_finite_and_centred_whatever_the_counts(counts: list[float], beta: float) -> None:
    log_s = balance.sweep(
        torch.zeros(len(counts), dtype=torch.float64), torch.tensor(counts, dtype=torch.float64), beta
    )
    assert bool(log_s.isfinite().all())
    assert abs(float(log_s.mean())) < 1e-12


def test_equal_counts_leave_the_scalings_at_one() -> None:
    log_s = balance.sweep(torch.zeros(4, dtype=torch.float64), torch.full((4,), 25.0, dtype=torch.float64), 0.7)
    np.testing.assert_allclose(log_s.numpy(), 0, atol=1e-15)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_divergence_is_log_k_minus_the_marginal_entropy(counts: list[float]) -> None:
    share = np.array(counts) / np.sum(counts)
    expected = math.log(len(share)) + float((share * np.log(share)).sum())
    assert balance.divergence(torch.tensor(counts, dtype=torch.float64)) == pytest.approx(expected, abs=1e-10)


def test_divergence_of_empty_clusters_is_finite_and_of_the_target_itself_zero() -> None:
    u = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert balance.divergence(100 * u, u) == pytest.approx(0, abs=1e-15)
    assert balance.divergence(torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)) == pytest.approx(math.log(3))


@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 0.0), (0.5, 1.0), (0.9, 9.0), (1.0, math.inf)])
def test_strength_is_beta_over_one_minus_beta(beta: float, gamma: float) -> None:
    assert balance.strength(beta) == pytest.approx(gamma)
