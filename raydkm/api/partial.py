"""One mini-batch in, prototypes and a model out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raydkm.config import FitConfig, FitRunConfig
from raydkm.data.source import RowSource
from raydkm.engine.comm import Solo
from raydkm.engine.label import label
from raydkm.engine.minibatch import Running, begin, check_config, step
from raydkm.engine.passes import Passes, thread_pool
from raydkm.engine.result import origin
from raydkm.engine.where import computing, device_of, threads_of
from raydkm.model import Model


def fit_batch(
    x: NDArray,
    config: FitConfig,
    run: FitRunConfig,
    running: Running | None,
    *,
    start: NDArray | None = None,
    sample_weight: Any = None,
    history: list[dict[str, Any]],
) -> tuple[Running, Model, NDArray[np.int64]]:
    """Move the prototypes towards a batch x (n, d), and label its rows by them.

    Parameters
    ----------
    running : Running or None
        What the batches before have left; None for the first.
    start : ndarray (K, d), optional
        Initial prototypes, for ``init="array"``.
    history : list of dict
        Of the fit that came before the batches, for the model.

    Raises
    ------
    ConfigError, InputError
    """
    check_config(config)
    source = RowSource.from_array(x, sample_weight, unit=config.metric == "cosine")
    device = device_of(config)
    threads = computing(threads_of(run), device)
    with thread_pool(threads) as pool:
        passes = Passes(source, Solo(), device, threads, pool.map)
        running = step(running or begin(passes, config, start), passes, config)
    model = Model(
        config=config,
        temperature=running.temperature,
        prototypes=running.prototypes,
        shift=running.frame.shift,
        log_s=torch.zeros_like(running.counts),
        counts=running.counts,
        shares=running.counts / running.counts.sum(),
        record={
            "rows": running.rows,
            "weight": float(running.counts.sum()),
            "steps": running.steps,
            "batches": running.batches,
            "collapse_temperature": running.collapse_temperature,
            "engine": "local",
            "threads": threads,
            "device": str(device),
            **origin(),
        },
        history=history,
    )
    labels, model.record["inertia"] = label(model, source)
    return running, model, labels
