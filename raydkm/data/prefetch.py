"""Reading ahead: the next items are made in a thread while the last ones are used."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing
from queue import Full, Queue
from typing import TypeVar

T = TypeVar("T")

#: Seconds that closing waits for a read that has begun.
PATIENCE_S = 60.0


def prefetched(items: Generator[T, None, None], ahead: int) -> Generator[T, None, None]:
    """Yield `items` in their order; up to `ahead` of them are made before they are asked for.

    An exception of the iterator is raised where its item would have come. Closing this generator closes `items`
    and ends the thread, for which it waits; but not for ever, where a read does not return.
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
            with closing(items):
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
        closed.set()  # within 0.1 s the thread gives up handing over
        thread.join(PATIENCE_S)
