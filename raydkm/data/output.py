"""An output directory whose files appear whole or not at all, in a file system or an object store."""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from raydkm.data.storage import inside, locate, retried
from raydkm.errors import OutputError

_ATTEMPT = "_attempt-"


@dataclass(frozen=True)
class Output:
    """A directory, or the prefix of keys in an object store, that several processes write files to.

    In a file system a file is written in the directory of this *attempt* and renamed. `begin` removes those of earlier
    attempts, and `end` its own: a process that outlives its run can put nothing in its place any more. An object
    appears when all of it has been sent.

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

    def begin(self, marker: str) -> None:
        """Make the directory with the file `marker`, and a place for this attempt; no earlier one writes from here on.

        Raises
        ------
        OutputError
        """
        try:
            if self.local is None:
                self.commit(marker, b"")
                return
            self.local.mkdir(parents=True, exist_ok=True)
            (self.local / marker).touch()
            self.end()
            self._workplace(self.local).mkdir()
        except OSError as error:
            raise OutputError(f"cannot write to {self.name}: {error.strerror or error}") from None

    def commit(self, path: str, content: bytes | pa.Buffer) -> None:
        """Put a whole file in its place, on disk when this returns; what is there is replaced.

        Raises
        ------
        OutputError
        """
        try:
            if self.local is None:
                files, target = locate(inside(self.name, path))
                with files.open_output_stream(target) as stream:
                    stream.write(content)
                return
            partial, place = self._workplace(self.local) / uuid.uuid4().hex, self.local / path
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            place.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(place)
            _flush(place.parent)
        except FileNotFoundError:
            raise OutputError(
                f"cannot write to {self.name}: another run has taken it over, or this node does not share it"
            ) from None
        except OSError as error:
            raise OutputError(f"cannot write to {self.name}: {error.strerror or error}") from None

    def sizes(self) -> dict[str, int]:
        """Bytes of each file that was committed, by its path in this directory."""
        files, root = locate(self.name)
        selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
        found = retried(self.name, lambda: files.get_file_info(selector))
        sizes = {os.path.relpath(info.path, root): info.size for info in found if info.type == fs.FileType.File}
        return {path: size for path, size in sizes.items() if not path.startswith(_ATTEMPT)}

    def read(self, path: str) -> pa.Buffer:
        """The content of a file."""
        name = inside(self.name, path)
        files, target = locate(name)

        def content() -> pa.Buffer:
            with files.open_input_file(target) as stream:
                return stream.read_buffer()

        return retried(name, content)

    def remove(self, first: tuple[str, ...], last: str) -> None:
        """Remove everything: the files `first` before others, and `last` after all of them."""
        sizes = self.sizes()
        self.end()
        files, _ = locate(self.name)
        for path in [*first, *sorted(sizes.keys() - {*first, last}), last]:
            if path in sizes:
                files.delete_file(locate(inside(self.name, path))[1])
        if self.local is not None:
            shutil.rmtree(self.local, ignore_errors=True)

    def drop(self, directory: str) -> None:
        """Remove a directory in this one."""
        files, path = locate(inside(self.name, directory))
        if files.get_file_info(path).type != fs.FileType.NotFound:
            files.delete_dir(path)

    def end(self) -> None:
        """Remove what any attempt has left unfinished."""
        if self.local is not None:
            for left in self.local.glob(f"{_ATTEMPT}*"):
                while left.exists():  # who is writing there may add a file meanwhile, but not after it is gone
                    shutil.rmtree(left, ignore_errors=True)

    def _workplace(self, root: Path) -> Path:
        return root / f"{_ATTEMPT}{self.attempt}"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
