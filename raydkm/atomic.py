"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raydkm.errors import OutputError


def check_free(out: str | os.PathLike, *, overwrite: bool) -> Path:
    """Refuse an existing place unless it may be overwritten; for use before any work."""
    path = Path(out)
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise OutputError(f"{path} exists already; choose another place or pass overwrite (--overwrite)")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputError(f"{path} is a {'link' if path.is_symlink() else 'file'}; the output is a directory")
    return path


@contextmanager
def new_directory(out: str | os.PathLike, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty directory beside `out` which takes its place when the block ends well.

    After an exception, or a crash at any moment, `out` is as it was.
    """
    path = check_free(out, overwrite=overwrite)
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    new_parents = [parent for parent in staging.parents if not parent.exists()]
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"cannot write to {path.parent}: {error.strerror}") from None
    try:
        yield staging
        for file in staging.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            check_free(path, overwrite=overwrite)
            replaced = staging.with_suffix(".replaced")
            path.rename(replaced)
            staging.rename(path)
            shutil.rmtree(replaced)
        else:
            staging.rename(path)
        _flush(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # it holds the output
                parent.rmdir()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
