"""One replica's state: the current version of the model, the batcher, and the change from a version to the next."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from raydkm.errors import ModelError, RaydkmError, UnreadableError
from raydkm.serve.batching import Batcher
from raydkm.serve.bodies import Bodies
from raydkm.serve.errors import BusyError, RefusalError
from raydkm.serve.settings import ServeConfig
from raydkm.serve.telemetry import Telemetry
from raydkm.serve.versions import Choice, Told, Version

logger = logging.getLogger("raydkm")

#: Seconds between looks at which model is to be served.
LOOK_EVERY = 1.0

#: Seconds after which a model that another replica took, and this one could not, is tried again.
RETRY_AFTER = 30.0


_Result = TypeVar("_Result")

#: A service that ends is unready first, so that load balancers turn away, and then closed.
Stage = Literal["open", "unready", "closed"]


class Service:
    """Assigns by the current version; a request keeps that which was current when it came.

    Parameters
    ----------
    config : ServeConfig
    replica : str
        Its name in the metrics.
    """

    def __init__(self, config: ServeConfig, replica: str = "0"):
        self.config = config
        self.telemetry = Telemetry(replica)
        self._choice = Choice(config.models)
        # one thread: torch has one number of threads, and each batch has all of them
        self._compute = ThreadPoolExecutor(1, "assign")
        self.batcher = Batcher(self._compute, config.batch_vectors, config.queue_vectors, self.telemetry.batch)
        self._version: Version | None = None
        self._failed: Told | None = None
        self._retry_at = 0.0
        self.bodies = Bodies(config.body_requests, config.queue_megabytes)
        self.present = 0  # requests that were taken, and whose answers are not sent yet
        self.stage: Stage = "open"
        self._answering = 0  # requests that are computed, or wait for it
        self._changing = asyncio.Lock()

    @property
    def has_model(self) -> bool:
        return self._version is not None

    @property
    def version(self) -> Version:
        """The current one; refuse (503) while there is none yet."""
        if self._version is None:
            raise BusyError("the model is being loaded", 1)
        return self._version

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Take a place among the requests that are computed or wait; refuse (503) where all are taken."""
        if self._answering >= self.config.queue_requests:
            raise BusyError(f"{self._answering} requests are being answered; try again in 1 s", 1)
        self._answering += 1
        try:
            yield
        finally:
            self._answering -= 1

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request as present until the block ends, but for those that come when the service is closed."""
        taken = self.stage != "closed"
        self.present += taken
        try:
            yield
        finally:
            self.present -= taken

    def check_open(self) -> None:
        """Refuse a request (503) where the service ends: another one, or this one when it is back, will answer it."""
        if self.stage == "closed":
            raise BusyError("the service ends; send the request again", 1, {"Connection": "close"})

    def check_ready(self) -> str:
        """The checksum of the model; refuse (503) where there is none yet, and where the service ends."""
        if self.stage != "open":
            raise BusyError("the service ends", 1)
        return self.version.checksum

    async def configure(self, model: str) -> None:
        """Serve the model at `model`, or that of the last reload since it was configured."""
        async with self._changing:
            self._choice.configured = os.path.abspath(model)
            told = await self._stored(self._choice.told)
            if told is None or not await self._followed(told):
                self._install(await self._loaded(self._choice.configured))
            await self._stored(self._choice.forget)

    async def reload(self, name: str) -> tuple[Version, Version]:
        """Go over to a model of the directory, here and in all replicas; return the versions before and after."""
        async with self._changing:
            before = self.version
            try:
                path = await self._stored(self._choice.resolve, name)
                after = await self._loaded(path, dim=before.model.input_dim)
                await self._stored(self._choice.tell, after.told)
            except (RaydkmError, OSError) as error:
                raise RefusalError(422, f"model {name!r} was not taken, {before.name} still answers: {error}") from None
            self._install(after)
            return before, after

    async def follow(self) -> None:
        """Go over to what another replica was told to; never returns."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                async with self._changing:
                    told = await self._stored(self._choice.told)
                    if self._version is not None and told not in (None, self._version.told):
                        await self._followed(told, dim=self._version.model.input_dim)
            except Exception:  # it must go on
                logger.exception("the look at which model is to be served failed")

    async def _followed(self, told: Told, dim: int | None = None) -> bool:
        """Whether it could be gone over to what another replica was told; after a failure it is left for a while."""
        if told == self._failed and time.monotonic() < self._retry_at:
            return False
        try:
            version = await self._loaded(told.path, dim)
            if version.told != told:
                raise ModelError(f"{told.path}: not the model that was there at the reload")
        except Exception as error:  # noqa: BLE001 - the model that answers, or the configured one, does so in any case
            self._failed, self._retry_at = told, time.monotonic() + RETRY_AFTER
            logger.error("a reload is not followed: %s", error)
            return False
        self._install(version)
        return True

    async def _stored(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        return await within(self.config.reload_timeout, function, *arguments)

    async def _loaded(self, path: str, dim: int | None = None) -> Version:
        """A verified and tried version of the model at `path`, of the dimension `dim` if one is given."""
        try:
            version = await self._stored(Version.loaded, path, self.config)
            if dim not in (None, version.model.input_dim):
                raise ModelError(f"{path}: of {version.model.input_dim} dimensions, not {dim}")
            await asyncio.get_running_loop().run_in_executor(self._compute, version.try_out)
        except Exception:
            self.telemetry.reload("refused")
            raise
        return version

    def _install(self, version: Version) -> None:
        self._version, self._failed = version, None
        self.telemetry.reload("taken")
        logger.info("serving %s, model %s", version.path, version.checksum[:12])


async def within(seconds: float, function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Run a function that reads storage in a thread of its own, which is given up after some seconds.

    Storage may never answer: threads of a pool would be lost to it one by one.

    Raises
    ------
    UnreadableError
        Where it is given up.
    """
    result: Future[_Result] = Future()
    result.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result.set_result(function(*arguments))
        except BaseException as error:  # noqa: BLE001 - goes to the one who waits
            result.set_exception(error)

    threading.Thread(target=run, name="storage", daemon=True).start()
    try:
        return await asyncio.wait_for(asyncio.wrap_future(result), seconds)
    except (asyncio.TimeoutError, TimeoutError):
        raise UnreadableError(f"storage did not answer within {seconds:g} s") from None
