"""What a lost worker or driver costs: the steps since the last checkpoint, and no bit of the result."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raydkm
from raydkm.engine.checkpoint import CheckpointFile

pytestmark = pytest.mark.timeout(200)

OPTIONS = {"column": "a,b,c,d", "clusters": 50, "tol": 0, "max_steps": 400, "n_init": 1, "temperature": "0.3Tc"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x = np.random.default_rng(0).standard_normal((40_000, 4)).astype(np.float32)
    path = tmp_path_factory.mktemp("failures") / "rows.parquet"
    pq.write_table(pa.table(dict(zip("abcd", x.T, strict=True))), path)
    return path


def workers_of_this_fit() -> list[int]:
    found = subprocess.run(["pgrep", "-f", "^ray::RayTrainWorker"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def test_a_killed_rank_costs_no_bit(data: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    outcome: dict[str, Any] = {}

    def fit() -> None:
        outcome["model"] = raydkm.fit(
            data, engine="ray", workers=2, threads=1, run_dir=str(run_dir), checkpoint_every=0, **OPTIONS
        )

    thread = threading.Thread(target=fit)
    thread.start()
    file = CheckpointFile(str(run_dir), every=0)
    while thread.is_alive() and ((saved := file.load()) is None or saved.state.step < 20):
        pass
    os.kill(workers_of_this_fit()[-1], signal.SIGKILL)
    step_at_kill = file.load().state.step
    thread.join()
    assert step_at_kill < 400
    assert outcome["model"].checksum() == raydkm.fit(data, engine="local", **OPTIONS).checksum()


def test_a_run_is_resumed_by_another_number_of_workers_and_by_the_local_engine(data: Path, tmp_path: Path) -> None:
    run = {"run_dir": str(tmp_path / "run"), "checkpoint_every": 0}
    raydkm.fit(data, engine="ray", workers=3, **{**OPTIONS, "max_steps": 10}, **run)
    resumed = raydkm.fit(data, engine="local", **{**OPTIONS, "max_steps": 30}, **run)
    assert len(resumed.history) == 30
    whole = raydkm.fit(data, engine="local", **{**OPTIONS, "max_steps": 30})
    assert resumed.checksum() == whole.checksum()
