"""`benchmarks/step.py` and `scaling.py`: their data, their arithmetic, and a tiny run from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scaling
import step
import step_measure
import step_rates
from scaling import Line, around
from step_checks import compare_labels, compare_posteriors
from step_data import Shape, decaying, embeddings, initial
from step_peers import PEERS, rows_of_mixture
from step_raydkm import Found
from step_tables import Entry, Report, kinder

SHAPE = Shape(1_000_000, 50, 20)  # 2NKd is 2e9


@pytest.mark.parametrize("text", ["10x2", "10x2x", "0x2x1", "10x2x11", "axbxc"])
def test_a_shape_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Shape.parse(text)


def test_the_spectrum_decays_as_1_over_j_in_no_axis_parallel_basis() -> None:
    x = decaying(40_000, 24).astype(np.float64)
    covariance = np.cov(x.T)
    found = np.linalg.eigvalsh(covariance)[::-1]
    slope = np.polyfit(np.log(np.arange(1, 25)), np.log(found), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)
    assert found.sum() == pytest.approx(sum(1 / j for j in range(1, 25)), rel=0.1)
    assert np.diag(covariance).max() < 0.7 * found[0]


def test_generated_rows_depend_on_the_seed_alone() -> None:
    assert np.array_equal(decaying(500, 4, seed=3), decaying(500, 4, seed=3))
    assert not np.array_equal(decaying(500, 4, seed=3), decaying(500, 4, seed=4))


@pytest.mark.parametrize("dim", [16, 5, 30])
def test_embeddings_are_repeated_with_noise_at_unit_length(tmp_path: Path, dim: int) -> None:
    z = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(z.reshape(-1)), 16)
    pq.write_table(pa.table({"z": column}), tmp_path / "z.parquet")
    x = embeddings(str(tmp_path / "z.parquet"), "z", 120, dim, noise=0.1)
    assert x.shape == (120, dim)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
    apart = np.linalg.norm(x[:50] - x[50:100], axis=1)
    assert 0.02 < apart.min() < apart.max() < 0.4
    if dim == 16:
        cosine = (x[:50] * z).sum(1) / np.linalg.norm(z, axis=1)
        assert cosine.min() > 0.97


def test_initial_prototypes_are_different_rows() -> None:
    x = decaying(300, 3)
    start = initial(x, 40)
    assert len(np.unique(start, axis=0)) == 40
    assert all((row == x).all(1).any() for row in start)


@pytest.mark.parametrize(
    ("one", "total", "seconds", "how"),
    [
        (2.0, 10.0, 2.0, "total"),  # the same
        (6.0, 10.0, 1.0, "difference"),
        (1.0, 10.0, 2.0, "total"),
        (11.0, 10.0, 2.0, "total"),  # noise: no step takes less than nothing
        (None, 10.0, 2.0, "total"),
    ],
)
def test_the_reading_kinder_to_the_peer_counts(one: float | None, total: float, seconds: float, how: str) -> None:
    assert kinder(one, total, 5) == (seconds, how)


def run(total: float, **more: Any) -> dict[str, Any]:
    return {"total": total, "steps": 2, "scale": 1.0, "extra": 2**20, "inertia": 5.0, **more}


def test_the_table_holds_medians_rates_and_ratios() -> None:
    own = Entry.of("raydkm", False, [run(4e-3), run(90.0), run(2e-3)])
    assert own.seconds == 2e-3
    peer = Entry.of("faiss.Kmeans", False, [run(9e-3, one=5e-3, inertia=5.5)])
    starts = Entry.of("superkmeans", False, [run(2e-3, one=1e-3)], own_start=True)
    soft = Entry.of("raydkm soft", True, [run(8e-3)])
    mixture = Entry.of("sklearn.GaussianMixture", True, [run(8e-3, one=4e-3, scale=10.0)])
    rates = {"float32": 2e12, "bf16": 5e12}
    report = Report(SHAPE, rates, 2e-3, [own, peer, starts, soft, mixture], {"sklearnex.KMeans": "not installed"})
    hard = report.table(soft=False)
    ms, rate, part, half, memory, times = zip(*(row[1:7] for row in hard.rows[:3]), strict=True)
    assert ms == ("2.0", "4.0", "1.0")
    assert rate == ("1,000", "500", "2,000")
    assert part == ("0.50", "0.25", "1.00")
    assert half == ("0.20", "0.10", "0.40")
    assert memory == ("1", "1", "1")
    assert times == ("1.00", "2.00", "0.50")
    assert [row[8] for row in hard.rows[:3]] == ["1.0000", "1.1000", "1.0000"]
    assert hard.rows[2][0] == "superkmeans*"
    assert hard.rows[3] == ["sklearnex.KMeans", "not installed"]
    [first, second] = report.table(soft=True).rows
    assert first[1:4] == ["4.0", "1,000", "0.50"]  # 4NKd
    assert second[1] == "40.0"
    assert second[-1].endswith("1/10 of the rows")
    assert report.sentences()[-1].endswith("ratio 2.00.")


def test_wrong_labels_are_told_from_ties() -> None:
    prototypes = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 2e-9]])
    z = np.array([[0.1, 0.0], [1.9, 0.0], [1.9, 0.0], [1.9, 0.0]])
    found = Found(z, prototypes, 0.0, np.array([0, 1, 2, 0]), None)
    labels = compare_labels(found)
    assert (labels.rows, labels.differ, labels.ties) == (4, 2, 1)


def test_the_largest_error_of_a_posterior_is_found() -> None:
    prototypes, z = np.array([[0.0], [1.0]]), np.array([[0.5], [0.5]])
    q = np.array([[0.5, 0.5], [0.52, 0.48]], np.float32)
    assert compare_posteriors(Found(z, prototypes, 1.0, np.zeros(2, int), q)).error == pytest.approx(0.02)


def test_inertia_is_that_of_the_nearest_prototypes() -> None:
    x, prototypes = decaying(2500, 6), decaying(7, 6, seed=1)
    distances = np.square(x[:, None].astype(np.float64) - prototypes).sum(2)
    assert step_measure.inertia(x, prototypes) == pytest.approx(distances.min(1).sum(), rel=1e-5)


def test_a_mixture_has_no_more_rows_than_memory_allows() -> None:
    assert rows_of_mixture(1000, 10) == 1000
    assert rows_of_mixture(10**6, 1000) == 10**5


def test_a_tiny_run_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step_rates, "SECONDS", 1e-3)
    monkeypatch.setattr(step, "measure", step_measure.main)  # in this process
    step.main(
        shape=["700x6x8"],
        steps=3,
        repeats=2,
        threads=1,
        method=["raydkm", "raydkm.fit", "raydkm soft", "sklearn.KMeans"],
        json_=tmp_path / "step.json",
    )
    printed = capsys.readouterr().out
    assert "Labels: of 700 rows 0 differ" in printed
    assert all(f"| {name} |" in printed for name in ("raydkm", "raydkm.fit", "raydkm soft", "sklearn.KMeans"))
    [report] = json.loads((tmp_path / "step.json").read_text())
    steps, fit, soft, peer = report["entries"]
    assert steps["inertia"] == pytest.approx(peer["inertia"], rel=1e-5)
    assert fit["inertia"] == pytest.approx(peer["inertia"], rel=1e-5)
    assert soft["soft"]
    assert report["checks"]["posteriors"]["error"] < 1e-3


def test_a_measurement_has_a_process_of_its_own(tmp_path: Path) -> None:
    x = decaying(200, 4)
    np.save(tmp_path / "rows.npy", x)
    np.save(tmp_path / "start.npy", initial(x, 3))
    found = step_measure.measure("sklearn.KMeans", tmp_path, 3, 2, 1)
    assert found["steps"] == 2
    assert found["inertia"] > 0
    assert found["extra"] >= 0


def test_a_process_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_measure.sys, "executable", "/bin/false")
    assert step_measure.measure("sklearn.KMeans", tmp_path, 3, 2, 1) == {"failed": "exit code 1"}


def test_a_peer_without_its_module_or_part_counts_as_missing() -> None:
    peer = PEERS["sklearn.KMeans"]
    assert peer.is_installed
    assert not replace(peer, module="no_such_module").is_installed
    assert not replace(peer, module="no_such_module.part").is_installed
    assert not replace(peer, part="NoSuchPart").is_installed


def test_slopes_and_residuals_of_exact_powers_and_others() -> None:
    line = Line("kmeans", "rows", (1, 10, 100), (2.0, 20.0, 200.0))
    assert line.fit[0] == pytest.approx(1)
    assert line.residual == pytest.approx(1)
    assert line.fitted == pytest.approx(line.seconds)
    bent = Line("kmeans", "rows", (1, 10, 100), (1.0, 20.0, 100.0))
    assert bent.fit[0] == pytest.approx(1)
    assert bent.residual == pytest.approx(2 ** (2 / 3))


def test_sizes_lie_around_the_base() -> None:
    assert around(64, 4, 5) == [16, 32, 64, 128, 256]


def test_scaling_writes_a_table_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main(base="256x4x4", spread=2, points=3, steps=1, threads=1, html=tmp_path / "page.html")
    assert capsys.readouterr().out.count("| rows |") == 2
    assert "slope" in (tmp_path / "page.html").read_text()
