from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from raydkm.features.draws import Draws
from raydkm.ops.keys import splitmix64


def drawn(keys: torch.Tensor, salt: int) -> list[torch.Tensor]:
    draws = Draws(keys, salt)
    return [draws.uniform(3, 2), draws.normal(5), draws.integers(7, 4), draws.uniform()]


def numbers(rows: int, columns: int, salt: int = 3) -> np.ndarray:
    return Draws(torch.arange(rows), salt).uniform(columns).double().numpy()


@given(
    keys=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20),
    salt=st.integers(-(2**70), 2**70),
    data=st.data(),
)
def test_a_row_draws_the_same_numbers_in_any_batch(keys: list[int], salt: int, data: st.DataObject) -> None:
    together = drawn(torch.tensor(keys), salt)
    order = data.draw(st.permutations(range(len(keys))))
    cut = data.draw(st.integers(0, len(keys)))
    for part in (order[:cut], order[cut:]):
        alone = drawn(torch.tensor([keys[row] for row in part], dtype=torch.int64), salt)
        assert all(torch.equal(each[list(part)], own) for each, own in zip(together, alone, strict=True))


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.integers(0, 2**64 - 1))
def test_numbers_are_those_of_splitmix64(keys: list[int], salt: int) -> None:
    golden = np.uint64(0x9E3779B97F4A7C15)
    unsigned = np.array(keys, dtype=np.uint64)
    starts = splitmix64(unsigned ^ splitmix64(np.array([salt], dtype=np.uint64) + golden))
    third = splitmix64(starts + golden * np.array([3], dtype=np.uint64))
    draws = Draws(torch.from_numpy(unsigned.view(np.int64)), salt)
    draws.uniform(2)
    assert draws.uniform().double().numpy() == pytest.approx((third >> np.uint64(40)) * 2.0**-24, abs=0)


def test_numbers_go_on_where_the_last_call_ended() -> None:
    draws = Draws(torch.arange(9), 5)
    parts = torch.cat([draws.uniform(2), draws.uniform(1, 3).flatten(1)], dim=1)
    assert torch.equal(parts, Draws(torch.arange(9), 5).uniform(5))


def test_uniform_numbers_are_uniform_along_rows_and_along_keys() -> None:
    u = numbers(1000, 200)
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest(u[:, 0], "uniform").pvalue > 1e-3
    assert stats.kstest(u[0], "uniform").pvalue > 1e-3


def test_normal_numbers_are_standard_normal() -> None:
    z = Draws(torch.arange(1000), 0).normal(200)
    assert z.dtype == torch.float32
    assert torch.isfinite(z).all()
    assert stats.kstest(z.ravel().double().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("high", [2, 7, 1000, 2**31])
def test_integers_are_uniform_below_their_bound(high: int) -> None:
    integers = Draws(torch.arange(1000), 1).integers(high, 50)
    assert integers.dtype == torch.int64
    assert 0 <= integers.min() <= integers.max() < high
    cells = min(high, 8)
    edges = -(-np.arange(cells + 1) * high // cells)
    counts, _ = np.histogram(integers.numpy(), edges)
    assert stats.chisquare(counts, counts.sum() * np.diff(edges) / high).pvalue > 1e-3


def test_rows_calls_and_salts_are_uncorrelated() -> None:
    u = numbers(400, 400)
    other_salt = numbers(400, 400, salt=4)
    pairs = {
        "neighbouring rows": (u[:-1], u[1:]),
        "neighbouring numbers": (u[:, :-1], u[:, 1:]),
        "rows against numbers": (u, u.T),
        "salts": (u, other_salt),
        "salts one row on": (u[1:], other_salt[:-1]),
    }
    for name, (one, other) in pairs.items():
        correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 4.5 / np.sqrt(one.size), name


def test_no_rows_draw_no_numbers() -> None:
    draws = Draws(torch.zeros(0, dtype=torch.int64), 1)
    assert draws.uniform(2, 3).shape == (0, 2, 3)
    assert draws.normal().shape == (0,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_draws_the_numbers_of_the_cpu() -> None:
    keys = torch.arange(100)
    for here, there in zip(drawn(keys, 8), drawn(keys.cuda(), 8), strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-6)
