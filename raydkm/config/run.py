"""Where a fit or an assignment is computed, and how fast."""

from __future__ import annotations

import os
import re
from typing import Any, Literal

from pydantic import Field, field_validator

from raydkm.config.base import Frozen


class RunConfig(Frozen):
    """Where a fit or an assignment is computed; changes nothing in its result."""

    engine: Literal["auto", "local", "ray"] = Field(
        "auto",
        description="local: in this process; ray: on a Ray cluster; auto: ray with --workers, where a "
        "cluster is connected (RAY_ADDRESS) or the data is of Ray Data, else local.",
    )
    workers: int | tuple[int, int] | None = Field(
        None,
        description="Workers on Ray, or MIN:MAX of them, as many as the cluster has room for at the time (default: one "
        "a node; of a fit on GPUs, one a GPU).",
    )
    threads: int | None = Field(None, ge=1, description="Threads of each worker (default: its CPUs).")

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_range(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = value.split(":")
        if isinstance(value, list | tuple) and len(value) == 1:
            [value] = value
        parts = value if isinstance(value, list | tuple) else [value]
        numbers = [int(part) for part in parts if re.fullmatch(r"[0-9]+", str(part))]
        if value is not None and (
            len(numbers) != len(parts) or len(parts) > 2 or sorted(numbers) != numbers or numbers[0] < 1
        ):
            raise ValueError("must be a positive number of workers, or MIN:MAX with MIN up to MAX")
        return value if value is None else numbers[0] if len(numbers) == 1 else tuple(numbers)


class AssignConfig(RunConfig):
    """Where an assignment is computed, and how the best prototypes are found."""

    index: Literal["auto", "flat", "ivf", "hnsw"] = Field(
        "auto",
        description="FAISS index of a hard model's prototypes: flat (all are compared), ivf, hnsw, or auto: flat below "
        "16,384 clusters, else the cheapest that reaches the recall. Of soft models all are compared.",
    )
    recall: float = Field(
        0.999,
        gt=0,
        le=1,
        description="Share of the rows, measured on the first ones, whose best prototype ivf or hnsw has to find; else "
        "the index is flat.",
    )
    range_rows: int = Field(
        262_144, ge=1, description="Most rows of an output file, which is of whole row groups of an input file."
    )
    partition_by: Literal["cluster"] | None = Field(
        None, description="cluster: a directory cluster=K for the rows of each cluster, instead of a column."
    )
    nearest: int | None = Field(
        None, ge=1, description="Also write the N rows of each cluster that are closest to its prototype."
    )


class FitRunConfig(RunConfig):
    """Where a fit is computed, and what survives a failure."""

    cache: Literal["auto", "device", "host", "disk", "stream"] = Field(
        "auto",
        description="Where a worker holds its rows: device (GPU) memory, host memory, local disk (memory-mapped, in "
        "TMPDIR); stream: nowhere, they are read again at each pass; auto: each part in the fastest with room.",
    )
    memory_budget: float | None = Field(
        None,
        gt=0,
        description="GiB of rows that a worker may hold in host memory, with cache auto (default: half its share of "
        "the memory there is).",
    )
    run_dir: str | None = Field(
        None,
        description="Directory (path or URI, reached by all nodes) for checkpoints; a fit started again with the same "
        "one goes on after the last.",
    )
    checkpoint_every: float = Field(30.0, ge=0, description="Seconds between checkpoints in run_dir.")
    max_failures: int = Field(3, ge=0, description="Lost workers or nodes after which a Ray run gives up.")
    timeout: float = Field(
        600.0,
        gt=0,
        description="Seconds that workers of a Ray run wait for one that does not answer, before it is lost.",
    )

    @field_validator("run_dir")
    @classmethod
    def _same_place_for_every_worker(cls, run_dir: str | None) -> str | None:
        return run_dir if run_dir is None or "://" in run_dir else os.path.abspath(run_dir)
