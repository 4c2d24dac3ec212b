"""What `raydkm serve` refuses before it starts anything, and what a replica's process imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import raydkm
from raydkm.cli import main
from raydkm.errors import ConfigError


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


def test_serve_is_shut_down_however_the_drain_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    from raydkm.serve import ray_serve

    clock, shut = [0.0], []
    ending = type("Status", (), {"applications": {ray_serve.NAME: None}})
    monkeypatch.setattr(ray_serve.serve, "delete", lambda name, _blocking: None)
    monkeypatch.setattr(ray_serve.serve, "status", lambda: ending)
    monkeypatch.setattr(ray_serve.serve, "shutdown", lambda: shut.append(clock[0]))
    monkeypatch.setattr(ray_serve.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(ray_serve.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    ray_serve.stop(120)  # replicas that never end
    assert 120 <= shut[0] <= 120 + ray_serve.GRACE + 1
    monkeypatch.setattr(ray_serve.serve, "status", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ray_serve.stop(120)
    assert len(shut) == 2
