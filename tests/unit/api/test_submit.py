"""What a name stands for, and what is refused before anything is sent; jobs run in tests/cluster/test_submit.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydkm.api.submit import check, submit
from raydkm.cli import main
from raydkm.engine import ray_submit
from raydkm.engine.ray_submit import Job
from raydkm.errors import ConfigError

LINE = "python3 -m raydkm fit data --out m"


class Server:
    """A job server with at most one job, whose calls are noted."""

    address = "http://127.0.0.1:8265"

    def __init__(self, job: Job | None):
        self._job = job
        self.calls: list[str] = []

    def find(self, name: str) -> Job | None:
        return self._job

    def start(self, name: str | None, command: str, runtime_env: dict[str, Any]) -> str:
        self.calls.append(f"start {command}")
        return name or "made-up"

    def forget(self, name: str) -> None:
        self.calls.append("forget")

    def follow(self, name: str, write: Any) -> Job:
        self.calls.append("follow")
        return Job(LINE, "SUCCEEDED", True, 0, "")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is asked of a server that has this job, to submit `raydkm fit data --out OUT` under the name m1."""

    def made(job: Job | None, out: str = "m") -> list[str]:
        server = Server(job)
        monkeypatch.setattr(ray_submit, "JobServer", lambda address: server)
        try:
            submit("fit", ["data", "--out", out], address=server.address, name="m1", write=lambda _: None)
        except ConfigError as error:
            assert "m1 is of another command" in str(error)
            server.calls.append("refused")
        return server.calls

    return made


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (None, [f"start {LINE}", "follow"]),
        ("RUNNING", ["follow"]),
        ("SUCCEEDED", []),
        ("FAILED", ["forget", f"start {LINE}", "follow"]),
        ("STOPPED", ["forget", f"start {LINE}", "follow"]),
    ],
)
def test_a_name_stands_for_one_command(calls: Any, status: str | None, expected: list[str]) -> None:
    job = None if status is None else Job(LINE, status, status != "RUNNING", 0, "")
    assert calls(job) == expected
    if job is not None:
        assert calls(job, out="other") == ["refused"]


@pytest.mark.parametrize(
    ("command", "given", "told"),
    [
        ("fit", {"objective": "kmens"}, "objective: must be one of"),
        ("fit", {"clusters": -3}, "clusters"),
        ("fit", {"objective": "kmeans", "temperature": "0.1Tc"}, "no temperature"),
        ("fit", {"workers": "3:2"}, "workers"),
        ("fit", {"init": "kmeans++"}, "init"),
        ("assign", {"recall": 2.0}, "recall"),
    ],
)
def test_what_a_job_would_refuse_at_once_is_refused(command: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check(command, given)


def test_files_of_the_nodes_are_not_looked_for() -> None:
    check("fit", {"init": "/nodes/m1", "marginal": "/nodes/shares.json", "balance": 0.5})
    check("fit", {"config": Path("nodes.yaml"), "lam": 0.1})
    check("assign", {"model": Path("/nodes/m1"), "data": ["x"], "out": "y", "top": 3, "index": "flat"})


@pytest.mark.parametrize("options", [["--objective", "kmens"], ["--clusters", "-3"]])
def test_the_command_line_sends_no_such_job(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:  # nobody listens at the address
        main(["submit", "fit", "data", "--out", "m", *options, "--address", "http://127.0.0.1:1"])
    assert ended.value.code == 2
    assert options[0].strip("-") in capsys.readouterr().err
