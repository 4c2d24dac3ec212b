"""A Ray cluster for each module of this folder; it is gone when other tests run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Four CPUs by name, so that three workers fit on any machine."""
    ray.init(num_cpus=4, logging_level="WARNING")
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/cluster" in str(item.path):
            item.add_marker(pytest.mark.ray)
