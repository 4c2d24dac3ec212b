"""The logistic family against its mathematics. A new member is a row of MIXTURES."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import raydkm
from raydkm.engine.loop import hold_shares
from raydkm.errors import ConfigError
from raydkm.objectives import OBJECTIVES
from raydkm.objectives.base import BALANCE_TOLERANCE
from raydkm.objectives.logistic import LogisticObjective
from raydkm.ops.balance import Balance
from raydkm.ops.metrics import clustering_accuracy
from tests.unit.objectives.test_distance import course, scattered

#: (l1, l2, l3) of each member.
MIXTURES = {"mi": (1, 1, 1), "kl": (1, 0, 1), "tim": (3, 0.5, 2), "sinkhorn": (math.inf, 1, 1)}

every_member = pytest.mark.parametrize("objective", MIXTURES)


def softmax(logits: NDArray) -> NDArray[np.float64]:
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def reference(z: NDArray, weight: NDArray, w: NDArray, log_s: NDArray, mixture: tuple, lam: float) -> dict:
    """One ADM step in float64, written out: targets, objective, Boehning's M-step and the sweep."""
    l1, l2, l3 = mixture
    beta = 1.0 if math.isinf(l1) else l1 / (l1 + l3)
    n, tilde = weight.sum(), np.c_[z, np.ones(len(z))]
    logits = tilde @ w.T
    p = softmax(logits)
    q = softmax((1 + l2 / l3) * logits + log_s)
    share = weight @ q / n
    cross, negative_entropy = (-(weight @ (q * np.log(p)).sum(1)) / n, weight @ (q * np.log(q)).sum(1) / n)
    kl = (share * np.log(share * len(share))).sum()
    balance = 0.0 if math.isinf(l1) else l1 * kl
    objective = l3 * (negative_entropy + cross) + l2 * cross + balance + lam * (w[:, :-1] ** 2).sum()
    free = np.r_[np.ones(z.shape[1]), 0.0]
    slope = (l2 + l3) / n * ((p - q) * weight[:, None]).T @ tilde + 2 * lam * w * free
    curvature = (l2 + l3) / 2 / n * (tilde * weight[:, None]).T @ tilde + 2 * lam * np.diag(free)
    swept = beta * (log_s - np.log(share * len(share)))
    return {
        "q": q,
        "objective": objective,
        "cross_entropy": cross,
        "posterior_entropy": -negative_entropy,
        "marginal_entropy": np.log(len(share)) - kl,
        "w": w - slope @ np.linalg.inv(curvature),
        "log_s": swept - swept.mean(),
    }


def case(problem, objective: str, seed: int = 0, **options):
    x, start = scattered(seed)
    weight = np.random.default_rng(seed).random(len(x)) + 0.1
    return problem(x, start, objective=objective, weight=weight, weights=MIXTURES[objective], **options)


def test_every_member_is_tested() -> None:
    members = [name for name, kind in OBJECTIVES.items() if issubclass(kind, LogisticObjective)]
    assert members == list(MIXTURES)


@every_member
@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), temperature=st.floats(0.3, 8), steps=st.integers(0, 4))
def test_a_step_is_the_one_written_out_in_numpy(problem, objective: str, seed, temperature, steps) -> None:
    p = case(problem, objective, seed, temperature=temperature)
    before, _ = course(p, steps)
    state, terms = p.goal.update(before, p.passes.sum(p.goal.fields(before), p.goal.e_step(before)))
    w = np.c_[before.prototypes.numpy(), before.bias.numpy()]
    expected = reference(p.z, p.weight, w, before.log_s.numpy(), MIXTURES[objective], p.goal.lam)
    np.testing.assert_allclose(np.c_[state.prototypes.numpy(), state.bias.numpy()], expected["w"], atol=1e-8)
    np.testing.assert_allclose(state.log_s.numpy(), expected["log_s"], atol=1e-8)
    for name in ("objective", "cross_entropy", "posterior_entropy", "marginal_entropy"):
        assert getattr(terms, name) == pytest.approx(expected[name], rel=1e-8, abs=1e-8)
    assert terms.penalty == pytest.approx(p.goal.lam * np.square(w[:, :-1]).sum(), rel=1e-9)


@pytest.mark.parametrize("objective", ["mi", "kl", "tim"])
def test_the_first_targets_after_a_sweep_are_the_published_closed_forms(problem, objective: str) -> None:
    """Sums over rows are weighted, as q_hat is."""
    p = case(problem, objective, temperature=2.0)
    l1, l2, l3 = MIXTURES[objective]
    swept = p.goal.update(p.start, p.passes.sum(p.goal.fields(p.start), p.goal.e_step(p.start)))[0].log_s.numpy()
    logits = p.z @ p.start.prototypes.numpy().T + p.start.bias.numpy()
    powered = softmax((1 + l2 / l3) * logits)
    expected = powered / (p.weight @ powered) ** (l1 / (l1 + l3))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(softmax((1 + l2 / l3) * logits + swept), expected, rtol=1e-9)
    if objective == "kl":  # DEPICT: q ~ p / (sum p)^(1/2)
        depict = softmax(logits) / np.sqrt(p.weight @ softmax(logits))
        np.testing.assert_allclose(expected, depict / depict.sum(1, keepdims=True), rtol=1e-12)


@pytest.mark.parametrize("objective", ["mi", "kl", "tim"])
def test_targets_meet_the_optimality_condition_when_the_q_step_is_iterated(problem, objective: str) -> None:
    """For each row, log q - (1 + alpha) log p + gamma log(q_hat / u) is the same for all clusters."""
    p = case(problem, objective, temperature=2.0)
    state = p.start
    for _ in range(200):  # sweeps alone
        swept, _ = p.goal.update(state, p.passes.sum(p.goal.fields(state), p.goal.e_step(state)))
        state = replace(state, log_s=swept.log_s)
    l1, l2, l3 = MIXTURES[objective]
    logits = p.z @ state.prototypes.numpy().T + state.bias.numpy()
    q = softmax((1 + l2 / l3) * logits + state.log_s.numpy())
    share = p.weight @ q / p.weight.sum()
    condition = np.log(q) - (1 + l2 / l3) * logits + l1 / l3 * np.log(share * len(share))
    assert np.abs(condition - condition.mean(1, keepdims=True)).max() < 1e-10


@pytest.mark.parametrize("objective", ["mi", "kl", "tim"])
@pytest.mark.parametrize("seed", range(3))
def test_the_whole_objective_never_rises_in_300_steps(problem, objective: str, seed: int) -> None:
    """Of `mi` this is the full L_MI, its log-partition included (but for the constant log K)."""
    p = case(problem, objective, seed, temperature=1.0)
    _, terms = course(p, 300)
    values = np.array([t.objective for t in terms])
    assert len(values) == 300
    assert (np.diff(values) <= 1e-11 * np.abs(values[1:])).all()
    assert values[-1] < values[0]


def test_the_objective_of_mi_is_the_one_of_the_paper(problem) -> None:
    p = case(problem, "mi", temperature=1.0)
    before, _ = course(p, 5)
    _, terms = p.goal.update(before, p.passes.sum(p.goal.fields(before), p.goal.e_step(before)))
    logits = p.z @ before.prototypes.numpy().T + before.bias.numpy()
    posterior, q = softmax(logits), softmax(2 * logits + before.log_s.numpy())
    weight = p.weight / p.weight.sum()
    share = weight @ q
    mutual = -weight @ (q * np.log(posterior)).sum(1) + (share * np.log(share)).sum()
    whole = (
        mutual + weight @ (q * np.log(q / posterior)).sum(1) + p.goal.lam * np.square(before.prototypes.numpy()).sum()
    )
    assert terms.objective - math.log(len(share)) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("marginal", [None, [0.4, 0.3, 0.1, 0.1, 0.1]])
def test_sinkhorn_holds_the_marginal_to_its_target(problem, marginal: list[float] | None) -> None:
    target = None if marginal is None else torch.tensor(marginal, dtype=torch.float64)
    p = case(problem, "sinkhorn", temperature=1.0, balance=Balance(0.0, target))
    state, residual = hold_shares(p.goal, course(p, 50)[0], p.passes, 200)
    assert residual <= BALANCE_TOLERANCE
    logits = p.z @ state.prototypes.numpy().T + state.bias.numpy()
    share = p.weight @ softmax(2 * logits + state.log_s.numpy()) / p.weight.sum()
    np.testing.assert_allclose(share, marginal or [0.2] * 5, rtol=0.01)


@every_member
def test_the_first_targets_are_those_of_soft_kmeans(problem, objective: str) -> None:
    p = case(problem, objective, temperature=1.5)
    squares = np.square(p.z[:, None] - (scattered(0)[1] - p.frame.shift.numpy())).sum(2)
    logits = p.z @ p.start.prototypes.numpy().T + p.start.bias.numpy()
    np.testing.assert_allclose(softmax((1 + p.goal.alpha) * logits), softmax(-squares / 1.5), atol=1e-9)


@every_member
def test_models_hold_their_posterior_and_both_readings(blobs, objective: str, tmp_path) -> None:
    x, labels = blobs(rows=400, dim=4, clusters=4)
    start = np.stack([x[labels == k].mean(0) for k in range(4)])
    model = raydkm.fit(x, clusters=4, objective=objective, init=start, temperature="0.02Tc", out=tmp_path / "model")
    loaded = raydkm.load(tmp_path / "model")
    assert loaded.checksum() == model.checksum()
    z = model.frame()(torch.from_numpy(x))
    for reading in ("p", "q", None):
        found = loaded.read_as(reading).scores()(z).argmax(1).numpy()
        assert clustering_accuracy(labels, found) > 0.99
    p, q = (model.read_as(reading).scores() for reading in ("p", "q"))
    assert not torch.equal(p.bias, q.bias)
    np.testing.assert_allclose(model.cluster_centers[found[0]], x[found == found[0]].mean(0), atol=1e-4)


def test_the_discriminative_reading_of_sr_kmeans_is_the_one_of_the_paper(blobs) -> None:
    """theta = theta' / (lambda K), b = log(q_hat) / 2; hard objectives have none."""
    x, _ = blobs(rows=400, dim=4, clusters=4, apart=2.0)
    model = raydkm.fit(x, clusters=4, lam=0.3)
    p = model.read_as("p").scores()
    torch.testing.assert_close(p.costs.prototypes, model.prototypes / (0.3 * 4))
    torch.testing.assert_close(p.costs.offset, 0.5 * model.shares.log())
    assert not torch.equal(model.shares, model.counts / 400)
    assert float(model.shares.sum()) == pytest.approx(1)
    with pytest.raises(ConfigError, match="kmeans has no posterior p"):
        raydkm.fit(x, clusters=4, objective="kmeans").read_as("p")
    with pytest.raises(ConfigError, match="must be q or p"):
        model.read_as("r")


def test_settings_that_an_objective_does_not_have_are_refused(blobs) -> None:
    x, _ = blobs()
    for options, told in [
        ({"objective": "mi", "balance": 0.5}, "mi has its own balance"),
        ({"objective": "kl", "min_share": 0.1}, "kl has its own balance"),
        ({"objective": "mi", "l2": 2.0}, "mi has its own l1, l2, l3"),
        ({"objective": "sinkhorn", "l1": 2.0}, "sinkhorn has its own l1"),
        ({"objective": "mi", "anneal": 5}, "anneal goes with"),
        ({"objective": "kmeans", "anneal": 5}, "anneal goes with"),
        ({"marginal": [1, 1, 1]}, "marginal: give balance"),
        ({"marginal": [1, 1], "balance": 0.5}, "marginal: 2 shares for 3 clusters"),
        ({"marginal": [1, 1, -1], "balance": 0.5}, "marginal: must be K positive numbers"),
        ({"min_share": 0.4}, "no 3 shares within them sum to 1"),
        ({"min_share": 0.1, "balance": 0.5}, "not both"),
    ]:
        with pytest.raises(ConfigError, match=told):
            raydkm.fit(x, clusters=3, **options)
