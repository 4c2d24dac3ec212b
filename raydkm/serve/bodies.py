"""Bodies that arrive: how many at a time, how many bytes of all requests, and for how long."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import ClientDisconnect, Request

from raydkm.serve.errors import BusyError, RefusalError

_CLOSE = {"Connection": "close"}

LATER = 0.2  # part of the time of a body; many that do not come are not all refused at one moment


class Bodies:
    """Reads the bodies of a replica's requests.

    Bytes are counted as they arrive, until the request is answered. Where one more than `most` bodies would arrive at
    a time, the one that has been arriving the longest is given up: slow clients cannot take all places.

    Parameters
    ----------
    most : int
        Bodies that may arrive at a time.
    megabytes : float
        Size of the bodies of all requests that are not answered yet, in 10^6 bytes.
    """

    def __init__(self, most: int, megabytes: float):
        self._most = most
        self._most_bytes = megabytes * 1e6
        self._held = 0  # bytes
        self._arriving: dict[asyncio.Task[bytes], None] = {}  # oldest first

    @asynccontextmanager
    async def reading(self, request: Request, megabytes: float, seconds: float) -> AsyncIterator[bytes]:
        """Give the body of a request, whose bytes are counted until the block ends.

        Raises
        ------
        RefusalError
            413 for more than `megabytes`, 408 where it does not arrive within `seconds` or is given up for others, 400
            where it breaks off.
        BusyError
            Where there is no room for its bytes.
        """
        announced = request.headers.get("content-length", "")
        if announced.isdecimal():  # its size first, for that does not depend on other requests
            _check_size(int(announced), megabytes)
            self._check_room(int(announced), own=0)
        counted = [0]
        try:
            yield await self._arrived(self._read(request, megabytes, counted), seconds)
        finally:
            self._held -= counted[0]

    async def _arrived(self, reading: Coroutine[Any, Any, bytes], seconds: float) -> bytes:
        if len(self._arriving) >= self._most:
            oldest = next(iter(self._arriving))
            del self._arriving[oldest]
            oldest.cancel()
        task = asyncio.ensure_future(reading)
        self._arriving[task] = None
        try:
            return await asyncio.wait_for(task, seconds * (1 + LATER * random.random()))
        except (asyncio.TimeoutError, TimeoutError):
            raise RefusalError(408, f"the body did not arrive within {seconds:g} s", _CLOSE) from None
        except asyncio.CancelledError:
            if task in self._arriving:  # the request itself was cancelled
                raise
            raise RefusalError(408, "the body was slower than those of many other requests", _CLOSE) from None
        except ClientDisconnect:
            raise RefusalError(400, "the body was not sent whole") from None
        finally:
            self._arriving.pop(task, None)

    async def _read(self, request: Request, megabytes: float, counted: list[int]) -> bytes:
        body = bytearray()
        async for part in request.stream():
            _check_size(len(body) + len(part), megabytes)
            self._check_room(len(part), own=len(body))
            body += part
            self._held += len(part)
            counted[0] += len(part)
        return bytes(body)

    def _check_room(self, size: int, own: int) -> None:
        """Refuse more bytes of a request that has some already; a request alone always has room."""
        if self._held > own and self._held + size > self._most_bytes:
            raise BusyError(f"bodies of {self._held / 1e6:.0f} MB are being answered; try again in 1 s", 1, _CLOSE)


def _check_size(size: int, megabytes: float) -> None:
    if size > megabytes * 1e6:
        raise RefusalError(413, f"a body of more than {megabytes:g} MB", _CLOSE)
