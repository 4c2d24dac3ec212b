"""Passes in which nothing is done, and actors that cannot start; the rest is tested on a cluster."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray.exceptions

from raydkm.config import AssignConfig
from raydkm.engine import ray_assign
from raydkm.engine.manifest import Range
from raydkm.engine.ray_assign import IDLE_WAITS_S, assign_on_ray
from raydkm.errors import ConfigError, EngineError

RANGES = [Range(number, "in.parquet", "in.parquet", number, number + 1, "out") for number in range(3)]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a run has waited, of a cluster with two nodes that is not there."""
    waited: list[float] = []
    monkeypatch.setattr(ray_assign, "connect", lambda: None)
    monkeypatch.setattr(ray_assign, "cpus_of_nodes", lambda: [1, 1])
    monkeypatch.setattr(ray_assign, "cpus_each", lambda workers: 1)
    monkeypatch.setattr(ray_assign.time, "sleep", waited.append)
    return waited


def task() -> Any:
    return SimpleNamespace(config=AssignConfig(workers=2), ranges=RANGES)


def lost(*_: Any) -> Iterator[int]:
    raise ray.exceptions.RayError("a node is gone")
    yield


def test_passes_that_do_nothing_wait_longer_and_longer_before_the_run_gives_up(waits, monkeypatch) -> None:
    monkeypatch.setattr(ray_assign, "_pass", lost)
    with pytest.raises(EngineError, match=r"3 ranges could not be assigned: 5 passes did none \(a node is gone\)"):
        list(assign_on_ray(task(), RANGES))
    assert waits == list(IDLE_WAITS_S) == sorted(IDLE_WAITS_S)


def test_a_pass_that_did_something_is_followed_by_another_at_once(waits, monkeypatch) -> None:
    def one(task: Any, numbers: list[int], *_: Any) -> Iterator[int]:
        yield numbers[0]
        yield from lost()

    monkeypatch.setattr(ray_assign, "_pass", one)
    assert [each.number for each in assign_on_ray(task(), RANGES)] == [0, 1, 2]
    assert waits == []


def test_nodes_that_come_back_are_waited_for(waits, monkeypatch) -> None:
    nodes = iter([[0], [1]])
    passes = iter([lost(), iter(range(3))])
    monkeypatch.setattr(ray_assign, "_pass", lambda *_: next(passes))
    monkeypatch.setattr(ray_assign, "cpus_of_nodes", lambda: next(nodes))
    assert len(list(assign_on_ray(task(), RANGES))) == 3
    assert waits == list(IDLE_WAITS_S[:2])


def test_more_workers_than_there_are_cpus_are_refused_at_once(waits, monkeypatch) -> None:
    def refuse(workers: tuple[int, int]) -> int:
        raise ConfigError("2 workers")

    monkeypatch.setattr(ray_assign, "cpus_each", refuse)
    with pytest.raises(ConfigError, match="2 workers"):
        list(assign_on_ray(task(), RANGES))
    assert waits == []


@pytest.mark.parametrize(
    ("error", "kind"), [(ConfigError("install FAISS"), "ConfigError"), (OSError("no FAISS"), "EngineError")]
)
def test_what_an_actor_cannot_start_with_is_told_by_its_row(monkeypatch, error: Exception, kind: str) -> None:
    def fail(_: Any) -> None:
        raise error

    monkeypatch.setattr(ray_assign, "assigner_of", fail)
    row = ray_assign._RangeAssigner(task(), 1)({"range": np.array([1])})
    assert row["kind"] == [kind]
    assert str(error) in row["refusal"][0]


def test_a_log_that_is_silenced_is_as_before_afterwards() -> None:
    log = logging.getLogger("raydkm.test")
    log.setLevel(logging.INFO)
    with ray_assign._silent(log):
        assert not log.isEnabledFor(logging.ERROR)
    assert log.level == logging.INFO
