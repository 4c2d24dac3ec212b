"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from raydkm.errors import OutputError

#: Tells a directory that raydkm wrote, and may replace, from any other.
MARKER = ".raydkm"

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def check_path(out: str | os.PathLike) -> None:
    """Refuse a URI, also one that was made a path, which drops a slash of it."""
    if _URI.match(os.fspath(out)):
        raise OutputError(f"{out}: this output is a directory of a file system; give a path, and copy it afterwards")


def check_free(out: str | os.PathLike, *, overwrite: bool) -> Path:
    """Refuse an existing place unless it may be overwritten; for use before any work."""
    check_path(out)
    path = Path(out)
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise OutputError(f"{path} exists already; choose another place or pass overwrite (--overwrite)")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputError(f"{path} is a {'link' if path.is_symlink() else 'file'}; the output is a directory")
    if path.exists() and not (path / MARKER).exists() and any(path.iterdir()):
        raise OutputError(f"{path} was not written by raydkm, so it is not overwritten; remove it or choose another")
    existing = next(parent for parent in [path, *path.absolute().parents] if parent.exists())
    if not existing.is_dir():
        raise OutputError(f"cannot write to {path}: {existing} is a file")
    if not os.access(existing, os.W_OK):
        raise OutputError(f"cannot write to {existing}: permission denied")
    return path


def check_writable(out: str | os.PathLike, size: int) -> None:
    """Try to make the directory in which `out` would be written, and refuse a disk with fewer than `size` bytes free.

    Raises
    ------
    OutputError
    """
    with _staging(Path(os.path.abspath(out))) as staging:
        free = shutil.disk_usage(staging).free
    if free < size:
        raise OutputError(f"cannot write to {out}: {free} bytes are free there, and the output takes {size}")


@contextmanager
def new_directory(out: str | os.PathLike, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty directory beside `out` which takes its place when the block ends well.

    After an exception `out` is as it was, and after a crash too, but for one moment of an overwrite: between the two
    renames that swap the directories, the old one is called ``.NAME.….replaced`` beside it.
    """
    path = Path(os.path.abspath(check_free(out, overwrite=overwrite)))
    with _staging(path) as staging:
        (staging / MARKER).touch()
        yield staging
        for file in staging.rglob("*"):
            if file.is_file():
                flush(file)
        if path.exists():
            check_free(path, overwrite=overwrite)
            replaced = staging.with_suffix(".replaced")
            path.rename(replaced)
            try:
                staging.rename(path)
            except BaseException:
                replaced.rename(path)
                raise
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            staging.rename(path)
        flush(path.parent)


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """Yield a new directory beside `path`; at the end it is removed if it is still there, and new ones above it too."""
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    new_parents = [parent for parent in staging.parents if not parent.exists()]
    try:
        make_directory(staging)
    except OSError as error:
        raise OutputError(f"cannot write to {path.parent}: {error.strerror}") from None
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # it holds the output
                parent.rmdir()


def make_directory(path: Path) -> None:
    """Make a directory, and those above it, where they are not there; on disk when this returns."""
    new = list(takewhile(lambda each: not each.exists(), (path, *path.parents)))
    path.mkdir(parents=True, exist_ok=True)
    for each in new:
        flush(each.parent)


def flush(path: Path) -> None:
    """Have the disk hold a file, or the names in a directory, when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
