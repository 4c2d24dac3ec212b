"""`raydkm.evaluate`: how a model's clusters agree with labels that no fit has read."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from raydkm.data.columns import Columns, check_column
from raydkm.data.parquet import ParquetTable, scan_file
from raydkm.data.rows import plain_type
from raydkm.data.source import as_tensor
from raydkm.errors import ConfigError, InputError
from raydkm.model import Model, load
from raydkm.ops.metrics import agreement

logger = logging.getLogger("raydkm")


def evaluate(
    model: Model | str | os.PathLike,
    data: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    label: str,
    column: str | None = None,
    weight: str | None = None,
    unweighted: bool = False,
    reading: str | None = None,
    encoder: str | None = None,
) -> dict[str, Any]:
    """Assign rows and compare with a label column.

    Parameters
    ----------
    label : str
        Column of true labels.
    column : str, optional
        Feature column, if not called as in the fit.
    weight : str, optional
        Column of row weights. By default that of the fit, if it had one and the files have it; if they do not, a
        warning says so and rows weigh 1.
    unweighted : bool
        Whether rows weigh 1 whatever the fit did.

    Returns
    -------
    dict
        ``rows``, ``acc`` (best one-to-one matching), ``nmi``, ``ari``, ``inertia``, ``sizes`` (rows of each
        cluster), ``mean_entropy`` (nats); ``weight`` (the weight column, or None) and ``weights`` (of each cluster).
        Inertia, mean entropy and ``weights`` count rows by their weights. ``sizes`` and the agreement count every row
        once, as the metrics of scikit-learn do, which have no weights.
    """
    if unweighted and weight is not None:
        raise ConfigError("give weight or unweighted, not both")
    model = (model if isinstance(model, Model) else load(model, encoder=encoder)).read_as(reading)
    table = ParquetTable.open(
        data, column or model.config.column, unit=model.unit, dim=model.input_dim, shape=model.shape
    )
    classes = _Classes(table, label)
    weight = None if unweighted else weight or _own_weight(model, table)
    columns = Columns(table.columns.features, weight, shape=table.columns.shape)
    for path, schema in zip(table.files, table.schemas, strict=True):
        columns.check(schema, str(path))
    assigner = model.assigner()
    labels, clusters, inertia, entropy = [], [], 0.0, 0.0
    weights = np.zeros(model.clusters)
    for path in table.files:
        row = 0
        for batch in scan_file(path, list(dict.fromkeys([*columns.needed, label])), at_once=table.rows_at_once):
            labels.append(classes.of(batch[label], path, row))
            block = columns.extract(batch, path, row, unit=model.unit)
            weighs = np.ones(len(batch)) if block.weight is None else block.weight
            z = assigner.features(as_tensor(block.rows))
            result = assigner.labeller(z)
            squares = assigner.labeller.squared_distances(z, torch.from_numpy(result.labels.astype(np.int64)))
            clusters.append(result.labels)
            weights += np.bincount(clusters[-1], weights=weighs, minlength=model.clusters)
            inertia += float(weighs @ squares.numpy())
            entropy += float(weighs @ result.entropy.astype(np.float64))
            row += len(batch)
    if not weights.any():
        raise InputError(f"all weights are zero in column '{weight}': no row counts")
    found = np.concatenate(clusters)
    return {
        "rows": len(found),
        **agreement(np.concatenate(labels), found),
        "inertia": inertia,
        "sizes": np.bincount(found, minlength=model.clusters).tolist(),
        "mean_entropy": entropy / float(weights.sum()),
        "weight": weight,
        "weights": weights.tolist(),
    }


def _own_weight(model: Model, table: ParquetTable) -> str | None:
    """The weight column of the fit, if all files have it."""
    weight = model.config.weight
    for path, schema in zip(table.files, table.schemas, strict=True):
        if weight is not None and weight not in schema.names:
            logger.warning("%s: no column '%s', by which the fit weighed rows; rows weigh 1", path, weight)
            return None
    return weight


class _Classes:
    """Numbers of classes, one for each different label; numbers of any types are compared exactly."""

    def __init__(self, table: ParquetTable, label: str):
        self._label, self._numbers = label, dict[Any, int]()
        kinds = []
        for path, schema in zip(table.files, table.schemas, strict=True):
            if label not in schema.names:
                raise InputError(f"{path}: no label column '{label}'; there are: {', '.join(schema.names)}")
            check_column(schema, label, path)
            kinds.append(_kind(schema.field(label).type))
            if kinds[-1] is None:
                raise InputError(f"{path}: column '{label}' is {schema.field(label).type}; labels are numbers or texts")
            if kinds[-1] != kinds[0]:
                raise InputError(
                    f"{path}: labels in '{label}' are {kinds[-1]}, in {table.files[0]} {kinds[0]}; cast them"
                )

    def of(self, column: pa.Array, path: str, row: int) -> NDArray[np.int64]:
        """The classes of a column whose first row is row number `row` of a file."""
        kind = plain_type(column.type)
        column = column.cast(pa.float32() if kind == pa.float16() else kind)
        unusable = pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))
        if (first := unusable.index(True).as_py()) >= 0:
            what = "null" if column[first].as_py() is None else "NaN"
            raise InputError(
                f"{path}: row {row + first}, column '{self._label}': {what}; a label is needed of every row"
            )
        encoded = column.dictionary_encode()
        numbers = [self._numbers.setdefault(value, len(self._numbers)) for value in encoded.dictionary.to_pylist()]
        return np.array(numbers, dtype=np.int64)[encoded.indices.to_numpy()]


def _kind(kind: pa.DataType) -> str | None:
    """The kind of labels of a type: those of two kinds cannot be compared."""
    plain = plain_type(kind)
    if plain is None or plain.num_fields:
        return None
    if pa.types.is_integer(plain) or pa.types.is_floating(plain) or pa.types.is_boolean(plain):
        return "numbers"
    if pa.types.is_string(plain) or pa.types.is_large_string(plain):
        return "texts"
    return str(plain) if pa.types.is_primitive(plain) or pa.types.is_decimal(plain) else None
