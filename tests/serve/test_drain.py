"""`raydkm serve` in a process and a Ray of its own: what it listens on, and how it ends by a signal."""

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
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from raydkm.serve.client import Client
from tests.serve.conftest import DIM, TOKEN

BODY = b'{"vectors": [' + b",".join([b"[0.1, 0.2, 0.3, 0.4]"] * 500) + b"]}"


class Process:
    """`raydkm serve MODEL`, and the lines that it writes."""

    def __init__(self, model: Path, place: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        options = ["--port", str(self.port), "--drain", "70", "--notice", "3"]
        command = [sys.executable, "-m", "raydkm", "serve", str(model), *options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYDKM_"))}
        environment |= {"RAYDKM_TOKENS": TOKEN, "HOME": place}
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

    def end(self, number: int, *, group: bool = False) -> int:
        """Send a signal to the process, or as a terminal does to all that it started; the exit code."""
        if group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=120)
        self.lines += output.splitlines(keepends=True)
        return self.process.returncode

    def processes(self) -> list[Path]:
        """Directories in /proc of the process and all that it started, directly or not."""
        parents = {}
        for each in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                parents[int(each.name)] = int((each / "stat").read_text().rpartition(")")[2].split()[1])
        own = [self.process.pid]
        for pid in own:
            own += [child for child, parent in parents.items() if parent == pid]
        return [Path("/proc", str(pid)) for pid in own]


def listening(processes: list[Path]) -> set[str]:
    """Addresses that processes listen on, as the kernel writes them."""
    sockets = set()
    for each in processes:
        for file in each.glob("fd/*"):
            with suppress(OSError):
                sockets.add(os.readlink(file))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *others = line.split()
            if state == "0A" and f"socket:[{others[5]}]" in sockets:
                found.add(local.partition(":")[0])
    return found


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


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, and the same written as IPv6


def answer(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, float]:
    """The status of one request, 0 where there is none, and when it was sent."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    connection, sent = http.client.HTTPConnection("127.0.0.1", port, timeout=60), time.monotonic()
    try:
        connection.request(method, path, body, headers)
        return connection.getresponse().status, sent
    except (OSError, http.client.HTTPException):
        return 0, sent
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("number", "group"),
    [
        (signal.SIGTERM, False),
        pytest.param(signal.SIGINT, True, marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, True, marks=pytest.mark.long),
    ],
)
def test_requests_that_are_there_at_a_signal_are_answered(started: Process, number: int, group: bool) -> None:
    started.until("serving ")
    url, signalled, begun = f"http://127.0.0.1:{started.port}", [float("inf")], threading.Semaphore(0)
    assert listening(started.processes()) == LOOPBACK
    for each in started.processes()[1:]:
        with suppress(OSError):
            assert TOKEN.encode() not in (each / "environ").read_bytes()

    def ask(method: str, path: str, body: bytes | None = None) -> list[tuple[int, float]]:
        found = [answer(started.port, method, path, body)]
        while found[-1][0] or time.monotonic() < signalled[0]:
            begun.release()
            found.append(answer(started.port, method, path, body))
        return found

    with Client(url, token=TOKEN) as client:
        assert client.assign(np.zeros((1, DIM), np.float32)).clusters.shape == (1, 1)
    with ThreadPoolExecutor(5) as pool:
        probing = pool.submit(ask, "GET", "/readyz")
        running = [pool.submit(ask, "POST", "/v1/assign", BODY) for _ in range(4)]
        for _ in range(20):
            assert begun.acquire(timeout=60)
        signalled[0] = time.monotonic()
        code = started.end(number, group=group)
        probes = probing.result(timeout=60)
        found = [each for task in running for each in task.result(timeout=60)]
    before = [status for status, sent in found if sent < signalled[0]]
    after = {status for status, sent in found if sent >= signalled[0]}
    assert before
    assert set(before) == {200}
    assert after <= {200, 503, 0}
    unready = next(sent for status, sent in probes if status == 503)
    assert any(status == 200 for status, sent in found if sent > unready)  # load balancers have time to turn away
    assert {status for status, _ in probes} <= {200, 503, 0}
    assert code == 0
    assert "Traceback" not in "".join(started.lines)


def test_sigterm_before_the_service_answers_ends_it_too(started: Process) -> None:
    started.until("Started Serve")
    assert started.end(signal.SIGTERM) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", started.port), timeout=5)
