"""A process that dies, as tests play it."""

from __future__ import annotations

from pyarrow import fs


class Stopped(BaseException):
    pass


class Dying(fs.LocalFileSystem):
    """Its process dies at one of the files that it removes."""

    left = 0

    def delete_file(self, path: str) -> None:
        if not self.left:
            raise Stopped
        self.left -= 1
        super().delete_file(path)
