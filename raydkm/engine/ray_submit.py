"""Jobs of a Ray cluster, through the job server of its head; with RAY_AUTH_MODE=token Ray sends the token."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from raydkm.errors import ConfigError, EngineError

logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.ERROR)  # it tells of connections that end

#: Seconds between looks at a job whose log has ended or broken off.
_PAUSE = 0.5

#: Seconds for which a server that does not answer is asked again while a job is followed.
_PATIENCE = 30.0


@dataclass(frozen=True)
class Job:
    """What the server tells of a job. `exit_code` is None while it has not ended, or where it was stopped."""

    command: str
    status: str
    over: bool
    exit_code: int | None
    message: str

    @property
    def succeeded(self) -> bool:
        return self.status == JobStatus.SUCCEEDED


class JobServer:
    """The job server at `address`.

    Raises
    ------
    EngineError
        From every method, if the server does not answer, or refuses.
    """

    def __init__(self, address: str):
        if not address.startswith(("http://", "https://")):
            raise ConfigError(f"address {address}: give that of the dashboard, such as http://127.0.0.1:8265")
        self.address = address
        with self._asked():
            self._client = JobSubmissionClient(address)

    def find(self, name: str) -> Job | None:
        """The job of this name, or None."""
        with self._asked():
            info = next((job for job in self._client.list_jobs() if job.submission_id == name), None)
        if info is None:
            return None
        over = info.status.is_terminal()
        return Job(info.entrypoint, str(info.status), over, info.driver_exit_code if over else None, info.message or "")

    def start(self, name: str | None, command: str, runtime_env: dict[str, Any]) -> str:
        """Start a job and return its name, which the server makes up for None."""
        with self._asked():
            return self._client.submit_job(entrypoint=command, submission_id=name, runtime_env=runtime_env)

    def forget(self, name: str) -> None:
        """Free the name of a job that is over."""
        with self._asked():
            self._client.delete_job(name)

    def follow(self, name: str, write: Callable[[str], object]) -> Job:
        """Pass on a job's log, from its beginning, until it is over; a connection that breaks off is made again."""
        written = 0

        async def pass_on() -> None:
            nonlocal written
            passed = 0
            async for part in self._client.tail_job_logs(name):
                fresh = part[max(0, written - passed) :]
                passed += len(part)
                written += len(fresh)
                write(fresh)

        while True:
            try:
                asyncio.run(pass_on())
            except (RuntimeError, aiohttp.ClientError):  # the next look says whether the server is still there
                time.sleep(_PAUSE)
            job = self._found(name)
            if job is None:
                raise EngineError(f"the job {name} is no more: it was deleted")
            if job.over:
                return job
            time.sleep(_PAUSE)

    def _found(self, name: str) -> Job | None:
        """`find`, by a server that may be busy or out of reach for a while."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return self.find(name)
            except EngineError:
                if time.monotonic() >= until:
                    raise
                time.sleep(_PAUSE)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except (
            RayError,
            RuntimeError,
            OSError,
            ValueError,
        ) as error:  # no token; a refusal; no answer; no such directory
            reason = " ".join(str(error).split("\n\n")[0].split())
            raise EngineError(f"the job server at {self.address}: {reason}") from error
