"""The loops for a matrix unit, and what stands in for them where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from raydkm.ops import amx, amx_soft, candidates, kernels, rates
from raydkm.ops.amx import ROWS, packed, product_int8, split
from raydkm.ops.amx_soft import SoftByTiles
from raydkm.ops.batch import HARD_TILE
from raydkm.ops.frame import Frame, RowTile
from raydkm.ops.hard import HardAssignment
from raydkm.ops.last import LastPass
from raydkm.ops.leading import Directions
from raydkm.ops.scores import Scores
from raydkm.ops.screen import FullScreen
from raydkm.ops.soft import SoftAssignment, SoftByProducts
from tests.unit.ops.test_hard import CASES, PRECISIONS, reference, scores_of

SUMMED = amx_soft.SUMMED[0]

with_unit = pytest.mark.skipif(not amx.available(), reason="this processor has no matrix unit (AMX)")


@pytest.fixture
def without_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "available", lambda: False)
    monkeypatch.setattr(amx_soft, "available", lambda: False)


@with_unit
@settings(deadline=None)
@given(
    rows=st.sampled_from([1, 31, 32, 33, 100]),
    dim=st.sampled_from([1, 63, 64, 65, 200]),
    columns=st.sampled_from([32, 64, 96]),
    seed=st.integers(0, 2**31),
)
def test_products_of_8_bit_numbers_are_exact(rows: int, dim: int, columns: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(-127, 128, (n, dim), generator=g).to(torch.int8) for n in (rows, columns))
    found = np.full((rows, columns), -1, np.int32)
    product_int8(x.numpy(), packed(y[None]).numpy(), found)
    np.testing.assert_array_equal(found, x.int().numpy() @ y.int().numpy().T)


def test_parts_leave_of_a_number_what_bf16_rounds_away() -> None:
    x = torch.randn(40, 7) * torch.logspace(-20, 20, 40)[:, None]
    high, low = split(x, 2).float()
    assert bool(((x - high).abs() <= 2.0**-8 * x.abs()).all())
    assert bool(((x - high - low).abs() <= 2.0**-17 * x.abs()).all())


def sums(kind: type, scores: Scores, z: Tensor, weight: Tensor, cut: int, low: bool = False) -> tuple[Tensor, ...]:
    shift = torch.linspace(-1, 1, z.shape[1])
    frame = Frame("euclidean", shift.double())
    tiles = zip((frame.tile(some + shift) for some in z.split(cut)), weight.split(cut), strict=True)
    bound = () if kind is SoftByProducts else (z.abs().amax(0).double(),)
    counts, found, entropy = kind(SoftAssignment(scores), *bound, low_precision_sums=low)(tiles)
    return counts.clone(), found.clone(), torch.tensor(entropy)


def softmax(scores: Scores, z: Tensor) -> Tensor:
    logits = 2 / scores.temperature * (z.double() @ scores.prototypes.double().T + scores.bias.double())
    return torch.softmax(logits, 1)


@pytest.mark.parametrize("kind", [SoftByProducts, pytest.param(SoftByTiles, marks=with_unit)])
@settings(max_examples=30, deadline=None)
@given(
    rows=st.sampled_from([1, ROWS - 1, ROWS + 1, SUMMED, SUMMED + 130]),
    dim=st.sampled_from([1, 31, 33, 100]),
    clusters=st.sampled_from([1, 15, 32, 33, 200]),
    temperature=st.sampled_from([0.05, 1.0, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_soft_sums_are_those_of_float64(
    kind: type, rows: int, dim: int, clusters: int, temperature: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    z, prototypes = torch.randn(rows, dim, generator=g), torch.randn(clusters, dim, generator=g)
    weight = torch.rand(rows, generator=g, dtype=torch.float64) + 0.1
    log_s = torch.randn(clusters, generator=g, dtype=torch.float64)
    scores = scores_of(prototypes, log_s, temperature)
    counts, found, entropy = sums(kind, scores, z, weight, cut=1024)
    q = softmax(scores, z)
    target = q * weight[:, None]
    # a posterior is off by at most its logit's error; errors of z . theta are a part of ||z|| ||theta||
    scale = (
        2 / temperature * torch.linalg.vector_norm(z, dim=1).max() * torch.linalg.vector_norm(prototypes, dim=1).max()
    )
    off = float(scale) * 2.0**-15 + 1e-6
    torch.testing.assert_close(counts, target.sum(0), rtol=off, atol=off * rows)
    torch.testing.assert_close(found.double(), target.T @ z.double(), rtol=off, atol=off * rows)
    assert float(entropy) == pytest.approx(float(-(target * q.clamp(min=1e-300).log()).sum()), rel=off, abs=off * rows)


@with_unit
def test_posteriors_are_as_near_to_float64_as_is_promised_at_a_low_temperature() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(SUMMED, 128, generator=g) * torch.arange(1, 129) ** -0.5
    prototypes = z[:64] + 0.1 * torch.randn(64, 128, generator=g)
    critical = 2 * float(torch.linalg.eigvalsh(torch.cov(z.T.double()))[-1])
    scores = scores_of(prototypes, torch.zeros(64, dtype=torch.float64), 0.01 * critical)
    q = softmax(scores, z)
    for row in range(0, SUMMED, 16):  # the counts of a row alone are its posteriors
        found, _, _ = sums(SoftByTiles, scores, z[row : row + 1], torch.ones(1, dtype=torch.float64), cut=1)
        assert float((found - q[row]).abs().max()) < 1e-3


@with_unit
@pytest.mark.parametrize(("dim", "times"), [(1, 1), (2, 3), (8, 10), (8, 30), (64, 10)])
def test_posteriors_of_rows_far_longer_than_prototypes_are_as_near(dim: int, times: float) -> None:
    g = torch.Generator().manual_seed(1)
    prototypes = torch.randn(40, dim, generator=g)
    z = prototypes[torch.randint(40, (300,), generator=g)] * times + 0.1 * torch.randn(300, dim, generator=g)
    one, parts = torch.ones(1, dtype=torch.float64), set()
    for temperature in torch.logspace(2, -3, 11).tolist():
        scores = scores_of(prototypes, torch.zeros(40, dtype=torch.float64), temperature)
        assign, q = SoftAssignment(scores), softmax(scores, z)
        kind = SoftByTiles(assign, z.abs().amax(0).double(), low_precision_sums=False)
        parts.add(kind._parts)
        found = torch.cat([kind([(RowTile.at_origin(row), one)])[0][None].clone() for row in z[::10].split(1)])
        # three parts are as exact as float32 is
        off = 1e-3 + (float((assign(z).dense() - q).abs().max()) if kind._parts == 3 else 0.0)
        assert float((found - q[::10]).abs().max()) < off
    assert parts == {2, 3}


@with_unit
def test_rows_are_summed_alike_however_tiles_are_cut() -> None:
    g = torch.Generator().manual_seed(0)
    z, weight = torch.randn(4 * SUMMED, 40, generator=g), torch.rand(4 * SUMMED, generator=g, dtype=torch.float64)
    scores = scores_of(torch.randn(50, 40, generator=g), torch.zeros(50, dtype=torch.float64), 1.0)
    whole, halves = (sums(SoftByTiles, scores, z, weight, cut) for cut in (4 * SUMMED, 2 * SUMMED))
    assert all(torch.equal(one, other) for one, other in zip(whole[:2], halves[:2], strict=True))


@with_unit
def test_one_part_of_sums_is_bf16() -> None:
    g = torch.Generator().manual_seed(0)
    z, weight = torch.randn(2000, 40, generator=g), torch.ones(2000, dtype=torch.float64)
    scores = scores_of(torch.randn(50, 40, generator=g), torch.zeros(50, dtype=torch.float64), 1.0)
    exact = softmax(scores, z).T @ z.double()
    low, high = (
        float((sums(SoftByTiles, scores, z, weight, 1024, low)[1] - exact).abs().max()) for low in (True, False)
    )
    assert high < low / 8
    assert low < 2.0**-8 * 2000


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**31),
    n=st.sampled_from([1, 33, 300]),
    d=st.sampled_from([1, 3, 65, 300]),
    k=st.sampled_from([1, 10, 65, 600]),
)
def test_without_the_unit_labels_are_the_same(case, seed: int, n: int, d: int, k: int, without_unit: None) -> None:
    z, prototypes = case(torch.Generator().manual_seed(seed), n, d, k)
    scores = scores_of(prototypes)
    for directions in (None, Directions.of(z)):
        assert torch.equal(HardAssignment(scores, "int8", directions)(z), reference(scores, z))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_may_be_shifted_as_they_are_read(precision: str) -> None:
    g = torch.Generator().manual_seed(0)
    x, shift = torch.randn(1000, 70, generator=g), torch.randn(70, generator=g, dtype=torch.float64).float().double()
    frame = Frame("euclidean", shift)
    prototypes, into = torch.randn(90, 70, generator=g).double(), torch.empty(1000, 70)
    scores = Scores.of(prototypes, torch.zeros(90, dtype=torch.float64), 0.0, frame)
    found = HardAssignment(scores, precision)(frame.tile(x, into))
    assert torch.equal(found, (x.double()[:, None] - (prototypes + shift)).square().sum(2).argmin(1))
    with pytest.raises(ValueError, match="71 columns in a frame of 70"):
        frame.tile(torch.zeros(3, 71), torch.empty(3, 71))
    with pytest.raises(TypeError, match="give a RowTile"):
        HardAssignment(scores, precision)(x)


def test_what_is_known_of_rows_is_used_with_the_unit_and_without(without_unit: None) -> None:
    g = torch.Generator().manual_seed(0)
    z, prototypes, last = torch.randn(600, 40, generator=g), torch.randn(300, 40, generator=g), LastPass()
    tile = last.tile(0, len(z))
    for part in (1.0, 0.3, 0.05):
        prototypes = torch.where(torch.rand(300, 1, generator=g) < part, prototypes + 0.1, prototypes)
        scores = scores_of(prototypes)
        labels = HardAssignment(scores, "int8", last=last)(z, tile)
        assert torch.equal(labels, reference(scores, z))
        tile.labels.copy_(labels)


def test_without_the_unit_the_fastest_screen_is_measured(without_unit: None) -> None:
    kept = (rates.fastest_screen, rates.screen_rate)
    for function in kept:
        function.cache_clear()
    try:
        assert rates.fastest_screen(torch.device("cpu")) in PRECISIONS
        assert all(rate > 0 for rate in rates.screen_rate("fp32"))
    finally:
        for function in kept:
            function.cache_clear()


def test_a_screen_that_is_given_up_writes_few_scores_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    g, written = torch.Generator().manual_seed(0), []
    room = FullScreen._room
    monkeypatch.setattr(
        FullScreen, "_room", lambda self, name, rows, *rest: written.append(len(rows)) or room(self, name, rows, *rest)
    )
    prototypes = torch.randn(1, 3, generator=g) + 1e-5 * torch.randn(20_000, 3, generator=g)
    assign, z = HardAssignment(scores_of(prototypes), "int8"), torch.randn(300, 3, generator=g)
    for _ in range(2):
        assert torch.equal(assign(z), reference(assign._scores, z))
    assert isinstance(assign._chosen.screen, FullScreen)
    assert max(written) * len(prototypes) < 2 * HARD_TILE


def test_what_is_compiled_goes_with_all_sources_that_it_is_made_of() -> None:
    for loop in (candidates.decide, kernels.soften):
        assert loop._cache._cache_file._source_stamp[1] == kernels.sources()


@pytest.mark.long
def test_a_fit_compiles_for_the_processor_that_numba_is_told(tmp_path: Path) -> None:
    """In a process of its own, for any processor of this kind: labels and sums of hard steps are those of this one."""
    code = (
        "import sys, numpy as np, raydkm; x = np.random.default_rng(0).standard_normal((5000, 20)).astype(np.float32)\n"
        "for objective in 'kmeans', 'sr-kmeans':\n"
        "    print(raydkm.fit(x, clusters=7, max_steps=4, objective=objective).cluster_centers.tobytes().hex())"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_CPU_NAME": "generic"}
    arguments = {"capture_output": True, "text": True, "check": True}
    hard, soft = subprocess.run([sys.executable, "-c", code], env=environment, **arguments).stdout.split()[-2:]
    there, here = (subprocess.run([sys.executable, "-c", code], **arguments).stdout.split()[-2:] for _ in range(2))
    assert (hard, there) == (here[0], here)
    centers = [np.frombuffer(bytes.fromhex(each), np.float64) for each in (soft, here[1])]
    np.testing.assert_allclose(*centers, atol=1e-4)
