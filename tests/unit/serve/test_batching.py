from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydkm.engine.assign import Assignment
from raydkm.serve.batching import Batcher
from raydkm.serve.errors import BusyError


@dataclass(eq=False)
class Version:
    """In place of a model: a row's cluster is its value. The first batch waits until `go` is set."""

    go: threading.Event = field(default_factory=threading.Event)

    def assign(self, rows: np.ndarray, top: int | None) -> Assignment:
        self.go.wait(10)
        clusters = np.repeat(rows[:, :1].astype(np.int32), top or 1, axis=1)
        return Assignment(clusters, clusters.astype(np.float32), rows[:, 0], rows[:, 0])


def run(requests: list[tuple[int, int | None, str]], *, batch: int = 100, queue: int = 10**6) -> tuple[Any, Any]:
    """All requests (rows, top, dtype) come while the first is computed; return answers, and (vectors, requests)."""
    version, batches = Version(), []

    async def main() -> list[Any]:
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(pool, batch, queue, lambda vectors, count: batches.append((vectors, count)))
            first = asyncio.ensure_future(batcher.assign(version, np.full((1, 2), -1.0), None))  # type: ignore[arg-type]
            while not batches:
                await asyncio.sleep(0)
            tasks = [
                asyncio.ensure_future(
                    batcher.assign(version, np.full((n, 2), i % 50, dtype=dtype), top)  # type: ignore[arg-type]
                )
                for i, (n, top, dtype) in enumerate(requests)
            ]
            await asyncio.sleep(0)
            version.go.set()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            await first
            assert batcher.waiting == 0
            return found

    return asyncio.run(main()), batches[1:]


requests = st.lists(st.tuples(st.integers(1, 60), st.sampled_from([None, 1, 3]), st.sampled_from(["f4", "f8"])))


@given(requests)
def test_each_request_has_its_own_answer(asked: list[tuple[int, int | None, str]]) -> None:
    found, batches = run(asked)
    for i, ((rows, top, dtype), answer) in enumerate(zip(asked, found, strict=True)):
        assert answer.clusters.shape == (rows, top or 1)
        assert (answer.clusters == i % 50).all()
        assert answer.distance.dtype == np.dtype(dtype)
    assert sum(vectors for vectors, _ in batches) == sum(rows for rows, *_ in asked)
    assert all(vectors <= 100 for vectors, _ in batches)


def test_batches_are_filled_with_vectors() -> None:
    _, batches = run([(10, None, "f4")] * 25)
    assert batches == [(100, 10), (100, 10), (50, 5)]


def test_a_request_beyond_the_queue_is_told_when_to_come_again() -> None:
    found, _ = run([(40, None, "f4")] * 4, queue=100)
    assert [isinstance(answer, BusyError) for answer in found] == [False, False, True, True]
    assert found[2].status == 503
    assert int(found[2].headers["Retry-After"]) >= 1


def test_requests_of_two_kinds_that_take_turns_fill_two_batches() -> None:
    _, batches = run([(10, None, "f4"), (10, 3, "f4"), (10, None, "f8")] * 5)
    assert batches == [(50, 5)] * 3


def test_a_wait_is_told_that_a_client_may_keep() -> None:
    batcher = Batcher(None, 100, 100, lambda *_: None)  # type: ignore[arg-type]
    batcher.waiting, batcher._seconds_a_vector = 100, 10.0
    with pytest.raises(BusyError) as refused:
        asyncio.run(batcher.assign(Version(), np.zeros((1, 2)), None))  # type: ignore[arg-type]
    assert refused.value.headers["Retry-After"] == "30"


@pytest.mark.parametrize("place", ["tell", "assign"])
def test_a_failure_anywhere_is_the_answer_of_those_who_wait(place: str) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError(place)

    async def main() -> None:
        version = Version()
        version.go.set()
        version.assign = fail if place == "assign" else version.assign  # type: ignore[method-assign, assignment]
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(pool, 100, 100, fail if place == "tell" else lambda *_: None)
            for _ in range(2):
                with pytest.raises(RuntimeError, match=place):
                    await asyncio.wait_for(batcher.assign(version, np.zeros((1, 2)), None), 10)  # type: ignore[arg-type]

    asyncio.run(main())


def test_requests_that_nobody_waits_for_are_not_computed() -> None:
    version, batches = Version(), []

    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(pool, 10, 6, lambda vectors, _: batches.append(vectors))
            rows = np.zeros((3, 2))
            first = asyncio.ensure_future(batcher.assign(version, rows, None))  # type: ignore[arg-type]
            while not batches:
                await asyncio.sleep(0)
            second, third = (asyncio.ensure_future(batcher.assign(version, rows, top)) for top in (None, 2))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            assert batcher.waiting == 6
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            assert batcher.waiting == 3  # there is room for another
            fourth = asyncio.ensure_future(batcher.assign(version, rows, None))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            version.go.set()
            await asyncio.gather(first, third, fourth)

    asyncio.run(main())
    assert batches == [3, 3, 3]
