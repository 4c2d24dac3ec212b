"""The HTTP interface of a replica."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from functools import cache
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from raydkm.model import Model
from raydkm.serve.decode import IMAGES, decode
from raydkm.serve.errors import RefusalError
from raydkm.serve.json_body import parse
from raydkm.serve.schemas import (
    ARROW,
    JSON,
    NPY,
    AssignReply,
    AssignRequest,
    ErrorReply,
    ModelReply,
    ReloadReply,
    ReloadRequest,
    reply_arrow,
    reply_json,
)
from raydkm.serve.service import Service
from raydkm.serve.tokens import Tokens

logger = logging.getLogger("raydkm")

_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_BINARY = {"schema": {"type": "string", "format": "binary"}}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorReply} for status in statuses}


def _body(schema: type, **others: Any) -> dict[str, Any]:
    content = {JSON: {"schema": schema.model_json_schema()}, **others}  # type: ignore[attr-defined]
    return {"requestBody": {"required": True, "content": content}}


def create_app(service: Service, tokens: Tokens, hosts: Collection[str] | None = None) -> FastAPI:
    """The application of a replica; it is served by Ray Serve, or any ASGI server.

    Parameters
    ----------
    service : Service
    tokens : Tokens
    hosts : collection of str, optional
        Names by which it may be asked. Without tokens, a page from elsewhere could let a browser ask by a name of its
        own that leads to loopback.
    """

    @asynccontextmanager
    async def follow(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(service.follow())
        yield
        task.cancel()

    app = FastAPI(
        title="raydkm",
        version=version_of("raydkm"),
        lifespan=follow,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # it would send clients to any host that they name
        responses=_refusals(400, 500),
    )
    _answer_errors_alike(app)
    bearer = [Security(HTTPBearer(auto_error=False, scheme_name="token"))]  # for OpenAPI; `tokens` checks

    @app.middleware("http")
    async def measure(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.perf_counter()
        try:
            response = _refused_host(request, hosts) or await call_next(request)
        except Exception:  # here, and not in a handler, which comes after this
            logger.exception("%s %s failed", request.method, request.url.path)
            response = RefusalError(500, "the service failed on this request; its log says why").response()
        route = getattr(request.scope.get("route"), "path", "none")
        service.telemetry.request(route, response.status_code, time.perf_counter() - began)
        return response

    @app.post(
        "/v1/assign",
        response_model=AssignReply,
        dependencies=bearer,
        responses={200: {"content": {ARROW: _BINARY}}, **_refusals(401, 408, 413, 415, 422, 503)},
        openapi_extra=_body(AssignRequest, **dict.fromkeys((ARROW, NPY, *IMAGES), _BINARY)),
    )
    async def assign(
        request: Request,
        top: Annotated[int | None, Query(ge=1, description="As in JSON; for all other bodies.")] = None,
    ) -> Response:
        """Assign vectors, or images, to clusters. The reply is an Arrow stream where Accept asks for one."""
        tokens.check(request.headers.get("authorization"))
        service.check_open()
        version, config = service.version, service.config
        kind = _kind(request)
        if kind not in (known := (JSON, ARROW, NPY, *IMAGES)):
            raise RefusalError(415, f"content type {kind or 'missing'}: send one of {', '.join(known)}")
        async with service.bodies.reading(request, config.request_megabytes, config.body_timeout) as body:
            with service.answering():
                rows, top = await _decoded(body, kind, version.model, top, config.request_vectors)
                del body
                if top is not None and top > version.most:
                    raise RefusalError(422, f"top {top}: at most {version.most} here")
                found = await service.batcher.assign(version, rows, top)
                as_arrow = ARROW in request.headers.get("accept", "")
                content = await asyncio.to_thread(reply_arrow if as_arrow else reply_json, found, version.checksum, top)
        return Response(content, media_type=ARROW if as_arrow else JSON)

    @app.get("/v1/model", response_model=ModelReply, dependencies=bearer, responses=_refusals(401, 503))
    async def model(request: Request) -> Response:
        """Tell what the model is, and how it was made."""
        tokens.check(request.headers.get("authorization"))
        service.check_open()
        return Response(service.version.report, media_type=JSON)

    @app.post(
        "/v1/reload",
        response_model=ReloadReply,
        dependencies=bearer,
        responses=_refusals(401, 403, 408, 413, 415, 422, 503),
        openapi_extra=_body(ReloadRequest),
    )
    async def reload(request: Request) -> ReloadReply:
        """Go over to another model; other replicas follow within seconds."""
        tokens.check_admin(request.headers.get("authorization"))
        service.check_open()
        if _kind(request) != JSON:
            raise RefusalError(415, f"content type {_kind(request) or 'missing'}: send {JSON}")
        async with service.bodies.reading(request, 0.01, service.config.body_timeout) as body:
            asked = parse(ReloadRequest, body)
        before, after = await service.reload(asked.model)
        return ReloadReply(name=after.name, model=after.checksum, previous=before.checksum)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Tell that the process answers."""
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", responses=_refusals(503))
    async def readyz() -> dict[str, str]:
        """Tell whether there is a model to assign with, and the service does not end."""
        return {"status": "ready", "model": service.check_ready()}

    @app.get("/metrics", dependencies=bearer, responses=_refusals(401, 503), response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Tell Prometheus of the replica that answers."""
        tokens.check(request.headers.get("authorization"))
        version = service.version
        text = service.telemetry.text(service.batcher.waiting, version.name, version.checksum)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        """Show the model's report, and try a vector."""
        return HTMLResponse(_page(), headers={"Content-Security-Policy": _PAGE_POLICY})

    app.add_middleware(_Counted, service=service)  # around all others
    return app


class _Counted:
    """Counts requests until their answers are sent."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._service.counted():
            await self._app(scope, receive, send)


@cache
def _page() -> str:
    return Path(__file__).with_name("page.html").read_text(encoding="utf-8")


async def _decoded(body: bytes, kind: str, model: Model, top: int | None, most: int) -> tuple[NDArray, int | None]:
    """`decode` in a thread, which ends soon after a client has left."""
    cancelled = threading.Event()
    try:
        return await asyncio.to_thread(decode, body, kind, model, top, most, cancelled)
    finally:
        cancelled.set()


def _kind(request: Request) -> str:
    """The content type, in lower case and without parameters; refuse (415) a body that is compressed."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RefusalError(415, f"content encoding {encoding}: send the body as it is")
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _refused_host(request: Request, hosts: Collection[str] | None) -> Response | None:
    host = re.sub(r":\d+$", "", request.headers.get("host", "")).lower()
    if hosts is None or host in hosts:
        return None
    return RefusalError(400, f"host {host}: without tokens this is answered at {', '.join(sorted(hosts))}").response()


def _answer_errors_alike(app: FastAPI) -> None:
    """Give every error the shape of `ErrorReply`."""

    @app.exception_handler(RefusalError)
    async def refused(_: Request, error: RefusalError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> JSONResponse:
        return RefusalError(error.status_code, str(error.detail), error.headers).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return RefusalError(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}").response()
