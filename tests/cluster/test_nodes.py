"""Nodes that vanish and come back, on a cluster of several of them on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

import raydkm

pytestmark = pytest.mark.timeout(290)

OPTIONS = {"column": "a,b", "clusters": 40, "tol": 0, "max_steps": 300, "n_init": 1, "temperature": "0.3Tc"}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, as on Kubernetes, and nodes of one CPU each, which tests add."""
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "20"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    ray.init(address=made.address, logging_level="WARNING")
    yield made
    ray.shutdown()
    made.shutdown()
    del os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]


@pytest.fixture(scope="module")
def data(normal_rows: Callable[[int, str], Path]) -> Path:
    return normal_rows(60_000, "ab")


@pytest.mark.parametrize("returns", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_lost_node_costs_no_bit_whether_it_returns_or_not(
    data: Path, tmp_path: Path, cluster: Cluster, in_background: Callable, returns: bool
) -> None:
    """Two workers wait for their node to return; one to two of them go on without it."""
    nodes: list[Any] = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    workers = 2 if returns else [1, 2]
    fit = in_background(data, tmp_path, workers=workers, engine="ray", checkpoint_every=0, **OPTIONS)
    at = fit.wait_for_step(30)
    cluster.remove_node(nodes.pop(), allow_graceful=False)
    assert at < 300
    if returns:
        nodes.append(cluster.add_node(num_cpus=1))
    model = fit.model()
    for node in nodes:
        cluster.remove_node(node)
    assert model.checksum() == raydkm.fit(data, engine="local", **OPTIONS).checksum()
    runs = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines() if '"run"' in line]
    assert [run["workers"] for run in runs] == ([2, 2] if returns else [2, 1])
    assert runs[1]["resumed_step"] >= at
