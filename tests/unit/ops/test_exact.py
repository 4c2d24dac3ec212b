from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raydkm.ops.batch import BATCH_ROWS
from raydkm.ops.exact import COUNT, Field, Grid, Statistics

bounds = st.floats(min_value=1e-30, max_value=1e30)
shares = st.lists(st.floats(min_value=-1, max_value=1), min_size=1, max_size=50)


def exactly(x: float) -> Fraction:
    return Fraction(*float(x).as_integer_ratio())


def step(grid: Grid) -> Fraction:
    return Fraction(2) ** -int(grid.exponent)


@given(bound=bounds, shares=shares, rows=st.integers(1, 10**12))
def test_rounding_moves_a_value_by_at_most_half_a_step(bound: float, shares: list[float], rows: int) -> None:
    grid = Grid.holding(rows * bound)
    x = torch.tensor([share * bound for share in shares], dtype=torch.float64)
    for value, units in zip(x.tolist(), grid.units(x).tolist(), strict=True):
        assert abs(exactly(value) - units * step(grid)) <= step(grid) / 2


@given(bound=bounds, rows=st.integers(1, 10**12))
def test_ten_to_the_twelfth_rows_of_the_largest_value_do_not_overflow(bound: float, rows: int) -> None:
    batch = min(rows, BATCH_ROWS)
    grid = Grid.holding(rows * bound)
    for sign in (-1, 1):
        of_a_row, of_a_batch = grid.units(torch.tensor([sign * bound, sign * batch * bound])).tolist()
        for total in (of_a_row * rows, of_a_batch * -(-rows // batch)):
            assert abs(total) < 2**63
            assert math.copysign(1, total) == sign or total == 0


@given(bound=bounds)
def test_the_grid_resolves_a_billionth_of_a_batch(bound: float) -> None:
    grid = Grid.holding(1e6 * bound)
    assert step(grid) <= exactly(bound) * Fraction(1, 10**9) * BATCH_ROWS


@pytest.mark.parametrize("bound", [0.0, 5e-324, 1e-320, 1e-300, 1e300])
def test_grids_of_extreme_bounds_round_the_bound_itself(bound: float) -> None:
    grid = Grid.holding(bound)
    value = float(grid.value(grid.units(torch.tensor(bound, dtype=torch.float64))))
    assert value == pytest.approx(bound, rel=1e-12, abs=1e-290)


@pytest.mark.parametrize("value", [0.5, 1.5, -0.5, -1.5, 2.0**50 - 0.5, -(2.0**50) + 0.5, 1 / 3, -0.0, 5e-324])
def test_halves_and_neighbours_of_zero_round_as_round_does(value: float) -> None:
    assert Grid(0).units(torch.tensor(value, dtype=torch.float64)).item() == round(value)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=200), st.randoms(use_true_random=False))
def test_sums_do_not_depend_on_the_order_of_addition(values: list[float], random) -> None:
    field = Field("x", (), Grid.holding(1e3 * len(values)))
    first, second = Statistics((field,)), Statistics((field,))
    for value in values:
        first.add("x", value)
    random.shuffle(values)
    for value in values:
        second.add("x", value)
    assert torch.equal(first.buffer, second.buffer)
    error = abs(exactly(float(first["x"])) - sum(map(exactly, values)))
    rounded = abs(exactly(float(first["x"]))) * Fraction(2) ** -53  # of the sum as float64
    assert error <= len(values) * step(field.grid) / 2 + rounded


def test_statistics_are_a_monoid_over_one_flat_buffer(rng: np.random.Generator) -> None:
    fields = (Field("a", (3,), Grid(20)), Field("b", (2, 2), Grid(10)), Field("n", (), COUNT))
    parts = []
    for _ in range(3):
        part = Statistics(fields)
        part.add("a", torch.from_numpy(rng.standard_normal(3)))
        part.add("b", torch.from_numpy(rng.standard_normal((2, 2))))
        part.add("n", 7)
        parts.append(part)
    zero = Statistics(fields)
    assert zero.buffer.shape == (8,)
    assert zero.buffer.dtype == torch.int64
    one, two, three = parts
    assert torch.equal((zero + one).buffer, one.buffer)
    assert torch.equal(((one + two) + three).buffer, (one + (two + three)).buffer)
    assert torch.equal((one + two).buffer, (two + one).buffer)
    total = one + two + three
    assert total["n"] == 21
    torch.testing.assert_close(total["a"], one["a"] + two["a"] + three["a"], rtol=0, atol=0)


def test_each_column_has_the_finest_grid_that_its_own_bound_allows() -> None:
    bound = torch.tensor([1e-9, 1.0, 1e9], dtype=torch.float64)
    statistics = Statistics((Field("sums", (2, 3), Grid.holding(1000 * bound)),))
    rows = torch.stack([bound / 3, -bound / 7])
    statistics.add_rows("sums", torch.tensor([0, 1]), rows)
    statistics.add("sums", rows)
    torch.testing.assert_close(statistics["sums"], 2 * rows, rtol=1e-13, atol=0)


def test_adding_rows_gives_the_sum_of_each_group(rng: np.random.Generator) -> None:
    x, index = rng.standard_normal((100, 5)), rng.integers(4, size=100)
    statistics = Statistics((Field("sums", (4, 5), Grid.holding(1000)),))
    statistics.add_rows("sums", torch.from_numpy(index), torch.from_numpy(x))
    expected = np.stack([x[index == k].sum(0) for k in range(4)])
    np.testing.assert_allclose(statistics["sums"].numpy(), expected, atol=1e-11)


def test_weighted_rows_are_what_their_products_are_wherever_they_were_before(rng: np.random.Generator) -> None:
    x, weight = torch.from_numpy(rng.standard_normal((300, 5))).float(), torch.from_numpy(rng.random(300) + 0.1)
    index, before = (torch.from_numpy(rng.integers(low, 4, size=300)) for low in (0, -1))
    field = Field("sums", (4, 5), Grid(torch.tensor([20, 21, 22, 30, 40])))
    found, products = Statistics((field,)), Statistics((field,))
    found.add_rows("sums", index, x, before.int(), weight)
    products.add_rows("sums", index, x * weight[:, None], before.int())
    assert torch.equal(found.buffer, products.buffer)
