"""Which Parquet files a user means."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from raydkm.errors import InputError


def find_files(data: str | os.PathLike | Iterable[str | os.PathLike]) -> list[str]:
    """Expand files, directories (searched for ``*.parquet``) and globs to a sorted list of paths.

    Raises
    ------
    InputError
        Where nothing matches, or one file is named twice.
    """
    found: list[str] = []
    for item in [data] if isinstance(data, str | os.PathLike) else data:
        found += _expand(os.fspath(item))
    real = sorted((os.path.realpath(path), path) for path in found)
    for (one, first), (other, second) in pairwise(real):
        if one == other:
            raise InputError(f"{second} is named twice (also as {first}): every row must count once")
    if not real:
        raise InputError("no input: name Parquet files, directories or globs")
    return [path for path, _ in real]


def _expand(item: str) -> list[str]:
    if os.path.isdir(item):
        hidden = ("_", ".")
        inside = [
            str(path)
            for path in Path(item).rglob("*.parquet")
            if not any(part.startswith(hidden) for part in path.relative_to(item).parts)
        ]
        if not inside:
            raise InputError(f"{item}: no *.parquet files in this directory")
        return inside
    if os.path.isfile(item):
        return [item]
    matches = [path for path in glob.glob(item, recursive=True) if os.path.isfile(path)]
    if not matches:
        raise InputError(f"{item}: no such file or directory" + (", and no match" if glob.has_magic(item) else ""))
    return matches
