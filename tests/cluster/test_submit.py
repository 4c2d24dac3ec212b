"""`raydkm submit` to a cluster of three nodes, started as people do it, with token authentication on."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import raydkm

pytestmark = [pytest.mark.timeout(290), pytest.mark.long]

ROOT = Path(raydkm.__file__).parents[1]
RAY = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", "--disable-usage-stats"]

Submit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[dict[str, str]]:
    """The environment in which the cluster's dashboard is known; three nodes of one CPU, and ports of their own."""
    gcs, dashboard = free_port(), free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    with tempfile.TemporaryDirectory(prefix="ray") as place:
        head = ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
        with (
            node([*head, f"--temp-dir={place}"], environment, until="Ray runtime started"),
            node([f"--address=127.0.0.1:{gcs}"], environment, until="Ray runtime started"),
            node([f"--address=127.0.0.1:{gcs}"], environment, until="Ray runtime started"),
        ):
            yield environment


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def node(arguments: list[str], environment: dict[str, str], until: str) -> Iterator[None]:
    """A node of its own session, of which nothing is left."""
    # the agent starts jobs; at its default port that of another Ray of this machine may listen
    agent = f"--dashboard-agent-listen-port={free_port()}"
    started = [*RAY, "--object-store-memory=100000000", agent, *arguments]
    process = subprocess.Popen(
        started, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    try:
        told = []
        for line in process.stdout:
            told.append(line)
            if until in line:
                break
        else:
            raise AssertionError("".join(told))
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()


@pytest.fixture
def submit(cluster: dict[str, str]) -> Submit:
    def call(*arguments: Any, **variables: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "raydkm", "submit", *map(str, arguments)]
        return subprocess.run(line, env={**cluster, **variables}, capture_output=True, text=True, check=False)

    return call


@pytest.fixture(scope="module")
def data(normal_rows: Callable[[int, str], Path]) -> Path:
    return normal_rows(20_000, "ab")


def test_a_fit_and_an_assignment_run_as_jobs_by_name(submit: Submit, data: Path, tmp_path: Path) -> None:
    options = ("--column", "a,b", "--clusters", 5, "--n-init", 1, "--max-steps", 5)
    where = ("--workers", 3, "--run-dir", tmp_path / "run", "--out", tmp_path / "model")
    fitted = submit("fit", data, *options, *where, "--name", "fit-1")
    assert fitted.returncode == 0, fitted.stdout + fitted.stderr
    assert "step 1: objective" in fitted.stdout
    assert "3 workers of 1 thread" in fitted.stdout
    local = raydkm.fit(data, column="a,b", clusters=5, n_init=1, max_steps=5, engine="local")
    assert raydkm.load(tmp_path / "model").checksum() == local.checksum()

    again = submit("fit", data, *options, *where, "--name", "fit-1")
    assert (again.returncode, again.stdout) == (0, "")
    assert "nothing to do" in again.stderr
    other = submit("fit", data, *options, "--out", tmp_path / "other", "--name", "fit-1")
    assert other.returncode == 2
    assert "of another command" in other.stderr

    assigned = submit("assign", tmp_path / "model", data, "--out", tmp_path / "out", "--name", "assign-1")
    assert assigned.returncode == 0, assigned.stdout + assigned.stderr
    assert pq.read_table(tmp_path / "out").num_rows == 20_000


def test_a_failed_job_ends_with_its_exit_code_and_may_run_again(submit: Submit, tmp_path: Path) -> None:
    arguments = ("assign", tmp_path / "none", tmp_path / "nothing", "--out", tmp_path / "out", "--name", "bad")
    first = submit(*arguments)
    assert first.returncode == 2
    assert "raydkm: " in first.stdout
    other = submit(*arguments, "--top", 3)
    assert "of another command" in other.stderr
    assert "running it again" in submit(*arguments).stderr


def test_ctrl_c_leaves_the_job_running_and_its_name_leads_back_to_it(
    submit: Submit, cluster: dict[str, str], data: Path, tmp_path: Path
) -> None:
    options = ("--column", "a,b", "--clusters", "50", "--n-init", "1", "--tol", "0", "--max-steps", "100000")
    line = ["submit", "fit", str(data), *options, "--workers", "2", "--out", str(tmp_path / "m"), "--name", "long"]
    following = subprocess.Popen(
        [sys.executable, "-m", "raydkm", *line], env=cluster, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert following.stdout is not None
    assert any("Running entrypoint" in text for text in following.stdout)
    following.send_signal(signal.SIGINT)
    _, told = following.communicate(timeout=30)
    assert following.returncode == 130
    assert "job long goes on" in told
    again = subprocess.Popen(
        [sys.executable, "-m", "raydkm", *line], env=cluster, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert again.stdout is not None
    assert any("Running entrypoint" in text for text in again.stdout)  # the log comes from its beginning
    subprocess.run([RAY[0], "job", "stop", "long"], env=cluster, capture_output=True, check=True)
    _, told = again.communicate(timeout=60)
    assert "job long runs already" in told
    assert "job long stopped" in told
    assert again.returncode == 3


def test_who_has_no_token_is_refused_in_one_sentence(submit: Submit, data: Path, tmp_path: Path) -> None:
    arguments = ("fit", data, "--out", tmp_path / "m", "--name", "stranger")
    for variables in ({"RAY_AUTH_TOKEN": "wrong"}, {"RAY_AUTH_MODE": "disabled"}):
        refused = submit(*arguments, **variables)
        assert refused.returncode == 3
        assert refused.stderr.startswith("raydkm: the job server at http://127.0.0.1")
        assert refused.stderr.count("\n") == 1
    assert submit(*arguments, "--address", "http://127.0.0.1:1").returncode == 3


def test_wrong_options_are_refused_before_a_job_is_made(submit: Submit, data: Path, tmp_path: Path) -> None:
    assert "objective" in submit("fit", data, "--objective", "kmens", "--out", tmp_path / "m").stderr
    assert "--clusterz" in submit("fit", data, "--clusterz", 3, "--out", tmp_path / "m").stderr
    assert "http://127.0.0.1:8265" in submit("fit", data, "--out", tmp_path / "m", "--address", "ray://x").stderr
    assert submit("fit", data, "--out", tmp_path / "m", "--name", "a/b").returncode == 2
