"""Costs: float64, by differences, the same bits wherever they are computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydkm.ops.cost import Costs
from raydkm.ops.frame import Frame
from raydkm.ops.scores import Scores


def costs_of(rng: np.random.Generator, dim: int, clusters: int, **options) -> Costs:
    theta, offset, shift = (torch.from_numpy(rng.standard_normal(n)) for n in ((clusters, dim), clusters, dim))
    return Costs(theta, offset, shift, **options)


@given(seed=st.integers(0, 2**31), dim=st.sampled_from([1, 2, 7, 8, 9, 31, 128]), unit=st.booleans())
def test_costs_are_the_bits_of_numpy(seed: int, dim: int, unit: bool) -> None:
    rng = np.random.default_rng(seed)
    costs = costs_of(rng, dim, 5, unit=unit)
    x = (rng.standard_normal((6, dim)) * 10.0 ** rng.integers(-6, 7)).astype(rng.choice(["f4", "f8"]))
    exact = x.astype(np.float64)
    if unit:  # NumPy adds up another way
        found = costs(torch.from_numpy(x))
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
        differences = exact[:, None] - (costs.prototypes + costs.shift).numpy()
        np.testing.assert_allclose(found.numpy(), (differences**2).sum(-1) - costs.offset.numpy(), rtol=1e-13)
        return
    differences = exact[:, None] - (costs.prototypes + costs.shift).numpy()
    expected = (differences**2).sum(-1) - costs.offset.numpy()
    np.testing.assert_array_equal(costs(torch.from_numpy(x)).numpy(), expected)
    which = torch.from_numpy(rng.integers(5, size=(6, 3)))
    np.testing.assert_array_equal(
        costs(torch.from_numpy(x), which).numpy(), np.take_along_axis(expected, which.numpy(), 1)
    )
    labels = which[:, 0].contiguous()
    squares = costs.squared_distances(torch.from_numpy(x), labels).numpy()
    np.testing.assert_array_equal(squares, (differences**2).sum(-1)[np.arange(6), labels])


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("unit", [False, True])
def test_tensor_operations_compute_the_same_but_for_their_order(linear: bool, unit: bool, rng) -> None:
    costs = costs_of(rng, 37, 9, unit=unit, linear=linear)
    x, which = torch.from_numpy(rng.standard_normal((20, 37))), torch.from_numpy(rng.integers(9, size=(20, 4)))
    torch.testing.assert_close(costs(x), costs._by_tensors(x, None), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(costs(x, which), costs._by_tensors(x, which), rtol=1e-12, atol=1e-12)


def test_a_linear_form_costs_minus_twice_its_score(rng) -> None:
    costs = costs_of(rng, 12, 4, linear=True)
    x = torch.from_numpy(rng.standard_normal((10, 12)))
    score = (x - costs.shift) @ costs.prototypes.T + costs.offset
    torch.testing.assert_close(costs(x), -2 * score, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("unit", [False, True])
def test_equal_costs_go_to_the_lowest_prototype(unit: bool) -> None:
    prototypes = torch.tensor([[0.0, 1], [1, 0], [0, 1], [-1, 0], [1, 0]], dtype=torch.float64)
    costs = Costs(prototypes, torch.zeros(5).double(), torch.zeros(2).double(), unit=unit)
    rows = torch.tensor([[1.0, 1], [0, 1], [1, 0], [0, 0], [-1, -1]])
    assert costs.labels(rows).tolist() == [0, 0, 1, 0, 3]


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), temperature=st.floats(1e-3, 1e3))
def test_scores_and_costs_differ_by_a_number_of_the_row(seed: int, temperature: float) -> None:
    rng = np.random.default_rng(seed)
    frame = Frame("euclidean", torch.from_numpy(rng.standard_normal(6)), torch.float64)
    prototypes, log_s = torch.from_numpy(rng.standard_normal((7, 6))), torch.from_numpy(rng.standard_normal(7))
    scores, x = Scores.of(prototypes, log_s, temperature, frame), torch.from_numpy(rng.standard_normal((9, 6)))
    apart = scores.costs(x) + 2 * scores(frame(x))
    torch.testing.assert_close(apart, frame(x).square().sum(1)[:, None].expand(9, 7), rtol=1e-9, atol=1e-9)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), common=st.sampled_from([0.0, 1.0, 1e20, -1e30]))
def test_an_offset_that_all_have_changes_no_label_and_no_order(seed: int, common: float) -> None:
    rng = np.random.default_rng(seed)
    costs = costs_of(rng, 3, 6)
    shifted = Costs(costs.prototypes, torch.full((6,), common).double(), costs.shift)
    plain = Costs(costs.prototypes, torch.zeros(6).double(), costs.shift)
    x = torch.from_numpy(rng.standard_normal((20, 3)))
    assert torch.equal(shifted.labels(x), plain.labels(x))
    assert torch.equal(shifted.order(x), plain.order(x))
    assert torch.equal(plain.labels(x), plain(x).argmin(1))
    assert torch.equal(plain.order(x)[:, 0], plain.labels(x))
