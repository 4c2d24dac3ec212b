"""The estimate of a fit: units, directions, and that it agrees with what the engine does."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydkm.api.plan import estimate, operations_a_row, plan, row_bytes, rows_of_a_worker, sums_bytes, workers_needed
from raydkm.api.rates import GPUS
from raydkm.config import PlanConfig
from raydkm.engine.calibrate import measured
from raydkm.errors import ConfigError
from raydkm.objectives import OBJECTIVES
from raydkm.ops.batch import BATCH_ROWS

configs = st.builds(
    PlanConfig,
    rows=st.integers(1, 10**10),
    dim=st.integers(1, 4096),
    clusters=st.integers(1, 10**6),
    objective=st.sampled_from(sorted(OBJECTIVES)),
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
    for name in ("network", "storage", "memory", "disk"):
        assert estimate(changed(config, **{name: 2 * getattr(config, name) + 1})).seconds <= estimate(config).seconds


def test_units_by_hand() -> None:
    config = PlanConfig(rows=8 * BATCH_ROWS, dim=100, clusters=10, objective="kmeans", workers=4, network=8, storage=2)
    assert rows_of_a_worker(config) == 2 * BATCH_ROWS
    assert operations_a_row(config, "hard") == 2 * 10 * 100
    assert sums_bytes(config) == 8 * 10 * 101
    found = seconds(config)
    assert found["all-reduce"] == pytest.approx(6 / 4 * 8080 / 1e9 + 6 * 50e-6)  # 8 Gbit/s are 1 GB/s
    ingest = estimate(config).fit[0]
    assert ingest.seconds == pytest.approx(2 * BATCH_ROWS * 400 / 2e9)


@pytest.mark.parametrize(("objective", "products"), [("kmeans", 1), ("sr-kmeans", 2), ("mi", 3)])
def test_objectives_differ_by_their_products(objective: str, products: int) -> None:
    config = PlanConfig(rows=1, dim=7, clusters=5, objective=objective)
    assert operations_a_row(config, "soft") == products * 2 * 7 * 5


def test_the_limit_that_binds_is_named() -> None:
    shape: dict[str, Any] = {"rows": 10**9, "dim": 768, "clusters": 10_000, "objective": "kmeans", "device": "h100"}
    assert estimate(PlanConfig(**shape, workers=64)).binds == "arithmetic"
    assert estimate(PlanConfig(**shape, workers=2000, network=0.1)).binds == "all-reduce"
    assert estimate(PlanConfig(**shape, workers=1, memory=1, storage=0.1)).binds == "reading"


@given(configs, st.floats(0.01, 1000))
def test_the_workers_for_a_deadline_keep_it_and_fewer_do_not(config: PlanConfig, hours: float) -> None:
    asked = changed(config, deadline=hours)
    needed = workers_needed(asked)
    if needed is None:
        return
    kept = estimate(changed(asked, workers=needed))
    assert kept.seconds <= 3600 * hours
    assert kept.refused is None
    if 1 < needed <= 64:
        fewer = estimate(changed(asked, workers=needed - 1))
        assert fewer.seconds > 3600 * hours or fewer.refused is not None


def test_without_memory_for_its_sums_a_fit_is_refused() -> None:
    assert "sums" in str(estimate(PlanConfig(rows=10**8, dim=768, clusters=10**6, memory=16)).refused)
    assert estimate(PlanConfig(rows=10**8, dim=768, clusters=1000, memory=16)).refused is None


@pytest.mark.parametrize("objective", ["kmeans", "sr-kmeans", "mi"])
def test_real_kernels_are_measured(objective: str) -> None:
    found = measured(PlanConfig(rows=1, dim=8, clusters=4, objective=objective).fit, 8, "float16", threads=1)
    assert 0 < found.row < 1e-3
    assert 0 <= found.once < 10


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
