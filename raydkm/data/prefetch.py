"""Reading ahead: the next items are made in a thread while the last ones are used."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from queue import Empty, Full, Queue
from typing import TypeVar

T = TypeVar("T")


def prefetched(items: Iterator[T], ahead: int) -> Generator[T, None, None]:
    """Yield `items` in their order; up to `ahead` of them are made before they are asked for.

    An exception of the iterator is raised where its item would have come. Closing this generator ends the thread.
    """
    made: Queue[tuple[T | None, BaseException | None]] = Queue(ahead)
    closed = threading.Event()

    def hand_over(item: T | None, error: BaseException | None) -> bool:
        while not closed.is_set():
            try:
                made.put((item, error), timeout=0.1)
                return True
            except Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not hand_over(item, None):
                    return
        except BaseException as error:  # noqa: BLE001 - raised again by the consumer
            hand_over(None, error)
        else:
            hand_over(None, StopIteration())

    thread = threading.Thread(target=make, name="raydkm-read", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        while thread.is_alive():
            try:
                made.get_nowait()
            except Empty:
                thread.join(0.05)
