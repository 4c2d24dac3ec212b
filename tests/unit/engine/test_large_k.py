"""Fits with approximate assignment: their effort follows from counted misses, and so does their end in exact steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import raydkm
from raydkm.config import configure
from raydkm.engine import passes
from raydkm.engine.fit import setting_of
from raydkm.errors import ConfigError
from raydkm.model import Model
from raydkm.ops import approximate
from raydkm.ops.batch import BATCH_ROWS

OPTIONS = {"clusters": 400, "objective": "kmeans", "assignment": "approximate", "init": "random", "n_init": 1, "tol": 0}


@pytest.fixture(scope="module")
def hard() -> np.ndarray:
    """Rows without structure in many dimensions, whose nearest prototypes cells do not tell."""
    return np.random.default_rng(0).standard_normal((2 * BATCH_ROWS + 50, 24)).astype(np.float32)


def efforts(model: Model) -> list[int | None]:
    return [entry["effort"] for entry in model.history]


def test_effort_is_raised_above_the_miss_rate_and_at_last_steps_are_exact(hard, caplog) -> None:
    model = raydkm.fit(hard, **OPTIONS, max_miss=0, max_steps=6)
    assert efforts(model) == [0, 1, 2, None, None, None]
    rates = [entry["miss_rate"] for entry in model.history]
    assert rates[0] > rates[1] > rates[2] > 0
    assert rates[3:] == [None] * 3
    assert f"missed {rates[2]:.2g} of the rows: exact from now on" in caplog.text
    exact = raydkm.fit(hard, **{**OPTIONS, "assignment": "exact"}, max_steps=6)
    assert efforts(exact) == [None] * 6
    assert model.record["inertia"] == pytest.approx(exact.record["inertia"], rel=0.01)


def test_effort_stays_where_few_rows_are_missed_and_the_last_labels_are_exact(blobs) -> None:
    x, _ = blobs(rows=6000, dim=8, clusters=30)
    model = raydkm.fit(x, **OPTIONS, max_steps=5, max_miss=0.05)
    assert efforts(model) == [0] * 5
    squares = np.square(x[:, None] - model.cluster_centers.astype(np.float32)).sum(2).min(1)
    assert model.record["inertia"] == pytest.approx(float(squares.sum()), rel=1e-5)


def test_a_step_that_raises_the_effort_has_not_settled(hard) -> None:
    model = raydkm.fit(hard, **{**OPTIONS, "tol": 1e12}, max_miss=0)
    assert efforts(model) == [0, 1, 2, None]
    assert model.record["stopped"] == "shift"


def test_any_number_of_threads_that_share_sums_or_have_their_own_gives_the_same_bits(hard, monkeypatch) -> None:
    found = set()
    for most in (1, 2**27):
        monkeypatch.setattr(passes, "OWN_SUMS_BYTES", most)
        found |= {raydkm.fit(hard, **OPTIONS, max_steps=4, threads=n).checksum() for n in (1, 2, 3)}
    assert len(found) == 1


def test_threads_share_sums_that_are_large() -> None:
    assert passes.copies_of_sums(8 * 256 * 129, threads=64) == 64
    assert passes.copies_of_sums(8 * 4096 * 769, threads=2) == 1
    assert passes.copies_of_sums(8 * 4096 * 769, threads=16) == 4
    assert passes.copies_of_sums(8 * 4096 * 769, threads=64) == 5
    assert passes.copies_of_sums(8 * 65_536 * 129, threads=64) == 1
    assert passes.copies_of_sums(2**40, threads=3) == 1
    assert passes.copies_of_sums(8 * 256 * 129, threads=2, few=True) == 2
    assert passes.copies_of_sums(8 * 1024 * 769, threads=2, few=True) == 1


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_a_fit_that_was_cut_short_goes_on_at_its_effort_to_the_same_bits(hard, tmp_path: Path, cut: int) -> None:
    options = {**OPTIONS, "max_miss": 0}
    whole = raydkm.fit(hard, **options, max_steps=6)
    run = {"run_dir": str(tmp_path / "run"), "checkpoint_every": 0}
    raydkm.fit(hard, **options, max_steps=cut, **run)
    resumed = raydkm.fit(hard, **options, max_steps=6, **run)
    assert resumed.checksum() == whole.checksum()
    assert efforts(resumed) == efforts(whole)


def test_restarts_hand_on_the_effort_that_they_have_come_to(hard) -> None:
    model = raydkm.fit(hard, **{**OPTIONS, "n_init": 2, "seed_rows": 4000, "max_miss": 0}, max_steps=2)
    assert efforts(model) == [None, None]


@pytest.mark.parametrize(
    ("options", "approximates"),
    [
        ({}, True),
        ({"assignment": "exact"}, False),
        ({"clusters": 49}, False),
        ({"clusters": 49, "assignment": "approximate"}, True),
        ({"balance": 0.5}, False),
        ({"max_share": 0.5}, False),
        ({"objective": "sr-kmeans"}, False),
    ],
)
def test_auto_is_approximate_for_many_hard_clusters_without_balance(options, approximates, monkeypatch) -> None:
    monkeypatch.setattr(approximate, "MANY_PROTOTYPES", 50)
    config, *_ = configure({"clusters": 50, "objective": "kmeans", **options})
    assert config.approximate is approximates


def test_auto_is_exact_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def approximates(assignment: str, device: str) -> bool:
        config, *_ = configure({"clusters": 200_000, "objective": "kmeans", "assignment": assignment})
        return setting_of(config, None, None, 0.0, None, torch.device(device)).approximate  # type: ignore[arg-type]

    assert [approximates("auto", device) for device in ("cpu", "cuda")] == [True, False]
    assert approximates("approximate", "cuda")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"objective": "sr-kmeans"}, "approximate goes with kmeans"),
        ({"balance": 0.5}, "approximate goes with kmeans, without balance"),
        ({"min_share": 0.001}, "approximate goes with kmeans, without balance"),
        ({"assignment": "exact", "max_miss": 0.5}, "max_miss goes with an approximate assignment"),
        ({"assignment": "auto", "max_miss": 0.5}, "max_miss goes with an approximate assignment"),
        ({"assignment": "fast"}, "assignment: must be"),
        ({"max_miss": 1}, "max_miss"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        configure({**OPTIONS, **options})


def test_batches_are_not_assigned_approximately(hard) -> None:
    with pytest.raises(ConfigError, match="batches are assigned exactly"):
        raydkm.DKMeans(5, objective="kmeans", assignment="approximate").partial_fit(hard)
