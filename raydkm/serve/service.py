"""One replica's state: the current version of the model, the batcher, and the change from a version to the next."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from numpy.typing import NDArray

from raydkm.engine.assign import Assignment
from raydkm.errors import ModelError, RaydkmError
from raydkm.serve.batching import Batcher
from raydkm.serve.errors import RefusalError
from raydkm.serve.schemas import ModelReply
from raydkm.serve.settings import ServeConfig
from raydkm.serve.telemetry import Telemetry
from raydkm.serve.versions import Choice, Version

logger = logging.getLogger("raydkm")

#: Seconds between looks at which model is to be served.
LOOK_EVERY = 1.0


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
        # one thread: FAISS and torch have their numbers of threads in common, and each batch has all of them
        self._compute = ThreadPoolExecutor(1, "assign")
        self.batcher = Batcher(self._compute, config.batch_vectors, config.queue_vectors, self.telemetry.batch)
        self._version: Version | None = None
        self._failed = ""
        self._changing = asyncio.Lock()

    @property
    def ready(self) -> bool:
        return self._version is not None

    @property
    def version(self) -> Version:
        """The current one; refuse (503) while there is none yet."""
        if self._version is None:
            raise RefusalError(503, "the model is being loaded", {"Retry-After": "1"})
        return self._version

    async def configure(self, model: str) -> None:
        """Serve the model at `model`, or that of the last reload since it was configured."""
        self._choice.configure(model)
        await self._go_over(self._choice.path())

    async def reload(self, name: str) -> tuple[Version, Version]:
        """Go over to a model of the directory, here and in all replicas; return the versions before and after."""
        path = self._choice.resolve(name)
        before = self.version
        try:
            after = await self._go_over(path, dim=before.model.dim)
        except RaydkmError as error:
            raise RefusalError(422, f"model {name!r} was not taken, {before.name} still answers: {error}") from None
        self._choice.tell(path)
        return before, after

    async def follow(self) -> None:
        """Go over to what another replica was told to; never returns."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                path = await asyncio.to_thread(self._choice.path)
                if self._version is not None and path not in (self._version.path, self._failed):
                    self._failed = path  # unless it succeeds, once is enough
                    await self._go_over(path, dim=self._version.model.dim)
            except (RaydkmError, OSError, ValueError, LookupError) as error:
                logger.error("the model before still answers: %s", error)

    async def assign(self, version: Version, rows: NDArray, top: int | None) -> Assignment:
        """Assign checked rows; see `Batcher`."""
        return await self.batcher.assign(version, rows, top)

    async def _go_over(self, path: str, dim: int | None = None) -> Version:
        async with self._changing:
            try:
                version = await asyncio.to_thread(Version.loaded, path, self.config)
                if dim not in (None, version.model.dim):
                    raise ModelError(f"{path}: of {version.model.dim} dimensions, not {dim}")
                await asyncio.get_running_loop().run_in_executor(self._compute, version.try_out)
            except Exception:
                self.telemetry.reload("refused")
                raise
            self._version, self._failed = version, ""
            self.telemetry.reload("taken")
            logger.info("serving %s, model %s", path, version.checksum[:12])
            return version

    def describe(self) -> ModelReply:
        version = self.version
        model, record = version.model, version.model.record
        return ModelReply(
            name=version.name,
            model=version.checksum,
            objective=model.config.objective,
            metric=model.config.metric,
            clusters=model.clusters,
            dim=model.dim,
            temperature=model.temperature,
            collapse_temperature=record["collapse_temperature"],
            balance=model.config.balance,
            loss=model.history[-1]["objective"],
            inertia=record["inertia"],
            rows=record["rows"],
            steps=record["steps"],
            stopped=record["stopped"],
            created=record["created"],
            seconds=record["seconds"]["total"],
            counts=model.counts.tolist(),
            history=[entry["objective"] for entry in model.history],
            max_top=version.most,
            max_vectors=self.config.request_vectors,
        )
