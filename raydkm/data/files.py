"""Which Parquet files a user means."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from itertools import pairwise
from pathlib import PurePosixPath

from pyarrow import fs

from raydkm.data.storage import identity, locate, named, plain, retried
from raydkm.errors import InputError

#: Tell that a directory is an assignment's, and that it is whole.
MANIFEST, SUCCESS = "_manifest.json", "_SUCCESS"


def find_files(data: str | os.PathLike | Iterable[str | os.PathLike]) -> list[str]:
    """Expand files, directories (searched for ``*.parquet``) and globs, as paths or URIs, to a sorted list of names.

    Raises
    ------
    InputError
        Where nothing matches, or one file is named twice.
    """
    found: list[str] = []
    for item in [data] if isinstance(data, str | os.PathLike) else data:
        found += _expand(os.fspath(item))
    real = sorted((identity(name), name) for name in found)
    for (one, first), (other, second) in pairwise(real):
        if one == other:
            raise InputError(f"{second} is named twice (also as {first}): every row must count once")
    if not real:
        raise InputError("no input: name Parquet files, directories or globs")
    return [name for _, name in real]


def relative_names(names: Iterable[str]) -> list[str]:
    """For each file, its path below the directory that all of them have in common."""
    paths = [plain(name) for name in names]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common) for path in paths]


def _expand(item: str) -> list[str]:
    files, path = locate(item)
    kind = retried(item, lambda: files.get_file_info(path)).type
    if kind == fs.FileType.File:
        return [item if "://" in item else path]
    if kind == fs.FileType.Directory:
        inside = retried(item, lambda: files.get_file_info(fs.FileSelector(path, recursive=True)))
        _check_whole(item, {info.path for info in inside})
        wanted = [info.path for info in inside if info.type == fs.FileType.File and _visible(info.path, path)]
        if not wanted:
            raise InputError(f"{item}: no *.parquet files in this directory")
        return [named(item, found) for found in wanted]
    matches = retried(item, lambda: _matches(files, path)) if glob.has_magic(path) else []
    if not matches:
        raise InputError(f"{item}: no such file or directory" + (", and no match" if glob.has_magic(path) else ""))
    return [named(item, found) for found in matches]


def _check_whole(item: str, paths: set[str]) -> None:
    """Refuse a directory in which there is an assignment that is not complete."""
    for path in sorted(paths):
        place, _, name = path.rpartition("/")
        if name == MANIFEST and f"{place}/{SUCCESS}" not in paths:
            raise InputError(f"{item}: the assignment in {place} is not complete; run it again, it goes on")


def _visible(path: str, directory: str) -> bool:
    inside = PurePosixPath(path).relative_to(directory.rstrip("/") or "/")
    return path.endswith(".parquet") and not any(part.startswith(("_", ".")) for part in inside.parts)


def _matches(files: fs.FileSystem, pattern: str) -> list[str]:
    if isinstance(files, fs.LocalFileSystem):
        return [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
    from fsspec.implementations.arrow import ArrowFSWrapper

    return [path for path, info in ArrowFSWrapper(files).glob(pattern, detail=True).items() if info["type"] == "file"]
