"""An output directory whose files appear whole or not at all, in a file system or an object store."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from raydkm.atomic import MARKER, flush, make_directory
from raydkm.data.storage import inside, locate, retried
from raydkm.errors import InputError, OutputError, UnreadableError

_ATTEMPT, _OWNER, _CLAIM = "_attempt-", "_owner", ".claim-"

#: Tries, a second apart, to remove what an attempt has left: a network file system keeps what is still open.
_REMOVALS = 5


@dataclass(frozen=True)
class Output:
    """A directory, or the prefix of keys in an object store, that several processes write files to.

    In a file system a file is written in the directory of this *attempt* and renamed. `begin` removes those of earlier
    attempts, and `end` its own: a process that outlives its run can put nothing in its place any more. An object
    appears when all of it has been sent; there, `check_owned` tells a process that a later attempt has begun.

    Parameters
    ----------
    name : str
        Absolute path or URI.
    attempt : str
        Of one run of all its processes.
    """

    name: str
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @property
    def local(self) -> Path | None:
        """The directory, if it is one of a file system of this machine."""
        files, path = locate(self.name)
        return Path(path) if isinstance(files, fs.LocalFileSystem) else None

    def begin(self) -> None:
        """Make the directory with its marker, and a place for this attempt; no earlier one writes from here on.

        Raises
        ------
        OutputError
        """
        if self.local is None:
            self.commit(MARKER, b"")
            self.commit(_OWNER, self.attempt.encode())
            return
        with self._writing():
            make_directory(self.local)
            (self.local / MARKER).touch()
            self.end()
            self._workplace(self.local).mkdir()

    def claim(self, path: str, content: bytes) -> None:
        """Put a whole file in its place unless one is there; of several processes that claim it, one does.

        In an object store, where none can know of another, the later one replaces it.

        Raises
        ------
        OutputError
        """
        if self.local is None:
            if path not in self.sizes():
                self.commit(MARKER, b"")
                self.commit(path, content)
            return
        with self._writing():
            make_directory(self.local)
            (self.local / MARKER).touch()
            own, place = self.local / f"{_CLAIM}{uuid.uuid4().hex}", self.local / path
            own.mkdir()
            try:
                (own / path).write_bytes(content)
                flush(own / path)
                try:
                    os.link(own / path, place)
                except FileExistsError:
                    return
                except OSError:  # a file system without links
                    if not place.exists():
                        (own / path).rename(place)
                flush(self.local)
            finally:
                shutil.rmtree(own, ignore_errors=True)

    def commit(self, path: str, content: bytes | pa.Buffer) -> None:
        """Put a whole file in its place, on disk when this returns; what is there is replaced.

        Raises
        ------
        OutputError
        """
        if self.local is None:
            self._send(inside(self.name, path), content)
            return
        partial, place = self._workplace(self.local) / uuid.uuid4().hex, self.local / path
        with self._writing():
            try:
                with partial.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                make_directory(place.parent)
                partial.replace(place)
                flush(place.parent)
            except FileNotFoundError:
                raise OutputError(
                    f"cannot write to {self.name}: another run has taken it over, or this node does not share it"
                ) from None

    def _send(self, name: str, content: bytes | pa.Buffer) -> None:
        files, target = locate(name)

        def send() -> None:
            with files.open_output_stream(target) as stream:
                stream.write(content)

        try:
            retried(name, send, done="written")
        except InputError as error:
            raise OutputError(str(error)) from None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write to {self.name}: {error.strerror or error}") from None

    def check_owned(self) -> None:
        """Refuse to go on where another attempt has begun in an object store; in a file system `commit` does.

        Raises
        ------
        OutputError
        """
        if self.local is not None:
            return
        try:
            owner = self.read(_OWNER).to_pybytes().decode()
        except UnreadableError:
            raise
        except InputError:  # there is none: the other run has ended
            owner = ""
        if owner != self.attempt:
            raise OutputError(f"cannot write to {self.name}: another run has taken it over")

    def sizes(self) -> dict[str, int]:
        """Bytes of each file that was committed, by its path in this directory."""
        files, root = locate(self.name)
        selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
        found = retried(self.name, lambda: files.get_file_info(selector))
        sizes = {os.path.relpath(info.path, root): info.size for info in found if info.type == fs.FileType.File}
        return {path: size for path, size in sizes.items() if not path.startswith((_ATTEMPT, _OWNER, _CLAIM))}

    def read(self, path: str) -> pa.Buffer:
        """The content of a file."""
        name = inside(self.name, path)
        files, target = locate(name)

        def content() -> pa.Buffer:
            with files.open_input_file(target) as stream:
                return stream.read_buffer()

        return retried(name, content)

    def remove(self, first: str, last: str) -> None:
        """Remove everything: the file `first` before all others, `last` after them, and then the marker.

        Raises
        ------
        OutputError
        """
        with self._writing():
            self.end()
            sizes = self.sizes()
            files, _ = locate(self.name)
            for path in [first, *sorted(sizes.keys() - {first, last, MARKER}), last]:
                if path in sizes:
                    files.delete_file(locate(inside(self.name, path))[1])
            if self.local is None:
                files.delete_file(locate(inside(self.name, MARKER))[1])
                return
            for left in self.local.iterdir():
                if left.name != MARKER:  # an empty directory
                    _remove(left)
            (self.local / MARKER).unlink()
            self.local.rmdir()

    def drop(self, directory: str) -> None:
        """Remove a directory in this one."""
        files, path = locate(inside(self.name, directory))
        with self._writing():
            if files.get_file_info(path).type != fs.FileType.NotFound:
                files.delete_dir(path)

    def end(self) -> None:
        """Remove what any attempt has left unfinished.

        Raises
        ------
        OutputError
        """
        with self._writing():
            if self.local is None:
                files, path = locate(inside(self.name, _OWNER))
                if files.get_file_info(path).type != fs.FileType.NotFound:
                    files.delete_file(path)
                return
            for left in self.local.glob(f"{_ATTEMPT}*"):
                gone = self.local / f"{_ATTEMPT}{uuid.uuid4().hex}"
                with suppress(FileNotFoundError):  # another run has removed it
                    left.rename(gone)  # who was writing there can add nothing more
                    _remove(gone)

    def _workplace(self, root: Path) -> Path:
        return root / f"{_ATTEMPT}{self.attempt}"


def _remove(directory: Path) -> None:
    for _ in range(_REMOVALS):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(1)
    raise OutputError(f"cannot remove {directory}")
