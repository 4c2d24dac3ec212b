"""A client of the service, of the standard library's HTTP with one kept connection, and Arrow bodies."""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.parse
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from raydkm.errors import ConfigError, InputError, RaydkmError
from raydkm.ops.labeller import Assignment

_ARROW = "application/vnd.apache.arrow.stream"

#: Most seconds that are waited before a request is sent again, whatever the service asks for.
LONGEST_WAIT = 30.0


class ServiceError(RaydkmError):
    """The service refused a request, or could not be reached."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status
        self.exit_code = 2 if status is not None and 400 <= status < 500 else 3


class Client:
    """Assigns over HTTP. Not to be shared by threads.

    Parameters
    ----------
    url : str
        ``http://host:port`` or ``https://…``.
    token : str, optional
    timeout : float
        Seconds that an answer may take.
    retries : int
        How often a request is sent again after 503, or where the connection broke or the replica died; not after a
        timeout.

    Attributes
    ----------
    model : str or None
        SHA-256 of the tensors of the model that gave the last answer.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 60.0, retries: int = 5):
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        try:
            parts = urllib.parse.urlsplit(url)
            if not parts.hostname:
                raise ValueError("no host")
            self._connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=timeout)
        except (KeyError, ValueError):
            raise ConfigError(f"endpoint {url!r}: expected http://host:port or https://host:port") from None
        self._url, self._path = url, parts.path.rstrip("/")
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._retries = retries
        self.model: str | None = None

    def assign(self, rows: ArrayLike, top: int | None = None) -> Assignment:
        """Assign rows (n, d) of float16, 32 or 64, or 8-bit integers, with their `top` best clusters.

        Raises
        ------
        ServiceError
            Where the service refuses them, or cannot be reached.
        """
        table = self.assign_table(rows, top)
        if top is None:
            clusters, posteriors = table["cluster"].to_numpy()[:, None], table["posterior"].to_numpy()[:, None]
        else:
            clusters, posteriors = _matrix(table["top_clusters"], top), _matrix(table["top_posteriors"], top)
        return Assignment(clusters, posteriors, table["distance"].to_numpy(), table["entropy"].to_numpy())

    def assign_table(self, rows: ArrayLike, top: int | None = None) -> pa.Table:
        """The same as a table, with the columns of a batch assignment."""
        matrix = np.ascontiguousarray(rows)
        if matrix.ndim != 2:
            raise InputError(f"rows of shape {matrix.shape}: expected (n, d)")
        column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, pa.schema([("vector", column.type)])) as writer:
            writer.write(pa.record_batch([column], ["vector"]))
        query = "" if top is None else f"?top={top}"
        content = self._request("POST", f"/v1/assign{query}", sink.getvalue(), _ARROW)
        with pa.ipc.open_stream(content) as reader:
            table = reader.read_all()
        self.model = table.schema.metadata[b"raydkm.model"].decode()
        return table

    def describe(self) -> dict[str, Any]:
        """What the model is (`ModelReply`)."""
        return json.loads(self._request("GET", "/v1/model"))

    def reload(self, model: str) -> dict[str, Any]:
        """Let the service go over to a model below its directory of models (`ReloadReply`)."""
        body = json.dumps({"model": model}).encode()
        return json.loads(self._request("POST", "/v1/reload", body, "application/json"))

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, method: str, path: str, body: Any = None, kind: str | None = None) -> bytes:
        headers = {**self._headers, "Accept": f"{_ARROW}, application/json"}
        if kind is not None:
            headers["Content-Type"] = kind
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                self._connection.request(method, self._path + path, body, headers)
                response = self._connection.getresponse()
                content = response.read()
            except (ConnectionError, http.client.HTTPException) as error:
                self._connection.close()
                if last:
                    raise ServiceError(f"{self._url}: {type(error).__name__}: {error}") from None
                _wait(attempt, None)
                continue
            except OSError as error:  # also a timeout: what took too long once would again, and load the service more
                self._connection.close()
                raise ServiceError(f"{self._url}: {type(error).__name__}: {error}") from None
            if response.status < 400:
                return content
            of_service = "json" in (response.getheader("Content-Type") or "")
            lost = response.status == 500 and not of_service  # Serve's proxy says so of a replica that died
            if last or not (response.status == 503 or lost):
                raise ServiceError(f"{self._url}: {response.status}: {_reason(content)}", response.status)
            _wait(attempt, response.getheader("Retry-After"))
        raise AssertionError("unreachable")


def _wait(attempt: int, asked: str | None) -> None:
    """As long as the service asked for, and longer each time, with some chance so that clients do not come at once."""
    least = min(float(asked), LONGEST_WAIT) if asked is not None and asked.isdecimal() else 0.1
    time.sleep(least + random.random() * 0.1 * 2**attempt)


def _reason(content: bytes) -> str:
    try:
        return json.loads(content)["error"]
    except (ValueError, LookupError, TypeError):
        return content[:200].decode(errors="replace")


def _matrix(column: pa.ChunkedArray, width: int) -> NDArray:
    return column.combine_chunks().flatten().to_numpy().reshape(len(column), width)
