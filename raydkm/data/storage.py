"""Storage by path or URI (``s3://``, ``gs://``, ``file://``): the only place that knows where files are."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from pyarrow import fs

from raydkm.errors import InputError, OutputError, UnreadableError

T = TypeVar("T")

logger = logging.getLogger("raydkm")

#: Reads of one piece of a file, or writes of a whole one, before it is given up, and the seconds before the second of
#: them (then four times that).
ATTEMPTS = 4
FIRST_WAIT_S = 0.1


def locate(name: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it.

    A URI's query configures its file system (as ``s3://bucket/key?endpoint_override=host%3A9000&scheme=http``).

    Raises
    ------
    InputError
        For a URI that names no file system, or one whose support pyarrow lacks.
    """
    if "://" not in name:
        return _LOCAL, os.path.abspath(name)
    parts, files, base = _root(name)
    return files, f"{base}/{unquote(parts.path).lstrip('/')}"


_LOCAL = fs.LocalFileSystem()


@lru_cache(maxsize=64)
def _file_system(root: str) -> tuple[fs.FileSystem, str]:
    try:
        return fs.FileSystem.from_uri(root)
    except (OSError, ValueError) as error:
        raise InputError(f"{root}: {error}") from None


def _root(name: str) -> tuple[SplitResult, fs.FileSystem, str]:
    """The parts of a URI, its file system, and what paths in it begin with, without a slash at the end."""
    parts = urlsplit(name, allow_fragments=False)  # "#" is a character of a key like any other
    files, base = _file_system(urlunsplit((parts.scheme, parts.netloc, "/", parts.query, "")))
    return parts, files, base.rstrip("/")


def named(name: str, path: str) -> str:
    """The name of another `path` in the file system of `name`."""
    if "://" not in name:
        return path
    parts, _, base = _root(name)
    return urlunsplit((parts.scheme, parts.netloc, quote(path.removeprefix(base)), parts.query, ""))


def inside(directory: str, child: str) -> str:
    """The name of a file in a directory that is given as path or URI."""
    place, mark, query = directory.partition("?") if "://" in directory else (directory, "", "")
    return f"{place.rstrip('/')}/{child}{mark}{query}"


def is_local(name: str) -> bool:
    return isinstance(locate(name)[0], fs.LocalFileSystem)


def identity(name: str) -> str:
    """One text for all names of a file: the real path of a local one, else scheme and path."""
    files, path = locate(name)
    return os.path.realpath(path) if isinstance(files, fs.LocalFileSystem) else f"{files.type_name}://{path}"


def plain(name: str) -> str:
    """The path in a name, without scheme and query, from the root."""
    return f"/{locate(name)[1].lstrip('/')}"


def holds(directory: str | os.PathLike, name: str) -> bool:
    """Whether a directory is, or holds, what is called `name`, wherever links lead."""
    return f"{identity(name)}/".startswith(f"{identity(os.fspath(directory)).rstrip('/')}/")


def check_apart(out: str | os.PathLike, inputs: Iterable[str]) -> None:
    """Refuse an output that is or holds an input: overwriting it would delete the input."""
    for name in inputs:
        if holds(out, name):
            raise OutputError(f"{out} holds the input {name}; choose another place for the output")


def passing(error: OSError) -> bool:
    """Whether a failed read may go well when tried again."""
    return not isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)


def wait_to_retry(name: str, failures: int, error: OSError, *, done: str = "read") -> None:
    """Sleep before the next attempt, or raise `InputError` if it would fail again, `UnreadableError` after enough.

    `done` says what could not be done.
    """
    told = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not passing(error):
        raise InputError(f"{name}: {told}") from None
    if failures >= ATTEMPTS:
        raise UnreadableError(f"{name}: cannot be {done}, after {failures} attempts ({told})") from None
    logger.warning("%s: cannot be %s now (%s); trying again", name, done, told)
    time.sleep(FIRST_WAIT_S * 4 ** (failures - 1))


def retried(name: str, access: Callable[[], T], *, done: str = "read") -> T:
    """The value of ``access()``, which is called up to `ATTEMPTS` times while it raises `OSError`."""
    failures = 0
    while True:
        try:
            return access()
        except OSError as error:
            failures += 1
            wait_to_retry(name, failures, error, done=done)
