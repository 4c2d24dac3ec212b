"""What a fit's cost is estimated from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raydkm.config.fit import FitConfig, Problem


class PlanConfig(Problem):
    """What a fit's cost is estimated from."""

    rows: int = Field(..., ge=1, description="Number of rows N.")
    dim: int = Field(..., ge=1, description="Dimensions d.")
    dtype: Literal["float64", "float32", "float16", "int8", "uint8"] = Field(
        "float32", description="Of the stored rows, in which they are held."
    )
    steps: int = Field(30, ge=1, description="ADM steps S.")
    workers: int = Field(1, ge=1, description="Workers, each on a node (or GPU) of its own.")
    device: Literal["cpu", "a100", "h100"] = Field("cpu", description="Kind of device of a worker.")
    threads: int = Field(8, ge=1, description="Threads of each worker, on a CPU.")
    memory: float = Field(64.0, gt=0, description="GiB of host memory of each worker.")
    disk: float = Field(0.0, ge=0, description="GiB of local disk of each worker for rows, in TMPDIR.")
    network: float = Field(10.0, gt=0, description="Gbit/s of each worker to the others.")
    storage: float = Field(
        1.0, gt=0, description="GB/s of each worker from the storage of the files, decoding included."
    )
    storage_of_all: float | None = Field(
        None, gt=0, description="GB/s of the storage to all workers together (default: as many times storage)."
    )
    deadline: float | None = Field(None, gt=0, description="Hours in which the fit is to end: how many workers then?")

    @property
    def fit(self) -> FitConfig:
        """The fit that is planned; all else in it is as by default."""
        return FitConfig(**{name: getattr(self, name) for name in Problem.model_fields})
