"""`raydkm.evaluate`: how a model's clusters agree with labels that no fit has read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from raydkm.data.columns import Columns
from raydkm.data.parquet import ParquetTable, scan_file
from raydkm.data.source import as_tensor
from raydkm.errors import InputError
from raydkm.model import Model, load
from raydkm.ops.metrics import agreement


def evaluate(
    model: Model | str | os.PathLike,
    data: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    label: str,
    column: str | None = None,
    reading: str | None = None,
    encoder: str | None = None,
) -> dict[str, Any]:
    """Assign rows and compare with a label column.

    Returns
    -------
    dict
        ``rows``, ``acc`` (best one-to-one matching), ``nmi``, ``ari``, ``inertia``, ``sizes`` (rows of each
        cluster), ``mean_entropy`` (nats).
    """
    model = (model if isinstance(model, Model) else load(model, encoder=encoder)).read_as(reading)
    table = ParquetTable.open(
        data, column or model.config.column, unit=model.unit, dim=model.input_dim, shape=model.shape
    )
    for path, schema in zip(table.files, table.schemas, strict=True):
        if label not in schema.names:
            raise InputError(f"{path}: no label column '{label}'; there are: {', '.join(schema.names)}")
    assigner = model.assigner()
    columns = Columns(table.columns.features, shape=table.columns.shape)
    labels, clusters, inertia, entropy = [], [], 0.0, 0.0
    for path in table.files:
        row = 0
        for batch in scan_file(path, list(dict.fromkeys([*columns.needed, label])), at_once=table.rows_at_once):
            if batch[label].null_count:
                raise InputError(f"{path}: column '{label}' has nulls in rows {row} to {row + len(batch)}")
            result = assigner(as_tensor(columns.extract(batch, path, row, unit=model.unit).rows))
            labels.append(_plain(batch[label]))
            clusters.append(result.clusters[:, 0])
            inertia += float(np.square(result.distance, dtype=np.float64).sum())
            entropy += float(result.entropy.sum(dtype=np.float64))
            row += len(batch)
    found = np.concatenate(clusters)
    return {
        "rows": len(found),
        **agreement(np.concatenate(labels), found),
        "inertia": inertia,
        "sizes": np.bincount(found, minlength=model.clusters).tolist(),
        "mean_entropy": entropy / len(found),
    }


def _plain(labels: pa.Array) -> np.ndarray:
    if isinstance(labels, pa.DictionaryArray):
        labels = labels.dictionary_decode()
    return labels.to_numpy(zero_copy_only=False)
