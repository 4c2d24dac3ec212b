"""One service on Ray Serve for all tests of this folder, on loopback, with tokens and a directory of models."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

import raydkm
from raydkm.serve.client import Client
from raydkm.serve.settings import ServeAddress, ServeConfig

pytest.importorskip("ray")

TOKEN, ADMIN = "a-token-of-the-tests", "an-admin-token-of-the-tests"
DIM = 4


@dataclass(frozen=True)
class Running:
    """A service, and what it was started with."""

    port: int
    models: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, token: str = TOKEN) -> Client:
        return Client(self.url, token=token)

    def send(
        self, method: str, path: str, body: Any = None, token: str | None = TOKEN, **headers: str
    ) -> tuple[int, dict[str, Any], Any]:
        """Status, JSON (or text) and headers of one request; ``content_type=...`` are headers."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        is_json = (response.getheader("content-type") or "").startswith("application/json")
        return response.status, json.loads(content) if is_json else {"text": content}, response.headers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/serve" in str(item.path):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models: `first` and `second` are alike, `wide` has another dimension."""
    place = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    for name, dim in (("first", DIM), ("second", DIM), ("wide", DIM + 1)):
        x = rng.standard_normal((500, dim)).astype(np.float32)
        raydkm.fit(x, clusters=12, temperature="0.2Tc", balance=0.5, max_steps=5, out=place / name)
    return place


@pytest.fixture(scope="session")
def service(models: Path) -> Iterator[Running]:
    """Two replicas."""
    import ray

    from raydkm.serve import ray_serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAYDKM_TOKENS", TOKEN)
        environment.setenv("RAYDKM_ADMIN_TOKENS", ADMIN)
        ray.init("local", num_cpus=4, object_store_memory=100_000_000, logging_level="WARNING")
        config = ServeConfig(
            models=str(models), replicas=2, request_vectors=2000, request_megabytes=1, body_timeout=1.0, max_top=5
        )
        ray_serve.start(str(models / "first"), config, ServeAddress(port=port))
        yield Running(port, models)
        ray_serve.stop(config)
        ray.shutdown()


@contextmanager
def over_http(app: FastAPI) -> Iterator[str]:
    """The URL of an application that a thread of this process serves, with no Ray around it."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
