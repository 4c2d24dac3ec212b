"""Data and small problems that many tests start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

from raydkm.data.source import RowSource
from raydkm.engine.comm import Solo
from raydkm.engine.passes import Passes
from raydkm.objectives import OBJECTIVES, Objective, Setting, State
from raydkm.ops.balance import Balance
from raydkm.ops.frame import Frame
from raydkm.ops.moments import Extent, Moments, moment_fields, moment_statistics, moments
from tests import perturbed

perturbed.install()

CPU = torch.device("cpu")

settings.register_profile(
    "raydkm",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("raydkm")


@dataclass(frozen=True)
class Problem:
    """An objective on rows in memory, with a state to start from."""

    goal: Objective
    start: State
    passes: Passes
    frame: Frame
    facts: Moments
    z: NDArray[np.float64]  # the rows in the frame
    weight: NDArray[np.float64]


@pytest.fixture(scope="session", autouse=True)
def one_thread_in_torch() -> None:
    """Tests are small: sharing out their products costs more than it gains."""
    torch.set_num_threads(1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def blobs() -> Callable[..., tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Rows (n, d) of float32 around K centres whose coordinates lie `apart` standard deviations apart, and labels."""

    def make(
        rows: int = 300, dim: int = 4, clusters: int = 3, apart: float = 10.0, seed: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        rng = np.random.default_rng(seed)
        labels = rng.integers(clusters, size=rows)
        centres = apart * rng.standard_normal((clusters, dim))
        return (centres[labels] + rng.standard_normal((rows, dim))).astype(np.float32), labels

    return make


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of scikit-learn's digits in three Parquet shards: id, pixels, label."""
    from raydkm.api.demo import write_digits

    directory = tmp_path_factory.mktemp("data") / "digits"
    write_digits(directory, shards=3)
    return directory


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """Write columns as one Parquet file: matrices as lists of one length, all else as it is."""

    def make(path: Path, row_group_size: int | None = None, **columns: Any) -> Path:
        def plain(x: Any) -> Any:
            if isinstance(x, np.ndarray) and x.ndim == 2:
                return pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
            return x

        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({name: plain(column) for name, column in columns.items()})
        pq.write_table(table, path, row_group_size=row_group_size)
        return path

    return make


@pytest.fixture(scope="session")
def problem() -> Callable[..., Problem]:
    """Build an objective on an array; in float64 unless asked otherwise, with tol = 0."""

    def make(
        x: NDArray,
        start: NDArray,
        *,
        objective: str = "sr-kmeans",
        temperature: float = 1.0,
        beta: float = 0.0,
        weight: NDArray | None = None,
        metric: str = "euclidean",
        dtype: torch.dtype = torch.float64,
        precision: str = "fp32",
        **options: Any,
    ) -> Problem:
        source = RowSource.from_array(x, weight)
        passes = Passes(source, Solo(), CPU)
        identity = Frame.identity(metric, x.shape[1], dtype)
        extent = reduce(or_, (Extent.of(batch, identity) for batch in source.batches()))
        w = np.ones(len(x)) if weight is None else weight
        unit = identity(torch.from_numpy(np.ascontiguousarray(x))).double().numpy()
        frame = identity.centred_at(torch.from_numpy(w @ unit / w.sum()))
        fields = moment_fields(extent, frame, covariance=True)
        statistics = passes.sum(fields, moment_statistics(frame, extent.max_weight, covariance=True))
        facts = moments(statistics, extent, frame, covariance=True)
        options.setdefault("balance", Balance(beta))
        setting = Setting(
            clusters=len(start),
            temperature=temperature,
            moments=facts,
            frame=frame,
            objective_tol=0.0,
            precision=precision,
            **options,
        )
        goal = OBJECTIVES[objective](setting)
        state = goal.begin(torch.from_numpy(np.asarray(start, dtype=np.float64)) - frame.shift)
        return Problem(goal, state, passes, frame, facts, unit - frame.shift.numpy(), w)

    return make
