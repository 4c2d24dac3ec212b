"""The demonstration: every part of raydkm once, on data that ship with scikit-learn."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydkm.api.assign import assign
from raydkm.api.evaluate import evaluate
from raydkm.api.fit import fit
from raydkm.atomic import new_directory


def demo(directory: str | os.PathLike, *, workers: int = 2) -> dict[str, Any]:
    """Write digits as Parquet shards, fit them on Ray, evaluate, assign; return what a person wants to see."""
    began = time.perf_counter()
    place = Path(directory)
    with new_directory(place, overwrite=True) as staging:
        write_digits(staging / "digits", shards=4)
    shards = place / "digits"
    model = fit(shards, column="pixels", clusters=10, out=place / "model", engine="ray", workers=workers)
    scores = evaluate(model, shards, label="label")
    assigned = assign(model, shards, out=place / "assignments", keep=["id"], top=3, engine="ray", workers=workers)
    seconds, seeding = model.record["seconds"], model.record["seeding"]
    return {
        "rows": model.record["rows"],
        "clusters": model.clusters,
        "objective": {
            "best restart": min(seeding["restart_objectives"]),
            "first step": model.history[0]["objective"],
            f"step {len(model.history)}": model.history[-1]["objective"],
        },
        "ACC": scores["acc"],
        "NMI": scores["nmi"],
        "seconds": {
            "start-up": seconds["start"],
            "ingest": seconds["ingest"],
            "survey and seeding": seconds["survey"] + seconds["seeding"],
            "steps": seconds["steps"],
            "assignment": assigned["seconds"],
            "total": time.perf_counter() - began,
        },
        "files": [str(shards), str(place / "model"), str(place / "assignments")],
    }


def write_digits(directory: Path, *, shards: int) -> None:
    """Write scikit-learn's 1,797 digits, 8 x 8 pixels each, as `shards` Parquet files."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    table = pa.table(
        {
            "id": np.arange(len(pixels)),
            "pixels": pa.FixedSizeListArray.from_arrays(pa.array(pixels.astype(np.uint8).reshape(-1)), pixels.shape[1]),
            "label": labels.astype(np.int16),
        }
    )
    directory.mkdir(parents=True)
    for shard, rows in enumerate(np.array_split(np.arange(len(pixels)), shards)):
        pq.write_table(table.take(rows), directory / f"digits-{shard:02d}-of-{shards:02d}.parquet")
