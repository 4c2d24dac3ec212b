"""An assignment whose driver, actor or node is killed: what is missing is done, and no byte differs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

import raydkm

pytestmark = pytest.mark.timeout(200)

ROWS = 120_000
OPTIONS = {"column": "z", "keep": ["id"], "range_rows": 2000, "nearest": 2}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, and two nodes of one CPU."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    ray.init(address=made.address, logging_level="WARNING")  # on the head, which stays
    for _ in range(2):
        made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, write: Callable[..., Path]) -> Path:
    """A directory with rows, a model of so many clusters that assignment takes a while, and the undisturbed output."""
    directory = tmp_path_factory.mktemp("assign")
    z = np.random.default_rng(0).standard_normal((ROWS, 16)).astype(np.float32)
    for number, ids in enumerate(np.split(np.arange(ROWS), 2)):
        write(directory / "in" / f"{number}.parquet", row_group_size=2000, z=z[ids], id=ids)
    options: dict[str, Any] = {"column": "z", "clusters": 600, "n_init": 1, "max_steps": 1, "temperature": "0.1Tc"}
    raydkm.fit(directory / "in" / "0.parquet", out=directory / "model", engine="local", **options)
    raydkm.assign(directory / "model", directory / "in", out=directory / "whole", engine="local", **OPTIONS)
    return directory


def content(out: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(out)): path.read_bytes() if path.is_file() else None for path in out.rglob("*")}


def wait_for_ranges(out: Path, count: int, running: Callable[[], bool]) -> None:
    while running() and len(list(out.glob("_ranges/*[0-9].parquet"))) < count:
        time.sleep(0.005)


@pytest.mark.parametrize("what", ["actor", pytest.param("node", marks=pytest.mark.long)])
def test_a_lost_actor_or_node_costs_the_ranges_it_was_at(
    place: Path, tmp_path: Path, cluster: Cluster, processes: Callable, what: str
) -> None:
    out, outcome = tmp_path / "out", {}

    def assign() -> None:
        outcome.update(raydkm.assign(place / "model", place / "in", out=out, engine="ray", workers=2, **OPTIONS))

    run = threading.Thread(target=assign)
    run.start()
    wait_for_ranges(out, random.randint(1, 40), run.is_alive)
    assert run.is_alive()
    if what == "actor":
        os.kill(random.choice(processes("ray::MapWorker")), signal.SIGKILL)
    else:
        cluster.remove_node(random.choice(list(cluster.worker_nodes)), allow_graceful=False)
    run.join()
    assert outcome["rows"] == ROWS
    assert content(out) == content(place / "whole")


def test_a_killed_driver_is_followed_by_one_that_does_what_is_missing(place: Path, tmp_path: Path) -> None:
    """The last test: for three minutes Ray Data keeps CPUs for a driver that it does not know is gone."""
    out = tmp_path / "out"
    code = f"import raydkm; raydkm.assign({str(place / 'model')!r}, {str(place / 'in')!r}, out={str(out)!r}, "
    code += f"engine='ray', workers=2, **{OPTIONS!r})"
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    at = random.randint(1, 40)
    wait_for_ranges(out, at, lambda: driver.poll() is None)
    driver.kill()
    driver.wait()
    report = raydkm.assign(place / "model", place / "in", out=out, engine="local", **OPTIONS)
    assert at <= report["resumed"] < 60
    assert content(out) == content(place / "whole")
