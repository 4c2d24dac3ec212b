"""Compiled loops where the packages cannot be written and there is no home directory."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import numba.core.caching as caching

def read_only(self):
    raise OSError("read-only")

caching.InTreeCacheLocator.ensure_cache_path = read_only
caching.InTreeCacheLocatorFsAgnostic.ensure_cache_path = read_only
{more}
import numpy as np
from raydkm.ops.kernels import squares

into = np.empty(2)
squares(np.ones((2, 3)), into)
assert (into == 3).all()
print(sum(squares.stats.cache_hits.values()))
"""


def run(temporary: Path, more: str = "", **environment: str) -> tuple[int, str]:
    """Run a loop in a process that can write `temporary` alone; how often it found it compiled, and what it said."""
    given = os.environ | {"HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none", "TMPDIR": str(temporary)} | environment
    command = [sys.executable, "-c", CODE.format(more=more)]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout), done.stderr


def test_loops_are_kept_among_the_temporary_files_for_this_user_alone(tmp_path: Path) -> None:
    assert run(tmp_path) == (0, "")
    [place] = tmp_path.iterdir()
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert list(place.rglob("*.nbi"))
    assert run(tmp_path) == (1, "")
    assert list(tmp_path.iterdir()) == [place]


def test_what_an_image_brings_is_used_though_it_cannot_be_written(tmp_path: Path) -> None:
    image, temporary = tmp_path / "image", tmp_path / "tmp"
    temporary.mkdir()
    assert run(temporary, NUMBA_CACHE_DIR=str(image)) == (0, "")
    assert not list(temporary.iterdir())
    refuse = "caching.UserProvidedCacheLocator.ensure_cache_path = lambda self: " + (
        f"read_only(self) if self._cache_path.startswith({str(image)!r}) else None"
    )
    assert run(temporary, refuse, NUMBA_CACHE_DIR=str(image)) == (1, "")


@pytest.mark.parametrize("attack", ["mode", "link"])
def test_a_place_that_others_can_write_is_not_used(tmp_path: Path, attack: str) -> None:
    place = tmp_path / f"raydkm-compiled-{os.geteuid()}"
    if attack == "mode":
        place.mkdir()
        place.chmod(0o777)
    else:
        (tmp_path / "elsewhere").mkdir(mode=0o777)
        place.symlink_to(tmp_path / "elsewhere")
    found, said = run(
        tmp_path, 'import numba; numba.core.dispatcher.Dispatcher.stats = type("", (), {"cache_hits": {}})'
    )
    assert found == 0
    assert said.count("NUMBA_CACHE_DIR") == 1  # once, not for each loop
    assert not list(tmp_path.rglob("*.nbi"))
