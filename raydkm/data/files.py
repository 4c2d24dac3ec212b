"""Which Parquet files a user means, and what the files made of them are called."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from urllib.parse import unquote

from pyarrow import fs

from raydkm.data.search import SIGNS, Search, check_plain
from raydkm.data.storage import identity, locate, named, plain, retried
from raydkm.errors import InputError

_READERS = 16

#: A part of a path that readers take for the value of a column, or the way in which `output_name` writes one.
_KEY = re.compile(r"(?P<key>.*?)(?P<sign>=|%(?:25)*3D)(?P<value>.*)", re.DOTALL)


def find_files(data: str | os.PathLike | Iterable[str | os.PathLike]) -> list[str]:
    """Expand files, directories and globs, as paths or URIs, to a sorted list of names of Parquet files.

    What a search passes over is logged; a table of Delta, Iceberg or Hudi and an assignment that is not complete are
    refused, also where a file in one of their directories is named.

    Raises
    ------
    InputError
        Where nothing matches, one file is named twice, or rows would be read that a reader does not see.
    """
    found: list[str] = []
    checked: set[str] = set()
    for item in [data] if isinstance(data, str | os.PathLike) else data:
        names, directories = _expand(os.fspath(item))
        found += names
        checked |= directories
    real = sorted((identity(name), name) for name in found)
    for (one, first), (other, second) in pairwise(real):
        if one == other:
            raise InputError(f"{second} is named twice (also as {first}): every row must count once")
    if not real:
        raise InputError("no input: name Parquet files, directories or globs")
    _check_above(found, checked)
    return [name for _, name in real]


def relative_names(names: Iterable[str]) -> list[str]:
    """For each file, its path below the directory that all of them have in common."""
    paths = [plain(name) for name in names]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common) for path in paths]


def output_name(relative: str, columns: Iterable[str]) -> str:
    """The relative path under which the rows of an input file are written with `columns`, another one for each.

    Readers of directories skip names that begin with "_" or "." and take a part ``KEY=value`` for a column. So the
    first character of hidden names is written as %5F or %2E, and "=" as %3D where a column is called KEY.
    """
    keys = {column.lower() for column in columns}
    return "/".join(_visible(part, keys) for part in relative.split("/"))


def _visible(part: str, keys: set[str]) -> str:
    if part[:1] in ("_", "."):
        part = f"%{ord(part[0]):02X}{part[1:]}"
    elif re.match("%(25)*(5F|2E)", part):  # as another name may be written
        part = f"%25{part[1:]}"
    if (found := _KEY.match(part)) and unquote(found["key"]).lower() in keys:
        sign = "%3D" if found["sign"] == "=" else f"%25{found['sign'][1:]}"
        part = f"{found['key']}{sign}{found['value']}"
    return part


def _expand(item: str) -> tuple[list[str], set[str]]:
    """The names of the files that an item means, and of the directories found to be plain ones."""
    files, path = locate(item)
    kind = retried(item, lambda: files.get_file_info(path)).type
    if kind == fs.FileType.File:
        return [item if "://" in item else path], set()
    search = Search(item, files, path)
    if kind == fs.FileType.Directory:
        found = search.below()
        if not found:
            raise InputError(f"{item}: no Parquet files in this directory")
    elif glob.has_magic(path):
        found = search.matching()
        if not found:
            raise InputError(f"{item}: no such file or directory, and no match")
    else:
        raise InputError(f"{item}: no such file or directory")
    return [named(item, each) for each in found], {named(item, each) for each in search.checked}


def _check_above(names: Iterable[str], checked: set[str]) -> None:
    """Refuse files below a directory, also where links lead to, whose Parquet files alone do not tell its rows."""
    above: set[str] = set()
    for name in names:
        files, path = locate(name)
        for place in {path, os.path.realpath(path)} if isinstance(files, fs.LocalFileSystem) else {path}:
            while (place := place.rpartition("/")[0]) and (directory := named(name, place)) not in above:
                above.add(directory)
    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(_check_directory, sorted(above - checked)))


def _check_directory(name: str) -> None:
    files, path = locate(name)

    def listed(directory: str) -> list[str]:
        with suppress(OSError):  # above the input a user may have no right to look
            selector = fs.FileSelector(directory, allow_not_found=True)
            return [info.base_name for info in files.get_file_info(selector)]
        return []

    if isinstance(files, fs.LocalFileSystem):  # where listing might take long, or mount what is not there
        names = [sign for sign in SIGNS if os.path.lexists(f"{path}/{sign}")]
    else:
        names = listed(path)
    check_plain(name, names, lambda: listed(f"{path}/metadata"))
