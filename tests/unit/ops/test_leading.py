"""Leading directions of rows, whether these or their dimensions are more."""

from __future__ import annotations

import pytest
import torch

from raydkm.ops.leading import Directions


def rows_of(rows: int, dim: int, rank: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(rows)
    scales = torch.logspace(0, -6, rank, dtype=torch.float64)
    left, right = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((rows, rank), (rank, dim)))
    return (left * scales) @ right


@pytest.mark.parametrize(("rows", "dim", "rank"), [(200, 64, 64), (40, 64, 40), (40, 64, 5), (1, 64, 1), (63, 64, 63)])
@pytest.mark.parametrize("width", [4, 15, 63])
def test_what_directions_leave_out_bounds_the_products(rows: int, dim: int, rank: int, width: int) -> None:
    z, theta = rows_of(rows, dim, rank).float(), 3 * rows_of(30, dim, 30).float()
    leading = Directions.of(z).first(width)
    bounds = leading(z).double() @ leading(theta).double().T
    products = z.double() @ theta.double().T
    error = 2 * leading.error * torch.outer(z.double().norm(dim=1), theta.double().norm(dim=1))
    assert bool((bounds + error >= products).all())
    if width >= rank:  # nothing is left of the rows
        assert float((bounds - products).max()) <= 1e-2 * float(theta.norm(dim=1).max() * z.norm(dim=1).max())


@pytest.mark.parametrize("rank", [3, 30])
def test_fewer_rows_than_dimensions_have_the_directions_of_their_covariance(rank: int) -> None:
    z = rows_of(30, 80, rank)
    basis = Directions.of(z)._basis
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), rtol=0, atol=1e-6)
    exact = torch.linalg.eigh(z.T @ z).eigenvalues.flip(0)
    kept = (basis.T @ (z.T @ (z @ basis))).diagonal()
    torch.testing.assert_close(kept, exact[: len(kept)], rtol=1e-6, atol=0)


def test_rows_that_are_all_zero_have_no_directions() -> None:
    leading = Directions.of(torch.zeros(5, 20)).first(7)
    assert not leading(torch.ones(2, 20))[:, :7].any()
