"""A spill tier without room, on a real file system of half a MiB, is read around."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

import raydkm

pytestmark = pytest.mark.timeout(120)

OPTIONS = {"column": "a,b,c,d", "clusters": 5, "max_steps": 5, "engine": "ray", "workers": 1}


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster whose workers' TMPDIR is the small file system."""
    place = tmp_path_factory.mktemp("small")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    ray.init("local", num_cpus=2, logging_level="WARNING", runtime_env={"env_vars": {"TMPDIR": str(place)}})
    yield place
    ray.shutdown()
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="module")
def data(normal_rows: Callable[[int, str], Path]) -> Path:
    return normal_rows(60_000, "abcd")


def test_auto_reads_again_what_has_no_room(data: Path, capfd: pytest.CaptureFixture) -> None:
    model = raydkm.fit(data, memory_budget=1e-9, **OPTIONS)
    local = raydkm.fit(data, **{**OPTIONS, "engine": "local", "workers": None})
    assert model.checksum() == local.checksum()
    assert "read again at each pass, for want of room on local disk" in "".join(capfd.readouterr())
