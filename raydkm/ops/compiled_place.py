"""Where compiled loops are kept where neither the packages nor the home directory can be written."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import tempfile
from pathlib import Path

logger = logging.getLogger("raydkm")


@functools.cache
def own_place() -> str | None:
    """Return a directory of this user alone among the temporary files, or None, with a warning, where there is none.

    It begins with a copy of NUMBA_CACHE_DIR, which an image may bring without letting it be written.
    """
    try:
        place = Path(tempfile.gettempdir(), f"raydkm-compiled-{os.geteuid()}")
        if not place.exists():
            _make(place)
        status = place.lstat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:  # what others put there would be run
            raise PermissionError(f"{place} is not of this user alone")
    except OSError as error:
        logger.warning(
            "compiled loops cannot be kept, and each process compiles them, for 10 to 20 s (%s): set NUMBA_CACHE_DIR "
            "to a directory that can be written",
            error,
        )
        return None
    return str(place)


def _make(place: Path) -> None:
    """Make a directory whole at once, for other processes may look for it at the same time."""
    staging = Path(tempfile.mkdtemp(prefix=f"{place.name}-"))  # of mode 700
    try:
        given = Path(os.environ.get("NUMBA_CACHE_DIR", ""))
        if given.name and given.is_dir():
            shutil.copytree(given, staging, dirs_exist_ok=True)
            staging.chmod(0o700)
        staging.rename(place)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        if not place.exists():  # another process was faster
            raise
