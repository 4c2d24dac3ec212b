"""The application of a replica without any server: what it tells, refuses and counts."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raydkm
from raydkm.serve import app as app_module
from raydkm.serve.app import create_app
from raydkm.serve.errors import RefusalError
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
        self,
        path: str,
        parts: Callable[[], Any] | bytes | None = None,
        kind: str = JSON,
        host: str = "localhost",
        method: str | None = None,
        **more: str,
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of a request with `more` headers.

        `parts` is a body, or a coroutine function that gives one part after another of it, the last of them empty.
        """
        sent: list[dict] = []
        headers = [(b"host", host.encode()), (b"content-type", kind.encode())]
        headers += [(name.replace("_", "-").encode(), value.encode()) for name, value in more.items()]
        if isinstance(parts, bytes):
            headers.append((b"content-length", str(len(parts)).encode()))
        scope = {
            "type": "http",
            "method": method or ("GET" if parts is None else "POST"),
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
            if not callable(parts):
                return {"type": "http.request", "body": parts or b""}
            part = await parts()
            return {"type": "http.request", "body": part, "more_body": bool(part)}

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


class Slow:
    """A body that comes in parts, each when it is let go."""

    def __init__(self, *parts: bytes):
        self._parts = [*parts, b""]
        self.asked = asyncio.Semaphore(0)
        self.let = asyncio.Semaphore(0)

    async def __call__(self) -> bytes:
        self.asked.release()
        await self.let.acquire()
        return self._parts.pop(0)

    async def give(self, parts: int) -> None:
        """Return when so many parts have been taken, and the next is asked for."""
        for _ in range(parts):
            await self.asked.acquire()
            self.let.release()
        await self.asked.acquire()
        self.asked.release()


def test_bytes_are_counted_as_they_arrive(model: Path) -> None:
    asked = Asked(model, queue_megabytes=4e-5, request_megabytes=1e-4)  # 40 bytes, and 100

    async def main() -> None:
        idle, half = Slow(BODY), Slow(BODY[:20], BODY[20:])
        waiting = [asyncio.ensure_future(asked.send("/v1/assign", each)) for each in (idle, half)]
        await idle.asked.acquire()
        assert (await asked.send("/v1/assign", BODY))[0] == 200  # the idle ones take nothing
        await half.give(1)
        status, headers, _ = await asked.send("/v1/assign", BODY)  # 20 bytes have arrived, and it has 25
        assert (status, headers["retry-after"]) == (503, "1")
        late = Slow(BODY)
        refused = asyncio.ensure_future(asked.send("/v1/assign", late))
        late.let.release()
        assert (await refused)[0] == 503
        for each in (idle, half):
            each.let.release(), each.let.release()
        half_status = (await waiting[1])[0]
        assert half_status in (200, 503)  # it may have met the other one
        assert (await waiting[0])[0] in (200, 503)
        assert (await asked.send("/v1/assign", BODY))[0] == 200  # all is given back

    asyncio.run(main())


def test_a_body_that_is_too_large_is_so_also_when_there_is_no_room(model: Path) -> None:
    asked = Asked(model, queue_megabytes=4e-5, request_megabytes=1e-4)

    async def main() -> list[int]:
        half = Slow(BODY[:20], BODY[20:])
        first = asyncio.ensure_future(asked.send("/v1/assign", half))
        await half.give(1)
        found = [(await asked.send("/v1/assign", bytes(101)))[0], (await asked.send("/v1/assign", bytes(100)))[0]]
        half.let.release(), half.let.release()
        return [*found, (await first)[0], (await asked.send("/v1/assign", bytes(101)))[0]]

    assert asyncio.run(main()) == [413, 503, 200, 413]


def test_slow_bodies_leave_places_to_others(model: Path) -> None:
    asked = Asked(model, body_requests=2, body_timeout=60)

    async def main() -> None:
        slow = [Slow(BODY) for _ in range(3)]
        waiting = []
        for each in slow:
            waiting.append(asyncio.ensure_future(asked.send("/v1/assign", each)))
            await each.asked.acquire()
        status, _, content = await asyncio.wait_for(waiting[0], 30)  # the oldest has made room for the last
        assert (status, b"slower" in content) == (408, True)
        for _ in range(5):
            assert (await asked.send("/v1/assign", BODY))[0] == 200
        for each in slow:
            each.let.release(), each.let.release()
        assert [(await each)[0] for each in waiting[1:]] == [408, 200]

    asyncio.run(main())


def test_a_request_that_is_given_up_gives_all_back(model: Path) -> None:
    asked = Asked(model, queue_megabytes=4e-5, body_requests=1)

    async def main() -> None:
        half = Slow(BODY[:20], BODY[20:])
        first = asyncio.ensure_future(asked.send("/v1/assign", half))
        await half.give(1)
        first.cancel()
        await asyncio.wait({first})
        assert first.cancelled()
        assert asked.service.present == 0
        assert (await asked.send("/v1/assign", BODY))[0] == 200

    asyncio.run(main())


def test_requests_beyond_the_queue_are_told_to_come_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(model, queue_requests=2)
    go, assign = threading.Event(), Version.assign

    def held(*arguments: Any) -> Any:
        assert go.wait(30)
        return assign(*arguments)

    monkeypatch.setattr(Version, "assign", held)

    async def main() -> list[int]:
        waiting = [asyncio.ensure_future(asked.send("/v1/assign", BODY)) for _ in range(2)]
        while asked.service._answering < 2:
            await asyncio.sleep(0)
        status, headers, _ = await asked.send("/v1/assign", BODY)
        assert int(headers["retry-after"]) >= 1
        go.set()
        return [status, *[(await each)[0] for each in waiting], (await asked.send("/v1/assign", BODY))[0]]

    assert asyncio.run(main()) == [503, 200, 200, 200]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes_are_asked_by_either_method(asked: Asked, method: str) -> None:
    for path in ("/healthz", "/readyz"):
        assert asked.ask(path, method=method)[0] == 200


def test_a_service_that_ends_is_not_ready_first_and_then_refuses(asked: Asked) -> None:
    paths = ("/healthz", "/readyz", "/v1/model")
    found = {}
    for stage in ("open", "unready", "closed"):
        asked.service.stage = stage  # type: ignore[assignment]
        found[stage] = [asked.ask(path)[0] for path in paths] + [asked.ask("/v1/assign", BODY)[0]]
    assert found == {"open": [200] * 4, "unready": [200, 503, 200, 200], "closed": [200, 503, 503, 503]}
    _, headers, _ = asked.ask("/v1/assign", BODY)
    assert (headers["retry-after"], headers["connection"]) == ("1", "close")


def test_requests_count_as_present_until_their_answers_are_sent(asked: Asked) -> None:
    async def main() -> list[int]:
        slow, found = Slow(BODY), []
        first = asyncio.ensure_future(asked.send("/v1/assign", slow))
        await slow.asked.acquire()
        found.append(asked.service.present)
        asked.service.stage = "closed"
        late = Slow(BODY)
        refused = asyncio.ensure_future(asked.send("/v1/assign", late))
        await asyncio.sleep(0)
        found.append(asked.service.present)  # who comes late is not waited for
        slow.let.release(), slow.let.release()
        assert ((await first)[0], (await refused)[0]) == (200, 503)
        return [*found, asked.service.present]

    assert asyncio.run(main()) == [1, 1, 0]


@pytest.mark.parametrize("encoding", ["gzip", "br", "Deflate, gzip"])
def test_a_compressed_body_is_refused_by_its_name(asked: Asked, encoding: str) -> None:
    status, _, content = asked.ask("/v1/assign", b"\x1f\x8b", content_encoding=encoding)
    assert (status, encoding.lower() in json.loads(content)["error"]) == (415, True)
    assert asked.ask("/v1/assign", BODY, content_encoding="identity")[0] == 200


@pytest.mark.parametrize("path", ["/v1/assign/", "/v1/model/", "/healthz/"])
def test_nothing_is_redirected(asked: Asked, path: str) -> None:
    status, headers, _ = asked.ask(path, host="evil.example")
    assert (status, "location" in headers) == (404, False)


def test_parsing_ends_with_the_request(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), threading.Event()

    def decode(*arguments: Any) -> Any:
        begun.set()
        assert arguments[-1].wait(30)
        ended.set()
        raise RefusalError(400, "left")

    monkeypatch.setattr(app_module, "decode", decode)

    async def main() -> None:
        request = asyncio.ensure_future(asked.send("/v1/assign", BODY))
        await asyncio.to_thread(begun.wait, 30)
        request.cancel()
        assert await asyncio.to_thread(ended.wait, 30)

    asyncio.run(main())


def test_vectors_of_all_kinds_of_headers_have_an_answer(asked: Asked) -> None:
    body = b"\x93NUMPY\x02\x00" + (60).to_bytes(4, "little")
    body += b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2)}".ljust(59) + b"\n"
    assert asked.ask("/v1/assign", body + np.float32([1, 2]).tobytes(), NPY)[0] == 200
