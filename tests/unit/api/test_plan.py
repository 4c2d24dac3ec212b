"""The estimate of a fit: units, directions, and that it agrees with what the engine does."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import raydkm
from raydkm.api.plan import (
    Term,
    binding,
    drawn,
    estimate,
    operations_a_row,
    plan,
    row_bytes,
    rows_of_a_worker,
    workers_needed,
)
from raydkm.api.rates import CPU_THREAD, GPUS, Speed
from raydkm.config import FitConfig, PlanConfig
from raydkm.engine import calibrate
from raydkm.engine.calibrate import measured
from raydkm.engine.room import sums_bytes
from raydkm.errors import ConfigError
from raydkm.objectives import OBJECTIVES
from raydkm.ops import distances, seeding
from raydkm.ops.batch import BATCH_ROWS

configs = st.builds(
    PlanConfig,
    rows=st.integers(1, 10**10),
    dim=st.integers(1, 4096),
    clusters=st.integers(1, 10**6),
    objective=st.sampled_from(sorted(OBJECTIVES)),
    init=st.sampled_from(["k-means||", "k-means++", "afk-mc2", "random", "array"]),
    seed_rows=st.sampled_from([None, 1000, "all"]),
    dtype=st.sampled_from(["float32", "float16", "uint8"]),
    workers=st.integers(1, 2000),
    device=st.sampled_from(["cpu", *GPUS]),
    memory=st.floats(1, 2000),
    disk=st.floats(0, 5000),
    network=st.floats(0.1, 400),
    storage=st.floats(0.05, 20),
)


def changed(config: PlanConfig, **values: Any) -> PlanConfig:
    return config.model_copy(update=values)


def phases(config: PlanConfig) -> dict[str, float]:
    return {term.name: term.seconds for term in estimate(config).fit}


def seconds(config: PlanConfig) -> dict[str, float]:
    return {term.name: term.seconds for term in estimate(config).step}


@given(configs)
def test_every_number_is_finite_and_none_is_negative(config: PlanConfig) -> None:
    found = estimate(config)
    numbers = [term.seconds for term in (*found.step, *found.fit)]
    numbers += [found.step_seconds, found.seconds, *found.tiers.values(), *found.memory.values()]
    assert all(math.isfinite(number) and number >= 0 for number in numbers)
    json.dumps(found.asdict(), allow_nan=False)


@given(configs)
def test_all_rows_lie_on_some_tier(config: PlanConfig) -> None:
    held = sum(estimate(config).tiers.values())
    assert held == pytest.approx(rows_of_a_worker(config) * row_bytes(config))
    assert rows_of_a_worker(config) * config.workers >= config.rows


@given(configs, st.integers(2, 10))
def test_more_rows_or_dimensions_take_no_less(config: PlanConfig, times: int) -> None:
    now = estimate(config)
    for name in ("rows", "dim"):
        more = estimate(changed(config, **{name: times * getattr(config, name)}))
        assert more.step_seconds >= now.step_seconds
        assert more.seconds >= now.seconds


@given(configs, st.integers(2, 10))
def test_more_workers_compute_no_longer_and_add_up_no_faster(config: PlanConfig, times: int) -> None:
    now, more = seconds(config), seconds(changed(config, workers=times * config.workers))
    for name in ("arithmetic", "memory", "reading"):
        assert more[name] <= now[name]
    assert more["all-reduce"] >= now["all-reduce"]
    assert more["update"] == now["update"]


@given(configs)
def test_faster_networks_storage_and_larger_memories_take_no_longer(config: PlanConfig) -> None:
    # a disk that is slower than the storage does not help
    config = changed(config, storage=min(1, config.storage))
    for name in ("network", "memory", "disk", "storage"):
        assert estimate(changed(config, **{name: 2 * getattr(config, name) + 1})).seconds <= estimate(config).seconds


def test_units_by_hand() -> None:
    config = PlanConfig(rows=8 * BATCH_ROWS, dim=100, clusters=10, objective="kmeans", workers=4, network=8, storage=2)
    assert rows_of_a_worker(config) == 2 * BATCH_ROWS
    assert operations_a_row(config, "hard") == 2 * 10 * 100
    assert sums_bytes(10, 100) == 8 * 10 * 101
    found = seconds(config)
    assert found["all-reduce"] == pytest.approx(6 / 4 * 8080 / 1e9 + 6 * 50e-6)  # 8 Gbit/s are 1 GB/s
    assert phases(config)["ingest"] == pytest.approx(2 * BATCH_ROWS * 400 / 2e9)
    assert phases(changed(config, storage_of_all=4.0))["ingest"] == pytest.approx(2 * BATCH_ROWS * 400 / 1e9)
    on_disk = changed(config, memory=1e-9, disk=1.0)
    assert phases(on_disk)["ingest"] == pytest.approx(2 * BATCH_ROWS * 400 * (1 / 2e9 + 1 / 2e9), rel=1e-3)


@pytest.mark.parametrize(("kernel", "products"), [("hard", 1), ("soft", 2), ("logistic", 2)])
def test_objectives_differ_by_their_products(kernel: str, products: int) -> None:
    assert operations_a_row(PlanConfig(rows=1, dim=7, clusters=5), kernel) == products * 2 * 7 * 5


@pytest.mark.parametrize("init", ["k-means||", "k-means++", "afk-mc2", "random"])
def test_a_seeding_compares_as_many_pairs_as_planned(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, products = 0, distances.products

    def counted(z: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        nonlocal pairs
        pairs += len(z) * len(candidates)
        return products(z, candidates)

    monkeypatch.setattr(distances, "products", counted)
    config = PlanConfig(rows=4000, dim=8, clusters=50, init=init)
    z = torch.from_numpy(np.random.default_rng(0).standard_normal((4000, 8), dtype=np.float32))
    points, weight = distances.Points.of(z), torch.ones(4000, dtype=torch.float64)
    seeding.SEEDINGS[init](points, weight, 50, np.random.default_rng(0))
    rate = dataclasses.replace(CPU_THREAD, soft=Speed(2.0 * config.dim, math.inf))  # one pair a second
    assert drawn(config, rate) == pytest.approx(pairs, rel=0.1)


def test_what_a_gpu_does_not_do_is_planned_at_the_rate_of_a_cpu_thread() -> None:
    shape: dict[str, Any] = {"rows": 10**7, "dim": 64, "clusters": 1000, "objective": "kmeans", "n_init": 1}
    one, gpu = PlanConfig(**shape, threads=1), PlanConfig(**shape, device="h100")
    assert phases(gpu)["seeding"] == phases(one)["seeding"]
    assert seconds(gpu)["update"] == seconds(one)["update"]
    assert 0.5 < phases(gpu)["survey, moments"] / phases(one)["survey, moments"] < 1  # it hashes all rows
    assert phases(gpu)["assignment"] < phases(one)["assignment"]


def test_objectives_with_a_temperature_take_a_covariance_and_logistic_ones_clusters() -> None:
    shape: dict[str, Any] = {"rows": 10**6, "dim": 512, "clusters": 16, "n_init": 1, "init": "random", "threads": 1}
    hard, soft, logistic = (phases(PlanConfig(**shape, objective=name)) for name in ("kmeans", "sr-kmeans", "mi"))
    covariance = rows_of_a_worker(PlanConfig(**shape)) * 2 * 512**2 / CPU_THREAD.logistic.operations
    assert soft["survey, moments"] - hard["survey, moments"] == pytest.approx(covariance)
    assert logistic["survey, moments"] == soft["survey, moments"]
    assert logistic["seeding"] > logistic["assignment"]  # a pass of its kind, after 20 steps of k-means on the sample


def test_an_approximate_step_makes_cells_in_one_thread() -> None:
    shape: dict[str, Any] = {"rows": 10**8, "dim": 128, "clusters": 200_000, "objective": "kmeans"}
    found = seconds(PlanConfig(**shape, threads=1))
    assert found["cells"] > 2 * 200_000 * 2 * 447 * 128 / CPU_THREAD.soft.operations
    assert seconds(PlanConfig(**shape, threads=32))["cells"] == found["cells"]
    assert seconds(PlanConfig(**shape, device="h100"))["cells"] == 0


def test_seeding_on_all_rows_takes_passes_over_them() -> None:
    config = PlanConfig(rows=10**7, dim=32, clusters=100, objective="kmeans", n_init=1)
    of_all = phases(changed(config, seed_rows="all"))["seeding"]
    assert of_all > 10 * phases(config)["seeding"]
    assert phases(changed(config, seed_rows="all", n_init=3))["seeding"] == pytest.approx(3 * of_all)


PHASES = {"survey, moments": "survey", "seeding": "seeding", "steps": "steps", "assignment": "assignment"}


@pytest.mark.parametrize("objective", ["kmeans", "sr-kmeans", "mi"])
def test_the_phases_of_a_small_fit_take_about_as_long_as_planned(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", time.process_time)  # what else runs on the machine does not count
    shape: dict[str, Any] = {"clusters": 128, "objective": objective, "n_init": 2}
    x = np.random.default_rng(0).standard_normal((20 * BATCH_ROWS, 64), dtype=np.float32)
    raydkm.fit(x, **shape, max_steps=2, threads=1)  # compiles what is compiled
    taken = raydkm.fit(x, **shape, max_steps=5, tol=0, objective_tol=0, threads=1).record["seconds"]
    planned = phases(PlanConfig(rows=len(x), dim=64, **shape, steps=5, threads=1))
    ratios = {name: planned[name] / taken[phase] for name, phase in PHASES.items()}
    assert all(1 / 10 < ratio < 10 for ratio in ratios.values()), ratios


def test_the_limit_that_binds_is_named() -> None:
    shape: dict[str, Any] = {"rows": 10**9, "dim": 768, "clusters": 10_000, "objective": "kmeans", "device": "h100"}
    assert estimate(PlanConfig(**shape, workers=64)).binds == "arithmetic"
    assert estimate(PlanConfig(**shape, workers=2000, network=0.1)).binds == "all-reduce"
    assert estimate(PlanConfig(**shape, workers=1, memory=1, storage=0.1)).binds == "reading"


@pytest.mark.parametrize(
    ("arithmetic", "memory", "reading", "update", "binds"),
    [(3, 2, 4, 1, "arithmetic"), (3, 2, 6, 1, "reading"), (3, 2, 4, 3.5, "update"), (1, 1, 2.5, 2, "reading")],
)
def test_what_is_hidden_does_not_bind(
    arithmetic: float, memory: float, reading: float, update: float, binds: str
) -> None:
    names = {"arithmetic": arithmetic, "memory": memory, "reading": reading, "update": update}
    assert binding(tuple(Term(name, value, "") for name, value in names.items())) == binds


@given(configs, st.floats(0.01, 1000))
def test_the_workers_for_a_deadline_keep_it_and_fewer_do_not(config: PlanConfig, hours: float) -> None:
    asked = changed(config, deadline=hours)
    needed = workers_needed(asked)
    if needed is None:
        return
    kept = estimate(changed(asked, workers=needed))
    assert kept.seconds <= 3600 * hours
    assert kept.refused is None
    if needed > 1:
        fewer = estimate(changed(asked, workers=needed - 1))
        assert fewer.seconds > 3600 * hours or fewer.refused is not None


def test_without_memory_for_its_sums_a_fit_is_refused() -> None:
    assert "sums" in str(estimate(PlanConfig(rows=10**8, dim=768, clusters=10**6, memory=16)).refused)
    assert estimate(PlanConfig(rows=10**8, dim=768, clusters=1000, memory=16)).refused is None
    rows = PlanConfig(rows=10**8, dim=768, clusters=10_000, memory=4, objective="sr-kmeans")
    assert estimate(changed(rows, rows=10**5)).refused is None
    assert "beside 2 GiB of rows" in str(estimate(rows).refused)  # neither alone is too large


@pytest.mark.parametrize("objective", ["kmeans", "sr-kmeans", "mi"])
def test_real_kernels_are_measured(objective: str) -> None:
    found = measured(PlanConfig(rows=1, dim=8, clusters=4, objective=objective).fit, 8, "float16", threads=1, total=1)
    assert 0 < found.row < 1e-3
    assert 0 <= found.once < 10


def test_hard_steps_are_measured_with_directions_where_those_of_the_fit_have_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []

    def noted(*arguments: Any) -> Any:
        made.append(directions_of(*arguments))
        return made[-1]

    directions_of = calibrate.directions_of
    monkeypatch.setattr(calibrate, "directions_of", noted)
    config = FitConfig(clusters=16, objective="kmeans")
    measured(config, 128, "float32", 1, total=10**6)
    assert all(directions is not None for directions in made)
    made.clear()
    measured(config, 128, "float32", 1, total=10**5)
    assert made == [None, None]


def test_calibrated_rates_are_told_and_reproduce_what_was_measured() -> None:
    found = plan(rows=10_000, dim=8, clusters=4, objective="sr-kmeans", threads=1, calibrate=True)
    assert "measured here" in found["rates"]["source"]
    assert 0 < found["step_seconds"] < 10


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(ConfigError, match="rows: Field required"):
        plan(dim=3)
    with pytest.raises(ConfigError, match="device"):
        plan(rows=1, dim=1, device="tpu")
    with pytest.raises(ConfigError, match="unknown configuration key 'row'"):
        plan(row=1, dim=1)
    with pytest.raises(ConfigError, match="calibrate"):
        plan(rows=1, dim=1, device="h100", calibrate=True)
