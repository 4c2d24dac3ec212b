"""Reading ahead: the next items are made in a thread while the last ones are used."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from queue import Full, Queue
from typing import Generic, TypeVar

T = TypeVar("T")

#: Seconds that closing waits for reads that have begun.
PATIENCE_S = 60.0


class Prefetched(Iterator[T], Generic[T]):
    """The items of a generator in their order, of which up to `ahead` are made before they are asked for.

    An exception of the generator is raised where its item would have come.
    """

    def __init__(self, items: Generator[T, None, None], ahead: int):
        self._made: Queue[tuple[T | None, BaseException | None]] = Queue(ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._make, args=(items,), name="raydkm-read", daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        item, error = self._made.get()
        if error is not None:
            self._made.put((item, error))  # for whoever asks again
            raise error
        return item  # type: ignore[return-value]

    def stop(self) -> None:
        """Have the thread close the generator and end, when it is done with the item it is at."""
        self._closed.set()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _make(self, items: Generator[T, None, None]) -> None:
        try:
            with closing(items):
                for item in items:
                    if not self._hand_over(item, None):
                        return
        except BaseException as error:  # noqa: BLE001 - raised again by the consumer
            self._hand_over(None, error)
        else:
            self._hand_over(None, StopIteration())

    def _hand_over(self, item: T | None, error: BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._made.put((item, error), timeout=0.1)
                return True
            except Full:
                continue
        return False


@contextmanager
def prefetched(*items: Generator[T, None, None], ahead: int) -> Iterator[list[Prefetched[T]]]:
    """Read from several generators at the same time, each in a thread.

    At the end the generators are closed and the threads waited for; but not for ever, where a read does not return.
    """
    readers = [Prefetched(each, ahead) for each in items]
    try:
        yield readers
    finally:
        for reader in readers:
            reader.stop()
        deadline = time.monotonic() + PATIENCE_S
        for reader in readers:
            reader.join(max(0.0, deadline - time.monotonic()))
