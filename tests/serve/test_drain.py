"""`raydkm serve` in a process and a Ray of its own, ended by SIGTERM."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from raydkm.serve.client import Client
from tests.serve.conftest import DIM

BODY = b'{"vectors": [' + b",".join([b"[0.1, 0.2, 0.3, 0.4]"] * 500) + b"]}"


class Process:
    """`raydkm serve MODEL`, and the lines that it writes."""

    def __init__(self, model: Path, place: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "raydkm", "serve", str(model), "--port", str(self.port), "--drain", "70"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYDKM_"))}
        self.process = subprocess.Popen(
            command,
            env=environment | {"RAY_TMPDIR": place},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []

    def until(self, text: str) -> None:
        """Read until a line has `text`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if text in line:
                return
        pytest.fail("".join(self.lines))

    def end(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=120)
        self.lines += output.splitlines(keepends=True)
        return self.process.returncode


@pytest.fixture
def started(models: Path) -> Iterator[Process]:
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as place:
        process = Process(models / "first", place)
        try:
            yield process
        finally:
            if process.process.poll() is None:
                os.killpg(process.process.pid, signal.SIGKILL)
                process.process.wait()


def test_requests_that_are_there_at_sigterm_are_answered(started: Process) -> None:
    started.until("serving ")
    url, signalled, begun = f"http://127.0.0.1:{started.port}", [float("inf")], threading.Semaphore(0)

    def ask() -> list[tuple[float, int]]:
        """When each request was sent, and its status; 0 where none came."""
        found: list[tuple[float, int]] = []
        while time.monotonic() < signalled[0] + 1:
            connection = http.client.HTTPConnection("127.0.0.1", started.port, timeout=60)
            sent = time.monotonic()
            try:
                connection.request("POST", "/v1/assign", BODY, {"Content-Type": "application/json"})
                found.append((sent, connection.getresponse().status))
            except (OSError, http.client.HTTPException):
                found.append((sent, 0))
            finally:
                connection.close()
                begun.release()
        return found

    with Client(url) as client:
        assert client.assign(np.zeros((1, DIM), np.float32)).clusters.shape == (1, 1)
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(ask) for _ in range(4)]
        for _ in range(20):
            assert begun.acquire(timeout=60)
        signalled[0] = time.monotonic()
        code = started.end()
        found = [each for task in running for each in task.result(timeout=60)]
    before = [status for sent, status in found if sent < signalled[0]]
    after = {status for sent, status in found if sent >= signalled[0]}
    assert before
    assert set(before) == {200}
    assert 500 not in after
    assert code == 0
    assert "Traceback" not in "".join(started.lines)


def test_sigterm_before_the_service_answers_ends_it_too(started: Process) -> None:
    started.until("Started Serve")
    assert started.end() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", started.port), timeout=5)
