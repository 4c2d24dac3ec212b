"""What cannot go well is told in one sentence before any row is read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import raydkm
from raydkm.data import tiers
from raydkm.engine import preflight
from raydkm.errors import ConfigError, EngineError, InputError


class Workers:
    """A communicator of two workers of which the other one answers as it is told."""

    rank, world_size = 0, 2

    def __init__(self, other: Any = None, sums: Any = None, old: bool = False):
        self.names = ["worker 0", "worker 1"]
        self._old = old
        self._other, self._sums = other, sums

    def all_gather(self, value: Any) -> list[Any]:
        if isinstance(value, dict) and self._other:
            return [value, value | self._other]
        return [value, "Z80" if str(value).startswith(torch.backends.cpu.get_cpu_capability()) and self._old else value]

    def all_reduce(self, buffer: Any) -> None:
        buffer.mul_(2)
        buffer += self._sums if self._sums is not None else 0


@pytest.fixture(autouse=True)
def gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.torch.distributed, "get_backend", lambda: "gloo")


def test_other_versions_on_another_node_are_refused() -> None:
    with pytest.raises(EngineError, match=r"worker .* runs raydkm 0\.0\.1 and worker .*; install one version on all"):
        preflight.check_workers(Workers(other={"raydkm": "0.0.1"}))  # type: ignore[arg-type]


def test_workers_that_add_up_wrongly_are_refused() -> None:
    with pytest.raises(EngineError, match=r"the workers add up wrongly: .*; check the network"):
        preflight.check_workers(Workers(sums=17))  # type: ignore[arg-type]


def test_unlike_processors_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    right = torch.tensor([1, -1])
    preflight.check_workers(Workers(sums=right))  # type: ignore[arg-type]
    assert not caplog.messages
    preflight.check_workers(Workers(sums=right, old=True))  # type: ignore[arg-type]
    assert "Z80): the result is the same to rounding, not to the bit" in caplog.text


@pytest.fixture
def data(tmp_path: Path, write) -> Path:
    return write(tmp_path / "x.parquet", x=np.ones((600_000, 2)))


def test_a_tier_without_room_is_refused_before_reading(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: 4_000_000)  # of rows 9,600,000 bytes
    with pytest.raises(EngineError, match=r"this process: .* GiB of rows, but .* GiB of memory left; use cache auto"):
        raydkm.fit(data, column="x", clusters=2, threads=1, cache="host")
    monkeypatch.setattr(tiers.shutil, "disk_usage", lambda _: SimpleNamespace(total=1000, free=100))
    with pytest.raises(EngineError, match=r"GiB of rows, but .* GiB of disk in .* left"):
        raydkm.fit(data, column="x", clusters=2, threads=1, cache="disk")
    raydkm.fit(data, column="x", clusters=2, threads=1, cache="stream")


@pytest.mark.parametrize(
    ("memory", "options", "what"),
    [
        (1000, {"clusters": 50}, "the sums of 50 clusters take"),
        (100_000, {"clusters": 2}, "the seeding sample of 32768 rows takes"),
        (4_000_000, {"clusters": 2, "seed_rows": "all"}, "seeding on all rows takes"),
    ],
)
def test_what_memory_does_not_hold_besides_rows_is_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch, memory: int, options: dict, what: str
) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: memory)
    with pytest.raises(EngineError, match=rf"{what} .* GiB, of .* GiB of memory left"):
        raydkm.fit(data, column="x", threads=1, cache="stream", **options)


def test_what_memory_does_not_hold_beside_the_rows_in_it_is_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: 10_000_000)  # rows of 9,600,000 bytes, and labels
    options: dict[str, Any] = {"column": "x", "objective": "kmeans", "clusters": 2, "threads": 1, "max_steps": 1}
    with pytest.raises(EngineError, match=r"the sums of 2 clusters take .* GiB beside .* GiB of rows"):
        raydkm.fit(data, memory_budget=0.01, **options)
    raydkm.fit(data, memory_budget=0.001, **options)


def test_other_parameters_under_a_run_are_refused_before_reading(data: Path, tmp_path: Path) -> None:
    run = {"column": "x", "run_dir": str(tmp_path / "run"), "tol": 0, "max_steps": 2}
    raydkm.fit(data, clusters=1, **run)
    data.unlink()
    with pytest.raises(ConfigError, match="started with clusters 1, not 2"):
        raydkm.fit(data, clusters=2, **run)
    with pytest.raises(InputError, match="no such file"):
        raydkm.fit(data, clusters=1, **run)


def test_an_elastic_run_needs_a_directory_to_go_on_from(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"workers MIN:MAX needs run_dir"):
        raydkm.fit(data, column="x", clusters=1, workers=(1, 2))
