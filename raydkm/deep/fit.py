"""A fit of features that are made of the rows: maps, then an encoder that is trained together with the clusters.

pre-train the encoder                                       contrastive, or as an autoencoder
repeat: encode the rows, average over neighbours, cluster   the closed-form ADM of `raydkm.engine.fit`
        train encoder and heads towards these clusters      epochs of SGD on views of the rows
encode, cluster; prototypes of what a row alone gives are the model's
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from socket import gethostname
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from raydkm.config import FeatureConfig, FitConfig, FitRunConfig
from raydkm.data.source import RowSource
from raydkm.deep.clusters import Clusterer, means_of
from raydkm.deep.saved import Origin, SavedFile
from raydkm.deep.training import Training
from raydkm.engine.checkpoint import CheckpointFile
from raydkm.engine.comm import Comm, gathered
from raydkm.engine.fit import Fitted, fit_rows
from raydkm.engine.maps import fit_maps
from raydkm.engine.passes import Passes, thread_pool
from raydkm.engine.progress import Reporter
from raydkm.engine.start import digest
from raydkm.engine.survey import survey
from raydkm.engine.where import computing, tiers_of
from raydkm.features.features import Features


def fit_features(
    source: RowSource,
    comm: Comm,
    config: FitConfig,
    *,
    made: FeatureConfig,
    run: FitRunConfig,
    threads: int,
    device: torch.device,
    start: np.ndarray | None = None,
    labels: Tensor | None = None,
    report: Reporter | None = None,
    checkpoints: CheckpointFile | None = None,
) -> Fitted:
    """Fit `config` to features `made` of the rows of all workers; arguments and errors are those of `fit_rows`.

    `start` and the prototypes found are in the coordinates of the features. Checkpoints are of the training where there
    is one; else of the ADM steps, but where features are averaged over neighbours.
    """
    report = report or Reporter([])
    began = time.perf_counter()
    if made.trains or made.hops:
        gathered(comm, source.check_held)
    beside = comm.all_gather(gethostname()).count(gethostname())  # workers on this machine
    share = computing(threads, device)
    with thread_pool(share) as pool:
        passes = Passes(source, comm, device, share, pool.map)
        maps, mapped = (
            fit_maps(made.stages, passes, config, tiers_of(run, device, beside)) if made.stages else ((), passes)
        )
        look = survey(passes, "euclidean", 1, config.seed)
    pixels = made.trains and not maps and look.sample_rows.dtype == torch.uint8
    features = Features(len(look.extent.low), made.dims, pixels, tuple(map(str, made.stages)), maps)
    seconds, facts = {"maps": time.perf_counter() - began}, dict[str, Any]()
    clusterer = Clusterer(source, comm, config, made, threads, device, partial(tiers_of, run, device, beside))
    given = None if start is None else torch.from_numpy(np.asarray(start, dtype=np.float64))
    if made.trains:
        file = None
        if run.run_dir:
            begun = None if start is None else digest(start)
            origin = Origin(config, made, look.fingerprint, begun)
            file = SavedFile(run.run_dir, run.checkpoint_every, origin)
        training = Training(clusterer, features, file, report)
        training.run([given] + [None] * (len(training.heads) - 1))
        seconds["training"] = time.perf_counter() - began - seconds["maps"]
        features, head = training.features, training.heads[training.best]
        encoded, linear = clusterer.encoded(features), training.head()
        if linear is not None:  # it has learned more than the clusters that it was trained with
            fitted = clusterer.by_head(encoded, head, linear, labels, report)
        else:
            if training.clusterings:
                given = means_of(encoded, training.clusterings[training.best].labels, head, comm)
            fitted = clusterer.finished(encoded, head, given, labels, report)
        features, facts = features.to(torch.device("cpu")), {"training": training.history}
    elif made.hops:
        fitted = clusterer.finished(cast(RowSource, mapped.source), config, given, labels, report)
    else:
        fitted = fit_rows(
            mapped.source,
            comm,
            config,
            threads=threads,
            device=device,
            start=start,
            labels=labels,
            report=report,
            checkpoints=checkpoints,
        )
    if made.trains or made.hops:
        facts |= {"fingerprint": look.fingerprint}
    return replace(fitted, features=features, seconds=seconds | fitted.seconds, facts=fitted.facts | facts)
