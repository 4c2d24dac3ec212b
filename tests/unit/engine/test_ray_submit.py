"""Following a job whose log breaks off; the rest is tested on a cluster (tests/cluster/test_submit.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from raydkm.engine import ray_submit
from raydkm.engine.ray_submit import JobServer
from raydkm.errors import ConfigError, EngineError

LOG = "one\ntwo\nthree\n"


class Client:
    """A job server whose connection ends after each of some lengths of the log, which begins anew each time."""

    def __init__(self, *lengths: int):
        self._lengths = list(lengths)
        self.gone = False
        self.silent = 0  # looks at the jobs that it does not answer

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        length = self._lengths.pop(0)
        for start in range(0, length, 4):
            yield LOG[start : min(start + 4, length)]
        if self._lengths:
            raise RuntimeError("closed")

    def list_jobs(self) -> list[Any]:
        if self.silent:
            self.silent -= 1
            raise ConnectionError("no answer")
        status = JobStatus.RUNNING if self._lengths else JobStatus.SUCCEEDED
        facts: dict[str, Any] = {"entrypoint": "fit", "status": status, "driver_exit_code": 0, "message": None}
        return [] if self.gone else [SimpleNamespace(submission_id="m1", **facts)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    def made(client: Client) -> JobServer:
        monkeypatch.setattr(ray_submit, "JobSubmissionClient", lambda address: client)
        monkeypatch.setattr(ray_submit, "_PAUSE", 0)
        return JobServer("http://127.0.0.1:8265")

    return made


@pytest.mark.parametrize("lengths", [(len(LOG),), (5, len(LOG)), (0, 9, 6, len(LOG)), (len(LOG), len(LOG))])
def test_each_character_of_a_log_is_passed_on_once(server: Any, lengths: tuple[int, ...]) -> None:
    written: list[str] = []
    job = server(Client(*lengths)).follow("m1", written.append)
    assert "".join(written) == LOG
    assert job.succeeded
    assert job.exit_code == 0


def test_a_server_that_does_not_answer_for_a_while_is_asked_again(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(len(LOG))
    client.silent = 5
    assert server(client).follow("m1", lambda _: None).succeeded
    client.silent = 5
    monkeypatch.setattr(ray_submit, "_PATIENCE", 0)
    client._lengths = [0]
    with pytest.raises(EngineError, match="no answer"):
        server(client).follow("m1", lambda _: None)


def test_a_job_that_is_deleted_meanwhile_is_an_error(server: Any) -> None:
    client = Client(3, 3)
    client.gone = True
    with pytest.raises(EngineError, match="m1 is no more"):
        server(client).follow("m1", lambda _: None)


def test_an_address_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="dashboard"):
        JobServer("ray://head:10001")
