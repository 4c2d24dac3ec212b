"""Feature and weight columns: Arrow arrays → NumPy matrices, with everything unusable refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raydkm.errors import InputError

#: Beyond this a float32 square overflows.
LARGEST = 1e15


@dataclass(frozen=True)
class Columns:
    """Which columns hold the features and the weights.

    Parameters
    ----------
    features : tuple of str
        One list-like column, or several scalar ones that make one vector.
    weight : str or None
    """

    features: tuple[str, ...]
    weight: str | None = None
    shape: tuple[int, ...] | None = None

    @classmethod
    def named(
        cls, column: str | None, weight: str | None, available: list[str], *, shape: tuple[int, ...] | None = None
    ) -> Columns:
        """Split ``a,b,c``; a name that exists as a whole column wins over splitting it."""
        if column is None:
            raise InputError(f"name the feature column (--column); there are: {', '.join(available)}")
        features = (column,) if column in available else tuple(name.strip() for name in column.split(","))
        return cls(features, weight, shape)

    @property
    def needed(self) -> list[str]:
        return [*self.features, *([self.weight] if self.weight else [])]

    @property
    def label(self) -> str:
        return ",".join(self.features)

    def check(self, schema: pa.Schema, where: str) -> int | None:
        """Check names and types; return the dimension if the schema fixes it."""
        for name in self.needed:
            if name not in schema.names:
                raise InputError(f"{where}: no column '{name}'; there are: {', '.join(schema.names)}")
        if self.weight is not None and not _is_number(schema.field(self.weight).type):
            raise InputError(f"{where}: weight column '{self.weight}' is {schema.field(self.weight).type}, not numeric")
        types = [schema.field(name).type for name in self.features]
        if len(types) == 1 and (inner := _list_of(types[0])) is not None:
            if not _is_feature(inner):
                raise InputError(f"{where}: column '{self.label}' holds {inner}; features are floats or 8-bit integers")
            return _width(types[0])
        for name, kind in zip(self.features, types, strict=True):
            if not _is_number(kind):
                raise InputError(
                    f"{where}: column '{name}' is {kind}; expected a list of numbers, or numeric columns as a,b,c"
                )
        return len(types)

    def dtype(self, schema: pa.Schema) -> np.dtype:
        """The dtype in which `extract` returns the features of a `schema` that was checked."""
        kinds = [schema.field(name).type for name in self.features]
        return np.result_type(*(_numpy_dtype(kind) for kind in kinds))

    def extract(self, table: pa.Table | pa.RecordBatch, where: str, first: int, *, unit: bool) -> Block:
        """Rows (n, d) and weights of `table`, whose first row is row number `first` of `where`.

        Raises
        ------
        InputError
            On nulls, ragged vectors, NaN, infinities, overflowing values, bad weights and, with `unit`, zero
            vectors; the message names the place, the row and the column.
        """
        place = _Place(where, first, self.label)
        if len(self.features) == 1 and _list_of(table.schema.field(self.label).type) is not None:
            rows = _matrix(_one(table[self.label]), place)
        else:
            names = [_scalars(_one(table[name]), _Place(where, first, name)) for name in self.features]
            rows = np.stack(names, axis=1)
        check_rows(rows, place.row, unit=unit)
        weight = None
        if self.weight is not None:
            weight = _scalars(_one(table[self.weight]), _Place(where, first, self.weight)).astype(np.float64)
            check_weight(weight, _Place(where, first, self.weight).row)
        return Block(rows, weight)


@dataclass(frozen=True)
class Block:
    """Consecutive rows (n, d) in their stored dtype, and weights (n,) of float64 or None."""

    rows: NDArray
    weight: NDArray[np.float64] | None


@dataclass(frozen=True)
class _Place:
    where: str
    first: int
    column: str

    def row(self, index: int) -> str:
        return f"{self.where}: row {self.first + index}, column '{self.column}'"


def check_rows(rows: NDArray, place: Callable[[int], str], *, unit: bool) -> None:
    """Refuse NaN, infinities, values whose squares overflow float32 and, with `unit`, vectors without a direction.

    `place(i)` names row i in the message.
    """
    if rows.dtype.kind == "f" and rows.size and not _is_bounded(rows):
        finite = np.isfinite(rows)
        if not finite.all():
            bad = int((~finite).any(axis=1).argmax())
            kind = "NaN" if np.isnan(rows[bad]).any() else "an infinite value"
            raise InputError(f"{place(bad)}: {kind}; remove or impute such rows first")
        bad = int(np.flatnonzero((np.abs(rows) > LARGEST).any(axis=1))[0])
        raise InputError(f"{place(bad)}: a value beyond ±{LARGEST:g}, whose square overflows; rescale the column")
    if unit and len(rows):
        zero = ~rows.any(axis=1)
        if zero.any():
            raise InputError(f"{place(int(zero.argmax()))}: a zero vector has no direction (metric cosine)")
        if rows.dtype.kind == "f" and rows.dtype.itemsize > 2:
            short = np.maximum(rows.max(axis=1), -rows.min(axis=1)) < 1e4 * np.sqrt(np.finfo(rows.dtype).tiny)
            if short.any():
                raise InputError(f"{place(int(short.argmax()))}: a vector so short that its square underflows; rescale")


def _is_bounded(rows: NDArray) -> bool:
    """Whether no value is NaN, infinite or too large, in two reductions at most, without a copy in another dtype."""
    if rows.dtype == np.float16:  # by the exponent bits: NumPy converts every value
        return int((rows.view(np.uint16) & 0x7FFF).max()) < 0x7C00
    return bool(max(-rows.min(), rows.max()) <= LARGEST)  # a NaN among them makes this false


def check_weight(weight: NDArray[np.float64], place: Callable[[int], str]) -> None:
    bad = ~((weight >= 0) & (weight <= LARGEST))
    if bad.any():
        index = int(bad.argmax())
        raise InputError(f"{place(index)}: weight {weight[index]:g}; weights are between 0 and {LARGEST:g}")


def _one(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # combine_chunks of an empty or extension column
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _matrix(column: pa.Array, place: _Place) -> NDArray:
    _refuse_null(column, place)
    width = _width(column.type)
    if width is None:
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        width = int(lengths[0]) if len(lengths) else 0
        if (lengths != width).any():
            bad = int((lengths != width).argmax())
            raise InputError(f"{place.row(bad)}: {lengths[bad]} numbers where the rows before have {width}")
    values = column.flatten()
    if values.null_count:
        bad = int(values.is_null().to_numpy(zero_copy_only=False).argmax()) // max(width, 1)
        raise InputError(f"{place.row(bad)}: a null inside the vector")
    if width == 0 and len(column):
        raise InputError(f"{place.row(0)}: an empty vector")
    return values.to_numpy(zero_copy_only=False).reshape(len(column), width)


def _scalars(column: pa.Array, place: _Place) -> NDArray:
    _refuse_null(column, place)
    kind = pa.from_numpy_dtype(_numpy_dtype(column.type))
    return column.cast(kind, safe=False).to_numpy(zero_copy_only=False)  # integers beyond 2^53 are rounded


def _refuse_null(column: pa.Array, place: _Place) -> None:
    if column.null_count:
        bad = int(column.is_null().to_numpy(zero_copy_only=False).argmax())
        raise InputError(f"{place.row(bad)}: null; remove or impute such rows first")


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _list_of(kind: pa.DataType) -> pa.DataType | None:
    kind = _storage(kind)
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return kind.value_type if is_list else None


def _width(kind: pa.DataType) -> int | None:
    kind = _storage(kind)
    return kind.list_size if pa.types.is_fixed_size_list(kind) else None


def _numpy_dtype(kind: pa.DataType) -> np.dtype:
    if (inner := _list_of(kind)) is not None:
        return np.dtype(inner.to_pandas_dtype())
    return np.dtype(np.float32 if kind in (pa.float16(), pa.float32()) else np.float64)


def _is_feature(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or kind in (pa.int8(), pa.uint8())


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
