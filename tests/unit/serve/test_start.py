"""What `raydkm serve` refuses before it starts anything, and what a replica's process imports."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raydkm
from raydkm.cli import main
from raydkm.errors import ConfigError
from raydkm.serve.port import reserved
from raydkm.serve.settings import ServeAddress, ServeConfig
from raydkm.serve.tokens import Tokens


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--reading", "p"], "no posterior p"),
        (["--models", "absent"], "models: absent is no directory"),
    ],
)
def test_what_no_replica_could_serve_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], reason: str
) -> None:
    raydkm.fit(np.eye(4), clusters=2, objective="kmeans", out=tmp_path / "hard")
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(tmp_path / "hard"), *options])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_replica_has_none_of_the_arrow_types_that_unpickle() -> None:
    code = "import sys, raydkm.serve.ray_serve; print([m for m in ('ray.data', 'ray.train') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]


def test_what_an_earlier_service_reloaded_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raydkm.engine import ray_train
    from raydkm.serve import ray_serve

    told, running = tmp_path / ".serving.json", ray_serve.serve.schema.ServeStatus()
    told.write_text("{}")
    monkeypatch.setattr(ray_train, "connect", lambda: None)
    monkeypatch.setattr(ray_serve.serve, "status", lambda: running)
    ray_serve._join(str(tmp_path))
    assert not told.exists()
    told.mkdir()  # which cannot be removed so
    with pytest.raises(ConfigError, match="cannot be removed"):
        ray_serve._join(str(tmp_path))


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """In place of Serve: the time, the stages that replicas entered, the requests in them, when all was shut down."""
    from raydkm.serve import ray_serve

    told: dict[str, Any] = {"clock": 0.0, "stages": [], "present": [], "shut": []}

    def enter(stage: str) -> int:
        told["stages"].append((told["clock"], stage))
        found = told["present"].pop(0) if told["present"] else 0
        if isinstance(found, Exception):
            raise found
        return found

    def sleep(seconds: float) -> None:
        told["clock"] += seconds

    monkeypatch.setattr(ray_serve, "_enter", enter)
    monkeypatch.setattr(ray_serve.serve, "shutdown", lambda: told["shut"].append(told["clock"]))
    monkeypatch.setattr(ray_serve.time, "monotonic", lambda: told["clock"])
    monkeypatch.setattr(ray_serve.time, "sleep", sleep)
    return told


def test_a_service_ends_in_stages(ended: dict[str, Any]) -> None:
    from raydkm.serve import ray_serve

    ended["present"] = [4, 4, 2, 0]
    ray_serve.stop(ServeConfig(notice=5, drain=60))
    assert [stage for _, stage in ended["stages"]] == ["unready", "closed", "closed", "closed"]
    assert [time for time, _ in ended["stages"][:2]] == [0, 5]
    assert ended["shut"] == [ended["stages"][-1][0] + ray_serve.ON_THE_WAY]


def test_serve_is_shut_down_however_the_drain_ends(ended: dict[str, Any]) -> None:
    from ray.serve.exceptions import RayServeException

    from raydkm.serve import ray_serve

    ended["present"] = [1] * 10_000  # requests that never end
    ray_serve.stop(ServeConfig(notice=5, drain=120))
    assert 125 <= ended["shut"][0] <= 126
    ended["present"] = [RayServeException("it has not started")]
    ray_serve.stop(ServeConfig())
    ended["present"] = [ZeroDivisionError()]
    with pytest.raises(ZeroDivisionError):
        ray_serve.stop(ServeConfig())
    assert len(ended["shut"]) == 3


@contextmanager
def taken() -> Iterator[int]:
    """A port of loopback that is listened on as Serve's proxies do."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_port_that_is_taken_is_refused_before_ray_is_imported(host: str) -> None:
    with taken() as port:
        code = (
            "import sys\nfrom raydkm.cli import main\n"
            f"try: main(['serve', 'model', '--host', '{host}', '--port', '{port}'])\n"
            "except SystemExit as end: print(end.code, 'ray' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    [line] = done.stderr.splitlines()
    assert f"raydkm: http://{host}:{port}: this address cannot be listened on" in line


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.9"])
def test_a_host_that_is_not_this_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=host), reserved(ServeAddress(host=host)):
        pass


def test_a_port_is_reserved_for_one_service_and_its_proxies() -> None:
    with taken() as port:
        pass
    address = ServeAddress(port=port)
    with reserved(address):
        with pytest.raises(ConfigError, match="listened"), reserved(address):
            pass
        with socket.socket() as proxy:
            proxy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            proxy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            proxy.bind(("127.0.0.1", port))
            proxy.listen()
            with socket.create_connection(("127.0.0.1", port), timeout=5) as asking:
                connection, _ = proxy.accept()
                connection.close()  # first, so that the port has a connection that waits for its end
                assert not asking.recv(1)
    with reserved(address):  # which does not keep it
        pass


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "http://127.0.0.1:8103"), ("::1", "http://[::1]:8103")])
def test_the_url_of_an_address(host: str, url: str) -> None:
    assert ServeAddress(host=host, port=8103).url == url


def test_serve_refuses_nothing_before_the_replica_does() -> None:
    from raydkm.serve import ray_serve

    config = ServeConfig(queue_requests=5, body_requests=7)
    options = ray_serve.application(None, config, Tokens())._bound_deployment._deployment_config
    assert options.max_ongoing_requests > 12
    assert options.max_queued_requests > 12
    assert not options.logging_config["enable_access_log"]
