"""What a lost worker or driver costs: the steps since the last checkpoint, and no bit of the result."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import ray

import raydkm
from raydkm.errors import EngineError

pytestmark = pytest.mark.timeout(240)

OPTIONS = {"column": "a,b,c,d", "clusters": 50, "tol": 0, "max_steps": 400, "n_init": 1, "temperature": "0.3Tc"}
WORKER = "ray::RayTrainWorker"
ON_RAY = {"engine": "ray", "threads": 1, "checkpoint_every": 0}


@pytest.fixture(scope="module")
def data(normal_rows: Callable[[int, str], Path]) -> Path:
    return normal_rows(40_000, "abcd")


@pytest.fixture(scope="module")
def undisturbed(data: Path) -> str:
    return raydkm.fit(data, engine="local", **OPTIONS).checksum()


def events(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]


def test_a_rank_killed_at_a_random_step_costs_no_bit(
    data: Path, undisturbed: str, tmp_path: Path, in_background: Callable, processes: Callable
) -> None:
    fit = in_background(data, tmp_path, workers=2, **ON_RAY, **OPTIONS)
    at = fit.wait_for_step(random.randint(1, 200))
    os.kill(random.choice(processes(WORKER)), signal.SIGKILL)
    assert at < 400
    assert fit.model().checksum() == undisturbed
    starts = [event["resumed_step"] for event in events(tmp_path) if event["event"] == "run"]
    assert len(starts) == 2
    assert starts[1] >= at


def test_a_rank_that_hangs_is_named_and_replaced(
    data: Path, undisturbed: str, tmp_path: Path, in_background: Callable, processes: Callable
) -> None:
    fit = in_background(data, tmp_path, workers=2, timeout=4, **ON_RAY, **OPTIONS)
    fit.wait_for_step(20)
    stopped = processes(WORKER)[-1]
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert fit.model().checksum() == undisturbed
    finally:
        with suppress(ProcessLookupError):  # Ray has ended it
            os.kill(stopped, signal.SIGKILL)
    [lost] = [event["error"] for event in events(tmp_path) if event["event"] == "lost"]
    assert re.search(rf"process {stopped}\) (died, or )?did not answer for (4|11) s", lost)


def test_a_killed_driver_is_followed_by_one_with_another_number_of_workers(
    data: Path, undisturbed: str, tmp_path: Path, in_background: Callable
) -> None:
    run = {**OPTIONS, **ON_RAY, "run_dir": str(tmp_path)}
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    script = f"import raydkm; raydkm.fit({str(data)!r}, workers=3, **{run!r})"
    driver = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL)
    saved = tmp_path / "checkpoint.safetensors"
    while driver.poll() is None and not (saved.exists() and len(events(tmp_path)) > 10):
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    steps = sum(event["event"] == "step" for event in events(tmp_path))
    assert 0 < steps < 400
    model = raydkm.fit(data, workers=1, **run)
    assert model.checksum() == undisturbed
    assert len(model.history) == 400
    assert [event["workers"] for event in events(tmp_path) if event["event"] == "run"] == [3, 1]


def test_a_killed_controller_ends_the_fit_which_goes_on_when_started_again(
    data: Path, undisturbed: str, tmp_path: Path, in_background: Callable, processes: Callable
) -> None:
    fit = in_background(data, tmp_path, workers=2, **ON_RAY, **OPTIONS)
    fit.wait_for_step(20)
    os.kill(processes("ray::TrainController")[-1], signal.SIGKILL)  # the last one, should others not have ended yet
    with pytest.raises(EngineError, match="the Ray run failed"):
        fit.model()
    assert 20 <= fit.step() < 400
    assert raydkm.fit(data, engine="local", run_dir=str(tmp_path), **OPTIONS).checksum() == undisturbed


def test_a_run_that_is_given_up_says_why_and_leaves_nothing_on_disk(
    data: Path, tmp_path: Path, in_background: Callable, processes: Callable
) -> None:
    fit = in_background(data, tmp_path, workers=2, cache="disk", max_failures=0, **ON_RAY, **OPTIONS)
    fit.wait_for_step(1)
    killed = processes(WORKER)[-1]
    place = tempfile.gettempdir()
    nameless = [line for line in Path(f"/proc/{killed}/maps").read_text().splitlines() if "(deleted)" in line]
    assert any(f" {place}/" in line for line in nameless)
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(EngineError, match=r"the Ray run failed: .*(died|lost)"):
        fit.model()
    assert events(tmp_path)[-1]["event"] == "failed"
    assert not [path for path in Path(place).glob("raydkm-*") if path.is_file()]
