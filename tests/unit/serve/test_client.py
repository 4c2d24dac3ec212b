"""What the client sends again, and what it does not."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from raydkm.errors import ConfigError
from raydkm.serve import client as client_module
from raydkm.serve.client import Client, ServiceError


class Server(ThreadingHTTPServer):
    """Answers with what `script` holds: a status, headers; None closes the connection without an answer."""

    daemon_threads = True
    script: list[Any]
    asked = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        answer = self.server.script.pop(0)
        if answer is None:
            return
        if isinstance(answer, threading.Event):
            answer.wait(30)
            return
        status, headers = answer
        content = json.dumps({"error": "why"} if status >= 400 else {"name": "model"}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have waited, each time."""
    waits: list[float] = []
    monkeypatch.setattr(client_module.time, "sleep", waits.append)
    return waits


def client_of(server: Server, **options: Any) -> Client:
    return Client(f"http://127.0.0.1:{server.server_port}", **options)


def test_a_request_is_sent_again_after_503_and_a_broken_connection(server: Server, waits: list[float]) -> None:
    server.script = [(503, {"Retry-After": "3"}), None, (503, {"Retry-After": "9000"}), (503, {}), (200, {})]
    assert client_of(server).describe() == {"name": "model"}
    assert server.asked == 5
    assert 3 <= waits[0] < 4
    assert waits[1] < 1
    assert 30 <= waits[2] < 31  # whatever a service asks for


def test_a_replica_that_died_is_not_a_fault_of_the_service(server: Server, waits: list[float]) -> None:
    server.script = [(500, {"Content-Type": "text/plain"}), (500, {}), (200, {})]
    with pytest.raises(ServiceError, match="500: why"):
        client_of(server).describe()
    assert (server.asked, len(waits)) == (2, 1)


def test_retries_end(server: Server, waits: list[float]) -> None:
    server.script = [(503, {})] * 3
    with pytest.raises(ServiceError, match="503: why") as refused:
        client_of(server, retries=2).describe()
    assert (refused.value.status, len(waits)) == (503, 2)


def test_a_timeout_is_not_tried_again(server: Server, waits: list[float]) -> None:
    end = threading.Event()
    server.script = [end, (200, {})]
    with pytest.raises(ServiceError, match="TimeoutError"):
        client_of(server, timeout=0.2).describe()
    end.set()
    assert (server.asked, waits) == (1, [])


def test_a_refused_connection_is_tried_again(waits: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ServiceError, match="ConnectionRefusedError"):
            Client(f"http://127.0.0.1:{free.getsockname()[1]}", retries=2).describe()
    assert len(waits) == 2


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://h", "http://", "http://h:port", "http://h:99999", "http://[::1"]
)
def test_an_endpoint_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="expected http"):
        Client(url)


@pytest.mark.parametrize(
    ("answer", "code"), [((422, {}), 2), ((401, {}), 2), ((503, {}), 3), ((500, {}), 3), (None, 3)]
)
def test_the_exit_code_tells_bad_input_from_a_service_that_fails(server: Server, answer: Any, code: int) -> None:
    server.script = [answer]
    with pytest.raises(ServiceError) as refused:
        client_of(server, retries=0).describe()
    assert refused.value.exit_code == code
