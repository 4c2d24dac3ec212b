"""The application of a replica without any server: what it tells, refuses and counts."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raydkm
from raydkm.serve.app import create_app
from raydkm.serve.schemas import JSON, NPY
from raydkm.serve.service import Service
from raydkm.serve.settings import ServeConfig
from raydkm.serve.tokens import Tokens
from raydkm.serve.versions import Version

BODY = b'{"vectors": [[0.5, 0.5]]}'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "one"
    raydkm.fit(np.random.default_rng(0).standard_normal((60, 2)), clusters=3, max_steps=2, out=place)
    return place


class Asked:
    """An application, and the answers of its requests."""

    def __init__(self, model: Path, hosts: tuple[str, ...] | None = None, **config: Any):
        self.service = Service(ServeConfig(**config))
        asyncio.run(self.service.configure(str(model)))
        self._app = create_app(self.service, Tokens(), hosts)

    async def send(
        self, path: str, parts: Callable[[], Any] | bytes | None = None, kind: str = JSON, host: str = "localhost"
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content; `parts` is a body, or a coroutine function that gives one and is called late."""
        sent: list[dict] = []
        headers = [(b"host", host.encode()), (b"content-type", kind.encode())]
        if isinstance(parts, bytes):
            headers.append((b"content-length", str(len(parts)).encode()))
        scope = {
            "type": "http",
            "method": "GET" if parts is None else "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": headers,
            "scheme": "http",
            "server": ("localhost", 80),
            "client": ("localhost", 1),
            "http_version": "1.1",
        }

        async def receive() -> dict:
            return {"type": "http.request", "body": await parts() if callable(parts) else parts or b""}

        async def send(message: Any) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        content = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}, content

    def ask(self, *arguments: Any, **options: Any) -> tuple[int, dict[str, str], bytes]:
        return asyncio.run(self.send(*arguments, **options))


@pytest.fixture
def asked(model: Path) -> Iterator[Asked]:
    yield Asked(model)


def test_a_fault_is_counted_and_logged_once(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("of the library")

    monkeypatch.setattr(Version, "assign", fail)
    status, _, content = asked.ask("/v1/assign", BODY)
    assert (status, list(json.loads(content))) == (500, ["error"])
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    assert b'route="/v1/assign",status="500"} 1.0' in asked.ask("/metrics")[2]


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"])
def test_without_tokens_loopback_is_asked_by_its_names(model: Path, host: str) -> None:
    asked = Asked(model, ("localhost", "127.0.0.1", "[::1]"))
    assert asked.ask("/v1/model", host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "", "[::1", "::1"])
def test_without_tokens_no_other_name_leads_to_loopback(model: Path, host: str) -> None:
    asked = Asked(model, ("localhost", "127.0.0.1", "[::1]"))
    status, _, content = asked.ask("/v1/model", host=host)
    assert (status, list(json.loads(content))) == (400, ["error"])


def test_bodies_beyond_the_room_are_refused_unread(model: Path) -> None:
    asked = Asked(model, queue_megabytes=2e-5, request_megabytes=1e-4)  # 20 bytes, and 100
    read = []

    async def main() -> list[tuple[int, dict[str, str], bytes]]:
        here, go = asyncio.Event(), asyncio.Event()

        async def late() -> bytes:
            here.set()
            await go.wait()
            return BODY

        async def never() -> bytes:
            read.append(True)
            return BODY

        first = asyncio.ensure_future(asked.send("/v1/assign", late))
        await here.wait()
        refused = [await asked.send("/v1/assign", never), await asked.send("/v1/assign", BODY)]
        go.set()
        return [*refused, await first, await asked.send("/v1/assign", BODY)]

    answers = asyncio.run(main())
    assert [status for status, *_ in answers] == [503, 503, 200, 200]
    assert answers[0][1]["retry-after"] == "1"
    assert not read


def test_vectors_of_all_kinds_of_headers_have_an_answer(asked: Asked) -> None:
    body = b"\x93NUMPY\x02\x00" + (60).to_bytes(4, "little")
    body += b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2)}".ljust(59) + b"\n"
    assert asked.ask("/v1/assign", body + np.float32([1, 2]).tobytes(), NPY)[0] == 200
