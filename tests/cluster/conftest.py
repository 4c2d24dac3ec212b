"""A Ray cluster for each module of this folder; it is gone when other tests run."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raydkm
from raydkm.engine.checkpoint import CheckpointFile

ray = pytest.importorskip("ray")

#: Train's controller takes it from the environment that the cluster was started in: a test need not wait for 30 s.
os.environ["TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S"] = "5"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Four CPUs by name, so that three workers fit on any machine."""
    ray.init("local", num_cpus=4, object_store_memory=200_000_000, logging_level="WARNING")
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/cluster" in str(item.path):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="module")
def normal_rows(tmp_path_factory: pytest.TempPathFactory, write: Callable[..., Path]) -> Callable[[int, str], Path]:
    """``normal_rows(n, "ab")`` is a file of n normal rows, a scalar column of float32 for each letter."""

    def make(rows: int, columns: str) -> Path:
        x = np.random.default_rng(0).standard_normal((rows, len(columns))).astype(np.float32)
        return write(tmp_path_factory.mktemp("rows") / "rows.parquet", **dict(zip(columns, x.T, strict=True)))

    return make


class FitInBackground:
    """A fit in a thread, which a test disturbs when its checkpoint has come to some step."""

    def __init__(self, data: Any, run_dir: Path, **options: Any):
        self._file = CheckpointFile(str(run_dir), every=0)
        self._outcome: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._fit, args=(data,), kwargs={"run_dir": str(run_dir), **options})
        self._thread.start()

    def _fit(self, data: Any, **options: Any) -> None:
        try:
            self._outcome["model"] = raydkm.fit(data, **options)
        except Exception as error:  # noqa: BLE001 - for the test to look at
            self._outcome["error"] = error

    def step(self) -> int:
        saved = self._file.load()
        return -1 if saved is None else saved.state.step

    def alive(self) -> bool:
        return self._thread.is_alive()

    def wait_for_step(self, step: int) -> int:
        while self._thread.is_alive() and self.step() < step:
            time.sleep(0.02)
        return self.step()

    def model(self) -> raydkm.Model:
        self._thread.join()
        if "error" in self._outcome:
            raise self._outcome["error"]
        return self._outcome["model"]


@pytest.fixture
def in_background() -> Callable[..., FitInBackground]:
    return FitInBackground


@pytest.fixture
def processes() -> Callable[[str], list[int]]:
    """``processes("ray::RayTrainWorker")``: those of the nodes started here whose command line begins so."""

    def pgrep(*arguments: str) -> list[str]:
        return subprocess.run(["pgrep", *arguments], capture_output=True, text=True, check=False).stdout.split()

    def pids(name: str) -> list[int]:
        raylets = pgrep("-x", "raylet", "-P", str(os.getpid()))
        return [int(pid) for pid in pgrep("-f", f"^{name}", "-P", ",".join(raylets))]

    return pids
