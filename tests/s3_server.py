"""moto's S3 server on loopback, whose reads can be made to fail."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlencode

from moto.server import DomainDispatcherApplication, create_backend_app
from pyarrow import fs
from werkzeug.serving import WSGIRequestHandler, make_server

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
UNSET = ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass
class Fault:
    """What happens to the next `times` reads of objects whose path contains `substring` (None: to all)."""

    substring: str
    times: int | None
    status: int | None  # the answer, or
    cut_after: int = 0  # bytes of the body after which the connection is closed


class Faulty:
    """WSGI middleware that counts reads of objects, and lets those fail that a test has named."""

    def __init__(self, app: Wsgi) -> None:
        self.app = app
        self.reads: list[str] = []
        self.faults: list[Fault] = []
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"].encode("latin-1").decode()
        if environ["REQUEST_METHOD"] != "GET" or "/" not in path.strip("/"):
            return self.app(environ, start_response)
        with self._lock:
            self.reads.append(path)
            fault = next((fault for fault in self.faults if fault.substring in path and fault.times != 0), None)
            if fault is not None and fault.times is not None:
                fault.times -= 1
        if fault is None:
            return self.app(environ, start_response)
        if fault.status is not None:
            start_response(f"{fault.status} injected", [("Content-Length", "0")])
            return []
        return cut(self.app(environ, start_response), fault.cut_after)


def cut(chunks: Iterable[bytes], left: int) -> Iterator[bytes]:
    """The first bytes of a body whose Content-Length promises all of them."""
    for chunk in chunks:
        yield chunk[: max(0, left)]
        left -= len(chunk)


class QuietHandler(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class S3Server:
    """A context manager: the server in a thread, and credentials in the environment meanwhile.

    Start Ray within it, so that its workers inherit the environment.
    """

    bucket = "bucket"

    def __init__(self) -> None:
        self.app = Faulty(DomainDispatcherApplication(create_backend_app))
        self._environment: dict[str, str | None] = {}

    def __enter__(self) -> S3Server:
        self._environment = {name: os.environ.get(name) for name in (*CREDENTIALS, *UNSET)}
        os.environ.update(CREDENTIALS)
        for name in UNSET:
            os.environ.pop(name, None)
        self._server = make_server("127.0.0.1", 0, self.app, threaded=True, request_handler=QuietHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        files, _ = fs.FileSystem.from_uri(self.uri("", allow_bucket_creation="true"))
        files.create_dir(self.bucket)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for name, value in self._environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    def uri(self, path: str = "", **options: str) -> str:
        """The URI of a key or directory in the bucket."""
        endpoint = f"127.0.0.1:{self._server.server_port}"
        query = urlencode({"scheme": "http", "endpoint_override": endpoint, "region": "us-east-1", **options})
        return f"s3://{self.bucket}{'/' + quote(path) if path else ''}?{query}"

    def put(self, key: str, data: bytes) -> None:
        files, path = fs.FileSystem.from_uri(self.uri(key))
        with files.open_output_stream(path) as stream:
            stream.write(data)

    def fail(self, substring: str = "", *, status: int = 500, times: int | None = 1) -> None:
        """Answer the next reads with `status`."""
        self.app.faults.append(Fault(substring, times, status))

    def cut(self, substring: str = "", *, after: int = 0, times: int | None = 1) -> None:
        """Close the connection `after` so many bytes of the next bodies."""
        self.app.faults.append(Fault(substring, times, None, after))

    def clear(self) -> None:
        """Forget the faults and the counts."""
        self.app.faults.clear()
        self.app.reads.clear()
