"""Rows of unit length, less an origin, by the compiled loop and by tensor operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raydkm.ops.frame import Frame

SHIFT = torch.linspace(-0.5, 0.5, 7, dtype=torch.float64).float().double()


def in_float64(x: Tensor) -> Tensor:
    x = x.double()
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1e-300) - SHIFT


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(50, 7, generator=torch.Generator().manual_seed(0)),
        torch.randn(50, 7, generator=torch.Generator().manual_seed(1)).half(),
        torch.arange(1, 71, dtype=torch.uint8).view(10, 7),
        torch.randn(7, 50, generator=torch.Generator().manual_seed(2)).T,
        torch.randn(50, 7, generator=torch.Generator().manual_seed(3)) * 1e38,
        torch.randn(50, 7, generator=torch.Generator().manual_seed(4)) * 1e-30,
        torch.zeros(3, 7),
    ],
    ids=["float32", "float16", "uint8", "transposed", "huge", "tiny", "zero"],
)
def test_rows_have_unit_length_and_the_same_bits_wherever_they_are_written(x: Tensor) -> None:
    frame, before = Frame("cosine", SHIFT), x.clone()
    z = frame(x)
    torch.testing.assert_close(z.double(), in_float64(x), rtol=0, atol=2e-7)
    assert torch.equal(frame(x, out=torch.empty(x.shape)), z)
    assert torch.equal(torch.cat([frame(row[None]) for row in x]), z)
    torch.testing.assert_close(frame.normalise(x).sub(SHIFT.float()), z, rtol=0, atol=2e-7)
    assert torch.equal(x, before)


def test_what_is_not_finite_stays_so() -> None:
    x = torch.ones(3, 7)
    x[0, 1], x[1, 2] = torch.nan, torch.inf
    finite = Frame("cosine", SHIFT)(x).isfinite().all(1)
    assert finite.tolist() == [False, False, True]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_rows_of_another_width_are_refused(metric: str) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        Frame(metric, SHIFT)(torch.ones(3, 8))
