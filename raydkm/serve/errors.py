"""Refusals of a request: the status, and one sentence that says why. All errors of the service have one JSON shape."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.responses import JSONResponse

MOST_REASON = 1000  # characters; a reason may quote a body


class RefusalError(Exception):
    """A request that is not answered, with the HTTP status that says so."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None):
        super().__init__(reason)
        self.status = status
        self.reason = reason if len(reason) <= MOST_REASON else f"{reason[:MOST_REASON]} …"
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        return JSONResponse({"error": self.reason}, self.status, self.headers)


class BusyError(RefusalError):
    """There is no room for the request; it may come again after some seconds."""

    def __init__(self, reason: str, seconds: int, headers: Mapping[str, str] | None = None):
        super().__init__(503, reason, {"Retry-After": str(seconds), **(headers or {})})
