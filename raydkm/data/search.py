"""Search of a directory, or by a glob, for Parquet files: nothing that may hold rows is passed over in silence."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from pyarrow import fs

from raydkm.data.storage import named, retried
from raydkm.errors import InputError

logger = logging.getLogger("raydkm")

#: Mark a directory as an assignment's, and as a complete one.
MANIFEST, SUCCESS = "_manifest.json", "_SUCCESS"

#: Marks of tables of which a log tells which files hold rows; those of Iceberg are files ``metadata/*.metadata.json``.
_TABLES = {"_delta_log": "a Delta", ".hoodie": "a Hudi"}

#: All names that say how a directory is to be read.
SIGNS = (MANIFEST, SUCCESS, *_TABLES, "metadata")

#: Hidden names that hold no rows of their own, and are skipped without a word: those of raydkm, Hadoop and Spark.
BOOKKEEPING = (
    *(MANIFEST, SUCCESS, ".raydkm", "_manifest.parquet", "_summary.*", "_nearest.parquet"),
    *("_metadata", "_common_metadata", "_committed_*", "_started_*", ".*.crc"),
)

#: Names of Parquet files; one that is compressed as a whole is refused when its footer is read.
_PARQUET_NAME = re.compile(r"\.(parquet|parq|pq)(\.(gz|gzip|zst|zstd|bz2|xz|lz4|snappy|br))?$", re.IGNORECASE)

#: The first bytes of a Parquet file, plain or encrypted.
_MAGIC = (b"PAR1", b"PARE")

_READERS = 16

#: The names in a directory and what they are: a file, a directory, NotFound for a dangling link, or Unknown.
Children = Callable[[str], Iterable[tuple[str, fs.FileType]]]


def is_hidden(name: str) -> bool:
    """Whether readers of directories skip a name, as Spark does; `_year=2024` is a partition."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def check_plain(place: str, names: Iterable[str], metadata: Callable[[], Iterable[str]]) -> None:
    """Refuse a directory with these `names` if its Parquet files alone do not tell its rows.

    Raises
    ------
    InputError
        For a table of Delta, Iceberg or Hudi, and for an assignment that is not complete.
    """
    names = set(names)
    table = next((told for sign, told in _TABLES.items() if sign in names), None)
    if "metadata" in names and any(name.endswith(".metadata.json") for name in metadata()):
        table = "an Iceberg"
    if table is not None:
        raise InputError(
            f"{place} is {table} table: its files also hold rows that were deleted or replaced, which only its log "
            "tells; write its current rows to plain Parquet files first"
        )
    if MANIFEST in names and SUCCESS not in names:
        raise InputError(f"{place}: the assignment in {place} is not complete; run it again, it goes on")


class Search:
    """One search below a directory or by a glob.

    Parameters
    ----------
    item : str
        The path or URI that a user gave.
    files : pyarrow.fs.FileSystem
    path : str
        The same in this file system.
    """

    def __init__(self, item: str, files: fs.FileSystem, path: str):
        self._item, self._files, self._path = item, files, path
        self._skipped: dict[str, set[str]] = defaultdict(set)
        #: Directories of which it is known that plain Parquet files hold their rows.
        self.checked: set[str] = set()

    def below(self) -> list[str]:
        """Parquet files in the directory and in those below it."""
        root = self._path.rstrip("/")
        self._children = _children(self._item, self._files, root)
        found = self._parquet_below(root)
        self._tell_skipped()
        return found

    def matching(self) -> list[str]:
        """Files that match the glob, and Parquet files in directories that do."""
        parts = self._path.split("/")
        first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        root = "/".join(parts[:first])
        self._children = _children(self._item, self._files, root)
        found: dict[str, None] = {}
        for path, kind in self._matching(root, parts[first:]):
            if kind != fs.FileType.Directory:
                found[path] = None
            elif path not in self.checked:
                found |= dict.fromkeys(self._parquet_below(path))
        self._tell_skipped()
        return list(found)

    def _matching(self, directory: str, pattern: list[str]) -> Iterator[tuple[str, fs.FileType]]:
        head, *rest = pattern
        if head == "**":
            yield from self._matching(directory, rest) if rest else [(directory, fs.FileType.Directory)]
        for name, kind in self._children(directory):
            if (name.startswith(".") and not head.startswith(".")) or not fnmatchcase(name, head.replace("**", "*")):
                continue
            path, is_directory = f"{directory}/{name}", kind == fs.FileType.Directory
            if is_hidden(name) and not head.startswith(("_", ".")):
                self._skip_hidden(path, kind)
            elif head == "**" and is_directory:
                yield from self._matching(path, pattern)
            elif rest and head != "**":
                yield from self._matching(path, rest) if is_directory else ()
            elif not rest:
                self._check_kind(path, kind)
                yield path, kind

    def _parquet_below(self, directory: str) -> list[str]:
        found = list(self._walk(directory))
        others = [path for path in found if not _PARQUET_NAME.search(path)]
        with ThreadPoolExecutor(_READERS) as pool:
            begins = dict(zip(others, pool.map(self._begins_as_parquet, others), strict=True))
        self._skipped["of other kinds"] |= {path for path in others if not begins[path]}
        return [path for path in found if begins.get(path, True)]

    def _walk(self, directory: str) -> Iterator[str]:
        children = list(self._children(directory))
        metadata = f"{directory}/metadata"
        check_plain(
            named(self._item, directory),
            (name for name, _ in children),
            lambda: (name for name, _ in self._children(metadata)),
        )
        self.checked.add(directory)
        for name, kind in children:
            path = f"{directory}/{name}"
            if is_hidden(name):
                self._skip_hidden(path, kind)
            elif kind == fs.FileType.Directory:
                yield from self._walk(path)
            else:
                self._check_kind(path, kind)
                yield path

    def _check_kind(self, path: str, kind: fs.FileType) -> None:
        if kind == fs.FileType.NotFound:
            raise InputError(f"{named(self._item, path)}: a link to a file that is not there")
        if kind == fs.FileType.Unknown:
            raise InputError(f"{named(self._item, path)}: neither a file nor a directory")

    def _skip_hidden(self, path: str, kind: fs.FileType) -> None:
        name = path.rpartition("/")[2]
        if not any(fnmatchcase(name, pattern) for pattern in BOOKKEEPING):
            self._skipped["hidden"].add(f"{path}/" if kind == fs.FileType.Directory else path)

    def _begins_as_parquet(self, path: str) -> bool:
        def begins() -> bool:
            with self._files.open_input_file(path) as stream:
                return stream.read(4) in _MAGIC

        return retried(named(self._item, path), begins)

    def _tell_skipped(self) -> None:
        told = [f"{len(some)} {what} (such as {min(some)})" for what, some in self._skipped.items() if some]
        if told:
            logger.warning("%s: skipped %s", self._item, " and ".join(told))


def _children(item: str, files: fs.FileSystem, root: str) -> Children:
    """What lists a directory at or below `root`: a local one when it is asked for, an object store's all at once."""
    if isinstance(files, fs.LocalFileSystem):
        return _listed
    found: dict[str, dict[str, fs.FileType]] = defaultdict(dict)
    selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
    for info in retried(item, lambda: files.get_file_info(selector)):
        path, kind = info.path.rstrip("/"), info.type
        while path != root and path.rpartition("/")[2] not in found[path.rpartition("/")[0]]:
            directory, _, name = path.rpartition("/")
            found[directory][name] = kind
            path, kind = directory, fs.FileType.Directory  # which many stores do not list
    return lambda directory: sorted(found.get(directory, {}).items(), key=lambda child: child[0])


def _listed(directory: str) -> list[tuple[str, fs.FileType]]:
    try:
        entries = sorted(os.scandir(directory or "/"), key=lambda entry: entry.name)
        kinds = [_kind(entry) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{directory}: this directory cannot be read ({error.strerror})") from None
    return [(entry.name, kind) for entry, kind in zip(entries, kinds, strict=True)]


def _kind(entry: os.DirEntry[str]) -> fs.FileType:
    if entry.is_dir():
        if entry.is_symlink():
            place = PurePosixPath(entry.path)
            real = os.path.realpath(place)
            if any(os.path.realpath(above) == real for above in place.parents):
                raise InputError(f"{entry.path}: a link to a directory that it lies in")
        return fs.FileType.Directory
    if entry.is_file():
        return fs.FileType.File
    return fs.FileType.NotFound if entry.is_symlink() else fs.FileType.Unknown
