"""Assignment on Ray: Ray Data streams the list of files to a pool of actors that hold the model's index."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from numpy.typing import NDArray

from raydkm.config import RunConfig
from raydkm.engine.assign import AssignTask, assign_file, assigner_of
from raydkm.engine.ray_train import connect, cpus_each, cpus_of_nodes
from raydkm.errors import InputError, RaydkmError
from raydkm.model import Model


class _FileAssigner:
    def __init__(self, model: Model, task: AssignTask, threads: int):
        torch.set_num_threads(threads)
        self._assigner = assigner_of(model, task, threads)
        self._task = task

    def __call__(self, files: dict[str, NDArray]) -> dict[str, Any]:
        [source], [target] = files["source"], files["target"]
        try:
            counts, refusal = assign_file(self._assigner, self._task, str(source), str(target)), ""
        except RaydkmError as error:  # raised by the driver: one sentence instead of a task's traceback
            counts, refusal = np.zeros(self._assigner.model.clusters, dtype=np.int64), str(error)
        return {"counts": counts[None], "refusal": [refusal], "index": [json.dumps(asdict(self._assigner.choice))]}


def assign_on_ray(model: Model, task: AssignTask, run: RunConfig) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Assign all files of `task`; return the number of rows of each cluster, and the index that was chosen."""
    connect()
    files = [{"source": s, "target": t} for s, t in zip(task.table.files, task.outputs(), strict=True)]
    workers = run.workers or len(cpus_of_nodes())
    least, most = (min(n, len(files)) for n in (workers if isinstance(workers, tuple) else (workers, workers)))
    cpus = cpus_each((least, most))
    threads = run.threads or cpus
    results = (
        ray.data.from_items(files, override_num_blocks=len(files))
        .map_batches(
            _FileAssigner,
            fn_constructor_args=(model, task, threads),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
            num_cpus=cpus,
        )
        .take_all()
    )
    for result in results:
        if result["refusal"]:
            raise InputError(result["refusal"])
    return np.sum([result["counts"] for result in results], axis=0), json.loads(results[0]["index"])
