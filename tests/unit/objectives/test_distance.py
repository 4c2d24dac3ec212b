"""The distance family against its mathematics. A new objective is a row of OBJECTIVES."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raydkm import objectives
from raydkm.engine.loop import adm
from raydkm.objectives import State, Terms
from raydkm.objectives.distance import DistanceObjective
from raydkm.ops.balance import strength

OBJECTIVES = ["kmeans", "soft-kmeans", "sr-kmeans"]
SOFT = ["soft-kmeans", "sr-kmeans"]

every_objective = pytest.mark.parametrize("objective", OBJECTIVES)
soft_objective = pytest.mark.parametrize("objective", SOFT)


def scattered(seed: int, rows: int = 250, dim: int = 3, clusters: int = 5) -> tuple[NDArray, NDArray]:
    """Rows without clear clusters, at an offset, and random rows to start from."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, dim)) * rng.uniform(0.5, 2, dim) + 3
    return x, x[rng.choice(rows, clusters, replace=False)]


def course(problem, steps: int) -> tuple[State, list[Terms]]:
    terms: list[Terms] = []
    state = adm(problem.goal, problem.start, problem.passes, steps, lambda _, t, __: terms.append(t))
    return state, terms


def posteriors(z: NDArray, state: State, temperature: float) -> NDArray[np.float64]:
    """softmax_k(-||z - theta'||^2 / T + log s), written out."""
    logits = -np.square(z[:, None] - state.prototypes.numpy()).sum(2) / temperature + state.log_s.numpy()
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def plogp(q: NDArray) -> float:
    return (q * np.log(np.where(q > 0, q, 1))).sum(-1)


def test_every_registered_objective_is_tested() -> None:
    assert [name for name, kind in objectives.OBJECTIVES.items() if issubclass(kind, DistanceObjective)] == OBJECTIVES


@every_objective
@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), temperature=st.floats(0.05, 8), weighted=st.booleans())
def test_the_objective_never_rises_in_float64(problem, objective, seed, temperature, weighted) -> None:
    x, start = scattered(seed)
    weight = np.random.default_rng(seed + 1).random(len(x)) if weighted else None
    _, terms = course(problem(x, start, objective=objective, temperature=temperature, weight=weight), 25)
    values = np.array([t.objective for t in terms])
    assert (np.diff(values) <= 1e-12 * np.abs(values[1:])).all()
    assert values[-1] < values[0]


@every_objective
@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), temperature=st.floats(0.05, 8))
def test_the_objective_never_rises_in_float32(problem, objective, seed, temperature) -> None:
    x, start = scattered(seed)
    x = x.astype(np.float32)
    _, terms = course(problem(x, start, objective=objective, temperature=temperature, dtype=torch.float32), 25)
    values = np.array([t.objective for t in terms])
    assert (np.diff(values) <= 1e-6 * np.abs(values[1:])).all()


@soft_objective
@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), temperature=st.floats(0.3, 8), beta=st.sampled_from([0.0, 0.4, 0.9]))
def test_terms_and_prototypes_are_those_written_out_in_numpy(problem, objective, seed, temperature, beta) -> None:
    x, start = scattered(seed)
    weight = np.random.default_rng(seed).random(len(x)) + 0.1
    p = problem(x, start, objective=objective, temperature=temperature, beta=beta, weight=weight)
    before, _ = course(p, 3)
    state, terms = p.goal.update(before, p.passes.sum(p.goal.fields(before), p.goal.e_step(before)))

    q, n = posteriors(p.z, before, temperature), weight.sum()
    counts = weight @ q
    means = (q * weight[:, None]).T @ p.z / counts[:, None]
    share = counts / n
    distortion = (weight @ (q * np.square(p.z[:, None] - means).sum(2))).sum() / n
    kl = float((share * np.log(share * len(share))).sum())
    free_energy = distortion + temperature * float(weight @ plogp(q)) / n + temperature * strength(beta) * kl
    expected = free_energy if objective == "soft-kmeans" else free_energy / temperature - square(p) / temperature
    np.testing.assert_allclose(state.prototypes.numpy(), means, atol=1e-9)
    assert terms.objective == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert terms.distortion == pytest.approx(distortion, rel=1e-9)
    assert terms.posterior_entropy == pytest.approx(-float(weight @ plogp(q)) / n, abs=1e-9)
    assert terms.marginal_entropy == pytest.approx(-float(plogp(share)), abs=1e-9)
    assert terms.smallest == pytest.approx(counts.min(), rel=1e-9)
    assert terms.largest == pytest.approx(counts.max(), rel=1e-9)
    assert terms.shift == pytest.approx(np.linalg.norm(means - before.prototypes.numpy()), rel=1e-6, abs=1e-9)


def square(p) -> float:
    return float(p.weight @ np.square(p.z).sum(1)) / p.weight.sum()


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), lam=st.floats(0.1, 3), clusters=st.integers(2, 7), steps=st.integers(0, 5))
def test_the_loss_differs_from_regularised_mutual_information_by_a_known_term(
    problem, seed: int, lam: float, clusters: int, steps: int
) -> None:
    """L_SR - L_MI (log-partition dropped) = sum_k (q_hat_k - 1/K) ||theta'_k||^2 / (lam K).

    In the frame's coordinates, with theta' the means under q, theta = theta' / (lam K) and b = log(q_hat) / 2.
    """
    x, start = scattered(seed, clusters=clusters)
    weight = np.random.default_rng(seed).random(len(x)) + 0.1
    p = problem(x, start, temperature=lam * clusters, weight=weight)
    before, _ = course(p, steps)
    after, terms = p.goal.update(before, p.passes.sum(p.goal.fields(before), p.goal.e_step(before)))

    w = weight / weight.sum()
    q = posteriors(p.z, before, lam * clusters)
    q_hat = w @ q
    means = (q * w[:, None]).T @ p.z / q_hat[:, None]
    theta, b = means / (lam * clusters), np.log(q_hat) / 2
    log_p = p.z @ theta.T + b  # without the log-partition, which the approximate ADM drops
    cross_entropy = -float(w @ (q * log_p).sum(1))
    kl = float(w @ (q * (np.log(q) - log_p)).sum(1))
    l_mi = cross_entropy + float((q_hat * np.log(q_hat)).sum()) + kl + lam * float(np.square(theta).sum())
    difference = float(((q_hat - 1 / clusters) * np.square(means).sum(1)).sum()) / (lam * clusters)

    assert terms.objective - l_mi == pytest.approx(difference, rel=0, abs=1e-10)
    np.testing.assert_allclose(after.prototypes.numpy(), means, atol=1e-10)


@soft_objective
@settings(max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_a_vanishing_temperature_is_hard_k_means(problem, blobs, objective: str, seed: int) -> None:
    x, _ = blobs(rows=200, dim=3, clusters=4, apart=4.0, seed=seed)
    start = x[:4].astype(np.float64)
    hard = problem(x, start, objective="kmeans", temperature=0.0)
    soft = problem(x, start, objective=objective, temperature=1e-7)
    one, _ = course(hard, 60)
    other, _ = course(soft, 60)
    np.testing.assert_allclose(other.prototypes.numpy(), one.prototypes.numpy(), atol=1e-6)
    labels = [g.goal.scores(s)(torch.from_numpy(g.z)).argmax(1).tolist() for g, s in ((hard, one), (soft, other))]
    assert labels[0] == labels[1]


@soft_objective
@pytest.mark.parametrize("seed", range(3))
def test_prototypes_collapse_just_above_the_critical_temperature_and_not_just_below(problem, objective, seed) -> None:
    x, start = scattered(seed, rows=120, dim=3, clusters=3)
    critical = 2 * np.linalg.eigvalsh(np.cov(x.T, bias=True))[-1]
    spread = math.sqrt(np.square(x - x.mean(0)).sum(1).mean())

    def farthest(temperature: float) -> float:
        state, _ = course(problem(x, start, objective=objective, temperature=temperature), 1000)
        return float(torch.linalg.vector_norm(state.prototypes, dim=1).max()) / spread  # the frame's origin is the mean

    assert farthest(1.02 * critical) < 1e-3
    assert farthest(0.9 * critical) > 0.1


@soft_objective
@pytest.mark.parametrize("beta", [0.3, 0.6, 0.9])
def test_one_warm_sweep_a_step_reaches_the_fixed_point_of_full_sweeping(problem, blobs, objective, beta) -> None:
    x, _ = blobs(rows=240, dim=2, clusters=3, apart=3.0)
    x[:120] = x[:120] / 3  # uneven clusters
    start, temperature = x[:3].astype(np.float64), 1.5
    p = problem(x, start, objective=objective, temperature=temperature, beta=beta)
    state, terms = course(p, 400)

    # reference: at every step, sweep until the scalings stand still, and only then move the prototypes
    theta, log_s = start - p.frame.shift.numpy(), np.zeros(3)
    for _ in range(150):
        for _ in range(400):
            q = posteriors(p.z, replace(State.at(torch.from_numpy(theta)), log_s=torch.from_numpy(log_s)), temperature)
            swept = beta * (log_s - np.log(q.mean(0)))
            swept -= swept.mean()
            done, log_s = np.abs(swept - log_s).max() < 1e-13, swept
            if done:
                break
        theta = q.T @ p.z / q.sum(0)[:, None]

    np.testing.assert_allclose(state.prototypes.numpy(), theta, atol=1e-6)
    np.testing.assert_allclose(state.log_s.numpy(), log_s, atol=1e-6)
    share = posteriors(p.z, state, temperature).mean(0)
    price = state.log_s.numpy() + strength(beta) * np.log(share)
    np.testing.assert_allclose(price, price.mean(), atol=1e-6)
    assert terms[-1].balance_residual < 1e-8
    assert np.abs(state.log_s.numpy()).max() > 0.05, "the case needs no balance"


@every_objective
def test_balance_evens_out_cluster_sizes(problem, objective: str) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal((300, 2)), rng.standard_normal((30, 2)) + np.array([4, 0])])
    start = np.array([[0.0, 0.0], [4.0, 0.0]])
    smallest = [
        course(problem(x, start, objective=objective, temperature=1.0, beta=beta), 60)[1][-1].smallest
        for beta in (0.0, 0.9)
    ]
    assert smallest[0] < 130
    assert 150 < smallest[1] <= 165


@every_objective
def test_weights_are_repetitions_of_rows(problem, objective: str, rng: np.random.Generator) -> None:
    x, start = scattered(4)
    weight = rng.integers(0, 4, len(x))
    weighted, _ = course(problem(x, start, objective=objective, weight=weight.astype(np.float64)), 15)
    repeated, _ = course(problem(np.repeat(x, weight, axis=0), start, objective=objective), 15)
    np.testing.assert_allclose(weighted.prototypes.numpy(), repeated.prototypes.numpy(), atol=1e-9)


def test_a_prototype_without_rows_moves_beside_the_largest_cluster_and_gets_some(problem, blobs) -> None:
    x, _ = blobs(rows=300, dim=4, clusters=3, apart=5.0)
    start = x[:4].astype(np.float64)
    start[3] = 1e6
    p = problem(x, start, objective="kmeans")
    first, terms = course(p, 1)
    assert terms[0].relocated == 1
    largest = int(np.argmax(np.bincount(np.square(x[:, None] - start).sum(2).argmin(1))))
    distance = float(np.linalg.norm(first.prototypes[3] - first.prototypes[largest]))
    assert 0 < distance < 0.1
    _, terms = course(p, 20)
    assert terms[-1].relocated == 0
    assert terms[-1].smallest > 0
    values = np.array([t.objective for t in terms])
    assert (np.diff(values) <= 1e-12 * np.abs(values[1:])).all()


@every_objective
def test_a_step_that_relocates_a_prototype_has_not_settled(problem, objective: str) -> None:
    x = np.repeat(np.array([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0]]), 5, axis=0)
    start = np.array([[0.0, 1.0], [10.0, 1.0], [1e5, 1e5]])  # two at their clusters' means, one far from all rows
    state, terms = course(problem(x, start, objective=objective, temperature=1e-3), 20)
    assert terms[0].relocated == 1
    assert not terms[0].settled
    assert terms[-1].settled
    assert terms[-1].smallest > 0
    assert bool(state.prototypes.isfinite().all())


@every_objective
def test_more_clusters_than_distinct_rows_settle(problem, objective: str) -> None:
    x = np.repeat(np.array([[0.0, 1.0], [5.0, 0.0]]), 10, axis=0)
    state, terms = course(problem(x, x[[0, 10, 0, 0]], objective=objective, temperature=0.5), 50)
    assert terms[-1].settled
    assert terms[-1].distortion == pytest.approx(0, abs=1e-9)
    assert bool(state.prototypes.isfinite().all())


@every_objective
def test_equal_rows_settle_at_their_place(problem, objective: str) -> None:
    x = np.full((30, 3), 2.5)
    state, terms = course(problem(x, x[:2], objective=objective, temperature=1.0), 10)
    assert terms[-1].settled
    np.testing.assert_allclose(state.prototypes.numpy(), 0, atol=1e-12)


@soft_objective
def test_bf16_sums_stay_near_those_of_float32(problem, objective: str) -> None:
    x, start = scattered(2)
    x = x.astype(np.float32)
    states = [
        course(problem(x, start, objective=objective, dtype=torch.float32, precision=precision), 10)[0]
        for precision in ("fp32", "bf16")
    ]
    np.testing.assert_allclose(states[0].prototypes.numpy(), states[1].prototypes.numpy(), atol=0.05)
    assert not torch.equal(states[0].prototypes, states[1].prototypes)
